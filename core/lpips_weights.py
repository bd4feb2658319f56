"""LPIPS (Zhang et al., CVPR 2018): where its weights lie, whether they are the published ones, and the network."""

from __future__ import annotations

import importlib.util
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .identity import file_digest

if TYPE_CHECKING:
    from torch import nn

_BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's files; the part after the dash is the beginning of the SHA-256."""


def lpips_file(backbone: str) -> Path:
    """Where the backbone's weights are looked for: torch's checkpoint folder (``TORCH_HOME``)."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[backbone]


def lpips_unavailable(backbone: str) -> str | None:
    """What is missing of the ``quality`` extra or the backbone's weights; None if nothing is."""
    missing = [name for name in ("lpips", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}: pip install 'waterproof[quality]'"
    path = lpips_file(backbone)
    if not path.is_file():
        return f"needs torchvision's {path.name} (download.pytorch.org/models/{path.name}): put it at {path}"
    begin = path.stem.rsplit("-", 1)[1]
    if not file_digest(path).startswith(begin):
        return f"{path} is not the published file: its SHA-256 does not begin with {begin}; fetch it again"
    return None


def lpips_digests(backbone: str) -> dict[str, str]:
    """SHA-256 of the backbone's weights, where they are present."""
    path = lpips_file(backbone) if importlib.util.find_spec("torch") else None
    return {"backbone": file_digest(path)} if path is not None and path.is_file() else {}


@lru_cache(maxsize=3)
def lpips_network(backbone: str) -> nn.Module:
    """The network in evaluation mode, without gradients for its weights; images in -1 to 1."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = lpips.LPIPS(net=backbone, verbose=False)
    return network.eval().requires_grad_(False)
