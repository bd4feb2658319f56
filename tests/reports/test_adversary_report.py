"""The part of a report about adversaries who know something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pytest

from waterproof.bench.run import evaluate
from waterproof.reports.adversary import seconds_learning, series
from waterproof.reports.write import write_report

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.bench.results import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return evaluate(
        ["stable-signature", "dwt-dct-svd"],
        {"samples": {"size": 256}},
        [
            "identity",
            "swap-decoder",
            {"quantise-decoder": {"bits": [16, 3]}},
            {"average-decoders": {"users": [2, 10]}},
            {"collusion": {"users": [2, 3]}},
            {"fine-tune-decoder": {"steps": [1, 2], "images": 2, "batch": 1, "crop": 32}},
            {"forgery": {"images": [1, 4]}},
        ],
        tmp_path_factory.mktemp("adversary") / "run",
        adversary={"deadleaves": {"size": 256, "count": 4}},
        limit=3,
        key="fixed",
        decision={"fpr": 1e-3, "rule": "theory", "calibration": 0},
        runtime={"engine": "inline", "shard": 3},
    )


@pytest.fixture(scope="module")
def report(run: Run) -> Path:
    return write_report(run)


def test_every_planned_cell_was_measured_or_skipped_for_a_reason(run: Run) -> None:
    assert run.ok
    skipped = run.cells[run.cells["status"] == "skipped"]
    assert set(skipped["observer"]) <= {"dwt-dct-svd", "psnr", "ssim"}
    assert skipped["reason"].str.contains("nothing to attack").all()


def test_the_page_shows_models_accusations_and_forgery(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    for words in ('id="adversary"', "The model under attack", "Who was accused", "Forgery: clean images accepted"):
        assert words in page
    for name in ("adversary", "accusations"):
        assert (report.parent / "figures" / f"{name}.png").stat().st_size > 5_000


def test_the_tables_hold_what_the_run_measured(run: Run, report: Path) -> None:
    models = pd.read_csv(report.parent / "model-attacks.csv").set_index("attack")
    assert set(models["method"]) == {"stable-signature"}
    assert models.loc["swap-decoder", "bit_accuracy"] < 0.75 < models.loc["quantise-decoder(bits=16)", "bit_accuracy"]
    tuned = "fine-tune-decoder(steps=2, images=2, crop=32, batch=1)"
    assert models.loc[tuned, "learnt"] == 2
    assert models.loc[tuned, "seconds"] == pytest.approx(seconds_learning(run)[tuned][1])
    forged = pd.read_csv(report.parent / "forgery.csv").set_index("method")
    assert forged.loc["dwt-dct-svd", "images"] == 4
    assert {"accepted", "accepted_low", "accepted_high", "psnr", "unforged"} <= set(forged.columns)
    accused = pd.read_csv(report.parent / "accusations.csv")
    assert set(accused["together"]) == {2, 3, 10}


def test_forged_images_are_no_part_of_the_null(run: Run, report: Path) -> None:
    summary = run.summary()
    forged = summary[summary["attack_name"] == "forgery"]
    assert forged["fpr"].notna().all()
    assert forged["null_moved"].isna().all()
    assert "forgery" not in (report.parent / "null.csv").read_text()


def test_a_series_is_an_attack_without_its_strength() -> None:
    attack = {"label": "fine-tune-decoder(steps=3, original=True, images=60)", "name": "fine-tune-decoder"}
    assert series({**attack, "strength": "steps"}) == "fine-tune-decoder(original=True, images=60)"
    assert series({"label": "collusion(users=3)", "name": "collusion", "strength": "users"}) == "collusion"
