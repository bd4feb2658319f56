"""Two runs with their reports: an orderly one, and one with failures, omissions and names that are meant to do harm."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from skimage import data

from waterproof.bench.run import evaluate
from waterproof.reports.write import write_report

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.bench.results import Run

HARMFUL = """<script>alert(1)</script> & "$x^2$" 'ü{{ 7*7 }}"""
"""What a file name or a title can hold that HTML, JavaScript, Jinja, matplotlib or YAML could take for their own."""

_COMPONENTS = """
from typing import ClassVar
from waterproof.attacks.base import Attack
from waterproof.bench.methods.dwt import DwtDct
from waterproof.core.components import param

class Harmful(DwtDct):
    name: ClassVar[str] = {name!r}
    references: ClassVar[tuple[str, ...]] = ({name!r} + " (2026)",)

class HarmfulAttack(Attack):
    name: ClassVar[str] = "attack " + {name!r}
    family: ClassVar[str] = "family " + {name!r}
    strength: ClassVar[str] = "level"
    level: float = param(1.0, doc="how much")
    def apply(self, images, seed):
        if self.level > 1 and any("coffee" in record.id for record in images.records):
            raise ValueError("failed: " + {name!r})
        return images
"""


class Page(HTMLParser):
    """What a browser would fetch from, show of, and run in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.ids: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self._text: list[str] = []
        self._hidden = 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden += tag in ("script", "style")
        for name, value in attributes:
            self.attributes.append((name, value or ""))
            if name == "id":
                self.ids.add(value or "")
            elif name == "src":
                self.images.append(value or "")
            elif name == "href":
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, text: str) -> None:
        if not self._hidden:
            self._text.append(text)

    @property
    def text(self) -> str:
        """All visible text, spaces joined."""
        return " ".join(" ".join(self._text).split())


@pytest.fixture(scope="session")
def harmful() -> str:
    return HARMFUL


@pytest.fixture(scope="session")
def orderly(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two marks on twelve crops of photographs, five attacks, one of them swept."""
    return evaluate(
        ["dwt-dct", "dwt-dct-svd"],
        {"samples": {"size": 256}},
        ["identity", {"jpeg": {"quality": [80, 50]}}, "flip", {"rotation": {"degrees": 9}}],
        out=tmp_path_factory.mktemp("orderly") / "run",
        limit=12,
        decision={"fpr": 0.01, "calibration": 0.4},
        runtime={"engine": "inline"},
    )


@pytest.fixture(scope="session")
def disorderly(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Harmful names everywhere; a failing attack, a skipped metric, an unreadable image, a file that is no image."""
    folder = tmp_path_factory.mktemp("disorderly")
    photographs = folder / "photographs"
    photographs.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        title = f"{name} {HARMFUL.replace('/', '⁄')}.jpg"
        Image.fromarray(getattr(data, name)()).save(photographs / title, quality=95)
    cut = next(photographs.glob("chelsea*"))
    cut.write_bytes(cut.read_bytes()[:20_000])
    (photographs / f"{HARMFUL.replace('/', '⁄')}.png").write_text("no image")
    components = folder / "components.py"
    components.write_text(_COMPONENTS.format(name=HARMFUL), encoding="utf-8")
    options: dict[str, Any] = {
        "metrics": ["psnr", "lpips"],
        "decision": {"fpr": 0.01, "calibration": 0},
        "runtime": {"engine": "inline", "shard": 1},
        "summary": HARMFUL,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder))
        run = evaluate(
            [f"{components}:Harmful", "dwt-dct-svd"],
            {"folder": {"root": str(photographs)}},
            ["identity", {f"{components}:HarmfulAttack": {"level": [1.0, 2.0]}}],
            out=folder / HARMFUL.replace("/", "⁄"),
            **options,
        )
    assert not run.ok
    return run


@pytest.fixture(scope="session")
def orderly_page(orderly: Run) -> Page:
    return Page(write_report(orderly))


@pytest.fixture(scope="session")
def disorderly_page(disorderly: Run) -> Page:
    return Page(write_report(disorderly))
