"""waterproof measures whether an image's origin mark survives, and says how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .core import torchvision_guard as _guard

if TYPE_CHECKING:
    from .bench.baseline import load_results as load_results
    from .bench.compare import compare as compare
    from .bench.leaderboard import merge as leaderboard
    from .bench.results import Run as Run
    from .bench.results import load_run as load_run
    from .bench.run import evaluate as evaluate

__all__ = ["Run", "__version__", "compare", "evaluate", "leaderboard", "load_results", "load_run"]

_LAZY = {
    "Run": ("bench.results", "Run"),
    "compare": ("bench.compare", "compare"),
    "evaluate": ("bench.run", "evaluate"),
    "leaderboard": ("bench.leaderboard", "merge"),
    "load_results": ("bench.baseline", "load_results"),
    "load_run": ("bench.results", "load_run"),
}

_guard.install()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
