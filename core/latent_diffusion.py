"""Latent diffusion models: a prompt and a seed to a latent, and a latent back to the noise that it was made from.

One interface over the model that ships with the package and over any folder of diffusers with a
``UNet2DConditionModel`` (Stable Diffusion). Sampling and inversion are deterministic (DDIM, DPM-Solver++ of second
order), image by image, so that a result never depends on its batch. The first noise is drawn as diffusers' own
pipelines draw it from ``torch.Generator().manual_seed(seed)``: the same prompt, seed and settings give their image.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import json
import re
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from .autoencoders import load_autoencoder
from .errors import ImageError, UnavailableError, UserError
from .identity import canonical_json
from .weights import digest_of, load_module, load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .autoencoders import Autoencoder

Solver = Literal["ddim", "dpm-solver"]
"""``ddim``: Song et al. 2021, eta 0. ``dpm-solver``: DPM-Solver++ (2M), Lu et al. 2022."""

_SHIPPED = Path(__file__).parent / "shipped" / "latent_diffusion"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_SCHEDULERS = {
    ("ddim", False): "DDIMScheduler",
    ("ddim", True): "DDIMInverseScheduler",
    ("dpm-solver", False): "DPMSolverMultistepScheduler",
    ("dpm-solver", True): "DPMSolverMultistepInverseScheduler",
}
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


class Conditioner(Protocol):
    """Turns prompts into what the network attends to."""

    digest: str

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings ``[B, L, W]``.

        Raises:
            UserError: a prompt that the model cannot take.
        """


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
    def sample(self, noise: torch.Tensor, prompt: str, sampling: Sampling) -> torch.Tensor:
        """The latent of an image.

        Args:
            noise: ``[1, channels, h, w]``.
            prompt: the caption; empty for none.
            sampling: steps, guidance, solver.

        Returns:
            ``[1, channels, h, w]``, as the autoencoder decodes it.

        Raises:
            UserError: a prompt that the model cannot take.
        """
        run = partial(self._run, noise, prompt, sampling.steps, sampling.guidance, sampling.solver, inverse=False)
        return self._remembered(_key(noise, prompt, sampling), run)

    @torch.no_grad()
    def invert(
        self, latent: torch.Tensor, steps: int = 10, prompt: str = "", guidance: float = 1.0, solver: Solver = "ddim"
    ) -> torch.Tensor:
        """The noise that ``latent`` was made from, by the same equation run backwards.

        Exact only in the limit of many steps. Whoever reads a mark knows neither prompt nor guidance: the defaults.

        Args:
            latent: ``[1, channels, h, w]``.
            steps: evaluations of the network.
            prompt: the caption.
            guidance: classifier-free guidance; 1 for none.
            solver: of the equation.

        Returns:
            ``[1, channels, h, w]``; about standard normal for an image that the model made.
        """
        run = partial(self._run, latent, prompt, steps, guidance, solver, inverse=True)
        return self._remembered(_key(latent, prompt, ("inverse", steps, guidance, solver)), run)

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
        if not 0 < steps < scheduler.config.num_train_timesteps:
            raise UserError(
                f"{self.name} was trained with {scheduler.config.num_train_timesteps} time steps: it samples and "
                f"inverts with fewer, not with {steps}"
            )
        with warnings.catch_warnings():
            # diffusers turns tensors into arrays in a way that NumPy 2 calls old.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            scheduler.set_timesteps(steps)
        values = start * (1.0 if inverse else scheduler.init_noise_sigma)
        for time in scheduler.timesteps:
            given = scheduler.scale_model_input(values, time)
            predicted = self.unet(given.expand(len(embedded), -1, -1, -1), time, embedded).sample
            if guided:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + guidance * (conditional - unconditional)
            values = scheduler.step(predicted, time, values, return_dict=False)[0]
        result: torch.Tensor = values
        return result


def make_scheduler(schedule: Mapping[str, Any], solver: Solver, inverse: bool = False) -> Any:
    """A scheduler of diffusers for a model's schedule.

    Args:
        schedule: the configuration that the model was trained with.
        solver: of the probability-flow equation.
        inverse: whether it runs from image to noise.
    """
    import diffusers

    scheduler: Any = getattr(diffusers, _SCHEDULERS[(solver, inverse)])
    taken = inspect.signature(scheduler.__init__).parameters
    changes: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    if solver == "ddim":
        # Diffusers inverts these two spacings only.
        spacing = schedule.get("timestep_spacing", "leading")
        changes = {"clip_sample": False, "timestep_spacing": "leading" if spacing == "linspace" else spacing}
    return scheduler(**{name: value for name, value in {**schedule, **changes}.items() if name in taken})


def _key(start: torch.Tensor, prompt: str, settings: object) -> str:
    content = hashlib.sha256(start.contiguous().numpy().tobytes())
    content.update(f"{tuple(start.shape)} {prompt!r} {settings!r}".encode())
    return content.hexdigest()


class _Words:
    """The word encoder of a model that was trained by this project."""

    def __init__(self, folder: Path) -> None:
        from .words import WordEncoder

        known = {k: v for k, v in _read_json(folder / "config.json").items() if not k.startswith("_")}
        try:
            with torch.random.fork_rng(devices=[]):
                self.encoder = WordEncoder(**known).eval().requires_grad_(False)
        except TypeError as error:
            raise UserError(f"{folder / 'config.json'}: no word encoder can be built from it: {_line(error)}") from None
        weights = _weights(folder)
        load_module(self.encoder, load_state(weights), str(weights))
        self.encoder.float()
        self.digest = _digest({"config": known, "weights": digest_of(weights)})

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        embedded: torch.Tensor = self.encoder(self.encoder.tokens(prompts))
        return embedded


class _Clip:
    """Stable Diffusion's tokeniser and text encoder, through transformers."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise UnavailableError(
                "a Stable Diffusion pipeline needs transformers: pip install 'waterproof[generation]'"
            )
        from transformers import CLIPTextModel, CLIPTokenizer

        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            with torch.random.fork_rng(devices=[]):
                encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UnavailableError(f"{folder}: tokenizer/ or text_encoder/ cannot be loaded: {_line(error)}") from None
        self.encoder = encoder.float().eval().requires_grad_(False)
        self.digest = digest_of(folder / "text_encoder") + digest_of(folder / "tokenizer")

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        longest = self.tokenizer.model_max_length
        for prompt in prompts:
            count = len(self.tokenizer(prompt).input_ids)
            if count > longest:
                raise UserError(f"prompt '{prompt[:60]}...': {count} tokens, this model takes {longest}")
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=longest, return_tensors="pt").input_ids
        embedded: torch.Tensor = self.encoder(tokens)[0]
        return embedded


def load_latent_diffusion(source: str | Path) -> LatentDiffusion:
    """Loads a latent diffusion model; the last two stay in memory.

    Args:
        source: ``shipped``; a folder of diffusers (a Stable Diffusion pipeline, or what ``waterproof train
            latent-diffusion`` wrote); or ``owner/name@revision`` of a hub, the revision a commit of 40 digits.

    Raises:
        UnavailableError: files are missing, damaged or out of reach; the message says what to put where.
        UserError: a model of another kind.
    """
    folder = _folder(str(source))
    name = "the shipped latent diffusion model" if str(source) == "shipped" else str(source)
    return _loaded(folder, digest_of(folder), name)


@lru_cache(maxsize=2)
def _loaded(folder: Path, _content: str, name: str) -> LatentDiffusion:
    """The folder's content is part of the key: one that was trained anew is loaded anew."""
    config = _read_json(folder / "unet" / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(f"{folder / 'unet'}: a {config.get('_class_name')}, not a UNet2DConditionModel")
    if config.get("addition_embed_type") not in (None, "text") or config.get("class_embed_type"):
        raise UserError(f"{folder}: its network wants more than a prompt (as Stable Diffusion XL does): not supported")
    schedule = _read_json(folder / "scheduler" / "scheduler_config.json")
    index = _read_json(folder / "model_index.json")
    own = index.get("_class_name") == "WordLatentDiffusion"
    conditioner: Conditioner = _Words(folder / "text_encoder") if own else _Clip(folder)
    autoencoder = load_autoencoder(*_autoencoder_of(index, folder) if own else (folder,))
    wanted = index.get("autoencoder_digest", autoencoder.digest)
    if own and wanted != autoencoder.digest:
        raise UserError(
            f"{folder} was trained over another autoencoder (its sha256 begins {str(wanted)[:12]}, that of this one "
            f"{autoencoder.digest[:12]})"
        )
    unet, weights = _unet(config, folder / "unet")
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
        raise UserError(f"{folder / 'scheduler'}: no schedule can be built from it: {_line(error)}") from None
    digest = _digest(
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


def _unet(config: Mapping[str, Any], folder: Path) -> tuple[Any, Path]:
    from diffusers import UNet2DConditionModel

    known = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with torch.random.fork_rng(devices=[]):
            unet = UNet2DConditionModel(**known)
        # Models that say nothing, or name two sides, give no square.
        if not isinstance(unet.config.sample_size, int):
            raise ValueError(f"sample_size is {unet.config.sample_size}, not one side in latent cells")
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: the network cannot be built from it: {_line(error)}") from None
    weights = _weights(folder)
    load_module(unet, load_state(weights), str(weights))
    # diffusers' own method only adds a warning about types.
    network: Any = torch.nn.Module
    network.to(unet, torch.float32, memory_format=torch.channels_last)
    return unet, weights


def _weights(folder: Path) -> Path:
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UnavailableError(f"{folder}: no weights there: put {_WEIGHTS[0]} beside config.json")
    return found


def _folder(source: str) -> Path:
    if source == "shipped":
        if not _SHIPPED.is_dir():
            raise UnavailableError("this copy of waterproof ships no latent diffusion model: give a folder instead")
        return _SHIPPED
    path = Path(source).expanduser()
    if path.is_dir():
        for part in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
            if not (path / part).is_file():
                raise UnavailableError(
                    f"{path}: no latent diffusion model there: {part} is missing (a folder as diffusers saves it holds "
                    "model_index.json, unet/, vae/, scheduler/, tokenizer/ and text_encoder/)"
                )
        return path
    repository, _, revision = source.partition("@")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        return _from_hub(repository, revision)
    raise UnavailableError(
        f"latent diffusion model {source}: there is no such folder; give 'shipped', a folder as diffusers saves it, or "
        "owner/name@revision"
    )


def _from_hub(repository: str, revision: str) -> Path:
    """The local copy of a hub's repository, downloaded where it is not in the cache."""
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(
            f"latent diffusion model {repository}: there is no such folder, and a hub id needs its revision pinned to "
            f"a commit of 40 hexadecimal digits, as {repository}@REVISION, not '{revision}'"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UnavailableError("a hub id needs the package huggingface_hub: pip install huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["model_index.json", *(f"{part}/*.json" for part in ("unet", "vae", "scheduler", "tokenizer"))]
    wanted += ["text_encoder/*.json", "tokenizer/*.txt", "text_encoder/model.safetensors"]
    wanted += [f"{part}/{_WEIGHTS[0]}" for part in ("unet", "vae")]
    reason = "it is neither in the local cache nor within reach"
    for local in (True, False):
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=local)
        except LocalEntryNotFoundError:
            continue
        except Exception as error:  # the errors of the hub's network clients share no base
            reason = _line(error)
            break
        try:
            return _folder(folder)
        except UnavailableError as error:
            # The cache may hold a part of it, an autoencoder for example: then the rest is fetched.
            reason = str(error)
    raise UnavailableError(
        f"latent diffusion model {repository} at {revision[:12]}: {reason}: where there is a network, run 'hf download "
        f"{repository} --revision {revision} --local-dir FOLDER', then give FOLDER in the place of the id"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{path}: cannot be read ({_line(error)}); fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
