"""Erase and text: how much they cover, and where."""

from __future__ import annotations

import numpy as np
import pytest

from waterproof.attacks.overlay import Erase, Text
from waterproof.core.errors import ImageError
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed


def flat(level: int, height: int = 200, width: int = 300, count: int = 1) -> Images:
    return Images.from_numpy(
        np.full((count, height, width, 3), level, np.uint8), [Record(str(i)) for i in range(count)]
    )


def bounding_box(changed: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.parametrize("area", [*Erase.strengths, 1.0])
def test_erase_blacks_out_one_rectangle_of_the_given_share(attacked, area: float):
    black = (attacked("erase", flat(200), area=area) == 0).all(-1)[0]
    top, bottom, left, right = bounding_box(black)
    assert black[top:bottom, left:right].all()
    assert black.mean() == pytest.approx(area, rel=0.02)


def test_erase_leaves_everything_else(attacked, photographs: Images):
    result, before = attacked("erase", photographs, area=0.2), photographs.numpy()
    untouched = (result == before).all(-1)
    assert (result[~untouched] == 0).all()
    assert 0.78 < untouched.mean() < 0.85


def test_erase_reaches_every_place(attacked):
    result = attacked("erase", flat(9, 4, 4, count=300), area=0.25)
    corners = {bounding_box((r == 0).all(-1))[::2] for r in result}
    assert corners == {(top, left) for top in range(3) for left in range(3)}


@pytest.mark.parametrize("area", Text.strengths)
@pytest.mark.parametrize("size", [(256, 256), (300, 500), (512, 512)])
def test_text_covers_its_share_of_the_area(attacked, area: float, size: tuple[int, int]):
    images = flat(0, *size)
    top, bottom, left, right = bounding_box(attacked("text", images, area=area)[0].any(-1))
    assert (bottom - top) * (right - left) / (size[0] * size[1]) == pytest.approx(area, rel=0.15)


def test_centred_text_stands_in_the_middle(attacked):
    top, bottom, left, right = bounding_box(attacked("text", flat(0), position="centre")[0].any(-1))
    assert abs(top + bottom - 200) <= 2
    assert abs(left + right - 300) <= 2


def test_text_says_what_it_was_told_to_say(attacked):
    black, white = flat(0), flat(255)
    one, other = (attacked("text", black, text=word, position="centre") for word in ("water", "proof"))
    assert not np.array_equal(one, other)
    on_white = attacked("text", white, text="water", position="centre", colour="black")
    np.testing.assert_array_equal(on_white, 255 - one)


def test_text_blends_at_the_edges_of_letters_only(attacked):
    levels, counts = np.unique(attacked("text", flat(100), area=0.3, position="centre")[..., 0], return_counts=True)
    assert levels.min() == 100
    assert levels.max() == 255
    assert counts[(levels > 100) & (levels < 255)].sum() < counts[levels == 255].sum()


def test_long_text_on_a_strip_is_refused_in_one_line():
    with pytest.raises(ImageError, match=r"'x' on 0\.4 of the area does not fit into 1000 x 100 pixels"):
        Text(text="x", area=0.4).apply(flat(0, 100, 1000), Seed.root(0))


def test_missing_font_support_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    assert Text().unavailable() is None
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    assert "built without FreeType: install" in str(Text().unavailable())
