"""rivagan: RivaGAN (Zhang et al., arXiv 1909.01285) as the invisible-watermark package ships it.

The encoder is the package's ONNX file, run as it is. The decoder takes the weights of the package's second file and
computes its wide 11 x 11 convolutions by tiled Fourier transforms, several times faster than onnxruntime on a CPU;
``decoder="onnx"`` runs the file itself, and a test holds the two together. Images go through in batches of one fixed
size, so that a result never depends on what was scored beside an image.
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
    from collections.abc import Callable

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
    decoder: Literal["tiled", "onnx"] = param(
        "tiled", doc="tiled: the file's weights with convolutions through Fourier tiles; onnx: the file in onnxruntime"
    )
    threshold: float = param(0.52, ge=-10, le=10, doc="decoder output above which a bit is 1; .52 in the package")

    @property
    def bits(self) -> int:
        """Payload length, 32."""
        return self.payload

    def unavailable(self) -> str | None:
        """Needs the ``baselines`` extra: the package for its files, onnxruntime to run them."""
        missing = [name for name in ("imwatermark", "onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
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
        frames = _frames(images)
        out = _run("decoder", {"frame": frames}) if self.decoder == "onnx" else _read(frames)
        # In double precision the difference has the sign of the comparison that the package makes.
        return Evidence(logits=torch.from_numpy((out.astype(np.float64) - self.threshold).astype(np.float32)))


def _read(frames: np.ndarray) -> np.ndarray:
    """The decoder network: attention and features from two branches, their product averaged over the image."""
    attend, feel = _branches()
    outputs = []
    with torch.inference_mode():
        for frame in torch.split(torch.from_numpy(frames[:, :, 0]), _BATCH):
            attention = torch.softmax(attend(frame), dim=1)
            outputs.append((feel(frame) * attention).mean(dim=(2, 3)))
    joined: np.ndarray = torch.cat(outputs).numpy()
    return joined


@lru_cache(maxsize=1)
def _branches() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Both branches of the decoder with the weights of the package's file."""
    import onnx
    from onnx import numpy_helper

    from .tiled_convolution import TiledConvolution

    graph = onnx.load(str(_path("decoder"))).graph
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}

    def convolution(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        weight, bias = weights[f"{name}.weight"][:, :, 0], weights[f"{name}.bias"]
        if weight.shape[1] > 3:
            return TiledConvolution(weight, bias)
        # From three channels the direct sum is faster.
        return lambda x: torch.nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def normal(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        scale = weights[f"{name}.weight"] / torch.sqrt(weights[f"{name}.running_var"] + 1e-5)
        shift = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
        return lambda x: x * scale[:, None, None] + shift[:, None, None]

    a0, a2, a3, a5 = (
        convolution("_attention.0"),
        normal("_attention.2"),
        convolution("_attention.3"),
        normal("_attention.5"),
    )
    c0, c2, c3 = convolution("_conv.0"), normal("_conv.2"), convolution("_conv.3")
    return lambda x: a5(torch.tanh(a3(a2(torch.tanh(a0(x)))))), lambda x: c3(c2(torch.tanh(c0(x))))


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
