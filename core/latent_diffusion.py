"""Latent diffusion models: a prompt and a seed to a latent, and a latent back to the noise that it was made from.

One interface over the model that ships with the package and over any folder of diffusers with a
``UNet2DConditionModel`` (Stable Diffusion). Sampling and inversion are deterministic (DDIM, DPM-Solver++ of second
order), image by image, so that a result never depends on its batch. The first noise is drawn as diffusers' own
pipelines draw it from ``torch.Generator().manual_seed(seed)``: the same prompt, seed and settings give their image.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import effort
from .autoencoders import load_autoencoder
from .conditioners import ClipConditioner, WordConditioner
from .errors import ImageError, UnavailableError, UserError, first_line
from .identity import content_digest
from .model_folders import WEIGHTS, find_folder, load_network, read_json
from .noise_schedule import Solver as Solver
from .noise_schedule import estimates, make_scheduler, set_times
from .weights import digest_of, load_module

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .autoencoders import Autoencoder
    from .conditioners import Conditioner

_SHIPPED = Path(__file__).parent / "shipped" / "latent_diffusion"
_WHAT = "latent diffusion model"
_WANTED = (
    "model_index.json",
    *(f"{part}/*.json" for part in ("unet", "vae", "scheduler", "tokenizer", "text_encoder")),
    *("tokenizer/*.txt", "text_encoder/model.safetensors"),
    *(f"{part}/{WEIGHTS[0]}" for part in ("unet", "vae")),
)
"""Files of a Stable Diffusion repository."""
_REMEMBERED = 512
"""Latents that are kept, 64 KB each at 64 x 64 x 4: the dataset and each method ask for the same ones."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a latent is made.

    Attributes:
        steps: evaluations of the network (twice as many with guidance).
        guidance: classifier-free guidance; 1 for none.
        solver: of the probability-flow equation.
    """

    steps: int = 20
    guidance: float = 3.0
    solver: Solver = "ddim"


def edit_steps(steps: int, strength: float) -> int:
    """How many of a sampler's steps an edit of this strength takes, as diffusers counts them."""
    return int(steps * strength)


class LatentDiffusion:
    """A latent diffusion model in evaluation mode.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        autoencoder: latents to images and back.
        conditioner: prompts to embeddings.
        schedule: the configuration of the scheduler that the model was trained with.
        name: what to call it.

    Attributes:
        digest: SHA-256 over everything that decides the results.
        size: side in pixels of the images that it was trained for.
        multiple: sides must be multiples of it: the autoencoder's factor times what the network halves.

    Example:
        >>> model = load_latent_diffusion("shipped")  # doctest: +SKIP
        >>> latent = model.sample(model.noise(7), "dark blue", Sampling(steps=20))  # doctest: +SKIP
        >>> model.autoencoder.decode(latent).shape  # doctest: +SKIP
        torch.Size([1, 3, 256, 256])
    """

    def __init__(
        self,
        unet: Any,
        autoencoder: Autoencoder,
        conditioner: Conditioner,
        schedule: Mapping[str, Any],
        name: str,
        digest: str,
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.autoencoder = autoencoder
        self.conditioner = conditioner
        self.schedule = dict(schedule)
        self.name = name
        self.digest = digest
        self.channels = int(unet.config.in_channels)
        self.size = int(unet.config.sample_size) * autoencoder.factor
        self.multiple = autoencoder.factor * 2 ** (len(unet.config.block_out_channels) - 1)
        self._latents: OrderedDict[str, torch.Tensor] = OrderedDict()

    def scheduler(self, solver: Solver = "ddim", inverse: bool = False) -> Any:
        """A scheduler of diffusers with the model's schedule; see :func:`make_scheduler`."""
        return make_scheduler(self.schedule, solver, inverse)

    def with_weights(self, state: Mapping[str, torch.Tensor], digest: str) -> LatentDiffusion:
        """The same model with other weights of its network.

        Args:
            state: the network's tensors by name.
            digest: what to know it by.
        """
        unet = copy.deepcopy(self.unet)
        load_module(unet, state, "the network's other weights")
        return LatentDiffusion(unet, self.autoencoder, self.conditioner, self.schedule, self.name, digest)

    def noise(self, seed: int, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The noise that an image begins as: ``[1, channels, h, w]``, independent standard normal values.

        Args:
            seed: as diffusers' pipelines take it, 0 to 2^63 - 1.
            size: (height, width) of the image in pixels; None for the model's own.

        Raises:
            ImageError: a side is no multiple of :attr:`multiple`.
        """
        height, width = size or (self.size, self.size)
        self.check_size(height, width)
        shape = (1, self.channels, height // self.autoencoder.factor, width // self.autoencoder.factor)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def check_size(self, height: int, width: int) -> None:
        """Checks that the model can make images of this size.

        Raises:
            ImageError: a side is no multiple of :attr:`multiple`.
        """
        if height % self.multiple or width % self.multiple or min(height, width) < 1:
            near = " x ".join(str(max(1, round(side / self.multiple)) * self.multiple) for side in (height, width))
            raise ImageError(
                f"{self.name} makes images whose sides are multiples of {self.multiple} pixels: not {height} x "
                f"{width}, but for example {near}"
            )

    @torch.no_grad()
    def sample(self, noise: torch.Tensor, prompt: str, sampling: Sampling, remember: bool = True) -> torch.Tensor:
        """The latent of an image.

        Args:
            noise: ``[1, channels, h, w]``.
            prompt: the caption; empty for none.
            sampling: steps, guidance, solver.
            remember: whether anybody will ask for the same again.

        Returns:
            ``[1, channels, h, w]``, as the autoencoder decodes it.

        Raises:
            UserError: a prompt that the model cannot take.
        """
        run = partial(self._run, noise, prompt, sampling.steps, sampling.guidance, sampling.solver, inverse=False)
        return self._remembered(_key(noise, prompt, sampling), run) if remember else run()

    @torch.no_grad()
    def invert(
        self,
        latent: torch.Tensor,
        steps: int = 10,
        prompt: str = "",
        guidance: float = 1.0,
        solver: Solver = "ddim",
        remember: bool = True,
    ) -> torch.Tensor:
        """The noise that ``latent`` was made from, by the same equation run backwards.

        Exact only in the limit of many steps. Whoever reads a mark knows neither prompt nor guidance: the defaults.

        Args:
            latent: ``[1, channels, h, w]``.
            steps: evaluations of the network.
            prompt: the caption.
            guidance: classifier-free guidance; 1 for none.
            solver: of the equation.
            remember: whether anybody will ask for the same again.

        Returns:
            ``[1, channels, h, w]``; about standard normal for an image that the model made.
        """
        run = partial(self._run, latent, prompt, steps, guidance, solver, inverse=True)
        if not remember:
            return run()
        return self._remembered(_key(latent, prompt, ("inverse", steps, guidance, solver)), run)

    def times(self, steps: int) -> list[int]:
        """The time steps at which ``steps`` evaluations of DDIM are made, the noisiest first.

        Raises:
            UserError: not fewer than the model was trained with.
        """
        scheduler = self.scheduler()
        self._check_steps(scheduler, steps)
        set_times(scheduler, steps)
        return [int(time) for time in scheduler.timesteps]

    def noised(self, latent: torch.Tensor, time: int, noise: torch.Tensor) -> torch.Tensor:
        """The latent with the noise of a time step: sqrt(alpha) latent + sqrt(1 - alpha) noise.

        Args:
            latent: ``[1, channels, h, w]``.
            time: from 0 to the last step of the training.
            noise: of the same shape, standard normal.

        Raises:
            UserError: another time.
        """
        self._check_times([time])
        alpha: torch.Tensor = self.scheduler().alphas_cumprod[time]
        return alpha.sqrt() * latent + (1 - alpha).sqrt() * noise

    @torch.no_grad()
    def denoise(
        self, noisy: torch.Tensor, times: Sequence[int], prompt: str = "", guidance: float = 1.0
    ) -> torch.Tensor:
        """A latent from a noisy one by DDIM with eta 0, as image-to-image pipelines go the last part of the way.

        Args:
            noisy: ``[1, channels, h, w]``, with the noise of ``times[0]``.
            times: the time steps to evaluate the network at, falling; see :meth:`times`.
            prompt: the caption; empty for none.
            guidance: classifier-free guidance; 1 for none.

        Returns:
            ``[1, channels, h, w]``, as the autoencoder decodes it.

        Raises:
            UserError: no times, times that the model does not know or that do not fall, a prompt that it cannot take.
        """
        self._check_times(times)
        embedded = self.conditioner.embed(["", prompt] if guidance != 1 else [prompt])
        scheduler = self.scheduler()
        kind, values = scheduler.config.prediction_type, noisy
        for time, following in zip(times, [*times[1:], None], strict=True):
            predicted = self._predict(values, torch.tensor(time), embedded, guidance)
            clean, noise = estimates(kind, values, predicted, scheduler.alphas_cumprod[time])
            alpha = scheduler.final_alpha_cumprod if following is None else scheduler.alphas_cumprod[following]
            values = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        return values

    def edit(
        self, latent: torch.Tensor, prompt: str, noise: torch.Tensor, strength: float, sampling: Sampling
    ) -> torch.Tensor:
        """Image to image (SDEdit, Meng et al., ICLR 2022): noise for a share of the steps, taken away with a prompt.

        As diffusers' image-to-image pipeline with DDIM: the last ``int(strength * steps)`` steps of the sampler.

        Args:
            latent: ``[1, channels, h, w]``.
            prompt: the caption; empty for none.
            noise: of the same shape, standard normal.
            strength: 0 (the latent itself) to 1.
            sampling: steps and guidance; the solver is DDIM.

        Raises:
            UserError: a strength that is no share, steps or a prompt that the model cannot take.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"the strength of an edit is a share of the steps, 0 to 1, not {strength}")
        times = self.times(sampling.steps)
        times = times[len(times) - edit_steps(sampling.steps, strength) :]
        if not times:
            return latent
        return self.denoise(self.noised(latent, times[0], noise), times, prompt, sampling.guidance)

    def _check_times(self, times: Sequence[int]) -> None:
        last = self.scheduler().config.num_train_timesteps - 1
        for time in times:
            if not 0 <= time <= last:
                raise UserError(f"{self.name} was trained with the time steps 0 to {last}, not {time}")
        if not times or any(later >= time for time, later in pairwise(times)):
            raise UserError(f"times to denoise at are one or more and fall: not {list(times)}")

    def _remembered(self, key: str, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._latents:
            self._latents[key] = run()
            while len(self._latents) > _REMEMBERED:
                self._latents.popitem(last=False)
        self._latents.move_to_end(key)
        return self._latents[key].clone()

    def _run(
        self, start: torch.Tensor, prompt: str, steps: int, guidance: float, solver: Solver, inverse: bool
    ) -> torch.Tensor:
        """Runs the solver from noise to latent, or backwards."""
        guided = guidance != 1
        embedded = self.conditioner.embed(["", prompt] if guided else [prompt])
        scheduler = self.scheduler(solver, inverse)
        self._check_steps(scheduler, steps)
        set_times(scheduler, steps)
        values = start * (1.0 if inverse else scheduler.init_noise_sigma)
        for time in scheduler.timesteps:
            predicted = self._predict(scheduler.scale_model_input(values, time), time, embedded, guidance)
            values = scheduler.step(predicted, time, values, return_dict=False)[0]
        result: torch.Tensor = values
        return result

    def _check_steps(self, scheduler: Any, steps: int) -> None:
        if not 0 < steps < scheduler.config.num_train_timesteps:
            raise UserError(
                f"{self.name} was trained with {scheduler.config.num_train_timesteps} time steps: it samples and "
                f"inverts with fewer, not with {steps}"
            )

    def _predict(self, values: torch.Tensor, time: Any, embedded: torch.Tensor, guidance: float) -> torch.Tensor:
        """The network's output, guided where there are two embeddings: of no prompt and of the prompt."""
        effort.count(evaluations=len(embedded))
        predicted: torch.Tensor = self.unet(values.expand(len(embedded), -1, -1, -1), time, embedded).sample
        if len(embedded) == 1:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        return unconditional + guidance * (conditional - unconditional)


def _key(start: torch.Tensor, prompt: str, settings: object) -> str:
    content = hashlib.sha256(start.contiguous().numpy().tobytes())
    content.update(f"{tuple(start.shape)} {prompt!r} {settings!r}".encode())
    return content.hexdigest()


def load_latent_diffusion(source: str | Path) -> LatentDiffusion:
    """Loads a latent diffusion model; the last two stay in memory.

    Args:
        source: ``shipped``; a folder of diffusers (a Stable Diffusion pipeline, or what ``waterproof train
            latent-diffusion`` wrote); or ``owner/name@revision`` of a hub, the revision a commit of 40 digits.

    Raises:
        UnavailableError: files are missing, damaged or out of reach; the message says what to put where.
        UserError: a model of another kind.
    """
    folder = find_folder(_WHAT, str(source), _SHIPPED, _check, _WANTED)
    name = f"the shipped {_WHAT}" if str(source) == "shipped" else str(source)
    return _loaded(folder, digest_of(folder), name)


@lru_cache(maxsize=2)
def _loaded(folder: Path, _content: str, name: str) -> LatentDiffusion:
    """The folder's content is part of the key: one that was trained anew is loaded anew."""
    config = read_json(folder / "unet" / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(f"{folder / 'unet'}: a {config.get('_class_name')}, not a UNet2DConditionModel")
    if config.get("addition_embed_type") not in (None, "text") or config.get("class_embed_type"):
        raise UserError(f"{folder}: its network wants more than a prompt (as Stable Diffusion XL does): not supported")
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    index = read_json(folder / "model_index.json")
    own = index.get("_class_name") == "WordLatentDiffusion"
    conditioner: Conditioner = WordConditioner(folder / "text_encoder") if own else ClipConditioner(folder)
    autoencoder = load_autoencoder(*_autoencoder_of(index, folder) if own else (folder,))
    wanted = index.get("autoencoder_digest", autoencoder.digest)
    if own and wanted != autoencoder.digest:
        raise UserError(
            f"{folder} was trained over another autoencoder (its sha256 begins {str(wanted)[:12]}, that of this one "
            f"{autoencoder.digest[:12]})"
        )
    from diffusers import UNet2DConditionModel

    path = folder / "unet" / "config.json"
    unet, weights = load_network(UNet2DConditionModel, config, path)
    # Models that say nothing, or name two sides, give no square.
    if not isinstance(unet.config.sample_size, int):
        raise UserError(
            f"{path}: the network cannot be built from it: sample_size is {unet.config.sample_size}, not one side in "
            "latent cells"
        )
    if autoencoder.channels != unet.config.in_channels:
        raise UserError(
            f"{folder}: the network takes latents of {unet.config.in_channels} channels, "
            f"its autoencoder makes {autoencoder.channels}"
        )
    defining = {key: value for key, value in config.items() if not key.startswith("_")}
    schedule = {key: value for key, value in schedule.items() if not key.startswith("_")}
    try:
        _ = make_scheduler(schedule, "ddim"), make_scheduler(schedule, "dpm-solver")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{folder / 'scheduler'}: no schedule can be built from it: {first_line(error)}") from None
    digest = content_digest(
        {
            "unet": defining,
            "weights": digest_of(weights),
            "schedule": schedule,
            "autoencoder": autoencoder.digest,
            "conditioner": conditioner.digest,
        }
    )
    return LatentDiffusion(unet, autoencoder, conditioner, schedule, name, digest)


def _autoencoder_of(index: Mapping[str, Any], folder: Path) -> tuple[Any, ...]:
    """What the index says of the autoencoder, which is not copied beside a model that was trained over it."""
    source = str(index.get("autoencoder", "shipped"))
    name, at, revision = source.partition("@")
    beside = folder / name
    found: Any = name if name == "shipped" or at or not beside.is_dir() else beside
    return (found, revision) if at else (found,)


def _check(folder: Path) -> None:
    for part in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise UnavailableError(
                f"{folder}: no {_WHAT} there: {part} is missing (a folder as diffusers saves it holds "
                "model_index.json, unet/, vae/, scheduler/, tokenizer/ and text_encoder/)"
            )
