"""rivagan: RivaGAN (Zhang et al., arXiv 1909.01285) as the invisible-watermark package ships it, through ONNX.

The package's two ONNX files are run as they are. Images go through in batches of one fixed size, the last one padded
where that size is above one, so that a result never depends on what was scored beside an image.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from ...core.components import param
from ...core.errors import UnavailableError
from ...core.identity import file_digest
from .base import Evidence, Watermark

if TYPE_CHECKING:
    from ...core.images import Images
    from ...core.seeds import Seed

_BATCH = 1
"""Part of the method's identity. One image at a time is what the package does; 2, 4 and 8 are no faster."""


class RivaGan(Watermark):
    """RivaGAN with a payload of 32 bits; a bit is 1 where the decoder's output exceeds ``threshold``.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "rivagan").bits
        32
    """

    name: ClassVar[str] = "rivagan"
    family: ClassVar[str] = "post-hoc"
    min_side: ClassVar[int] = 16
    references: ClassVar[tuple[str, ...]] = (
        "K. A. Zhang, L. Xu, A. Cuesta-Infante, K. Veeramachaneni: Robust Invisible Video Watermarking with Attention "
        "(RivaGAN). arXiv:1909.01285, 2019.",
        "ShieldMnt, invisible-watermark 0.2.0 (ONNX files), MIT licence, 2021.",
    )

    payload: Literal[32] = param(32, doc="payload length in bits; the released network has 32")
    threshold: float = param(0.52, ge=-10, le=10, doc="decoder output above which a bit is 1; .52 in the package")

    @property
    def bits(self) -> int:
        """Payload length, 32."""
        return self.payload

    def unavailable(self) -> str | None:
        """Needs the ``baselines`` extra: the package for its files, onnxruntime to run them."""
        missing = [name for name in ("imwatermark", "onnxruntime") if importlib.util.find_spec(name) is None]
        return f"needs {' and '.join(missing)}: pip install 'waterproof[baselines]'" if missing else None

    def digests(self) -> dict[str, str]:
        """SHA-256 of the two ONNX files."""
        return {} if self.unavailable() else {role: file_digest(_path(role)) for role in ("encoder", "decoder")}

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        """Marks images; the result is clamped and truncated to 8 bits as the package does."""
        frames = _frames(images)
        data = keys.numpy().astype(np.float32)
        out = _run("encoder", {"frame": frames, "data": data})
        marked = (np.clip(out[:, :, 0], -1.0, 1.0) + np.float32(1.0)) * np.float32(127.5)
        bgr = marked.astype(np.uint8).transpose(0, 2, 3, 1)
        return images.with_pixels(bgr[..., ::-1])

    def decode(self, images: Images) -> Evidence:
        """Reads 32 outputs; the logit is the output minus ``threshold``."""
        out = _run("decoder", {"frame": _frames(images)})
        # In double precision the difference has the sign of the comparison that the package makes.
        return Evidence(logits=torch.from_numpy((out.astype(np.float64) - self.threshold).astype(np.float32)))


def _frames(images: Images) -> np.ndarray:
    """BGR frames ``[B, 3, 1, H, W]`` in -1 to 1: the channel order that OpenCV users feed the package."""
    bgr = images.numpy()[..., ::-1].astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray(bgr.transpose(0, 3, 1, 2))[:, :, None]


def _run(role: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = _session(role)
    count = len(inputs["frame"])
    outputs = []
    for start in range(0, count, _BATCH):
        batch = {}
        for name, array in inputs.items():
            part = array[start : start + _BATCH]
            padding = [(0, _BATCH - len(part))] + [(0, 0)] * (part.ndim - 1)
            batch[name] = np.pad(part, padding)
        outputs.append(session.run(None, batch)[0])
    joined: np.ndarray = np.concatenate(outputs)[:count]
    return joined


def _path(role: str) -> Path:
    found = importlib.util.find_spec("imwatermark")
    if found is None or found.origin is None:
        raise UnavailableError("rivagan needs the package invisible-watermark: pip install 'waterproof[baselines]'")
    return Path(found.origin).parent / f"rivagan_{role}.onnx"


@lru_cache(maxsize=2)
def _session(role: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread: workers share the cores, and the number of threads changes the last bits of a sum.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(_path(role)), options, providers=["CPUExecutionProvider"])
