"""Runs on one board: what is merged, what is greyed out, what a rank says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from waterproof.bench.leaderboard import merge
from waterproof.core.errors import StatisticsError
from waterproof.reports.leaderboard import latex, write_board

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N = 120


def cell(seed: int, tpr: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    marked = np.where(rng.random(N) < tpr, 30, 16)
    return marked, rng.binomial(32, 0.5, N)


def method(name: str, tpr: float, attacks: tuple[str, ...] = ("identity", "noise", "blur")) -> dict:
    return {(name, attack): cell(i + int(100 * tpr), tpr) for i, attack in enumerate(attacks)}


def test_methods_of_two_runs_are_ranked_together(baseline_of: Callable, tmp_path: Path) -> None:
    first = baseline_of(tmp_path / "a", method("good", 0.95) | method("bad", 0.2))
    board = merge([first, baseline_of(tmp_path / "b", method("middling", 0.6))])
    assert [(e.method, e.place.rank, e.place.group) for e in board.ranked] == [
        ("good", 1, 1),
        ("middling", 2, 2),
        ("bad", 3, 3),
    ]
    frame = board.frame()
    for entry in board.ranked:
        rates = [(cells[0] >= 24).mean() for cells in method(entry.method, entry.place.value).values()]
        assert len(rates) == 3
        row = frame[frame["method"] == entry.method].iloc[0]
        assert row["tpr_low"] <= row["tpr"] <= row["tpr_high"]
    # Every attacked cell weighs the same; unattacked images stay out of the mean.
    good = method("good", 0.95)
    expected = np.mean([(good["good", a][0] >= 24).mean() for a in ("noise", "blur")])
    assert board.ranked[0].place.value == pytest.approx(expected)


def test_methods_that_cannot_be_told_apart_share_a_group(baseline_of: Callable, tmp_path: Path) -> None:
    cells = method("one", 0.9) | method("two", 0.91) | method("far", 0.1)
    ranks = {
        e.method: (e.place.rank_low, e.place.rank_high, e.place.group)
        for e in merge([baseline_of(tmp_path / "a", cells)]).ranked
    }
    assert ranks["one"][:2] == ranks["two"][:2] == (1, 2)
    assert ranks["one"][2] == ranks["two"][2] != ranks["far"][2]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"versions": {"dataset synthetic": "d2"}}, "another dataset"),
        ({"versions": {"attack noise": "v2"}}, "another version of attack noise"),
        ({"key": "fixed"}, "another key policy"),
    ],
)
def test_what_does_not_agree_keeps_a_grey_row_with_the_reason(
    baseline_of: Callable, tmp_path: Path, other: dict, reason: str
) -> None:
    board = merge(
        [baseline_of(tmp_path / "a", method("good", 0.9)), baseline_of(tmp_path / "b", method("else", 0.5), **other)]
    )
    (grey,) = [entry for entry in board.entries if entry.place is None]
    assert grey.method == "else"
    assert reason in grey.reason
    page = write_board(board, tmp_path / "board").read_text(encoding="utf-8")
    assert reason in page
    assert 'class="grey"' in page


def test_an_incomplete_row_has_no_rank(baseline_of: Callable, tmp_path: Path) -> None:
    board = merge(
        [
            baseline_of(tmp_path / "a", method("whole", 0.5)),
            baseline_of(tmp_path / "b", method("half", 0.9, ("identity", "noise"))),
        ]
    )
    assert [entry.method for entry in board.ranked] == ["whole"]
    assert "incomplete: 1 of 3 attacks are not whole (blur)" in board.entries[-1].reason


def test_the_same_method_twice_is_never_silently_one(baseline_of: Callable, tmp_path: Path) -> None:
    first = baseline_of(tmp_path / "a", method("mark", 0.5))
    board = merge([first, baseline_of(tmp_path / "b", method("mark", 0.9))])
    assert "the same method, in the same version" in board.entries[-1].reason
    newer = baseline_of(tmp_path / "c", method("mark", 0.9), versions={"method mark": "v2"})
    assert [entry.method for entry in merge([first, newer]).ranked] == ["mark · c", "mark"]


def test_other_payloads_are_said(baseline_of: Callable, tmp_path: Path) -> None:
    board = merge(
        [baseline_of(tmp_path / "a", method("short", 0.5)), baseline_of(tmp_path / "b", method("long", 0.9), bits=48)]
    )
    assert any("Not at equal payload: 32, 48 bits" in note for note in board.notes)


def test_the_latex_table_has_a_row_for_each_rank_and_escapes_names(baseline_of: Callable, tmp_path: Path) -> None:
    board = merge([baseline_of(tmp_path / "a", method("my_mark(step=36)", 0.9) | method("b&w", 0.2))])
    text = latex(board)
    assert "\\toprule" in text
    assert "\\bottomrule" in text
    assert "my\\_mark(step=36)" in text
    assert "b\\&w" in text
    columns = text.split("\\begin{tabular}{")[1].split("}")[0]
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {line.replace("\\&", "").count("&") + 1 for line in rows} == {len(columns)}


def test_the_files_are_written_and_read_back(baseline_of: Callable, tmp_path: Path) -> None:
    board = merge([baseline_of(tmp_path / "a", method("good", 0.9))])
    write_board(board, tmp_path / "board")
    frame = pd.read_csv(tmp_path / "board" / "leaderboard.csv")
    assert frame["tpr"].tolist() == board.frame()["tpr"].tolist()
    assert {p.name for p in (tmp_path / "board").iterdir()} == {
        "index.html",
        "leaderboard.csv",
        "leaderboard.tex",
        "ranks.png",
        "ranks.pdf",
    }


def test_no_run_is_refused() -> None:
    with pytest.raises(StatisticsError, match="at least one run"):
        merge([])


def test_a_row_that_lacks_an_image_has_no_rank_and_spoils_no_other(baseline_of: Callable, tmp_path: Path) -> None:
    lost = {("half", "noise", "marked"): 5}
    board = merge(
        [baseline_of(tmp_path / "a", method("whole", 0.5)), baseline_of(tmp_path / "b", method("half", 0.9), lost=lost)]
    )
    assert [entry.method for entry in board.ranked] == ["whole"]
    assert "incomplete: 1 of 3 attacks are not whole (noise)" in board.entries[-1].reason


def test_runs_in_folders_of_one_name_keep_their_own_numbers(baseline_of: Callable, tmp_path: Path) -> None:
    runs = []
    for i, tpr in enumerate((0.3, 0.6, 0.9)):
        (tmp_path / str(i)).mkdir()
        versions = {"method mark": f"v{i}"}
        runs.append(baseline_of(tmp_path / str(i) / "run", method("mark", tpr), versions=versions))
    values = [entry.place.value for entry in merge(runs).ranked]
    assert values == pytest.approx([0.9, 0.6, 0.3], abs=0.12)
    assert len({entry.method for entry in merge(runs).entries}) == 3


def test_a_grey_twin_does_not_take_the_place_of_a_good_row(baseline_of: Callable, tmp_path: Path) -> None:
    first = baseline_of(tmp_path / "a", method("other", 0.5))
    grey = baseline_of(tmp_path / "b", method("mark", 0.9), key="fixed")
    good = baseline_of(tmp_path / "c", method("mark", 0.9))
    ranked = {entry.run: entry.method for entry in merge([first, grey, good]).ranked}
    assert str(good.folder) in ranked
    assert str(grey.folder) not in ranked


def test_unattacked_images_alone_can_be_ranked(baseline_of: Callable, tmp_path: Path) -> None:
    first = baseline_of(tmp_path / "a", method("one", 0.9, ("identity",)))
    more = baseline_of(tmp_path / "b", method("two", 0.2))
    assert [entry.method for entry in merge([first, more]).ranked] == ["one", "two"]
