"""Extractors of Stable Signature: from the released files, from ONNX, or trained by this project.

Whatever its file, an extractor takes images in 0 to 1 and gives one logit for each bit. It is frozen, and gradients
flow to its input, so that a decoder can be fine-tuned against it. TorchScript is a program: it is loaded only if it is
the released one, or if the caller names its full SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ....core.errors import ImageError, UnavailableError, UserError
from ....core.identity import canonical_json
from ....core.onnx_layers import from_onnx
from ....core.weights import digest_of
from ..hidden.network import DEVIATION, MEAN, load_extractor_folder
from .released import EXTRACTOR, recorded_digest

_SCRIPTS = (".torchscript.pt", ".jit")
_PROBE = 64
"""Side of the images that are sent through a new extractor to learn its number of bits."""


class Extractor(nn.Module):
    """Reads ``bits`` logits from images; a bit is 1 where its logit is above 0.

    Frozen and in eval mode, float32. It computes in channels-last order whatever the order of its input.

    Args:
        network: takes the images (normalised if ``normalised``) and gives ``[B, k]``.
        digest: SHA-256 of the file or folder that it comes from.
        normalised: whether the network wants ImageNet's mean and standard deviation taken out.

    Attributes:
        bits: payload length k.
        digest: SHA-256 of the file or folder.

    Raises:
        UserError: the network does not turn ``[B, 3, H, W]`` into finite logits ``[B, k]``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, digest: str, normalised: bool = True) -> None:
        super().__init__()
        self.network = network
        self.digest = digest
        mean, std = (MEAN, DEVIATION) if normalised else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False).float()
        self.bits = self._probe()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reads images.

        Args:
            images: floats ``[B, 3, H, W]`` in 0 to 1.

        Returns:
            Logits ``[B, k]``.

        Raises:
            ImageError: another shape, or no floats.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ImageError(f"an extractor takes floats [B, 3, H, W], not {images.dtype} {list(images.shape)}")
        prepared = (images.to(self.mean.dtype) - self.mean) / self.std
        return cast("torch.Tensor", self.network(prepared.contiguous(memory_format=torch.channels_last)))

    def train(self, mode: bool = True) -> Extractor:
        """Stays in eval mode: a frozen extractor inside a model that trains must not change."""
        return super().train(False)

    def _probe(self) -> int:
        images = torch.linspace(0, 1, 2 * 3 * _PROBE * _PROBE).reshape(2, 3, _PROBE, _PROBE)
        try:
            with torch.no_grad():
                logits = self(images)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(f"extractor: it does not read images [B, 3, {_PROBE}, {_PROBE}]: {reason}") from None
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
            shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise UserError(f"extractor: two images give {shape} instead of logits [2, k]")
        if not bool(torch.isfinite(logits).all()):
            raise UserError("extractor: its logits are NaN or infinite")
        return logits.shape[1]


def load_extractor(path: Path | str, sha256: str | None = None) -> Extractor:
    """Loads an extractor.

    Args:
        path: an ``.onnx`` file, a TorchScript file (``.torchscript.pt``, ``.jit``), or the folder of an extractor that
            this project trained.
        sha256: 64 hexadecimal digits that the file or folder must have. TorchScript needs it, except for the released
            extractor. Of that one only the first 8 digits and the number of bytes (1,226,802) are known: they tell a
            wrong file, not a forged one, so name the full digest where the file's origin is in doubt.

    Raises:
        UnavailableError: there is no such file, or its digest is another one.
        UserError: it is no extractor, or a TorchScript file of unknown origin, which is then not opened.

    Example:
        >>> extractor = load_extractor("stable_signature.onnx")  # doctest: +SKIP
        >>> extractor.bits  # doctest: +SKIP
        48
    """
    path = Path(path).expanduser()
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise UserError(f"{path}: a sha256 has 64 hexadecimal digits, not '{sha256}'")
    expected = sha256.lower() if sha256 is not None else None
    if path.is_dir():
        return _load_own(path, expected)
    if not path.is_file():
        raise UnavailableError(f"{path}: there is no such file or folder")
    if path.name.endswith(_SCRIPTS):
        return _load_script(path, expected)
    if path.suffix == ".onnx":
        return Extractor(from_onnx(path), _required(path, digest_of(path), expected))
    raise UserError(f"{path}: an extractor ends in .onnx, {' or '.join(_SCRIPTS)}, or is a folder")


def _required(path: Path, digest: str, expected: str | None) -> str:
    if expected not in (None, digest):
        raise UnavailableError(f"{path}: wrong file: expected sha256 {expected}, found {digest}")
    return digest


def _load_own(folder: Path, expected: str | None) -> Extractor:
    # What lies beside the networks, a model card say, does not change what is read.
    parts = {
        name: digest_of(folder / name) for name in ("config.json", "extractor.safetensors", "whitening.safetensors")
    }
    digest = _required(folder, hashlib.sha256(canonical_json(parts).encode()).hexdigest(), expected)
    return Extractor(load_extractor_folder(folder), digest, normalised=False)


def _load_script(path: Path, expected: str | None) -> Extractor:
    # Read once: what is checked is what is loaded.
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    _required(path, digest, expected or recorded_digest(path))
    if expected is None and EXTRACTOR.differs(digest, len(data)) is not None:
        raise UserError(
            f"{path}: refused: TorchScript runs code and this is not the released {EXTRACTOR.name} "
            f"({EXTRACTOR.bytes:,} bytes, sha256 {EXTRACTOR.sha256}...); if you trust it, name its sha256: {digest}"
        )
    try:
        network = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["damaged"])[0]
        raise UserError(f"{path}: not a TorchScript file, or damaged: {reason}") from None
    return Extractor(network, digest)
