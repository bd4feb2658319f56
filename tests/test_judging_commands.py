"""The commands that judge finished runs: what they print, write and exit with, and what they refuse in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from waterproof.bench.run import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from waterproof.bench.results import Run

DATA = {"deadleaves": {"count": 24, "size": 256}}
FIELDS: dict = {"metrics": ["psnr"], "key": "per-image", "runtime": {"engine": "inline"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same benchmark with a strong mark and with one so weak that it is lost."""
    folder = tmp_path_factory.mktemp("judged")
    attacks = ["identity", {"gaussian-blur": {"sigma": 1}}]
    steps = ({}, {"step": 2})
    return tuple(
        evaluate([{"dwt-dct-svd": step}], DATA, attacks, folder / name, **FIELDS)
        for name, step in zip(("strong", "weak"), steps, strict=True)
    )


def test_compare_catches_the_weak_mark_and_writes_every_format(
    cli: Callable[..., Any], runs: tuple[Run, Run], tmp_path: Path
) -> None:
    said = cli("baseline", runs[0].folder, "base.parquet")
    assert said.code == 0
    assert "sha256:" in said.out
    files = ["--markdown", "v.md", "--junit", "v.xml", "--json", "v.json", "--figure", "v.png"]
    said = cli("compare", "base.parquet", runs[1].folder, *files)
    assert said.code == 1
    assert "Regression: " in said.out
    assert "Regression: " in (tmp_path / "v.md").read_text(encoding="utf-8")
    told = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert told["matched"] == {"dwt-dct-svd": "dwt-dct-svd(step=2)"}
    assert told["exit_code"] == 1
    assert {row["outcome"] for row in told["rows"] if row["quantity"] == "psnr"} == {"improvement"}
    assert (tmp_path / "v.xml").is_file()
    assert (tmp_path / "v.png").is_file()


def test_compare_passes_the_same_run_and_refuses_what_is_not_comparable(
    cli: Callable[..., Any], runs: tuple[Run, Run], tmp_path: Path
) -> None:
    assert cli("compare", runs[0].folder, runs[0].folder).code == 0
    evaluate(["dwt-dct-svd"], {"deadleaves": {"count": 3}}, ["identity"], tmp_path / "other", **FIELDS)
    said = cli("compare", runs[0].folder, tmp_path / "other")
    assert said.code == 4
    assert "Not comparable: another dataset" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "RUN", "nowhere"], "no such run folder or baseline file: nowhere"),
        (["compare", "RUN", "RUN", "--margin", "tpr"], "--margin takes NAME=VALUE, not 'tpr'"),
        (["compare", "RUN", "RUN", "--margin", "tpr=much"], "--margin takes a number, not 'much'"),
        (["compare", "RUN", "RUN", "--on", "trp"], "there is no quantity 'trp' to compare. Did you mean 'tpr'?"),
        (["compare", "RUN", "RUN", "--match", "a=b"], "this run has no method 'a'"),
        (["compare", "RUN", "RUN", "--rule", "fixed"], "the rule 'fixed' and a threshold go together"),
        (["compare", "RUN", "RUN", "--alpha", "2"], "alpha is 2; it must lie strictly between 0 and 1"),
        (["leaderboard", "nowhere"], "no such run folder or baseline file: nowhere"),
        (["baseline", "nowhere", "x.parquet"], "nowhere is no run folder"),
        (["attribute", "RUN", "--users", "1.5"], "--users takes whole numbers from 1 to 1e+09, not '1.5'"),
        (["attribute", "RUN", "--users", "nan"], "--users takes whole numbers from 1 to 1e+09, not 'nan'"),
        (["attribute", "RUN", "--users", "inf"], "--users takes whole numbers from 1 to 1e+09, not 'inf'"),
        (["compare", "RUN", "RUN", "--on", ""], "no quantity is given to compare"),
        (["report", "RUN", "--rule", "extrapolated", "--sided", "three"], "sided: input should be 'one' or 'two'"),
        (["null", "RUN/cells.parquet"], "is a file; give the folder of a run"),
        (["attribute", "RUN", "--bank", "nowhere.txt"], "key bank nowhere.txt"),
        (["attribute", "RUN", "--attacks", "jpg"], "this run has no attack 'jpg'"),
        (["null", "RUN", "--seed", "3"], "is a run and fixes --seed"),
        (["null", "dwt-dcd"], "Did you mean 'dwt-dct'?"),
        (["plan", "--fpr", "2"], "it must lie strictly between 0 and 1"),
    ],
)
def test_a_mistake_is_one_line(
    cli: Callable[..., Any], runs: tuple[Run, Run], arguments: list[str], message: str
) -> None:
    said = cli(*(a.replace("RUN", str(runs[0].folder)) for a in arguments))
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_leaderboard_ranks_and_says_what_it_left_out(cli: Callable[..., Any], runs: tuple[Run, Run]) -> None:
    said = cli("leaderboard", runs[0].folder, runs[1].folder, "--out", "board")
    assert said.code == 0
    frame = pd.read_csv("board/leaderboard.csv")
    assert frame["method"].tolist() == ["dwt-dct-svd", "dwt-dct-svd(step=2)"]
    assert frame["rank"].tolist() == [1, 2]
    assert "invisible-watermark" in said.out


def test_null_of_a_method_runs_only_its_decoder(cli: Callable[..., Any], tmp_path: Path) -> None:
    arguments = [
        "--dataset",
        "{deadleaves: {count: 20}}",
        "--attacks",
        "identity, {jpeg: {quality: 50}}",
        "--keys",
        "50",
    ]
    said = cli("null", "dwt-dct", *arguments)
    assert said.code == 0
    assert "null report: runs" in said.out
    frame = pd.read_csv(tmp_path / "runs" / "null-dwt-dct" / "null" / "null.csv")
    assert frame["attack"].tolist() == ["identity", "jpeg(quality=50)"]
    assert (frame["keys"] == 50).all()
    # The same again measures nothing anew, and a finished run can be asked as well.
    assert cli("null", "dwt-dct", *arguments).code == 0
    assert cli("null", "runs/null-dwt-dct").code == 0


def test_attribute_names_users_and_takes_a_bank(cli: Callable[..., Any], runs: tuple[Run, Run], tmp_path: Path) -> None:
    said = cli("attribute", runs[0].folder, "--users", "1,10,1e3", "--attacks", "identity", "--out", "who")
    assert said.code == 0
    assert pd.read_csv("who/attribution.csv")["users"].tolist() == [1, 10, 1000]
    (tmp_path / "keys.txt").write_text("ann " + "01" * 16 + "\nbob " + "10" * 16 + "\n")
    said = cli(
        "attribute", runs[0].folder, "--users", "2", "--attacks", "identity", "--bank", "keys.txt", "--out", "two"
    )
    assert said.code == 0
    assert "2 keys of keys.txt" in said.out


def test_plan_answers_with_and_without_a_run(cli: Callable[..., Any], runs: tuple[Run, Run]) -> None:
    said = cli("plan", "--fpr", "1e-4", "--tpr", ".9", "--width", ".02")
    assert said.code == 0
    assert "29,956" in said.out
    said = cli("plan", "--run", runs[0].folder)
    assert said.code == 0
    assert "smallest FPR that a threshold can be certified for" in said.out


def test_every_run_prints_what_to_cite(cli: Callable[..., Any]) -> None:
    said = cli(
        "run",
        "quick",
        "--dataset",
        "{deadleaves: {count: 2}}",
        "--methods",
        "dwt-dct",
        "--attacks",
        "identity",
        "--no-report",
    )
    assert "cite, beside waterproof:" in said.err
    assert "invisible-watermark" in said.err


def test_report_takes_a_fixed_threshold_and_two_sides(cli: Callable[..., Any], runs: tuple[Run, Run]) -> None:
    said = cli("report", runs[0].folder, "--rule", "fixed", "--threshold", "20", "--sided", "two", "--out", "fixed")
    assert said.code == 0
    frame = pd.read_csv("fixed/summary.csv")
    assert (frame["threshold"] == 20).all()
    assert set(frame["rule"]) == {"fixed"}
    assert set(frame["sided"]) == {"two"}


BROKEN = """
from waterproof.bench.methods.dwt import DwtDct

class Broken(DwtDct):
    def embed(self, images, keys, seed):
        raise RuntimeError("out of ink")
    def decode(self, images):
        raise RuntimeError("out of light")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "EMPTY", "EMPTY"], 4, "Nothing was comparable."),
        (["leaderboard", "EMPTY"], 4, "not ranked"),
        (["baseline", "EMPTY", "x.parquet"], 2, "nothing was measured, so there is nothing to freeze"),
        (["attribute", "EMPTY"], 2, "no marked image to attribute"),
        (["null", "EMPTY"], 2, "no unmarked image was scored"),
    ],
)
def test_a_run_in_which_nothing_was_measured_is_refused(
    cli: Callable[..., Any], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    run = evaluate(
        [f"{tmp_path}/broken.py:Broken"], {"deadleaves": {"count": 2}}, ["identity"], tmp_path / "e", **FIELDS
    )
    assert not run.measured
    said = cli(*(str(run.folder) if a == "EMPTY" else a for a in arguments))
    assert said.code == code
    assert message in " ".join((said.out + said.err).split())
    assert "Traceback" not in said.err


def test_one_class_or_scores_that_are_no_numbers_are_refused() -> None:
    from waterproof.bench.statistics.paired import auc_change
    from waterproof.bench.statistics.roc import auc, roc
    from waterproof.core.errors import StatisticsError

    with pytest.raises(StatisticsError, match="scores of negatives: there are none"):
        roc([1.0, 2.0], [])
    with pytest.raises(StatisticsError, match=r"scores of positives: 1 of 2 are NaN or infinite"):
        auc([1.0, float("nan")], [0.0])
    with pytest.raises(StatisticsError):
        auc_change([1.0, 2.0], [0.0, 1.0], [1.0], [0.0, 1.0])
