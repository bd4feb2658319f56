"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import data

from waterproof.core.images import Images, Record


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Rewrite the files in tests/golden from the code.")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten instead of compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photographs and weights beside a development checkout; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the development data (photographs, weights) is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def photographs() -> Images:
    """Three real photographs, 256 x 256."""
    pictures = (data.astronaut()[:256, 100:356], data.chelsea()[20:276, 80:336], data.coffee()[60:316, 150:406])
    return Images.from_numpy(np.stack(pictures), [Record(name) for name in ("astronaut", "chelsea", "coffee")])
