"""waterproof measures whether an image's origin mark survives, and says how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .core import torchvision_guard as _guard

if TYPE_CHECKING:
    from .bench.results import Run as Run
    from .bench.results import load_run as load_run
    from .bench.run import evaluate as evaluate

__all__ = ["Run", "__version__", "evaluate", "load_run"]

_LAZY = {"evaluate": "bench.run", "Run": "bench.results", "load_run": "bench.results"}

_guard.install()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
