"""Where a run was made: code, packages, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._version import __version__

NUMERIC = ("torch", "numpy", "scipy", "pillow", "opencv-python", "onnxruntime", "invisible-watermark", "lpips")
"""Packages whose version can change a stored value; a run is resumed only with the same ones."""

_OTHERS = ("pandas", "pyarrow", "scikit-image", "scikit-learn", "matplotlib", "pydantic", "torchvision", "kornia")


def versions(names: tuple[str, ...] = NUMERIC) -> dict[str, str]:
    """Installed versions of packages; those that are missing are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Everything about this machine and this code that a reader of a number may ask for."""
    import psutil

    return {
        "waterproof": __version__,
        "code": _code(),
        "python": sys.version.split()[0],
        "packages": {**versions(NUMERIC), **versions(_OTHERS)},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _code() -> dict[str, Any]:
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    return done.stdout.strip()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
