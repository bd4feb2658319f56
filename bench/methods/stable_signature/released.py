"""The files that the authors of Stable Signature released: their key, where they lie, and their decoder in diffusers.

The marked decoder is a state of CompVis names, for which no loader of diffusers exists; loaded with ``strict=False`` it
would fill almost nothing and raise nothing. :func:`map_decoder` names every tensor anew and refuses unless each one
is used once and none is missing. The files are under CC BY-NC 4.0 and are fetched only when somebody asks.
"""

from __future__ import annotations

import copy
import http.client
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ....core.errors import UnavailableError, UserError, nearest
from ....core.identity import file_digest
from ....core.weights import cache_folder, digest_of, find, load_module, load_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ....core.progress import Tick

NAME = "stable-signature"
"""The set of weights, as ``waterproof fetch`` and the weights folder call it."""

KEY = "111010110101000001010111010011010100010000100111"
"""The 48 bits that the released decoder puts into every image, first bit first."""

BASE_URL = "https://dl.fbaipublicfiles.com/ssl_watermarking/"
"""Where the authors publish the files."""

_ENTRY = "ldm_decoder"


@dataclass(frozen=True)
class ReleasedFile:
    """A published file and what is known of its bytes.

    Attributes:
        name: the file name.
        size: bytes, in words where the number is not known.
        bytes: the exact number of bytes; None where it is not known.
        sha256: the digest, or its known beginning; empty where nothing is known.
    """

    name: str
    size: str
    bytes: int | None = None
    sha256: str = ""

    @property
    def url(self) -> str:
        """Where it is published."""
        return BASE_URL + self.name

    def differs(self, digest: str, size: int) -> str | None:
        """Why bytes of this digest and number are not this file; None if nothing known speaks against it."""
        if self.bytes is not None and size != self.bytes:
            return f"{size:,} bytes instead of {self.bytes:,}"
        if not digest.startswith(self.sha256):
            return f"sha256 {digest[:12]}... instead of {self.sha256[:12]}..."
        return None


EXTRACTOR = ReleasedFile("dec_48b_whit.torchscript.pt", "1.2 MB", 1_226_802, "77cd0a20")
"""The whitened extractor, 48 bits. Only the beginning of its digest is known: with the number of bytes it tells a wrong
file, not a forged one."""

DECODER = ReleasedFile("sd2_decoder.pth", "about 198 MB")
"""The marked decoder for Stable Diffusion 2. Its digest is not known: the first one that is fetched is recorded, and
later loads are held to it."""

EXTRACTOR_ONNX = ReleasedFile(
    "stable_signature.onnx",
    "1.2 MB",
    1_228_161,
    "9b58841ab09f23e89acf5aedade09c7f65908ae33437c5242ad987d99b5cd2c1",
)
"""The same extractor as others (WAVES) published it; not among the authors' files, so :func:`fetch` leaves it out."""

_SETS: dict[str, tuple[ReleasedFile, ...]] = {NAME: (EXTRACTOR, DECODER)}


@dataclass(frozen=True)
class DecoderLayout:
    """The shape of a decoder of the Stable Diffusion family; the defaults are Stable Diffusion's own.

    Attributes:
        widths: channels of each level, the finest first.
        blocks: residual blocks of each level of the encoder; the decoder has one more.
        latent: latent channels.

    Example:
        >>> len(list(DecoderLayout().tensors()))
        140
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent: int = 4

    @classmethod
    def of(cls, autoencoder: Any) -> DecoderLayout:
        """The layout of a diffusers ``AutoencoderKL``."""
        config = autoencoder.config
        return cls(tuple(config.block_out_channels), int(config.layers_per_block), int(config.latent_channels))

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Every tensor: its CompVis name, its diffusers name, its CompVis shape."""
        top, levels = self.widths[-1], len(self.widths)
        yield from _convolution("post_quant_conv", "post_quant_conv", self.latent, self.latent, 1)
        yield from _convolution("decoder.conv_in", "decoder.conv_in", self.latent, top, 3)
        for i in range(2):
            yield from _block(f"decoder.mid.block_{i + 1}", f"decoder.mid_block.resnets.{i}", top, top)
        ours, theirs = "decoder.mid_block.attentions.0", "decoder.mid.attn_1"
        yield from _norm(f"{theirs}.norm", f"{ours}.group_norm", top)
        for their, our in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            yield from _convolution(f"{theirs}.{their}", f"{ours}.{our}", top, top, 1)
        inputs = top
        for level in reversed(range(levels)):
            theirs, ours, width = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}", self.widths[level]
            for i in range(self.blocks + 1):
                yield from _block(f"{theirs}.block.{i}", f"{ours}.resnets.{i}", inputs, width)
                inputs = width
            if level:
                yield from _convolution(f"{theirs}.upsample.conv", f"{ours}.upsamplers.0.conv", width, width, 3)
        yield from _norm("decoder.norm_out", "decoder.conv_norm_out", inputs)
        yield from _convolution("decoder.conv_out", "decoder.conv_out", inputs, 3, 3)


STABLE_DIFFUSION = DecoderLayout()
"""The layout of Stable Diffusion 1 and 2: 140 tensors, 49,490,199 numbers."""


def map_decoder(state: Mapping[str, Any], layout: DecoderLayout = STABLE_DIFFUSION) -> dict[str, torch.Tensor]:
    """Gives the tensors of a CompVis decoder the names and shapes of diffusers' ``AutoencoderKL``.

    Args:
        state: tensors by CompVis name, with or without a leading ``decoder.``; or a dictionary that holds them under
            ``"ldm_decoder"``, as the authors' training writes it.
        layout: what the decoder looks like.

    Returns:
        ``decoder.*`` and ``post_quant_conv.*``, sharing memory with ``state``.

    Raises:
        UserError: a tensor is missing, spare, given twice, or has another shape; the line counts them.

    Example:
        >>> state = {name: torch.zeros(shape) for name, _, shape in DecoderLayout().tensors()}
        >>> map_decoder(state)["decoder.mid_block.attentions.0.to_q.weight"].shape
        torch.Size([512, 512])
    """
    inner = state.get(_ENTRY)
    given: Mapping[str, Any] = inner if isinstance(inner, Mapping) else state
    named: dict[str, Any] = {}
    spare = []
    wanted = {theirs: (ours, shape) for theirs, ours, shape in layout.tensors()}
    for name, tensor in given.items():
        full = name if name.startswith(("decoder.", "post_quant_conv.")) else f"decoder.{name}"
        if full not in wanted or full in named:
            spare.append(name)
        else:
            named[full] = tensor
    missing = [name for name in wanted if name not in named]
    wrong = [
        f"{name} {list(getattr(named[name], 'shape', ['no tensor']))} instead of {list(shape)}"
        for name, (_, shape) in wanted.items()
        if name in named and (not isinstance(named[name], torch.Tensor) or named[name].shape != shape)
    ]
    if missing or spare or wrong:
        found = len(named) - len(wrong)
        counts = [("missing", missing), ("not of this decoder or given twice", spare), ("of another shape", wrong)]
        parts = [f"{len(names)} {what} ({_few(names)})" for what, names in counts if names]
        raise UserError(f"marked decoder: {found} of {len(wanted)} tensors fit; {'; '.join(parts)}")
    linear = {ours for _, ours, _ in layout.tensors() if ".attentions." in ours and ours.endswith(".weight")}
    return {
        ours: named[theirs].flatten(1) if ours in linear and len(shape) == 4 else named[theirs]
        for theirs, (ours, shape) in wanted.items()
    }


def load_marked_decoder(autoencoder: Any, source: Path | str | Mapping[str, Any]) -> Any:
    """A copy of an autoencoder with another decoder; encoder and original stay as they are.

    Args:
        autoencoder: a diffusers ``AutoencoderKL`` of the same layout, e.g. of Stable Diffusion 2.
        source: the file (``sd2_decoder.pth``, or one that the authors' training wrote), or its CompVis state.

    Returns:
        An ``AutoencoderKL`` of the same type and device. If a digest was recorded beside the file, it was checked.

    Raises:
        UserError: the autoencoder has another layout, or the state does not fit (see :func:`map_decoder`).
        UnavailableError: the file is missing, damaged, or not the one that was recorded.
    """
    if getattr(autoencoder, "decoder", None) is None or getattr(autoencoder, "post_quant_conv", None) is None:
        raise UserError(
            f"marked decoder: needs a diffusers AutoencoderKL with a post_quant_conv, as Stable Diffusion has, "
            f"not {type(autoencoder).__name__}"
        )
    state = source if isinstance(source, Mapping) else _read_decoder(Path(source).expanduser())
    mapped = map_decoder(state, DecoderLayout.of(autoencoder))
    marked = copy.deepcopy(autoencoder)
    parts = torch.nn.ModuleDict({"decoder": marked.decoder, "post_quant_conv": marked.post_quant_conv})
    load_module(parts, mapped, "marked decoder")
    return marked.eval()


def apply_to_pipeline(pipeline: Any, source: Path | str | Mapping[str, Any]) -> Any:
    """A pipeline whose images carry the mark: it shares everything with the given one but the autoencoder.

    Args:
        pipeline: a diffusers ``StableDiffusionPipeline`` (or another one with an ``AutoencoderKL``); it is not changed.
        source: as in :func:`load_marked_decoder`.

    Raises:
        UserError: the pipeline has no fitting autoencoder, or the state does not fit.
    """
    if getattr(pipeline, "vae", None) is None:
        raise UserError(f"marked decoder: {type(pipeline).__name__} has no autoencoder (vae) to put it into")
    marked = copy.copy(pipeline)
    marked.register_modules(vae=load_marked_decoder(pipeline.vae, source))
    return marked


def fetch(name: str = NAME, progress: Tick | None = None) -> list[Path]:
    """Downloads the released extractor and decoder into the weights folder; what is there already is only checked.

    The digest of each file is written beside it (``sd2_decoder.pth.sha256``). Where none is known beforehand that is
    trust on first use, and a line on stderr says so; the decoder must also have its 140 tensors.

    Args:
        name: the set; there is one, ``"stable-signature"``.
        progress: called with the bytes done and the name of the file.

    Returns:
        The paths, extractor first.

    Raises:
        UnavailableError: no network, or what came is something else; the message says what to put where.
        UserError: there is no such set.
    """
    if name not in _SETS:
        raise UserError(f"no weights are called '{name}'.{nearest(name, _SETS)}")
    folder = cache_folder() / name
    return [_fetch_file(file, folder, progress) for file in _SETS[name]]


def locate(file: ReleasedFile) -> Path:
    """The path of a fetched file, checked against all that is known of it.

    Raises:
        UnavailableError: it is not here, or it is another file.
    """
    path = find(NAME, file.name, fetchable=True)
    _check(path, file)
    return path


def recorded_digest(path: Path) -> str | None:
    """The SHA-256 that :func:`fetch` wrote beside a file; None where there is no record."""
    record = _record(path)
    if not record.is_file():
        return None
    words = record.read_text(encoding="utf-8", errors="replace").split()
    return words[0] if words else ""


def _convolution(theirs: str, ours: str, inputs: int, outputs: int, kernel: int) -> Iterator[tuple[str, str, Any]]:
    yield f"{theirs}.weight", f"{ours}.weight", (outputs, inputs, kernel, kernel)
    yield f"{theirs}.bias", f"{ours}.bias", (outputs,)


def _norm(theirs: str, ours: str, width: int) -> Iterator[tuple[str, str, Any]]:
    yield f"{theirs}.weight", f"{ours}.weight", (width,)
    yield f"{theirs}.bias", f"{ours}.bias", (width,)


def _block(theirs: str, ours: str, inputs: int, outputs: int) -> Iterator[tuple[str, str, Any]]:
    yield from _norm(f"{theirs}.norm1", f"{ours}.norm1", inputs)
    yield from _convolution(f"{theirs}.conv1", f"{ours}.conv1", inputs, outputs, 3)
    yield from _norm(f"{theirs}.norm2", f"{ours}.norm2", outputs)
    yield from _convolution(f"{theirs}.conv2", f"{ours}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        yield from _convolution(f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut", inputs, outputs, 1)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_decoder(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is the state itself or holds it as one entry."""
    digest = recorded_digest(path)
    try:
        return load_state(path, digest)
    except UnavailableError:
        raise
    except UserError as plain:
        try:
            return load_state(path, digest, entry=_ENTRY)
        except UserError:
            raise plain from None


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _check(path: Path, file: ReleasedFile) -> None:
    digest, recorded = digest_of(path), recorded_digest(path)
    reason = file.differs(digest, path.stat().st_size)
    if reason is None and recorded not in (None, digest):
        reason = f"sha256 {digest[:12]}..., but {_record(path).name} beside it says {str(recorded)[:12]}..."
    if reason is not None:
        raise UnavailableError(f"{path}: wrong file: {reason}; delete it and run: waterproof fetch {NAME}")


def _fetch_file(file: ReleasedFile, folder: Path, progress: Tick | None) -> Path:
    path = folder / file.name
    if path.is_file():
        _check(path, file)
        return path
    temporary = folder / f".new-{uuid.uuid4().hex[:12]}-{file.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(file.url, temporary, progress)
        digest = file_digest(temporary)
        reason = file.differs(digest, temporary.stat().st_size)
        if reason is None and recorded_digest(path) not in (None, digest):
            reason = f"sha256 {digest[:12]}..., another one than recorded earlier in {_record(path)}"
        if reason is not None:
            raise _by_hand(folder, f"{file.name} came with {reason}")
        if file is DECODER:
            map_decoder(_read_decoder(temporary), STABLE_DIFFUSION)
        _record(path).write_text(f"{digest}  {file.name}\n", encoding="utf-8")
        temporary.replace(path)
    except UnavailableError:
        raise
    except UserError as error:
        raise _by_hand(folder, f"{file.name} is not what it should be: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _by_hand(folder, f"{file.name}: {error or type(error).__name__}") from None
    finally:
        temporary.unlink(missing_ok=True)
    _say(f"{path}: sha256 {digest}{'' if len(file.sha256) == 64 else ' (trusted on first use, recorded beside it)'}")
    return path


def _download(url: str, target: Path, progress: Tick | None) -> None:
    """Streams a URL into a file."""
    request = urllib.request.Request(url, headers={"User-Agent": "waterproof"})  # noqa: S310 (the URLs are ours)
    with urllib.request.urlopen(request, timeout=60) as answer, target.open("wb") as file:  # noqa: S310
        expected = answer.headers.get("Content-Length")
        while block := answer.read(1 << 20):
            file.write(block)
            if progress is not None:
                progress(len(block), target.name.split("-", 2)[-1])
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"the connection ended after {file.tell():,} of {int(expected):,} bytes")


def _by_hand(folder: Path, reason: str) -> UnavailableError:
    """One line with everything that a person needs to put the files there."""
    lines = []
    for file in _SETS[NAME]:
        size = f"{file.bytes:,} bytes" if file.bytes is not None else file.size
        digest = f"sha256 {file.sha256}{'' if len(file.sha256) == 64 else '...'}" if file.sha256 else "sha256 not known"
        lines.append(f"{file.url} ({size}, {digest}) as {folder / file.name}")
    return UnavailableError(f"could not fetch {NAME} ({reason}). Put by hand: {'; '.join(lines)}")


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)
