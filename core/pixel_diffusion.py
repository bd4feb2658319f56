"""Unconditional diffusion models of pixels: noise onto an image, and step by step off again.

One interface over the model that ships with the package, what ``waterproof train pixel-diffusion`` writes, and
diffusers' ``DDPMPipeline`` and ``DDIMPipeline``. Times count as in Ho et al. 2020: 0 is the image itself, 1 the first
step of the schedule, :attr:`PixelDiffusion.times` the last. Images are floats in -1 to 1, one at a time, so that a
result never depends on its batch.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from . import effort
from .errors import ImageError, UnavailableError, UserError, first_line
from .identity import content_digest
from .model_folders import WEIGHTS, find_folder, load_network, read_json
from .noise_schedule import KINDS, NOISES, estimates
from .weights import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHIPPED = Path(__file__).parent / "shipped" / "pixel_diffusion"
_WHAT = "pixel diffusion model"
_OWN = "PixelDiffusion"
_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
_PARTS = {"unet": "config.json", "scheduler": "scheduler_config.json"}
_WANTED = (
    *("model_index.json", f"unet/{WEIGHTS[0]}", WEIGHTS[0]),
    *(name for part, file in _PARTS.items() for name in (f"{part}/{file}", file)),
)
"""Files of a repository, the oldest of which have no folders for their parts."""


class PixelDiffusion:
    """A diffusion model of pixels in evaluation mode.

    Args:
        unet: diffusers' ``UNet2DModel`` over blocks of ``patch`` x ``patch`` pixels, ``3 patch^2`` channels. One with
            twice as many outputs has also learned variances (Nichol and Dhariwal 2021); these are left aside.
        schedule: the configuration of the scheduler that the model was trained with.
        patch: side of the blocks of pixels that are its channels.
        name: what to call it.
        digest: SHA-256 over everything that decides the results.

    Attributes:
        times: steps of the schedule.
        alphas: float64 ``[times + 1]``, the share of the image in the variance at each time (alpha bar); 1 at time 0.
        multiple: sides must be multiples of it: ``patch`` times what the network halves. :meth:`pad` extends them.

    Example:
        >>> model = load_pixel_diffusion("path/to/model")  # doctest: +SKIP
        >>> draws = torch.Generator().manual_seed(0)  # doctest: +SKIP
        >>> model.purify(torch.zeros(1, 3, 250, 200), 150, draws, steps=20).shape  # doctest: +SKIP
        torch.Size([1, 3, 250, 200])
    """

    def __init__(self, unet: Any, schedule: Mapping[str, Any], patch: int, name: str, digest: str) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.schedule = dict(schedule)
        self.patch = patch
        self.name = name
        self.digest = digest
        self.alphas = _alphas(self.schedule)
        self.times = len(self.alphas) - 1
        self.multiple = patch * 2 ** (len(unet.config.block_out_channels) - 1)
        self._predicts = str(self.schedule.get("prediction_type") or "epsilon")

    def noised(self, images: torch.Tensor, time: int, noise: torch.Tensor) -> torch.Tensor:
        """An image at ``time``: ``sqrt(alpha) image + sqrt(1 - alpha) noise``, all steps of the schedule at once.

        Args:
            images: ``[1, 3, H, W]`` in -1 to 1.
            time: 0 to :attr:`times`.
            noise: of the same shape, standard normal.

        Raises:
            UserError: the schedule has no such time.
        """
        alpha = self._alpha(time)
        noisy: torch.Tensor = alpha**0.5 * images + (1 - alpha) ** 0.5 * noise
        return noisy

    @torch.no_grad()
    def predict(self, noisy: torch.Tensor, time: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network takes for the image and for the noise: one evaluation.

        Args:
            noisy: ``[1, 3, H, W]``, an image at ``time``; sides multiples of :attr:`multiple`.
            time: 1 to :attr:`times`. The network counts from 0 and is asked for ``time - 1``.

        Returns:
            The image, not clipped, and the noise, each ``[1, 3, H, W]``; :meth:`noised` makes ``noisy`` of them.

        Raises:
            ImageError: another shape.
            UserError: the schedule has no such time.
        """
        self._check(noisy)
        height, width = noisy.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise ImageError(
                f"{self.name} takes sides that are multiples of {self.multiple} pixels, not {height} x {width}: pad() "
                "extends them"
            )
        # In double precision: 1 - alpha is small at the last steps.
        alpha = torch.tensor(self._alpha(time, first=1), dtype=torch.float64)
        blocks = functional.pixel_unshuffle(noisy, self.patch).contiguous(memory_format=torch.channels_last)
        effort.count(evaluations=len(blocks))
        said = self.unet(blocks, time - 1).sample[:, : blocks.shape[1]]
        said = functional.pixel_shuffle(said, self.patch).contiguous()
        return estimates(self._predicts, noisy, said, alpha)

    @torch.no_grad()
    def denoise(
        self,
        noisy: torch.Tensor,
        time: int,
        draws: torch.Generator,
        steps: int | None = None,
        ancestral: bool = True,
        clip: bool = True,
    ) -> torch.Tensor:
        """From an image at ``time`` back to time 0.

        The network is asked at the times ``time i // steps``, i from ``steps`` to 1. A step from t to s, with ``x0``
        the image that it sees, is

        - ancestral: a draw from the posterior of x_s under x_t and x0 (Ho et al. 2020, eq. 7). Where steps are left
          out, its beta is that of the shorter schedule, ``1 - alpha[t] / alpha[s]`` (Nichol and Dhariwal 2021, section
          4): mean ``(sqrt(alpha[s]) beta x0 + sqrt(alpha[t] / alpha[s]) (1 - alpha[s]) x_t) / (1 - alpha[t])``,
          variance ``beta (1 - alpha[s]) / (1 - alpha[t])``, the smaller of the two choices of Ho et al.; nothing is
          drawn in the step to 0;
        - otherwise deterministic: ``sqrt(alpha[s]) x0 + sqrt(1 - alpha[s]) noise`` (DDIM, Song et al. 2021, eta 0).

        Args:
            noisy: ``[1, 3, H, W]``, as :meth:`noised` makes it; sides multiples of :attr:`multiple`.
            time: of ``noisy``, 0 to :attr:`times`; 0 gives it back.
            draws: the noise of ancestral steps comes from it, ``[1, 3, H, W]`` standard normal values for each.
            steps: evaluations of the network, at most ``time``; None for all of them.
            ancestral: see above.
            clip: clips the image that the network sees to -1 to 1 in each step, as published purifiers do. The noise
                that a deterministic step puts back is the network's, unchanged.

        Returns:
            ``[1, 3, H, W]``, about -1 to 1.

        Raises:
            ImageError: another shape.
            UserError: the schedule has no such time, or fewer than one step.
        """
        self._alpha(time)
        if steps is not None and steps < 1:
            raise UserError(f"{self.name}: denoising takes 1 step or more, not {steps}")
        count = time if steps is None else min(steps, time)
        values = noisy
        for now, after in pairwise(time * i // count for i in range(count, -1, -1)) if count else ():
            clean, noise = self.predict(values, now)
            clean = clean.clamp(-1, 1) if clip else clean
            here, there = self._alpha(now), self._alpha(after)
            if not ancestral:
                values = there**0.5 * clean + (1 - there) ** 0.5 * noise
                continue
            left, beta = 1 - here, 1 - here / there
            values = there**0.5 * beta / left * clean + (here / there) ** 0.5 * (1 - there) / left * values
            if after:
                values = values + (beta * (1 - there) / left) ** 0.5 * torch.randn(noisy.shape, generator=draws)
        return values

    def purify(
        self, images: torch.Tensor, time: int, draws: torch.Generator, steps: int | None = None, ancestral: bool = True
    ) -> torch.Tensor:
        """Noises an image of any size up to ``time`` and denoises it: :meth:`pad`, :meth:`noised`, :meth:`denoise`.

        Args:
            images: ``[1, 3, H, W]`` in -1 to 1.
            time: how far the schedule is followed, 0 to :attr:`times`.
            draws: of all noise, that of the padded image first.
            steps: evaluations of the network; None for ``time`` of them.
            ancestral: whether fresh noise comes in at each step.

        Returns:
            ``[1, 3, H, W]``, about -1 to 1.

        Raises:
            ImageError: another shape.
            UserError: the schedule has no such time, or fewer than one step.
        """
        padded, (height, width) = self.pad(images)
        noisy = self.noised(padded, time, torch.randn(padded.shape, generator=draws))
        return self.denoise(noisy, time, draws, steps, ancestral)[..., :height, :width]

    def pad(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Mirrors an image to the right and below, about its last pixels, until :attr:`multiple` divides its sides.

        Returns:
            The extended image and the (height, width) that it had.

        Raises:
            ImageError: another shape.
        """
        self._check(images)
        height, width = images.shape[2:]
        rows, columns = (np.pad(np.arange(n), (0, -n % self.multiple), mode="reflect") for n in (height, width))
        padded = images[:, :, torch.from_numpy(rows)][..., torch.from_numpy(columns)]
        return padded, (height, width)

    def _alpha(self, time: int, first: int = 0) -> float:
        if not first <= time <= self.times:
            raise UserError(f"{self.name} has the times {first} to {self.times}: there is no {time}")
        return float(self.alphas[time])

    def _check(self, images: torch.Tensor) -> None:
        if images.ndim != 4 or images.shape[:2] != (1, 3) or images.dtype != torch.float32 or 0 in images.shape:
            raise ImageError(
                f"{self.name} takes one image at a time, float32 [1, 3, H, W], not {images.dtype} {list(images.shape)}"
            )


def _alphas(schedule: Mapping[str, Any]) -> torch.Tensor:
    """Alpha bar from time 0, in double precision.

    Raises:
        ValueError: no schedule of variances.
    """
    from diffusers import DDPMScheduler

    betas = DDPMScheduler(**{name: schedule[name] for name in NOISES if name in schedule}).betas.double()
    if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas <= 1)).all()):
        raise ValueError("the variances of its steps are not all above 0 and up to 1")
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])


def load_pixel_diffusion(source: str | Path) -> PixelDiffusion:
    """Loads a diffusion model of pixels; the last two stay in memory.

    Args:
        source: ``shipped``; a folder that ``waterproof train pixel-diffusion`` wrote; a folder of diffusers'
            ``DDPMPipeline`` or ``DDIMPipeline``; or ``owner/name@revision`` of a hub, the revision a commit of 40
            digits.

    Raises:
        UnavailableError: files are missing, damaged or out of reach; the message says what to put where.
        UserError: a model of another kind.
    """
    folder = find_folder(_WHAT, str(source), _SHIPPED, _check, _WANTED)
    name = f"the shipped {_WHAT}" if str(source) == "shipped" else str(source)
    return _loaded(folder, digest_of(folder), name)


@lru_cache(maxsize=2)
def _loaded(folder: Path, _content: str, name: str) -> PixelDiffusion:
    """The folder's content is part of the key: one that was trained anew is loaded anew."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in (_OWN, *_PIPELINES):
        raise UserError(
            f"{folder}: a {kind or 'model without _class_name'}, not one of {', '.join(_PIPELINES)}, {_OWN}"
        )
    patch = index.get("patch", 1) if kind == _OWN else 1
    if not isinstance(patch, int) or not 1 <= patch <= 64:
        raise UserError(f"{folder / 'model_index.json'}: patch is a whole number of pixels from 1 to 64, not {patch}")
    path = _part(folder, "unet")
    config = read_json(path)
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{path.parent}: a {config.get('_class_name')}, not a UNet2DModel")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise UserError(
            f"{path.parent}: its network wants a class for each image: only unconditional ones are supported"
        )
    schedule = _schedule(_part(folder, "scheduler"))
    from diffusers import UNet2DModel

    unet, weights = load_network(UNet2DModel, config, path)
    channels = 3 * patch**2
    given = unet.config.in_channels, unet.config.out_channels
    if given not in ((channels, channels), (channels, 2 * channels)):
        raise UserError(
            f"{path.parent}: the network takes {given[0]} channels and gives {given[1]}; for RGB in blocks of {patch} "
            f"x {patch} pixels it takes {channels} and gives {channels} (or {2 * channels}, with learned variances)"
        )
    defining = {key: value for key, value in config.items() if not key.startswith("_")}
    content = {"unet": defining, "weights": digest_of(weights), "schedule": schedule, "patch": patch}
    return PixelDiffusion(unet, schedule, patch, name, content_digest(content))


def _schedule(path: Path) -> dict[str, Any]:
    """The scheduler's configuration, checked."""
    schedule = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    if not schedule.get("beta_schedule") and schedule.get("trained_betas") is None:
        raise UserError(f"{path}: names neither beta_schedule nor trained_betas: only diffusion in steps is supported")
    predicts = schedule.get("prediction_type") or "epsilon"
    if predicts not in KINDS:
        raise UserError(f"{path}: prediction_type is one of {', '.join(KINDS)}, not {predicts}")
    try:
        _ = _alphas(schedule)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: no schedule can be built from it: {first_line(error)}") from None
    return schedule


def _part(folder: Path, part: str) -> Path:
    """The configuration of a part; the oldest repositories of diffusers have no folders for them."""
    file = _PARTS[part]
    return folder / part / file if (folder / part / file).is_file() else folder / file


def _check(folder: Path) -> None:
    needed = {"model_index.json": folder / "model_index.json"}
    needed |= {f"{part}/{file}": _part(folder, part) for part, file in _PARTS.items()}
    for name, file in needed.items():
        if not file.is_file():
            raise UnavailableError(
                f"{folder}: no {_WHAT} there: {name} is missing (a folder as diffusers saves it holds "
                "model_index.json, unet/ and scheduler/)"
            )
