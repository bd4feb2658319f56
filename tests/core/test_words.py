"""Words for light and colour: what they say of pictures whose light is known, and how prompts become tokens."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from skimage import data

from waterproof.core.errors import UserError
from waterproof.core.words import IGNORED, VOCABULARY, WordEncoder, describe

if TYPE_CHECKING:
    from waterproof.core.images import Images

WHITE = np.array([0.95047, 1.0, 1.08883])
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
RING = (
    *("pink",) * 35, *("red",) * 35, *("orange",) * 25, *("yellow",) * 25, *("green",) * 60, *("cyan",) * 60,
    *("blue",) * 70, *("purple",) * 50,
)  # fmt: skip
"""The colour of each degree of the hue angle, counted from -15."""


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((64, 96, 3), colour, np.uint8)


def lit(where: np.ndarray, high: int = 190, low: int = 90) -> np.ndarray:
    """A grey picture of 64 x 64 pixels, ``high`` in the mask and ``low`` elsewhere."""
    grey = np.where(where, high, low).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def lightness_and_colour(small: np.ndarray) -> np.ndarray:
    """CIELAB for the white D65, from its definition: values 0 to 1 in sRGB, ``[..., 3]``."""
    linear = np.where(small <= 0.04045, small / 12.92, ((small + 0.055) / 1.055) ** 2.4)
    relative = linear @ TO_XYZ.T / WHITE
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def between(value: float, low: float, high: float, below: str, above: str) -> set[str]:
    # A value this near its limit could fall either way by rounding alone and would test nothing.
    assert min(abs(value - low), abs(value - high)) > 0.05
    return {below} if value < low else {above} if value > high else set()


def expected(pixels: np.ndarray) -> set[str]:
    """The rules of ``describe`` written out; both sides of the picture must be multiples of 32."""
    height, width = pixels.shape[0] // 32, pixels.shape[1] // 32
    blocks = pixels.reshape(32, height, 32, width, 3).mean(axis=(1, 3))
    lab = lightness_and_colour(np.round(blocks) / 255)
    light, a, b = lab[..., 0], lab[..., 1], lab[..., 2]
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    words = between(light.mean(), 40, 62, "dark", "bright") | between(light.std(), 14, 26, "soft", "contrasty")
    words |= between(np.sqrt(a**2 + b**2).mean(), 8, 24, "pale", "colourful")
    words |= between(light[16:].mean() - light[:16].mean(), -12, 12, "above", "below")
    words |= between(light[inside].mean() - light[~inside].mean(), -12, 12, "edges", "centre")
    grey = np.round(pixels @ np.array([0.299, 0.587, 0.114]))
    steps = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]
    words |= between((steps[0] + steps[1]) / 2, 5, 12, "smooth", "detailed")
    angle = np.degrees(np.arctan2(b.mean(), a.mean()))
    length = float(np.hypot(a.mean(), b.mean()))
    return words | {"grey" if length < 5 else RING[math.floor(angle + 15) % 360]}


@pytest.mark.parametrize(
    ("colour", "word"),
    [
        ((128, 128, 128), "grey"), ((255, 150, 180), "pink"), ((200, 30, 30), "red"), ((255, 140, 0), "orange"),
        ((240, 220, 40), "yellow"), ((40, 160, 40), "green"), ((0, 200, 200), "cyan"), ((40, 110, 200), "blue"),
        ((160, 30, 180), "purple"),
    ],
)  # fmt: skip
def test_a_plain_picture_has_the_name_of_its_colour(colour: tuple[int, int, int], word: str) -> None:
    said = describe(plain(colour))
    assert set(said) & set(VOCABULARY[8:17]) == {word}
    assert {"soft", "smooth"} <= set(said)
    assert ("pale" in said, "colourful" in said) == (word == "grey", word != "grey")


@pytest.mark.parametrize(("level", "word"), [(20, "dark"), (119, None), (235, "bright")])
def test_a_dark_picture_is_dark_and_a_bright_one_bright(level: int, word: str | None) -> None:
    assert {"dark", "bright"} & set(describe(plain((level, level, level)))) == ({word} if word else set())


def test_the_words_for_light_say_where_it_is() -> None:
    y, x = np.mgrid[:64, :64]
    middle = (np.abs(y - 31.5) < 16) & (np.abs(x - 31.5) < 16)
    for mask, word in ((y < 32, "above"), (y >= 32, "below"), (middle, "centre"), (~middle, "edges")):
        assert set(describe(lit(mask))) & set(VOCABULARY[17:]) == {word}
        assert not set(describe(lit(mask, 130, 120))) & set(VOCABULARY[17:])
    assert "contrasty" in describe(lit(x < 32, 255, 0))


def test_the_words_for_texture_follow_the_steps_between_neighbours() -> None:
    y, x = np.mgrid[:64, :64]
    for step, word in ((4, "smooth"), (8, None), (16, "detailed")):
        said = set(describe(lit((x + y) % 2 == 0, 128 + step, 128)))
        assert said & {"smooth", "detailed"} == ({word} if word else set())
        # Averaging has taken the texture out of everything else.
        assert "soft" in said


def test_photographs_have_the_words_of_the_formulas(photographs: Images) -> None:
    more = [data.astronaut(), data.coffee()[:384, :576], data.chelsea()[:288, :448], data.rocket()[:416, :640]]
    pictures = [*photographs.numpy(), *more, *(picture[::-1] for picture in photographs.numpy())]
    pictures += [np.roll(picture, 1, axis=2) for picture in more]
    for picture in pictures:
        assert set(describe(np.ascontiguousarray(picture))) == expected(picture)
    assert len({describe(np.ascontiguousarray(picture)) for picture in pictures}) > 6


def test_words_come_in_the_order_of_the_vocabulary(photographs: Images) -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 21
    assert not set(VOCABULARY) & set(IGNORED)
    for picture in photographs.numpy():
        said = describe(picture)
        assert list(said) == sorted(said, key=VOCABULARY.index)
        assert list(describe(picture)) == [word for word in VOCABULARY if word in said]


@pytest.fixture(scope="module")
def encoder() -> WordEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return WordEncoder(width=8).eval()


def test_the_order_of_words_and_how_they_are_written_mean_nothing(encoder: WordEncoder) -> None:
    prompts = ["a dark blue photograph, light above", "above BLUE dark", "blue, blue; dark (above)!", "dark-less"]
    tokens = encoder.tokens(prompts[:3])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[1, 16, 18, 0, 0, 0, 0, 0]] * 3
    assert [VOCABULARY[number - 1] for number in (1, 16, 18)] == ["dark", "blue", "above"]
    with pytest.raises(UserError, match="'dark-less'"):
        encoder.tokens(prompts[3:])


def test_an_empty_prompt_is_all_null_tokens(encoder: WordEncoder) -> None:
    assert encoder.tokens(["", " ".join(IGNORED), "...", "The Light"]).tolist() == [[0] * 8] * 4
    assert encoder.tokens([]).shape == (0, 8)


def test_a_word_that_nobody_knows_is_answered_with_the_nearest(encoder: WordEncoder) -> None:
    with pytest.raises(UserError, match=r"'a dark bleu photograph'.*the word 'bleu'\. Did you mean 'blue'\?") as raised:
        encoder.tokens(["red", "a dark bleu photograph"])
    assert all(word in str(raised.value) for word in VOCABULARY)
    assert "\n" not in str(raised.value)


def test_too_many_words_are_refused(encoder: WordEncoder) -> None:
    eight = " ".join(VOCABULARY[:8])
    assert sorted(encoder.tokens([eight])[0].tolist()) == list(range(1, 9))
    with pytest.raises(UserError, match="9 words, this model takes 8"):
        encoder.tokens([f"{eight} grey"])


@torch.no_grad()
def test_embeddings_are_normalised_and_the_configuration_makes_the_same_encoder(encoder: WordEncoder) -> None:
    embedded = encoder(encoder.tokens(["dark blue", ""]))
    assert embedded.shape == (2, 8, 8)
    torch.testing.assert_close(embedded.mean(-1), torch.zeros(2, 8), atol=1e-6, rtol=0)
    torch.testing.assert_close(embedded.var(-1, unbiased=False), torch.ones(2, 8), atol=1e-3, rtol=0)
    assert torch.equal(embedded[0, 2:], embedded[1, 2:])
    own = WordEncoder(vocabulary=("warm", "cold"), width=8, length=2, ignored=("very",))
    again = WordEncoder(**json.loads(json.dumps(own.config)))
    again.load_state_dict(own.state_dict())
    assert again.config == own.config
    assert again.tokens(["very cold"]).tolist() == [[2, 0]]
    assert torch.equal(again(again.tokens(["warm"])), own(own.tokens(["warm"])))
