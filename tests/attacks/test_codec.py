"""JPEG and WebP against other encoders and decoders."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from waterproof.attacks.codec import Jpeg, WebP
from waterproof.core.errors import ImageError
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed

SAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def jpeg_by_opencv(picture: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[subsampling]]
    _, code = cv2.imencode(".jpg", picture[..., ::-1], options)
    return cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("quality", [10, 50, 90, 99])
@pytest.mark.parametrize("subsampling", list(SAMPLING))
def test_jpeg_equals_opencvs_bit_for_bit(attacked, photographs: Images, quality: int, subsampling: str):
    ours = attacked("jpeg", photographs, quality=quality, subsampling=subsampling)
    theirs = [jpeg_by_opencv(picture, quality, subsampling) for picture in photographs.numpy()]
    np.testing.assert_array_equal(ours, theirs)


def test_repeated_jpeg_is_jpeg_of_jpeg(attacked, photographs: Images):
    by_hand = photographs
    for _ in range(3):
        by_hand = Jpeg(quality=40).apply(by_hand, Seed.root(0))
    np.testing.assert_array_equal(attacked("jpeg", photographs, quality=40, repeats=3), by_hand.numpy())
    assert not np.array_equal(attacked("jpeg", photographs, quality=40), by_hand.numpy())


@pytest.mark.parametrize(("quality", "method"), [(10, 4), (80, 4), (50, 0)])
def test_webp_decodes_as_opencv_decodes_it(attacked, photographs: Images, quality: int, method: int):
    ours = attacked("webp", photographs, quality=quality, method=method)
    for result, picture in zip(ours, photographs.pil(), strict=True):
        file = BytesIO()
        picture.save(file, "WEBP", quality=quality, method=method, lossless=False)
        code = np.frombuffer(file.getvalue(), np.uint8)
        np.testing.assert_array_equal(result, cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def test_images_that_the_format_cannot_hold_are_refused():
    long = Images.from_numpy(np.zeros((1, 1, 16384, 3), np.uint8), [Record("long")])
    with pytest.raises(ImageError, match="WEBP holds at most 16383 pixels a side"):
        WebP().apply(long, Seed.root(0))


def test_missing_webp_support_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    assert Image.registered_extensions()[".webp"] == "WEBP"
    assert WebP().unavailable() is None
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    assert "built without WebP: install" in str(WebP().unavailable())
