"""Autoencoders: images to latents and back, one interface over diffusers' three kinds and two tiny ones.

Latents are what a diffusion model sees: shifted and scaled. Images are floats in 0 to 1. Everything is differentiable
with respect to images, latents and decoder, and nothing is drawn at random: the latent is the mode of the posterior.
Weights are loaded strictly, never from an unpinned revision of a hub.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from . import effort
from .errors import ImageError, UnavailableError, UserError, first_line
from .identity import content_digest
from .model_folders import WEIGHTS, check_pinned, is_hub_id, out_of_reach, read_json, weights_in
from .taef2 import Taef2, taef2_name
from .vaelight import VAELIGHT_FILES, VaeLight, load_vaelight
from .weights import digest_of, load_module, load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Kind = Literal["kl", "tiny", "vq"]
"""``kl``: Gaussian posterior (Stable Diffusion). ``tiny``: deterministic. ``vq``: quantised by the decoder (VQGAN)."""

_KINDS: dict[str, Kind] = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny", "VQModel": "vq"}
_SHIPPED = Path(__file__).parent / "shipped" / "autoencoder"
_SUBFOLDERS = ("", "vae", "vqvae", "movq")
"""Where a diffusers folder keeps its autoencoder: itself, or one of a pipeline's folders."""
_WEIGHTS = (*WEIGHTS, "diffusion_pytorch_model.bin")
_TAEF2_PAIR = ("taef2_encoder.pth", "taef2_decoder.pth")
_TAEF2_FILE = "taef2.safetensors"
_TAEF2 = (*_TAEF2_PAIR, _TAEF2_FILE)
_FILES = f"config.json with {_WEIGHTS[0]} (also in vae/), or " + ", or ".join(
    " with ".join(pair) for pair in (_TAEF2_PAIR, VAELIGHT_FILES)
)


class Autoencoder:
    """An autoencoder in evaluation mode, without gradients for its own weights unless somebody asks for them.

    Attributes:
        model: the network: diffusers' AutoencoderKL, AutoencoderTiny or VQModel, :class:`Taef2` or :class:`VaeLight`.
        kind: ``kl``, ``tiny`` or ``vq``.
        factor: pixels per latent cell, each way.
        channels: latent channels.
        scaling: what a latent is multiplied with after ``shift`` was taken off.
        shift: see ``scaling``.
        digest: SHA-256 over the weights and the configuration that decide the results.

    Example:
        >>> autoencoder = load_autoencoder("path/to/vae")  # doctest: +SKIP
        >>> autoencoder.decode(autoencoder.encode(torch.rand(1, 3, 64, 64))).shape  # doctest: +SKIP
        torch.Size([1, 3, 64, 64])
    """

    def __init__(
        self, model: nn.Module, kind: Kind, factor: int, channels: int, scaling: float, shift: float, digest: str
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.kind = kind
        self.factor = factor
        self.channels = channels
        self.scaling = scaling
        self.shift = shift
        self.digest = digest

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights, and of latents and images that come out."""
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Autoencoder:
        """Moves the network in place and returns this autoencoder."""
        # diffusers' own method only adds a warning about types.
        nn.Module.to(self.model, device=device, dtype=dtype)
        return self

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of images: ``(z - shift) * scaling``, z the posterior's mode or what is yet to be quantised.

        Args:
            images: floats ``[B, 3, H, W]`` in 0 to 1, both sides multiples of ``factor``.

        Returns:
            ``[B, channels, H / factor, W / factor]``.

        Raises:
            ImageError: wrong type, shape or size.
        """
        self._check_images(images)
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            fitting = " x ".join(str(-(-side // self.factor) * self.factor) for side in (height, width))
            raise ImageError(
                f"images of {height} x {width} pixels: the sides must be multiples of {self.factor}, such as "
                f"{fitting}; pad() extends them"
            )
        effort.count(evaluations=len(images))
        model: Any = self.model
        values = self._to_range(images.to(self.device, self.dtype))
        if self.kind == "kl":
            latents: torch.Tensor = model.encode(values).latent_dist.mode()
        elif self.kind == "vq":
            latents = model.encode(values).latents
        else:
            latents = model.encoder(values)
        return (latents - self.shift) * self.scaling

    def decode(
        self, latents: torch.Tensor, decoder: Mapping[str, nn.Module] | nn.ModuleDict | None = None
    ) -> torch.Tensor:
        """Images of latents, not clamped: gradients flow, and the caller clips.

        Args:
            latents: ``[B, channels, h, w]`` as :meth:`encode` and diffusion models give them.
            decoder: other modules in the place of :meth:`decoder_modules`, e.g. fine-tuned copies of them.

        Returns:
            Floats ``[B, 3, h * factor, w * factor]``, about 0 to 1. A ``vq`` decoder quantises first; the gradient
            passes through as if it had not.

        Raises:
            ImageError: latents of another type or shape.
            UserError: ``decoder`` holds other modules than :meth:`decoder_modules`.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels or not latents.is_floating_point():
            raise ImageError(
                f"latents must be floats of shape [B, {self.channels}, h, w], not {latents.dtype} {list(latents.shape)}"
            )
        modules = self._modules(decoder)
        effort.count(evaluations=len(latents))
        model: Any = self.model
        values = latents.to(self.device, self.dtype) / self.scaling + self.shift
        if self.kind == "vq":
            values = model.quantize(values)[0]
        values = values.to(next(modules["decoder"].parameters()).dtype)
        hidden = modules["post_quant_conv"](values) if "post_quant_conv" in modules else values
        spatial = self.kind == "vq" and model.config.norm_type == "spatial"
        out = modules["decoder"](hidden, values) if spatial else modules["decoder"](hidden)
        return self._from_range(out)

    def pad(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Extends images to the right and below, by repeating their edge, to multiples of ``factor``.

        Returns:
            The extended images and the (height, width) that they had.

        Raises:
            ImageError: wrong type or shape.
        """
        self._check_images(images)
        height, width = images.shape[2:]
        below, right = -height % self.factor, -width % self.factor
        padded = functional.pad(images, (0, right, 0, below), mode="replicate") if below or right else images
        return padded, (height, width)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Images through encoder and decoder, in their own size, not clamped.

        Args:
            images: floats ``[B, 3, H, W]`` in 0 to 1, any size.
        """
        padded, (height, width) = self.pad(images)
        return self.decode(self.encode(padded))[..., :height, :width]

    def decoder_modules(self) -> dict[str, nn.Module]:
        """What maps (quantised) latents to images: ``decoder``, and ``post_quant_conv`` where there is one."""
        parts = ((name, getattr(self.model, name, None)) for name in ("post_quant_conv", "decoder"))
        return {name: part for name, part in parts if part is not None}

    def _modules(self, decoder: Mapping[str, nn.Module] | nn.ModuleDict | None) -> dict[str, nn.Module]:
        own = self.decoder_modules()
        if decoder is None:
            return own
        if set(decoder.keys()) != set(own):
            raise UserError(
                f"a decoder of this autoencoder has the modules {sorted(own)}, not {sorted(decoder.keys())}"
            )
        return dict(decoder.items())

    def _check_images(self, images: torch.Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
            raise ImageError(
                f"images must be floats in 0 to 1 of shape [B, 3, H, W], not {images.dtype} {list(images.shape)}"
            )

    def _to_range(self, images: torch.Tensor) -> torch.Tensor:
        # diffusers' networks take -1 to 1, AutoencoderTiny among them, and so does VaeLight.
        return images if isinstance(self.model, Taef2) else images * 2 - 1

    def _from_range(self, values: torch.Tensor) -> torch.Tensor:
        return values if isinstance(self.model, Taef2) else (values + 1) / 2


def load_autoencoder(
    source: str | Path,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """Loads an autoencoder.

    Args:
        source: ``"shipped"`` (f4, 4 channels) or ``"shipped-f8"`` (coarser, 8 channels); a folder of diffusers (an
            autoencoder, or a pipeline with ``vae/``); a folder with the files of taef2 or VAElight; or a hub id
            ``owner/name``. A folder of that name goes first.
        revision: the commit of a hub id, 40 hexadecimal digits. Required there: branches and tags move.
        device: where the network runs.
        dtype: its floating-point type. Weights in another type are converted.

    Raises:
        UnavailableError: files are missing, damaged or out of reach; the message says what to fetch.
        UserError: no pinned revision, another kind of network, weights that do not fit.
    """
    folder = _folder(source, revision)
    # Networks draw their first weights from torch's global generator, which is not ours to move.
    with torch.random.fork_rng(devices=[]):
        if _holds(folder, _TAEF2):
            loaded = _load_taef2(folder)
        else:
            loaded = _load_vaelight(folder) if _holds(folder, VAELIGHT_FILES) else _load_diffusers(folder)
    try:
        return loaded.to(device, dtype)
    except (RuntimeError, AssertionError) as error:
        raise UnavailableError(f"device '{device}' cannot be used here: {first_line(error)}") from None


def load_from(source: str) -> Autoencoder:
    """``shipped``, a folder (whatever its name), or ``owner/name@revision``; see :func:`load_autoencoder`."""
    name, at, revision = source.partition("@")
    hub = at and not Path(source).expanduser().is_dir()
    return load_autoencoder(name, revision) if hub else load_autoencoder(source)


def _folder(source: str | Path, revision: str | None) -> Path:
    """The folder that holds the files themselves."""
    own = {"shipped": _SHIPPED, "shipped-f8": _SHIPPED.parent / "autoencoder_f8"}
    path = own[source] if isinstance(source, str) and source in own else Path(source).expanduser()
    if source in own and not path.is_dir():
        raise UnavailableError(
            f"this copy of waterproof ships no autoencoder '{source}': give a folder or a hub id instead"
        )
    if path.is_dir():
        if revision is not None:
            raise UserError(f"autoencoder {source} is a folder here, and only a hub id has a revision: leave it out")
        return _inside(path)
    if isinstance(source, str) and is_hub_id(source):
        return _hub_folder(source, revision)
    what = "is a file; give its folder" if path.is_file() else "there is no such folder"
    raise UnavailableError(f"autoencoder {source}: {what} ({_FILES}), or a hub id owner/name with its revision")


def _inside(path: Path) -> Path:
    for folder in (path / name for name in _SUBFOLDERS):
        if (folder / "config.json").is_file() or _holds(folder, (*_TAEF2, *VAELIGHT_FILES)):
            return folder
    raise UnavailableError(f"{path}: no autoencoder there: put in {_FILES}")


def _holds(folder: Path, files: Iterable[str]) -> bool:
    """Whether any of these files is there and no configuration of another network."""
    return not (folder / "config.json").exists() and any((folder / name).exists() for name in files)


def _hub_folder(repository: str, revision: str | None) -> Path:
    """The snapshot with an autoencoder of a hub's repository: from the local cache, else downloaded."""
    check_pinned("autoencoder", repository, revision)
    pinned = str(revision)
    import huggingface_hub

    def cached(file: str) -> Path | None:
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=pinned)
        return Path(found) if isinstance(found, str) else None

    # The cache first, as a whole: out of reach of the hub, each file that is looked for costs half a minute.
    found = _search(cached) or _search(lambda file: _fetched(repository, pinned, file))
    if found is None:
        raise UnavailableError(f"autoencoder {repository} at {pinned[:12]}: no autoencoder there ({_FILES})")
    return found


def _search(look: Callable[[str], Path | None]) -> Path | None:
    for prefix in (f"{name}/" if name else "" for name in _SUBFOLDERS):
        config = look(f"{prefix}config.json")
        if config is not None and any(look(prefix + weights) is not None for weights in _WEIGHTS):
            return config.parent
    tiny = look(_TAEF2_FILE)
    return tiny.parent if tiny is not None else None


def _fetched(repository: str, revision: str, file: str) -> Path | None:
    """A file of a repository, None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError:
        reason = "it is neither in the local cache nor within reach"
    except EntryNotFoundError:
        return None
    except Exception as error:  # the errors of the hub's network clients share no base
        reason = first_line(error)
    suffices = f"config.json and {WEIGHTS[0]}, or its vae/, suffice"
    raise out_of_reach("autoencoder", repository, revision, reason, suffices)


def _load_diffusers(folder: Path) -> Autoencoder:
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in _KINDS:
        raise UserError(f"{folder}: a {name or 'network without _class_name'}, not one of {', '.join(_KINDS)}")
    weights = weights_in(folder, _WEIGHTS)
    model = _build(name, config, folder)
    load_module(model, _renamed(load_state(weights)), str(weights))
    factor, channels = _geometry(model.config, _KINDS[name], folder)
    shift = config.get("shift_factor") or 0.0
    defining = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    digest = content_digest({"config": defining, "weights": digest_of(weights)})
    return Autoencoder(model, _KINDS[name], factor, channels, float(model.config.scaling_factor), float(shift), digest)


def _load_taef2(folder: Path) -> Autoencoder:
    """From the released pair of files, or from the released single file, which counts the decoder's layers from 0."""
    model = Taef2()
    single = folder / _TAEF2_FILE
    files: tuple[Path, ...]
    if single.is_file():
        load_module(model, {taef2_name(key): value for key, value in load_state(single).items()}, str(single))
        files = (single,)
    else:
        files = tuple(folder / name for name in _TAEF2_PAIR)
        for part, path in zip((model.encoder, model.decoder), files, strict=True):
            load_module(part, load_state(path), str(path))
    digest = content_digest({"network": "Taef2", "weights": [digest_of(path) for path in files]})
    return Autoencoder(model, "tiny", Taef2.factor, Taef2.channels, 1.0, 0.0, digest)


def _load_vaelight(folder: Path) -> Autoencoder:
    files = tuple(folder / name for name in VAELIGHT_FILES)
    model = load_vaelight(*files)
    digest = content_digest({"network": "VaeLight", "weights": [digest_of(path) for path in files]})
    return Autoencoder(model, "tiny", VaeLight.factor, VaeLight.channels, VaeLight.scaling, 0.0, digest)


def _build(name: str, config: Mapping[str, Any], folder: Path) -> Any:
    """The network that a configuration describes, not yet with its weights."""
    for side in ("in_channels", "out_channels"):
        if config.get(side, 3) != 3:
            raise UserError(f"{folder}: its {side} are {config[side]}, not the 3 of an image")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise UserError(
            f"{folder}: it normalises each latent channel on its own (latents_mean), which is not supported"
        )
    try:
        network = getattr(importlib.import_module("diffusers"), name)
    except ImportError as error:
        raise UnavailableError(f"{name} needs the package diffusers: pip install 'diffusers>=0.35' ({error})") from None
    known = inspect.signature(network.__init__).parameters
    try:
        return network(**{key: value for key, value in config.items() if key in known})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: {name} cannot be built from it: {error}") from None


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Attention weights of files from before 2023 by the names of today."""
    today = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def name(key: str) -> str:
        return re.sub(
            r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.(?=(weight|bias)$)",
            lambda match: f"{match[1]}{today[match[2]]}.",
            key,
        )

    return {name(key): tensor for key, tensor in state.items()}


def _geometry(config: Any, kind: Kind, folder: Path) -> tuple[int, int]:
    """Pixels per latent cell, and latent channels."""
    if kind != "tiny":
        dimension = config.vq_embed_dim if kind == "vq" else None
        return 2 ** (len(config.block_out_channels) - 1), int(dimension or config.latent_channels)
    down = 2 ** (len(config.encoder_block_out_channels) - 1)
    up = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    if down != up:
        raise UserError(f"{folder}: its encoder shrinks {down} times and its decoder enlarges {up} times")
    return down, int(config.latent_channels)
