"""Purifiers that put noise on an image and let a diffusion model of pixels take it off again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from ..core.components import knob, labelled, param
from ..core.holding import why_not
from ..core.images import Images, Record
from ..core.pixel_diffusion import PixelDiffusion, load_pixel_diffusion
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    import numpy as np

    from ..core.seeds import Seed


class _Purifier(ImagewiseAttack):
    """Base of attacks with a diffusion model of pixels."""

    family: ClassVar[str] = "regeneration"
    harder: ClassVar[int] = 1
    neutral: ClassVar[float | None] = 0.0
    seeded: ClassVar[bool] = True

    model: str = knob(
        "shipped", doc="pixel diffusion model: shipped, a folder (trained here, or of diffusers), owner/name@revision"
    )

    @property
    def label(self) -> str:
        """Name, strength, whose model where it is not that of the package, and what differs from the defaults."""
        first = {str(self.strength): self.strength_value}
        place = {} if self.model == "shipped" else {"model": Path(self.model).name}
        return labelled(self.name, {**first, **place, **self.changed_params()})

    @property
    def diffusion(self) -> PixelDiffusion:
        """The model.

        Raises:
            UnavailableError: it is not here.
        """
        return load_pixel_diffusion(self.model)

    def unavailable(self) -> str | None:
        """Needs the model."""
        return why_not(lambda: self.diffusion)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the model: network and schedule."""
        return {} if self.unavailable() else {"model": self.diffusion.digest}


class DiffPure(_Purifier):
    """Noise to a share of the schedule, then back: what is left of a mark is what noise and model agree to keep.

    ``ancestral`` is the published way, DDPM's reverse steps with fresh noise (the reverse-time SDE in steps of the
    schedule), ``ddim`` the deterministic one. The network is asked at up to ``steps`` times; every time, as published,
    is ``steps=None``, which smooths a little less. The image keeps its size, whereas published code brings it to that
    of its model; where a side is no multiple of what the network halves it is mirrored over the edge and cut back.

    Example:
        >>> DiffPure(level=0.1, solver="ddim").label
        'diffpure(level=0.1, solver=ddim)'
    """

    name: ClassVar[str] = "diffpure"
    summary: ClassVar[str] = "noise, then denoising by a diffusion model of pixels"
    strength: ClassVar[str | None] = "level"
    strengths: ClassVar[tuple[Any, ...]] = (0.05, 0.1, 0.15, 0.2, 0.3)
    references: ClassVar[tuple[str, ...]] = (
        "W. Nie, B. Guo, Y. Huang, C. Xiao, A. Vahdat, A. Anandkumar: Diffusion Models for Adversarial Purification. "
        "ICML 2022.",
    )

    level: float = param(0.15, doc="share of the schedule's steps that are noised, 0 to 1", ge=0, le=1)
    solver: Literal["ancestral", "ddim"] = param("ancestral", doc="ancestral (fresh noise in every step) or ddim")
    steps: int | None = param(
        20, doc="evaluations of the network, at most one for each noised step; None for all of them", ge=1, le=1000
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The purified picture."""
        model, draws = self.diffusion, seed.torch()
        time = round(self.level * model.times)
        return _picture(model.purify(_values(picture), time, draws, self.steps, self.solver == "ancestral"))


class GrIDPure(_Purifier):
    """Many rounds of weak purification on overlapping tiles: what a model of small images can do to large ones.

    Each round cuts the image into tiles, half a tile apart and the last ones flush with the edge, purifies each to
    ``time`` by ancestral steps, and averages where they overlap. A further tile is put together from the image's four
    corners, half a tile each, because corners lie in one tile only. The result is ``(1 - gamma) purified + gamma x``
    with x the image that the round began with: so the published code has it. That code also cuts down to whole grey
    levels, which darkens the image by about half a level in each round; here only the last result is rounded. A side
    that is shorter than a tile is one tile of its own length, and the image has then no corner tile.

    Example:
        >>> GrIDPure(rounds=5).label
        'gridpure(rounds=5)'
    """

    name: ClassVar[str] = "gridpure"
    summary: ClassVar[str] = "many weak rounds of DiffPure on overlapping tiles"
    strength: ClassVar[str | None] = "rounds"
    strengths: ClassVar[tuple[Any, ...]] = (1, 5, 10, 20, 40)
    references: ClassVar[tuple[str, ...]] = (
        "Z. Zhao, J. Duan, K. Xu, C. Wang, R. Zhang, Z. Du, Q. Guo, X. Hu: Can Protective Perturbation Safeguard "
        "Personal Data from Being Exploited by Stable Diffusion? CVPR 2024.",
    )

    rounds: int = param(20, doc="how often all tiles are purified", ge=0, le=1000)
    time: int = param(10, doc="steps of the schedule that are noised in a round", ge=1, le=1000)
    steps: int | None = param(
        None,
        doc="evaluations of the network for a tile and round, at most ``time``; None for all of them",
        ge=1,
        le=1000,
    )
    gamma: float = param(0.1, doc="share of a round's input in its output, 0 to below 1", ge=0, lt=1)
    tile: int = param(
        256, doc="side of a tile, pixels, even; tiles are half of it apart", ge=16, le=4096, multiple_of=2
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The purified picture."""
        model, draws, values = self.diffusion, seed.torch(), _values(picture)
        for _ in range(self.rounds):
            values = (1 - self.gamma) * self._round(model, values, draws) + self.gamma * values
        return _picture(values)

    def _round(self, model: PixelDiffusion, values: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        """The mean of all tiles, purified."""
        height, width = values.shape[2:]
        total, count = torch.zeros_like(values), torch.zeros_like(values)

        def add(windows: list[tuple[slice, slice]], purified: list[torch.Tensor]) -> None:
            for (rows, columns), part in zip(windows, purified, strict=True):
                total[..., rows, columns] += part
                count[..., rows, columns] += 1

        for window in _tiles(height, width, self.tile):
            part = values[..., window[0], window[1]]
            add([window], [model.purify(part, self.time, draws, self.steps)])
        if min(height, width) >= self.tile:
            windows = _corners(height, width, self.tile // 2)
            a, b, c, d = (values[..., rows, columns] for rows, columns in windows)
            whole = torch.cat([torch.cat([a, b], dim=3), torch.cat([c, d], dim=3)], dim=2)
            whole = model.purify(whole, self.time, draws, self.steps)
            add(windows, [part for half in whole.chunk(2, dim=2) for part in half.chunk(2, dim=3)])
        return total / count


def _tiles(height: int, width: int, side: int) -> list[tuple[slice, slice]]:
    """Windows that cover an image, half a side apart, the last ones flush with its edge; row by row."""

    def along(length: int) -> list[slice]:
        last = max(0, length - side)
        starts = [*range(0, last, side // 2), last]
        return [slice(start, min(start + side, length)) for start in starts]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def _corners(height: int, width: int, side: int) -> list[tuple[slice, slice]]:
    """The windows at the four corners of an image, row by row."""
    first = slice(0, side)
    return [
        (rows, columns)
        for rows in (first, slice(height - side, height))
        for columns in (first, slice(width - side, width))
    ]


def _values(picture: np.ndarray) -> torch.Tensor:
    """uint8 ``[H, W, 3]`` as float32 ``[1, 3, H, W]`` in -1 to 1."""
    return (torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()


def _picture(values: torch.Tensor) -> np.ndarray:
    """The reverse, clipped and rounded."""
    picture: np.ndarray = Images.from_float((values + 1) / 2, (Record("purified"),)).numpy()[0]
    return picture
