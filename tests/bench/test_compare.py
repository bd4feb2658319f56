"""The regression verdict: what is compared, what is refused, what is caught, and how often it cries wolf."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

from waterproof.bench.compare import OUTCOMES, Comparison, compare
from waterproof.bench.run import run_benchmark
from waterproof.core.errors import StatisticsError
from waterproof.reports.figures_compare import save_changes
from waterproof.reports.verdict import as_json, junit, markdown, print_verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from waterproof.bench.baseline import Baseline

BITS = 32
THRESHOLD = 24
"""Matching bits for FPR .01 by theory: 24 of 32."""


def matches(rng: np.random.Generator, n: int, tpr: float) -> np.ndarray:
    """Matching bits of marked images: over the threshold with probability ``tpr``."""
    return np.where(rng.random(n) < tpr, rng.integers(THRESHOLD, BITS + 1, n), rng.integers(10, THRESHOLD, n))


def coins(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.binomial(BITS, 0.5, n)


def changed(rng: np.random.Generator, old: np.ndarray, lose: float, gain: float = 0.0) -> np.ndarray:
    """The same images again: some that were over the threshold fall below it, some others rise."""
    draw, over = rng.random(len(old)), old >= THRESHOLD
    new = np.where(over & (draw < lose), THRESHOLD - 4, old)
    return np.where(~over & (draw < gain), THRESHOLD + 2, new)


@pytest.fixture
def two(baseline_of: Callable, tmp_path: Path) -> Callable[..., tuple[Baseline, Baseline]]:
    """A base run of one method under two attacks, and a new one in which ``noise`` lost a share of its detections."""

    def build(n: int = 400, lose: float = 0.0, **new: object) -> tuple[Baseline, Baseline]:
        rng = np.random.default_rng(5)
        clean, noisy = matches(rng, n, 1.0), matches(rng, n, 0.9)
        unmarked = coins(rng, n), coins(rng, n)
        base = {("mark", "identity"): (clean, unmarked[0]), ("mark", "noise"): (noisy, unmarked[1])}
        other = {**base, ("mark", "noise"): (changed(rng, noisy, lose), unmarked[1])}
        return baseline_of(tmp_path / "base", base), baseline_of(tmp_path / "new", other, **new)

    return build


def outcomes(found: Comparison, quantity: str, attack: str = "noise") -> list[str]:
    return [row.outcome for row in found.rows if row.quantity == quantity and row.attack == attack]


def test_the_same_results_are_identical_and_pass(two: Callable) -> None:
    found = compare(*two())
    assert {row.outcome for row in found.rows} == {"identical"}
    assert found.exit_code == 0
    assert found.sentence.startswith("No regression")


def test_a_large_loss_is_a_regression_and_exits_with_1(two: Callable) -> None:
    found = compare(*two(lose=0.15))
    assert outcomes(found, "tpr") == ["regression"]
    assert outcomes(found, "tpr", "identity") == ["identical"]
    assert found.exit_code == 1
    (row,) = [row for row in found.rows if row.quantity == "tpr" and row.attack == "noise"]
    assert row.base == pytest.approx(0.9, abs=0.04)
    assert row.change.value == pytest.approx(row.new - row.base)
    assert row.p_worse < 0.05


def test_a_significant_loss_within_the_margin_is_no_regression(two: Callable) -> None:
    found = compare(*two(lose=0.15), margins={"tpr": 0.5, "auc": 0.5, "bit_accuracy": 0.5})
    assert outcomes(found, "tpr") == ["equivalent"]
    assert found.exit_code == 0


def test_few_images_are_undecided_and_the_verdict_says_so(two: Callable) -> None:
    found = compare(*two(n=20, lose=0.15))
    assert outcomes(found, "tpr") == ["undecided"]
    assert found.exit_code == 0
    assert "not the same as none" in found.sentence


def test_more_false_positives_are_a_regression(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    marked, before = matches(rng, 2000, 0.9), coins(rng, 2000)
    after = np.where(rng.random(2000) < 0.06, THRESHOLD + 1, before)
    base = baseline_of(tmp_path / "a", {("mark", "identity"): (marked, before)})
    new = baseline_of(tmp_path / "b", {("mark", "identity"): (marked, after)})
    assert outcomes(compare(base, new), "fpr", "identity") == ["regression"]
    assert outcomes(compare(new, base), "fpr", "identity") == ["improvement"]


def test_a_cell_that_newly_fails_is_a_regression(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    marked, unmarked = matches(rng, 50, 0.9), coins(rng, 50)
    base = baseline_of(tmp_path / "a", {("mark", "identity"): (marked, unmarked)})
    new = baseline_of(tmp_path / "b", {("mark", "identity"): (marked[:40], unmarked)})
    found = compare(base, new)
    (row,) = [row for row in found.rows if row.outcome == "newly failing"]
    assert "10 of 50 marked images fail that did not before: it broke" in row.note
    assert found.exit_code == 1
    # The images that are left are compared, and agree.
    assert outcomes(found, "tpr", "identity") == ["identical"]


def test_another_image_that_fails_is_newly_failing_even_if_as_many_did_before(
    baseline_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    cell = {("mark", "identity"): (matches(rng, 50, 0.9), coins(rng, 50))}
    base = baseline_of(tmp_path / "a", cell, lost={("mark", "identity", "marked"): 3})
    new = baseline_of(tmp_path / "b", cell, lost={("mark", "identity", "marked"): 7})
    found = compare(base, new)
    (row,) = [row for row in found.rows if row.outcome == "newly failing"]
    assert row.note == "1 of 50 marked images fail that did not before: it [broke]"
    assert found.exit_code == 1
    # What failed before may fail again.
    assert compare(base, base).exit_code == 0
    # Square brackets in a reason are text, on the terminal too.
    print_verdict(found)
    assert "it [broke]" in " ".join(capsys.readouterr().out.split())


def test_what_vanished_or_was_added_is_listed_and_fails_nothing(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cell = matches(rng, 50, 0.9), coins(rng, 50)
    base = baseline_of(tmp_path / "a", {(m, a): cell for m in ("mark", "old") for a in ("identity", "noise")})
    new = baseline_of(tmp_path / "b", {(m, a): cell for m in ("mark", "fresh") for a in ("identity", "blur")})
    found = compare(base, new)
    said = {(row.outcome, row.method, row.attack) for row in found.rows if row.quantity == "cell"}
    assert said >= {("vanished", "mark", "noise"), ("vanished", "old", "identity"), ("added", "fresh", "")}
    assert ("added", "", "blur") in said
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ({"versions": {"dataset synthetic": "d2"}}, "another dataset"),
        ({"key": "fixed"}, "another key policy"),
        ({"versions": {"attack identity": "v2", "attack noise": "v2"}}, "another version of the attack"),
    ],
)
def test_nothing_comparable_exits_with_4_and_says_why(two: Callable, new: dict, reason: str) -> None:
    found = compare(*two(**new))
    assert found.exit_code == 4
    assert found.sentence == "Nothing was comparable."
    assert all(reason in row.note for row in found.rows)


def test_another_image_list_is_not_compared(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [{("mark", "identity"): (matches(rng, n, 0.9), coins(rng, n))} for n in (50, 60)]
    found = compare(baseline_of(tmp_path / "a", cells[0]), baseline_of(tmp_path / "b", cells[1]))
    assert found.exit_code == 4
    assert "other images: 0 of the base's 50 are missing, 10 are new" in found.rows[0].note


def test_one_fixed_key_under_another_seed_is_another_key(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cell = {("mark", "identity"): (matches(rng, 50, 0.9), coins(rng, 50))}
    base = baseline_of(tmp_path / "a", cell, key="fixed")
    new = baseline_of(tmp_path / "b", cell, key="fixed", seed=1)
    assert "another key" in compare(base, new).rows[0].note
    assert compare(base, baseline_of(tmp_path / "c", cell, key="fixed")).exit_code == 0


def test_methods_match_by_label_by_name_or_as_told(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cell = matches(rng, 50, 0.9), coins(rng, 50)
    base = baseline_of(tmp_path / "a", {(m, "identity"): cell for m in ("mark(step=36)", "old")})
    new = baseline_of(tmp_path / "b", {(m, "identity"): cell for m in ("mark(step=40)", "new")})
    assert compare(base, new).matched == {"mark(step=36)": "mark(step=40)"}
    assert compare(base, new, match={"old": "new"}).matched == {"old": "new", "mark(step=36)": "mark(step=40)"}
    with pytest.raises(StatisticsError, match=r"no method 'olt'. Did you mean 'old'\?"):
        compare(base, new, match={"olt": "new"})


def test_wrong_quantities_and_margins_are_refused(two: Callable) -> None:
    with pytest.raises(StatisticsError, match=r"no quantity 'tps' to compare. Did you mean 'tpr'\?"):
        compare(*two(), on=["tps"])
    with pytest.raises(StatisticsError, match="margin of tpr is -1"):
        compare(*two(), margins={"tpr": -1.0})


def test_calibrated_thresholds_are_compared_with_their_own_luck(baseline_of: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 1200
    split = ["calibration" if i % 2 else "test" for i in range(n)]
    decision = {"rule": "certified", "calibration": 0.5}
    marked, unmarked = matches(rng, n, 0.95), coins(rng, n)
    worse = np.where(rng.random(n) < 0.4, 18, marked)
    noisy = coins(rng, n)
    base = baseline_of(tmp_path / "a", {("mark", "identity"): (marked, unmarked)}, split=split, decision=decision)
    same = baseline_of(tmp_path / "b", {("mark", "identity"): (marked, noisy)}, split=split, decision=decision)
    bad = baseline_of(tmp_path / "c", {("mark", "identity"): (worse, noisy)}, split=split, decision=decision)
    assert outcomes(compare(base, same, on=["tpr"]), "tpr", "identity") != ["regression"]
    assert outcomes(compare(base, bad, on=["tpr"]), "tpr", "identity") == ["regression"]


@pytest.mark.parametrize("n", [200, 1000, 5000])
@pytest.mark.parametrize("drop", [0.01, 0.02, 0.05, 0.10])
def test_an_injected_loss_is_caught_or_called_undecided(
    baseline_of: Callable, tmp_path: Path, n: int, drop: float
) -> None:
    rng = np.random.default_rng([n, int(drop * 100)])
    marked, unmarked = matches(rng, n, 0.9), coins(rng, n)
    after = changed(rng, marked, drop / 0.9 + 0.02, 0.02 * 0.9 / 0.1)
    base = baseline_of(tmp_path / "a", {("mark", "identity"): (marked, unmarked)})
    new = baseline_of(tmp_path / "b", {("mark", "identity"): (after, unmarked)})
    found = compare(base, new, on=["tpr"], margins={"tpr": 0.005})
    allowed = {"regression", "undecided", "small change"}
    assert set(outcomes(found, "tpr", "identity")) <= allowed
    if n * drop**2 >= 2:
        assert outcomes(found, "tpr", "identity") == ["regression"]


def false_alarms(baseline_of: Callable, folder: Path, comparisons: int, attacks: int, on: list[str] | None) -> int:
    """Comparisons of runs whose truth is the same, each image's luck drawn again; no margin softens a verdict."""
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(comparisons):
        chance = rng.beta(8, 2, (attacks, 150))
        runs = []
        for name in ("a", "b"):
            cells = {}
            for i in range(attacks):
                over = rng.random(150) < chance[i]
                marked = np.where(over, rng.integers(24, 33, 150), rng.integers(10, 24, 150))
                cells["mark", f"attack-{i}"] = (marked, coins(rng, 150))
            runs.append(baseline_of(folder / name, cells))
        alarms += compare(*runs, on=on, margins=dict.fromkeys(["tpr", "fpr", "auc", "bit_accuracy"], 0.0)).regressed
    return alarms


# The level is .05: more than 19 of 200 would happen with a probability of .005.
def test_unchanged_code_raises_no_more_false_alarms_than_stated(baseline_of: Callable, tmp_path: Path) -> None:
    assert false_alarms(baseline_of, tmp_path, 200, 4, ["tpr", "fpr", "bit_accuracy"]) <= 19


@pytest.mark.slow
def test_unchanged_code_raises_no_more_false_alarms_over_58_attacks(baseline_of: Callable, tmp_path: Path) -> None:
    assert false_alarms(baseline_of, tmp_path, 200, 58, None) <= 19


def test_a_new_version_meets_the_same_noise(tiny: Callable, tmp_path: Path) -> None:
    """The attack's draws leave the method out: what differs between the runs is the method alone."""
    source = (
        "from waterproof.bench.methods.dwt import DwtDct\n"
        "class Mark(DwtDct):\n    name = 'mark'\n    version = {version}\n"
        "    @property\n    def label(self):\n        return 'mark'\n"
    )
    runs = []
    for version in (1, 2):
        file = tmp_path / f"v{version}" / "mark.py"
        file.parent.mkdir()
        file.write_text(source.format(version=version))
        attacks = ["identity", {"gaussian-noise": {"sd": 0.05}}]
        benchmark = tiny(methods=[f"{file}:Mark"], attacks=attacks, key="per-image", decision={"calibration": 0.0})
        runs.append(run_benchmark(benchmark, tmp_path / f"run{version}"))
    assert runs[0].config["specs"]["method mark"] != runs[1].config["specs"]["method mark"]
    found = compare(*runs)
    assert {row.outcome for row in found.rows} == {"identical"}
    assert any(row.attack != "identity" for row in found.rows)


def test_every_output_tells_the_same_story(two: Callable, tmp_path: Path) -> None:
    found = compare(*two(lose=0.15))
    told = json.loads(as_json(found))
    assert told["exit_code"] == 1
    assert told["counts"]["regression"] == found.count("regression")
    assert sum(told["counts"].values()) == len(told["rows"]) == len(found.rows)
    suite = ElementTree.fromstring(junit(found)).find("testsuite")  # noqa: S314 - our own text
    assert int(suite.get("failures")) == found.count("regression") == len(suite.findall("testcase/failure"))
    assert int(suite.get("tests")) == len(found.rows)
    text = markdown(found)
    assert text.startswith("### ❌ waterproof: Regression")
    assert "| regression | mark | noise | tpr |" in text
    assert "level 0.05 for all" in text
    save_changes(found, tmp_path / "changes.png")
    assert (tmp_path / "changes.png").stat().st_size > 5000
    with pytest.raises(StatisticsError, match=r"\.png, \.pdf or \.svg"):
        save_changes(found, tmp_path / "changes.bmp")


def test_every_outcome_has_a_meaning() -> None:
    from waterproof.reports.verdict import _MEANING

    assert set(_MEANING) == set(OUTCOMES)
