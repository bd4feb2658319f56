"""The simulations that stand behind the documented coverage run, are reproducible, and find what does not cover."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from waterproof.bench.coverage import Case, Covered, simulate, table
from waterproof.bench.coverage_cases import PROCEDURES
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    import numpy as np

DOCS = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"


def case(chance: float, promise: float = 0.95) -> Case:
    def hit(rng: np.random.Generator) -> bool:
        return bool(rng.random() < chance)

    return Case("a coin", promise, hit)


@pytest.mark.parametrize(("chance", "short"), [(0.95, False), (0.97, False), (0.85, True)])
def test_a_broken_promise_is_found(chance: float, short: bool) -> None:
    found = simulate(case(chance), 2000, Seed.root(0))
    assert found.share == pytest.approx(chance, abs=0.02)
    assert found.short is short
    assert ("**short**" in table("coin", "", [found])) is short


def test_refusals_are_counted_apart() -> None:
    def hit(rng: np.random.Generator) -> bool | None:
        return None if rng.random() < 0.5 else True

    found = simulate(Case("half refused", 0.95, hit), 400, Seed.root(1))
    assert found.share == 1.0
    assert 150 < found.refused < 250
    assert "50" in table("x", "", [Covered("s", 0.95, 1.0, 400, 200)])


@pytest.mark.parametrize("name", sorted(PROCEDURES))
def test_every_procedure_keeps_its_promise_in_a_fast_version(name: str) -> None:
    """Every third setting, 60 repetitions: this finds what is broken, the printed table is the measurement."""
    _, cases = PROCEDURES[name]
    for one in cases[::3]:
        found = simulate(one, 60, Seed.root(7).child("fast", name))
        # Clopper-Pearson covers; a score interval or a bootstrap may be a little short in a corner.
        assert found.refused == 60 or found.share >= one.promise - 0.12, found


def test_the_documented_table_has_a_row_for_every_setting() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \| [\d.]+% \| ", text, re.MULTILINE)
    assert rows == [one.setting for _, cases in PROCEDURES.values() for one in cases]
    repetitions = re.search(r"([\d,]+) repetitions a row", text)
    assert repetitions is not None
    assert int(repetitions[1].replace(",", "")) >= 2000


def test_losses_are_caught_or_called_undecided_and_nothing_is_cried_where_nothing_is_lost() -> None:
    from waterproof.bench.coverage_verdicts import called

    seed = Seed.root(3)
    assert called(200, 0.0, 0.05, 40, seed)["regression"] == 0
    assert called(5000, 0.0, 0.02, 40, seed)["equivalent"] >= 36
    assert called(5000, 0.05, 0.1, 40, seed)["regression"] == 40
    few = called(200, 0.02, 0.05, 40, seed)
    assert few["undecided"] >= 36
    assert few["equivalent"] == 0


def test_the_command_prints_and_refuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from waterproof.bench import coverage

    def said(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["coverage", *arguments])
        with pytest.raises(SystemExit) as stopped:
            coverage.main()
        output = capsys.readouterr()
        return stopped.value.code, output.out + output.err

    code, text = said("null-moved", "--repetitions", "20", "--workers", "1")
    assert code == 0
    assert "| 100 images, 48 bits" in text
    code, text = said("nulls", "--workers", "1")
    assert code == 2
    assert "there is no procedure 'nulls'. Did you mean 'null'?" in text
