"""Every kind of pixel becomes 8-bit RGB by the documented rule."""

from __future__ import annotations

import struct
import warnings
import zlib
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, features

from waterproof.datasets.decoding import UnusableImageError, decode, fit, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.core.images import Images

LIMIT = 64_000_000


def saved(picture: Image.Image, container: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, container, **options)
    return file.getvalue()


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, LIMIT)[0])


def notes(data: bytes) -> tuple[str, ...]:
    return decode(data, LIMIT)[1]


def png(width: int, height: int, *chunks: tuple[bytes, bytes], kind: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*item) for item in chunks), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def photograph(photographs: Images) -> np.ndarray:
    return photographs.numpy()[0][:96, :128]


@pytest.mark.parametrize("container", ["PNG", "TIFF", "BMP", "PPM"])
def test_a_lossless_file_gives_its_pixels(photograph: np.ndarray, container: str) -> None:
    data = saved(Image.fromarray(photograph), container)
    assert np.array_equal(rgb(data), photograph)
    assert notes(data) == ()


@pytest.mark.parametrize("container", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_a_lossy_file_gives_about_its_pixels(photograph: np.ndarray, container: str) -> None:
    if container == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    options = {} if container == "GIF" else {"quality": 95}
    decoded = rgb(saved(Image.fromarray(photograph), container, **options))
    assert np.abs(decoded.astype(int) - photograph).mean() < 8


def test_jpeg_pixels_are_those_that_opencv_decodes(photograph: np.ndarray) -> None:
    data = saved(Image.fromarray(photograph), "JPEG", quality=80)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(rgb(data), other)


def test_greyscale_is_replicated(photograph: np.ndarray) -> None:
    grey = photograph[..., 1]
    data = saved(Image.fromarray(grey), "PNG")
    assert np.array_equal(rgb(data), np.repeat(grey[..., None], 3, axis=2))
    assert notes(data) == ("greyscale to RGB",)


def test_bilevel_becomes_black_and_white(photograph: np.ndarray) -> None:
    data = saved(Image.fromarray(photograph[..., 1] > 100), "PNG")
    assert np.array_equal(rgb(data)[..., 2], (photograph[..., 1] > 100) * 255)
    assert notes(data) == ("bilevel to RGB",)


def test_palettes_are_looked_up(photograph: np.ndarray) -> None:
    indexed = Image.fromarray(photograph).quantize(16)
    table = np.array(indexed.getpalette()).reshape(-1, 3)
    data = saved(indexed, "PNG")
    assert np.array_equal(rgb(data), table[np.asarray(indexed)])
    assert notes(data) == ("palette to RGB",)


def test_cmyk_is_converted_by_the_plain_formula() -> None:
    inks = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    data = saved(Image.fromarray(inks, "CMYK"), "TIFF")
    paper = 1 - inks.astype(float) / 255
    expected = 255 * paper[..., :3] * paper[..., 3:]
    assert np.abs(rgb(data) - expected).max() <= 1
    assert notes(data) == ("CMYK to RGB",)


def test_an_inverted_adobe_cmyk_jpeg_has_white_paper() -> None:
    blank = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    data = saved(blank, "JPEG")
    assert b"Adobe" in data
    assert rgb(data).min() >= 254


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    values = np.concatenate([np.arange(0, 65536, 13), [0, 128, 129, 385, 386, 65406, 65407, 65535]]).astype(np.uint16)
    values = values[: len(values) // 16 * 16].reshape(16, -1)
    for container in ("PNG", "TIFF"):
        data = saved(Image.fromarray(values), container)
        exact = np.array([[round(Fraction(int(v) * 255, 65535)) for v in row] for row in values])
        assert np.array_equal(rgb(data)[..., 0], exact)
        assert notes(data) == ("16 bits scaled to 8", "greyscale to RGB")


def test_16_bit_colour_keeps_the_high_byte(photograph: np.ndarray) -> None:
    deep = photograph.astype(np.uint16) * 256 + 77
    data = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    assert np.array_equal(rgb(data), photograph)
    assert notes(data) == ("16 bits to the high 8",)


def test_32_bit_integers_count_as_16_bit_or_are_refused() -> None:
    values = np.array([[0, 257, 65535]], np.int32)
    assert rgb(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 1, 255]
    for beyond in (values - 1, values + 1):
        with pytest.raises(UnusableImageError, match="integers outside 0 to 65535"):
            decode(saved(Image.fromarray(beyond), "TIFF"), LIMIT)


def test_floats_from_0_to_1_are_scaled_and_others_refused() -> None:
    values = np.array([[0, 0.5, 1]], np.float32)
    assert rgb(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    for beyond in (values * 255, values - 0.1, values * np.nan):
        with pytest.raises(UnusableImageError, match="floats outside 0 to 1"):
            decode(saved(Image.fromarray(beyond), "TIFF"), LIMIT)


@pytest.mark.parametrize("channels", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(photograph: np.ndarray, channels: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, photograph.shape[:2], np.uint8)
    colour = photograph if channels == "RGBA" else photograph[..., :1]
    data = saved(Image.fromarray(np.concatenate([colour, alpha[..., None]], axis=2), channels), "PNG")
    share = alpha[..., None] / 255
    assert np.abs(rgb(data) - (colour * share + 255 * (1 - share))).max() <= 1
    assert notes(data)[-1] == "alpha over white"


def test_a_transparent_colour_or_palette_entry_becomes_white(photograph: np.ndarray) -> None:
    marked = photograph.copy()
    marked[:5] = (1, 2, 3)
    decoded = rgb(saved(Image.fromarray(marked), "PNG", transparency=(1, 2, 3)))
    assert (decoded[:5] == 255).all()
    assert np.array_equal(decoded[5:], photograph[5:])
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = saved(indexed, "PNG", transparency=1)
    assert rgb(data).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert notes(data) == ("palette to RGB", "alpha over white")


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(photograph: np.ndarray, container: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if container == "WEBP" else {}
    plain = saved(Image.fromarray(photograph), container, **options)
    turned = saved(Image.fromarray(photograph), container, exif=exif, **options)
    assert np.array_equal(rgb(turned), UPRIGHT[orientation](rgb(plain)))
    assert notes(turned) == (() if orientation == 1 else (f"EXIF orientation {orientation} applied",))


def test_opencv_turns_a_jpeg_the_same_way(photograph: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = saved(Image.fromarray(photograph), "JPEG", exif=exif)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(rgb(data), other)


def test_exif_behind_the_pixels_of_a_png_is_applied_without_decoding_for_the_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    row = b"\x00" + bytes(range(12))
    data = png(4, 1, (b"IDAT", zlib.compress(row)), (b"eXIf", exif.tobytes().removeprefix(b"Exif\x00\x00")))
    assert rgb(data).ravel().tolist() == [9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]
    assert notes(data) == ("EXIF orientation 3 applied",)
    (tmp_path / "late.png").write_bytes(data)
    assert read_header(tmp_path / "late.png", LIMIT).notes == ()


def test_a_broken_exif_block_leaves_the_image_upright(photograph: np.ndarray) -> None:
    plain = saved(Image.fromarray(photograph), "JPEG")
    broken = saved(Image.fromarray(photograph), "JPEG", exif=b"Exif\x00\x00no such thing")
    assert np.array_equal(rgb(broken), rgb(plain))


def test_an_animation_gives_its_first_frame(photograph: np.ndarray) -> None:
    frames = [Image.fromarray(photograph), Image.fromarray(255 - photograph)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(rgb(data), photograph)
    assert notes(data) == ("first of several frames",)
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(rgb(moving), rgb(saved(frames[0], "GIF")))
    assert "first of several frames" in notes(moving)


def test_only_other_colour_profiles_than_srgb_are_noted(photograph: np.ndarray) -> None:
    picture = Image.fromarray(photograph)
    for space, expected in (("sRGB", ()), ("XYZ", ("ICC profile ignored: XYZ identity built-in",))):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
        data = saved(picture, "PNG", icc_profile=profile)
        assert notes(data) == expected
        assert np.array_equal(rgb(data), photograph)
    assert notes(saved(picture, "PNG", icc_profile=b"none")) == ("ICC profile ignored: unreadable",)


def test_the_header_already_tells_what_will_be_done(tmp_path: Path) -> None:
    file = tmp_path / "named.jpg"
    Image.new("LA", (7, 5)).save(file, "PNG")
    header = read_header(file, LIMIT)
    assert (header.size, header.container) == ((7, 5), "PNG")
    assert header.notes == ("greyscale to RGB", "alpha over white") == notes(file.read_bytes())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"just a line of text\n", "no image that Pillow can read"),
        (b"", "no image that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that Pillow can read"),
        (png(60000, 60000), "60000 x 60000 pixels|decompression bomb"),
        (png(9000, 9000), "9000 x 9000 pixels, more than max_pixels = 64000000"),
        (png(0, 5), "no image|0 x 5|cannot be decoded"),
        (png(5, 5), "cannot be decoded"),
        (png(5, 5, (b"IDAT", b"not deflated")), "cannot be decoded"),
    ],
    ids=["text", "empty", "postscript", "bomb", "too-large", "flat", "no-pixels", "garbage"],
)
def test_what_is_no_usable_image_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnusableImageError, match=reason):
        decode(data, LIMIT)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_file_is_refused(photograph: np.ndarray, container: str) -> None:
    data = saved(Image.fromarray(photograph), container)
    with pytest.raises(UnusableImageError):
        decode(data[: len(data) * 2 // 3], LIMIT)


def test_a_bombs_header_is_refused_before_pillow_warns() -> None:
    with pytest.raises(UnusableImageError, match="more than max_pixels"):
        decode(png(10000, 10000), LIMIT)


def test_an_image_of_more_pixels_than_pillow_warns_of_is_read_where_max_pixels_allows() -> None:
    rows = zlib.compress(b"\x00" * (12001 * 8000))
    decoded, noted = decode(png(12000, 8000, (b"IDAT", rows), kind=0), 100_000_000)
    assert decoded.size == (12000, 8000)
    assert noted == ("greyscale to RGB",)


def test_no_global_setting_changes(photograph: np.ndarray) -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    decode(saved(Image.fromarray(photograph), "JPEG"), LIMIT)
    with pytest.raises(UnusableImageError):
        decode(b"text", LIMIT)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def lanczos(values: np.ndarray, size: int, start: float, stop: float) -> np.ndarray:
    """Resamples axis 0 of ``values`` from the span start..stop to ``size``: the textbook three-lobed filter."""
    scale = (stop - start) / size
    widening = max(scale, 1.0)
    positions = np.arange(len(values)) + 0.5
    result = np.empty((size, *values.shape[1:]))
    for i in range(size):
        x = (positions - (start + (i + 0.5) * scale)) / widening
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        result[i] = np.tensordot(weights / weights.sum(), values, axes=1)
    return result


def assert_rounded(result: np.ndarray, exact: np.ndarray) -> None:
    """Rounded to the nearest grey level, but for the few pixels where a tie of the first pass fell the other way."""
    apart = np.abs(result - exact)
    assert (apart > 0.501).mean() < 1e-3
    assert apart.max() < 1.3


@pytest.mark.parametrize("size", [48, 200])
@pytest.mark.parametrize("turned", [False, True])
def test_resize_crop_is_a_lanczos_resize_of_the_central_square(photograph: np.ndarray, size: int, turned: bool) -> None:
    array = photograph.swapaxes(0, 1) if turned else photograph
    height, width = array.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    across = lanczos(array.astype(float).swapaxes(0, 1), size, left, left + side).clip(0, 255).round()
    expected = lanczos(across.swapaxes(0, 1), size, top, top + side).clip(0, 255)
    result = np.asarray(fit(Image.fromarray(array), size, "resize-crop"))
    assert result.shape == (size, size, 3)
    assert_rounded(result, expected)


def test_resize_takes_the_whole_picture(photograph: np.ndarray) -> None:
    across = lanczos(photograph.astype(float).swapaxes(0, 1), 64, 0, 128).clip(0, 255).round()
    expected = lanczos(across.swapaxes(0, 1), 64, 0, 96).clip(0, 255)
    assert_rounded(np.asarray(fit(Image.fromarray(photograph), 64, "resize")), expected)


def test_crop_gives_the_central_pixels_untouched(photograph: np.ndarray) -> None:
    assert np.array_equal(np.asarray(fit(Image.fromarray(photograph), 64, "crop")), photograph[16:80, 32:96])
    with pytest.raises(UnusableImageError, match="128 x 96 pixels, smaller than the crop of 97 x 97"):
        fit(Image.fromarray(photograph), 97, "crop")


def test_a_square_of_the_right_size_is_left_as_it_is(photograph: np.ndarray) -> None:
    square = Image.fromarray(photograph[:, :96])
    for policy in ("resize-crop", "crop", "resize"):
        assert np.array_equal(np.asarray(fit(square, 96, policy)), np.asarray(square))
    assert fit(square, None, "native") is square


def test_an_extreme_shape_is_never_blown_up() -> None:
    strip = Image.new("RGB", (60000, 2))
    assert fit(strip, 512, "resize-crop").size == (512, 512)
