"""Lets ``import torchvision`` work where torch is a CPU build and torchvision was built against CUDA.

Such a torchvision fails at import because its compiled operators do not load ("operator torchvision::nms does not
exist"), and lpips, diffusers and transformers fail with it although they never call those operators. The guard is a
meta-path finder that costs nothing until somebody imports torchvision. It then tries the compiled library; only if
that fails does it declare the two schemas that torchvision's own Python code registers against.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []


class _TorchvisionGuard(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        if spec is not None and spec.origin is not None:
            _declare_missing_operators(Path(spec.origin).parent)
        return spec


def _declare_missing_operators(folder: Path) -> None:
    import torch

    for library in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return
    # The finder may be asked twice: libraries probe for torchvision before they import it.
    if hasattr(torch.ops.torchvision, "nms"):
        return
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        fragment.define(schema)  # type: ignore[no-untyped-call]
    _kept.append(fragment)


def install() -> None:
    """Installs the guard once; does nothing if torchvision is already imported.

    The finder is recognised by its name: test runners may load this file a second time under another module name.
    """
    installed = any(type(finder).__name__ == _TorchvisionGuard.__name__ for finder in sys.meta_path)
    if "torchvision" not in sys.modules and not installed:
        sys.meta_path.insert(0, _TorchvisionGuard())
