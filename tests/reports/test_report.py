"""The report is one page that opens from disk, asks nobody for anything, and shows every number or says why not."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from waterproof.bench.run import evaluate
from waterproof.bench.summary import families
from waterproof.core.errors import StoreError
from waterproof.reports.figures import survival, swept
from waterproof.reports.style import plain
from waterproof.reports.terminal import print_summary
from waterproof.reports.words import number, rate, small
from waterproof.reports.write import write_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from waterproof.bench.results import Run

both = pytest.mark.parametrize("name", ["orderly", "disorderly"])


@pytest.fixture
def run(name: str, request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(name)


@pytest.fixture
def page(name: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{name}_page")


@both
def test_the_page_asks_nobody_for_anything(run: Run, page: Any) -> None:
    assert page.images
    assert all(source.startswith("data:image/") for source in page.images)
    # A link leads within the page or to a file beside it.
    for link in page.links:
        assert link.startswith("#") or (run.folder / "report" / link).is_file(), link
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|<iframe|<object|<embed|<link", page.source)
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", page.source)


@both
def test_links_within_the_page_lead_somewhere(page: Any) -> None:
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert {"summary", "figures", "cells", "roc", "null", "gallery", "failures", "how"} == targets <= page.ids


@both
def test_nothing_is_shown_as_nan_or_none(page: Any) -> None:
    for word in ("[Nn][Aa][Nn]", "None", "-?inf", "Undefined", "NaT"):
        assert not re.search(rf".{{0,60}}\b{word}\b.{{0,60}}", page.text)
    assert not [value for key, value in page.attributes if key != "src" and re.search(r"\bnan\b", value, re.IGNORECASE)]


@both
def test_harmful_names_are_text_and_nothing_else(page: Any) -> None:
    assert "<script>alert" not in page.source
    assert page.tags.count("script") == 1
    assert "49" not in re.findall(r"ü(\S+)", page.text), "a name was taken for a template"
    handlers = [key for key, _ in page.attributes if key.startswith("on")]
    assert handlers == []


def test_harmful_names_can_be_read_in_the_page(disorderly_page: Any, harmful: str) -> None:
    shown = " ".join(harmful.split())
    assert disorderly_page.text.count(shown) >= 5
    assert f"attack {shown}" in disorderly_page.text


@both
def test_every_figure_is_there_as_png_and_pdf(run: Run, page: Any) -> None:
    files = sorted((run.folder / "report" / "figures").iterdir())
    names = {file.stem for file in files}
    assert {file.name for file in files} == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert {"survival", "roc-identity"} <= names
    assert any(name.startswith("null-") for name in names)
    for file in files:
        if file.suffix == ".pdf":
            assert file.read_bytes()[:5] == b"%PDF-"
        else:
            with Image.open(file) as picture:
                colours = picture.convert("RGB").getcolors(1 << 24)
            assert len(colours) > 10, f"{file.name} is empty"
    linked = {Path(link).name for link in page.links if link.startswith("figures/")}
    assert linked == {file.name for file in files}


def test_the_orderly_report_has_a_figure_for_every_question(orderly: Run, orderly_page: Any) -> None:
    names = {file.stem for file in (orderly.folder / "report" / "figures").iterdir()}
    attacks = {f"roc-{a}" for a in ("identity", "jpeg", "flip", "rotation")}
    rest = {
        "survival",
        "null-attacked",
        *(f"null-{m}" for m in orderly.methods),
        "strength-bit-accuracy",
        "strength-tpr",
        "quality-psnr",
        "quality-ssim",
    }
    assert attacks | rest >= names >= attacks | rest - {"quality-psnr", "quality-ssim"}
    for section in (
        "Summary",
        "Figures",
        "All cells",
        "ROC curves",
        "Gallery",
        "Failures and omissions",
        "How it was made",
    ):
        assert section in orderly_page.text


@both
def test_the_tables_are_those_of_the_run(run: Run, page: Any) -> None:
    folder = run.folder / "report"
    summary = pd.read_csv(folder / "summary.csv")
    assert summary[["method", "attack"]].values.tolist() == run.summary()[["method", "attack"]].values.tolist()
    np.testing.assert_allclose(summary["tpr"], run.summary()["tpr"].astype(float), rtol=1e-12)
    table = pd.read_csv(folder / "families.csv")
    assert table["family"].tolist() == families(run, run.decision())["family"].tolist()
    with gzip.open(folder / "scores.csv.gz", "rt", encoding="utf-8") as file:
        scores = pd.read_csv(file)
    assert scores["image"].tolist() == run.scores()["image"].tolist()
    assert {"summary.csv", "scores.csv.gz"} <= set(page.links)


@both
def test_every_cell_of_the_summary_stands_in_the_page(run: Run, page: Any) -> None:
    for row in run.summary().to_dict("records"):
        assert " ".join(row["attack"].split()) in page.text
        assert f"{row['tpr']:.2f} [{row['tpr_low']:.2f}, {row['tpr_high']:.2f}]" in page.text
    assert f"{run.decision().fpr:g}" in page.text


def test_failures_and_omissions_are_listed_with_their_reasons(
    disorderly: Run, disorderly_page: Any, harmful: str
) -> None:
    text, shown = disorderly_page.text, " ".join(harmful.split())
    assert f"ValueError: failed: {shown}" in text
    assert "lpips: needs" in text
    assert "Skipped" in text
    assert "partial" in text
    assert "Files that are no usable image" in text
    assert len(disorderly.store.index().rejected) == 1
    (unreadable,) = {row["image"] for row in disorderly.store.read("failures") if row["status"] == "unreadable"}
    assert unreadable.startswith("chelsea")


def test_a_run_without_failures_says_so(orderly_page: Any) -> None:
    assert "Every planned cell was measured, or skipped for a reason below." in orderly_page.text
    assert "not comparable pixel by pixel" in orderly_page.text


def test_few_photographs_are_said_to_certify_nothing(orderly_page: Any) -> None:
    assert "this run illustrates, it does not certify" in orderly_page.text
    assert "needs at least 100 negatives" in orderly_page.text
    assert "299 without a false alarm" in orderly_page.text


def test_the_gallery_shows_original_marked_difference_and_attacked(orderly: Run, orderly_page: Any) -> None:
    for title in ("unmarked", "marked", "difference x 12"):
        assert title in orderly_page.text
    webp = [source for source in orderly_page.images if source.startswith("data:image/webp")]
    assert len(webp) % 4 == 0
    assert len(webp) >= 4 * len(orderly.methods)
    assert "bits read right (the median image of this cell)" in orderly_page.text


def test_the_page_holds_the_benchmark_that_makes_it_again(orderly: Run, orderly_page: Any) -> None:
    import html

    import yaml

    from waterproof.bench.benchmark import validate

    text = html.unescape(orderly_page.source.split("<pre>")[1].split("</pre>")[0])
    assert validate(yaml.safe_load(text)) == validate(orderly.config["benchmark"])


def test_another_decision_and_place_can_be_asked_for(orderly: Run, tmp_path: Path) -> None:
    before = (orderly.folder / "run.json").read_bytes()
    path = write_report(orderly, tmp_path / "elsewhere", fpr=1e-4, rule="certified")
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "elsewhere" / "index.html"
    assert "certifying an FPR of 0.0001" in text
    assert "refused" in text
    assert (orderly.folder / "run.json").read_bytes() == before


@pytest.mark.parametrize("case", ["no identity", "one image", "no payload", "all failed", "nothing skipped"])
def test_a_run_that_lacks_something_still_has_a_report(case: str, tmp_path: Path) -> None:
    awkward = Path(__file__).resolve().parents[1] / "bench" / "awkward.py"
    fields: dict[str, Any] = {"decision": {"calibration": 0}, "metrics": [], "runtime": {"engine": "inline"}}
    attacks: list[Any] = ["identity", {"jpeg": {"quality": [70, 30]}}]
    methods: list[Any] = ["dwt-dct"]
    count = 4
    if case == "no identity":
        attacks = attacks[1:]
    elif case == "one image":
        count, fields["metrics"] = 1, ["psnr"]
    elif case == "no payload":
        methods = [f"{awkward}:Presence"]
    elif case == "all failed":
        methods = [{f"{awkward}:Presence": {"broken": True}}, "dwt-dct"]
    run = evaluate(methods, {"deadleaves": {"count": count}}, attacks, out=tmp_path / "run", **fields)
    page = write_report(run)
    assert "<h1>" in page.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_one_line(orderly: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to"):
        write_report(orderly, tmp_path / "file" / "report")


@both
def test_the_terminal_shows_the_same_rates(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(run)
    shown = capsys.readouterr().out
    assert "nan" not in shown.lower().replace("dominan", "")
    for row in run.summary().to_dict("records"):
        assert f"{row['tpr']:.2f} [{row['tpr_low']:.2f}, {row['tpr_high']:.2f}]" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (None, "–"),
        (float("nan"), "–"),
        (np.nan, "–"),
        (float("inf"), "∞"),
        (np.inf, "∞"),
        (3, "3.000"),
    ],
)
def test_numbers_are_written_for_people(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_rates_and_small_probabilities_are_written_for_people() -> None:
    assert rate({"tpr": 0.951, "tpr_low": 0.9, "tpr_high": 1.0}, "tpr") == "0.95 [0.90, 1.00]"
    assert rate({"tpr": 0.5, "tpr_low": None, "tpr_high": np.nan}, "tpr") == "0.50 [–, –]"
    assert rate({"tpr": None}, "tpr") == rate(None, "tpr") == rate({}, "tpr") == rate({"tpr": np.nan}, "tpr") == "–"
    assert (small(2.3e-10), small(0.0011), small(np.nan), small(None)) == ("2.3e-10", "0.0011", "–", "–")


def test_a_dollar_in_a_label_starts_no_formula(disorderly: Run) -> None:
    from matplotlib.mathtext import MathTextParser

    figure = survival(disorderly, disorderly.summary())
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert any(r"\$" in label for label in labels)
    assert plain("$x^2$") == r"\$x^2\$"
    MathTextParser("agg").parse(plain("$\\frac{1$"))


def test_figures_leave_the_callers_matplotlib_as_it_was(orderly: Run) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    survival(orderly, orderly.summary())
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="session")
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("name", [pytest.param("orderly", marks=pytest.mark.slow), "disorderly"])
def test_a_browser_shows_the_page_without_an_error_or_a_request(run: Run, page: Any, browser: Any) -> None:
    tab = browser.new_page()
    requests: list[str] = []
    problems: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    address = (run.folder / "report" / "index.html").as_uri()
    tab.goto(address)
    tab.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert tab.locator("img").count() == len(page.images)
    assert tab.evaluate("[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).length") == 0
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    rows = tab.locator("#table tbody tr")
    everything = rows.count()
    tab.fill("#filter", "svd identity")
    shown = sum(rows.nth(i).is_visible() for i in range(everything))
    assert 0 < shown < everything
    tab.fill("#filter", "")
    heading = tab.locator("#table thead th").nth(3)
    heading.click()
    values = tab.evaluate(
        "[...document.querySelectorAll('#table tbody tr')].map(r => parseFloat(r.cells[3].dataset.sort))"
    )
    assert values == sorted(values)
    heading.click()
    values = tab.evaluate(
        "[...document.querySelectorAll('#table tbody tr')].map(r => parseFloat(r.cells[3].dataset.sort))"
    )
    assert values == sorted(values, reverse=True)
    assert problems == []
    tab.close()


@pytest.mark.parametrize("format_of", [number, small])
def test_zero_is_shown_as_a_number(format_of: Callable[[float], str]) -> None:
    assert float(format_of(0.0)) == 0


def test_only_attacks_that_differ_in_strength_alone_are_a_sweep() -> None:
    def attack(name: str, family: str = "regeneration", **params: Any) -> dict[str, Any]:
        value = float(params["time"])
        return {
            "name": name,
            "family": family,
            "params": params,
            "strength": "time",
            "value": value,
            "label": f"{params}",
        }

    attacks = [
        attack("diffusion", time=30, published=False),
        attack("diffusion", time=60, published=False),
        attack("diffusion", time=60, published=True),
        attack("rinse", time=60),
        attack("forgery", "forgery", time=1),
        attack("forgery", "forgery", time=5),
    ]
    run: Any = SimpleNamespace(config={"attacks": attacks})
    assert [[one["label"] for one in sweep] for sweep in swept(run)] == [[attacks[0]["label"], attacks[1]["label"]]]
