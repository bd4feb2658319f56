"""The torchvision guard: torchvision can be imported beside a torch that its compiled operators do not fit."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from waterproof.core import torchvision_guard


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_can_be_imported_after_waterproof() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    code = (
        "import waterproof, sys; before = 'torch' in sys.modules\n"
        "import torchvision, torchvision.transforms.v2\n"
        "print(before, torchvision.transforms.v2.__name__)"
    )
    assert run(code) == "False torchvision.transforms.v2"


def test_the_guard_is_installed_once_and_does_nothing_until_it_is_needed() -> None:
    code = (
        "import sys, waterproof; from waterproof.core.torchvision_guard import install; install(); install()\n"
        "print(sum(type(f).__name__ == '_TorchvisionGuard' for f in sys.meta_path), 'torch' in sys.modules)"
    )
    assert run(code) == "1 False"


def test_an_absent_torchvision_stays_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = torchvision_guard._TorchvisionGuard()
    monkeypatch.setattr(sys, "meta_path", [guard])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert guard.find_spec("another", None) is None
    assert sys.meta_path == [guard]
    assert guard.find_spec("torchvision", None) is None
    assert sys.meta_path == []
