"""Noisy upscaling: noise on the image, and a diffusion model that enlarges images has to see through it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional

from ..core import effort
from ..core.autoencoders import load_autoencoder
from ..core.components import knob, labelled, param
from ..core.conditioners import ClipConditioner
from ..core.errors import UnavailableError, UserError, first_line
from ..core.holding import one_by_one, why_not
from ..core.identity import content_digest
from ..core.model_folders import WEIGHTS, find_folder, is_hub_id, load_network, read_json, weights_in
from ..core.noise_schedule import NOISES, make_scheduler, set_times
from ..core.weights import cache_folder, digest_of
from .base import Attack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..core.autoencoders import Autoencoder
    from ..core.images import Images, Record
    from ..core.seeds import Seed

_WHAT = "diffusion upscaler"
_KIND = "StableDiffusionUpscalePipeline"
_TEXT = "text_encoder/model.safetensors"
_PARTS = (
    "model_index.json",
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/scheduler_config.json" for part in ("scheduler", "low_res_scheduler")),
    _TEXT,
)
_FOLDERS = ("unet", "vae", "scheduler", "low_res_scheduler", "tokenizer", "text_encoder")
_WANTED = (
    "model_index.json",
    *(f"{part}/*.json" for part in _FOLDERS),
    *("tokenizer/*.txt", _TEXT),
    *(f"{part}/{WEIGHTS[0]}" for part in ("unet", "vae")),
)
"""Files of a repository; its weights in half precision and as pickles are left where they are."""
_SCALING = 0.08333
"""Of latents: diffusers' pipeline takes this number whatever the autoencoder's file says, which often says nothing."""
_MAX_LEVEL = 350
"""Of diffusers' pipelines where theirs do not say."""


class Upscaler:
    """A latent diffusion model that enlarges an image, as diffusers' ``StableDiffusionUpscalePipeline`` does.

    The network sees the noisy latent with the small image beside it, and is told how noisy that image is.

    Args:
        unet: diffusers' ``UNet2DConditionModel`` with a class for each noise level.
        autoencoder: decodes the latent, which is as large as the small image.
        conditioner: prompts to embeddings.
        schedule: the configuration of the scheduler that the model was trained with.
        kept: alpha bar of the small image's noise, by level.
        levels: the highest noise level that the network can be told.
        name: what to call it.
        digest: SHA-256 over everything that decides the results.

    Attributes:
        factor: how much larger each side becomes.
        multiple: sides of the small image must be multiples of it.
    """

    def __init__(
        self,
        unet: Any,
        autoencoder: Autoencoder,
        conditioner: ClipConditioner,
        schedule: Mapping[str, Any],
        kept: torch.Tensor,
        levels: int,
        name: str,
        digest: str,
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.autoencoder = autoencoder
        self.conditioner = conditioner
        self.schedule = dict(schedule)
        self.kept = kept
        self.levels = levels
        self.name = name
        self.digest = digest
        self.factor = autoencoder.factor
        # Both are powers of 2; diffusers' pipeline brings images to multiples of its autoencoder's factor.
        self.multiple = max(self.factor, 2 ** (len(unet.config.block_out_channels) - 1))

    def check(self, steps: int, *levels: int) -> None:
        """Checks that the model knows so many steps and these noise levels.

        Raises:
            UserError: it does not.
        """
        trained = int(make_scheduler(self.schedule, "ddim").config.num_train_timesteps)
        if not 0 < steps < trained:
            raise UserError(
                f"{self.name} was trained with {trained} time steps: it samples with fewer, not with {steps}"
            )
        for level in levels:
            if not 0 <= level <= self.levels:
                raise UserError(f"{self.name} knows the noise levels 0 to {self.levels}, not {level}")

    @torch.no_grad()
    def enlarge(
        self,
        image: torch.Tensor,
        draw: torch.Generator,
        steps: int,
        level: int,
        added: int,
        prompt: str = "",
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """The image at ``factor`` times its size, by DDIM with eta 0.

        Args:
            image: floats ``[1, 3, H, W]`` in 0 to 1, both sides multiples of :attr:`multiple`.
            draw: of the small image's noise, then of the latent that the large one begins as.
            steps: evaluations of the network (twice as many with guidance).
            level: the noise level that the network is told.
            added: the noise level whose noise the image gets here.
            prompt: what the image shows; empty for nothing.
            guidance: classifier-free guidance; 1 for none.

        Returns:
            Floats ``[1, 3, factor * H, factor * W]``, clipped to 0 to 1.

        Raises:
            UserError: steps, levels or a prompt that the model cannot take.
        """
        self.check(steps, level, added)
        # Away from an empty prompt there is nowhere to go.
        prompts = ["", prompt] if guidance > 1 and prompt else [prompt]
        embedded = self.conditioner.embed(prompts)
        noise = torch.randn(image.shape, generator=draw)
        small = self.kept[added].sqrt() * (image * 2 - 1) + (1 - self.kept[added]).sqrt() * noise
        values = torch.randn((1, self.autoencoder.channels, *image.shape[2:]), generator=draw)
        scheduler = make_scheduler(self.schedule, "ddim")
        set_times(scheduler, steps)
        classes = torch.full((len(prompts),), level)
        for step, time in enumerate(scheduler.timesteps):
            effort.note(f"upscaling: step {step + 1} of {steps}")
            effort.count(evaluations=len(prompts))
            seen = torch.cat([values, small], dim=1).expand(len(prompts), -1, -1, -1)
            predicted = self.unet(seen, time, embedded, class_labels=classes).sample
            if len(prompts) == 2:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + guidance * (conditional - unconditional)
            values = scheduler.step(predicted, time, values, return_dict=False)[0]
        return self.autoencoder.decode(values).clamp(0, 1)


class NoisyUpscaling(Attack):
    """Gaussian noise, then a diffusion upscaler, then back to the image's size by the mean of each block of pixels.

    Noise with a standard deviation of ``sd``, in values of 0 to 1, drowns what was added to the image; the result is
    clipped and rounded to 8 bits. The upscaler is told that the image is as noisy as ``noise_level``, a time step of
    its schedule, and takes that much for noise. The released code (github.com/ethz-spylab/robust-style-mimicry) tells
    it 320, three times the noise that there is with the published model, but has it add the noise of step 0 only, next
    to nothing: the same is done here by default. Diffusers' own pipeline adds what it tells, ``added_level: null``.
    The released code also gives a caption of each image as its prompt, and keeps the large image. Without a prompt
    guidance changes nothing: each step then asks the network once instead of twice.

    Sampling is DDIM with eta 0, whatever scheduler the folder names. Sides are extended to the right and below, by
    repeating the edge, to multiples of what the network halves (8 pixels in the published model), before the noise is
    added, and cut back at the end.

    No upscaler is shipped, and a hub is asked only where ``model`` names it. Each step of the published one takes
    4.5e12 operations for 256 x 256 pixels.

    Example:
        >>> NoisyUpscaling(sd=0.2, steps=20).label
        'noisy-upscaling(sd=0.2, steps=20)'
    """

    name: ClassVar[str] = "noisy-upscaling"
    family: ClassVar[str] = "regeneration"
    summary: ClassVar[str] = "noise, then a diffusion upscaler, and back to size"
    strength: ClassVar[str | None] = "sd"
    strengths: ClassVar[tuple[Any, ...]] = (0.05, 0.1, 0.15, 0.2)
    seeded: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "R. Honig, J. Rando, N. Carlini, F. Tramer: Adversarial Perturbations Cannot Reliably Protect Artists From "
        "Generative AI. ICLR 2025, arXiv:2406.12027.",
    )

    sd: float = param(0.1, doc="standard deviation of the noise, in values of 0 to 1", ge=0, le=1)
    steps: int = param(75, doc="evaluations of the network, twice as many with a prompt and guidance", ge=1, le=999)
    noise_level: int = param(320, doc="how noisy the network is told the image is, a time step, 0 to 350", ge=0, le=999)
    added_level: int | None = param(
        0, doc="time step whose noise the upscaler adds itself; None for noise_level, as diffusers does", ge=0, le=999
    )
    guidance: float = param(9.0, doc="classifier-free guidance towards the prompt; 1 for none", ge=1, le=100)
    prompt: str = param("", doc="what the images show; empty for nothing")
    model: str | None = knob(
        None,
        doc="a folder of diffusers' StableDiffusionUpscalePipeline, or owner/name@revision; left out, x4-upscaler/ in "
        "the weights folder",
    )

    @property
    def label(self) -> str:
        """Name, strength, whose model where it is not that of the weights folder, and what differs from defaults."""
        place = {} if self.model is None else {"model": Path(self.model).name}
        return labelled(self.name, {"sd": self.sd, **place, **self.changed_params()})

    def unavailable(self) -> str | None:
        """Needs the model, and one that knows these steps and noise levels."""
        return why_not(self._upscaler)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the model: network, autoencoder, text encoder and both schedules."""
        return {} if self.unavailable() else {"model": self._upscaler().digest}

    def apply(self, images: Images, seed: Seed) -> Images:
        """The images, enlarged out of their noise and made small again."""
        upscaler = self._upscaler()

        def change(image: torch.Tensor, record: Record) -> torch.Tensor:
            draw = seed.child(record.id).torch()
            height, width = image.shape[2:]
            grown = (0, -width % upscaler.multiple, 0, -height % upscaler.multiple)
            padded = functional.pad(image, grown, mode="replicate")
            noisy = (padded + self.sd * torch.randn(padded.shape, generator=draw)).clamp(0, 1).mul(255).round() / 255
            large = upscaler.enlarge(noisy, draw, self.steps, self.noise_level, self._added, self.prompt, self.guidance)
            return functional.avg_pool2d(large, upscaler.factor)[..., :height, :width]

        return one_by_one(images, change)

    @property
    def _added(self) -> int:
        return self.noise_level if self.added_level is None else self.added_level

    def _upscaler(self) -> Upscaler:
        upscaler = load_upscaler(self.model)
        upscaler.check(self.steps, self.noise_level, self._added)
        return upscaler


def load_upscaler(source: str | None) -> Upscaler:
    """Loads an upscaler; the last one stays in memory.

    Args:
        source: a folder of diffusers' ``StableDiffusionUpscalePipeline``, or ``owner/name@revision`` of a hub, the
            revision a commit of 40 digits; None for ``x4-upscaler`` in the weights folder.

    Raises:
        UnavailableError: files are missing, damaged or out of reach; the message says what to put where.
        UserError: a model of another kind.
    """
    own = cache_folder() / "x4-upscaler"
    place = str(own) if source is None else source
    if not Path(place).expanduser().is_dir() and not is_hub_id(place.partition("@")[0]):
        raise UnavailableError(
            f"{_WHAT} {place}: there is no such folder: put one of diffusers' {_KIND} there (such as that of "
            f"stabilityai/stable-diffusion-x4-upscaler), or give model: its folder, or owner/name@revision"
        )
    folder = find_folder(_WHAT, place, own, _check, _WANTED)
    return _loaded(folder, digest_of(folder), place)


@lru_cache(maxsize=1)
def _loaded(folder: Path, _content: str, name: str) -> Upscaler:
    """The folder's content is part of the key: one that was changed is loaded anew."""
    from diffusers import UNet2DConditionModel

    path = folder / "unet" / "config.json"
    config = read_json(path)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(f"{path.parent}: a {config.get('_class_name')}, not a UNet2DConditionModel")
    schedule, small = (
        _settings(folder / part / "scheduler_config.json") for part in ("scheduler", "low_res_scheduler")
    )
    kept = _kept(small, folder)
    try:
        _ = make_scheduler(schedule, "ddim")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{folder / 'scheduler'}: no schedule can be built from it: {first_line(error)}") from None
    conditioner = ClipConditioner(folder)
    autoencoder = load_autoencoder(folder / "vae")
    autoencoder.scaling = _SCALING
    unet, weights = load_network(UNet2DConditionModel, config, path)
    channels = autoencoder.channels
    if (unet.config.in_channels, unet.config.out_channels) != (channels + 3, channels):
        raise UserError(
            f"{path.parent}: the network takes {unet.config.in_channels} channels and gives "
            f"{unet.config.out_channels}; with this autoencoder it takes {channels + 3}, a latent and an image, and "
            f"gives {channels}"
        )
    classes = unet.config.num_class_embeds
    if not classes:
        raise UserError(f"{path.parent}: the network has no classes (num_class_embeds) to be told a noise level by")
    highest = read_json(folder / "model_index.json").get("max_noise_level", _MAX_LEVEL)
    if not isinstance(highest, int):
        raise UserError(f"{folder / 'model_index.json'}: max_noise_level is a time step, not {highest}")
    digest = content_digest(
        {
            "unet": {key: value for key, value in config.items() if not key.startswith("_")},
            "weights": digest_of(weights),
            "schedule": schedule,
            "small": small,
            "autoencoder": autoencoder.digest,
            "conditioner": conditioner.digest,
        }
    )
    levels = min(highest, classes - 1, len(kept) - 1)
    return Upscaler(unet, autoencoder, conditioner, schedule, kept, levels, name, digest)


def _settings(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if not key.startswith("_")}


def _kept(schedule: Mapping[str, Any], folder: Path) -> torch.Tensor:
    """Alpha bar by noise level."""
    from diffusers import DDPMScheduler

    try:
        kept: torch.Tensor = DDPMScheduler(**{n: schedule[n] for n in NOISES if n in schedule}).alphas_cumprod
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"{folder / 'low_res_scheduler'}: no schedule can be built from it: {reason}") from None
    return kept


def _check(folder: Path) -> None:
    index = folder / "model_index.json"
    kind = read_json(index).get("_class_name") if index.is_file() else _KIND
    if kind != _KIND:
        raise UserError(f"{folder}: a {kind or 'model without _class_name'}, not a {_KIND}")
    for part in _PARTS:
        if not (folder / part).is_file():
            raise UnavailableError(
                f"{folder}: no {_WHAT} there: {part} is missing (a folder as diffusers saves it holds "
                f"model_index.json, {', '.join(f'{name}/' for name in _FOLDERS[:-1])} and {_FOLDERS[-1]}/)"
            )
    # Safetensors only: a pickle beside them is never read.
    for part in ("unet", "vae"):
        weights_in(folder / part)
