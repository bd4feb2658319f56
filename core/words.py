"""Captions of a closed vocabulary: what a photograph looks like in a few words, and the encoder that reads them.

A latent diffusion model of a few million parameters cannot learn objects from a few hundred photographs, but it can
learn light, colour and texture. These words are measured on pixels, so that any folder of photographs has captions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

_HUES = ((20, "pink"), (55, "red"), (80, "orange"), (105, "yellow"), (165, "green"), (225, "cyan"), (295, "blue"))
"""Upper ends of the hue angles in CIELAB, degrees; from the last one to 345 it is purple, then pink again.

The pure blue of a screen lies at 306 degrees and so is called purple; skies and water lie at 240 to 290.
"""

VOCABULARY = (
    *("dark", "bright", "soft", "contrasty", "smooth", "detailed", "pale", "colourful"),
    *("grey", "pink", "red", "orange", "yellow", "green", "cyan", "blue", "purple"),
    *("above", "below", "centre", "edges"),
)
"""What :func:`describe` can say; ``above``, ``below``, ``centre`` and ``edges`` tell where the light is."""

IGNORED = ("a", "an", "and", "at", "light", "photograph", "the")
"""Words that a prompt may hold without a meaning: "a dark green photograph, light above"."""


def describe(pixels: np.ndarray) -> tuple[str, ...]:
    """Words for the light, colour and texture of an image, in the order of :data:`VOCABULARY`.

    Lightness L and chroma C are CIELAB's, on the image brought to 32 x 32 pixels by averaging: ``dark`` and ``bright``
    for a mean L below 40 and above 62; ``soft`` and ``contrasty`` for its standard deviation below 14 and above 26;
    ``pale`` and ``colourful`` for a mean C below 8 and above 24; a colour for the angle of the mean (a, b), ``grey``
    where the length of that mean is below 5; ``above``, ``below``, ``centre`` and ``edges`` where the mean L of these
    halves differs by more than 12. ``smooth`` and ``detailed``: the mean absolute difference of neighbouring grey
    levels is below 5 and above 12.

    Args:
        pixels: uint8 ``[H, W, 3]``, sRGB.

    Example:
        >>> describe(np.full((64, 64, 3), (200, 30, 30), np.uint8))
        ('soft', 'smooth', 'colourful', 'red')
    """
    import cv2
    from skimage.color import rgb2lab

    small = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
    lab = rgb2lab(small)
    light, colour = lab[..., 0], lab[..., 1:].mean(axis=(0, 1))
    chroma = float(np.hypot(lab[..., 1], lab[..., 2]).mean())
    words = {_outside(float(light.mean()), 40, 62, "dark", "bright")}
    words |= {_outside(float(light.std()), 14, 26, "soft", "contrasty"), _outside(chroma, 8, 24, "pale", "colourful")}
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    steps = (np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2
    words |= {_outside(float(steps), 5, 12, "smooth", "detailed"), _hue(float(colour[0]), float(colour[1]))}
    words |= {_outside(float(light[16:].mean() - light[:16].mean()), -12, 12, "above", "below")}
    inner = light[8:24, 8:24].mean()
    outer = (light.sum() - light[8:24, 8:24].sum()) / (32 * 32 - 16 * 16)
    words |= {_outside(float(inner - outer), -12, 12, "edges", "centre")}
    return tuple(word for word in VOCABULARY if word in words)


def _outside(value: float, low: float, high: float, below: str, above: str) -> str | None:
    return below if value < low else above if value > high else None


def _hue(a: float, b: float) -> str:
    if np.hypot(a, b) < 5:
        return "grey"
    angle = float(np.degrees(np.arctan2(b, a))) % 360
    return next((name for end, name in _HUES if angle < end), "purple" if angle < 345 else "pink")


class WordEncoder(nn.Module):
    """Embeds the words of a prompt for cross-attention; their order means nothing, an empty prompt is all null tokens.

    Args:
        vocabulary: the words that it knows.
        width: length of an embedding.
        length: tokens of a prompt; what is not used is the null token.
        ignored: words that are read over.

    Attributes:
        config: these four by name.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] = VOCABULARY,
        width: int = 64,
        length: int = 8,
        ignored: Sequence[str] = IGNORED,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "vocabulary": list(vocabulary),
            "width": width,
            "length": length,
            "ignored": list(ignored),
        }
        self.embedding = nn.Embedding(len(vocabulary) + 1, width)
        self.norm = nn.LayerNorm(width)

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Numbers of the words, 0 for the null token: int64 ``[B, length]``.

        Raises:
            UserError: a word that the model does not know, or too many of them.
        """
        known = {word: i + 1 for i, word in enumerate(self.config["vocabulary"])}
        length, rows = self.config["length"], []
        for prompt in prompts:
            words = [
                w for w in re.findall(r"[^\W_]+(?:['-][^\W_]+)*", prompt.lower()) if w not in self.config["ignored"]
            ]
            for word in words:
                if word not in known:
                    # The whole list follows anyway.
                    hint = nearest(word, known).partition(" Valid:")[0]
                    raise UserError(
                        f"prompt '{prompt}': this model does not know the word '{word}'.{hint} "
                        f"It knows: {', '.join(known)}"
                    )
            numbers = sorted({known[word] for word in words})
            if len(numbers) > length:
                raise UserError(f"prompt '{prompt}': {len(numbers)} words, this model takes {length}")
            rows.append(numbers + [0] * (length - len(numbers)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, length, width]`` of tokens ``[B, length]``."""
        embedded: torch.Tensor = self.norm(self.embedding(tokens))
        return embedded
