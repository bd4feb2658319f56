"""What is asked of a finished run: its null, attribution, attacks by potency. Real marks on real photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from waterproof.bench.attribution_study import run_bank, study_attribution
from waterproof.bench.null_study import study_every, study_null
from waterproof.bench.potency import potency
from waterproof.bench.run import run_benchmark
from waterproof.core.errors import StatisticsError
from waterproof.reports.attribution import write_attribution
from waterproof.reports.null import write_null

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from waterproof.bench.results import Run

ATTACKS = ["identity", {"jpeg": {"quality": [80, 30]}}, {"gaussian-blur": {"sigma": [1, 3]}}]


@pytest.fixture(scope="module")
def run(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    fields = {
        "dataset": "samples",
        "methods": ["dwt-dct", "dwt-dct-svd"],
        "attacks": ATTACKS,
        "metrics": ["psnr", "ssim"],
    }
    return run_benchmark(tiny(**fields, key="per-image", limit=60), tmp_path_factory.mktemp("studies") / "run")


def test_the_null_of_dwt_dct_fails_on_photographs_and_theory_is_withdrawn(run: Run) -> None:
    study = study_null(run, "dwt-dct")
    assert study.clean.attack == "identity"
    assert not study.holds
    assert study.verdict.startswith("Theory withdrawn")
    assert study.clean.report.effective_bits < 16
    frame = study.frame()
    assert frame["attack"].tolist() == run.attacks
    assert (frame["false_alarms_per_billion"] == 1e9 * frame["fpr"]).all()
    summary = run.summary()
    mine = summary[summary["method"] == "dwt-dct"]
    assert mine["theory_withdrawn"].all()
    assert (mine["false_alarms_per_billion"] == 1e9 * mine["fpr"]).all()
    certified = run.summary(rule="certified", fpr=0.5)
    assert not certified["theory_withdrawn"].any()


def test_the_key_in_use_and_the_histograms_agree(run: Run) -> None:
    cell = study_null(run, "dwt-dct-svd").clean
    sample, logits = run.unmarked("dwt-dct-svd")
    own = ((logits > 0) == run.owner_key("dwt-dct-svd")).sum(axis=1)
    assert cell.histogram.tolist() == np.bincount(own, minlength=sample.bits + 1).tolist()
    assert cell.report.observed_fpr.value == (own >= cell.report.threshold).mean()
    assert len(cell.key_rates) == 1000
    assert cell.key_rates.max() == cell.report.key_fpr_worst


def test_two_sided_numbers_are_two_sided(run: Run) -> None:
    one, two = (run.summary(rule="theory", fpr=0.01, sided=sided) for sided in ("one", "two"))
    assert (two["fpr_keys_worst"] >= one["fpr_keys_worst"] - 1e-12).sum() > len(two) / 2
    sample, logits = run.unmarked("dwt-dct")
    folded = [
        np.maximum(v, 32 - v)
        for v in (run.sample("dwt-dct", "identity", arm).tested()[0] for arm in ("marked", "unmarked"))
    ]
    above = (folded[0][:, None] > folded[1]).mean() + (folded[0][:, None] == folded[1]).mean() / 2
    mine = run.deciding(sided="two").roc("dwt-dct", "identity")
    assert mine.thresholds[1:].min() >= 16
    assert len(logits) == len(sample.images)
    area = two[(two["method"] == "dwt-dct") & (two["attack"] == "identity")]["auc"].iloc[0]
    assert area == pytest.approx(above, abs=0.05)


def test_a_run_of_unmarked_images_only_has_a_null_and_no_tpr(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(tiny(dataset={"deadleaves": {"count": 24}}, arms=["unmarked"], metrics=[]), tmp_path / "run")
    assert set(run.cells["arm"]) == {"unmarked"}
    assert run.ok
    studies, refused = study_every(run)
    assert len(studies) == 1
    assert refused == {}
    summary = run.summary()
    assert "tpr" not in summary
    assert summary["fpr"].notna().all()
    page = write_null(run, studies, refused, tmp_path / "null").read_text(encoding="utf-8")
    assert "dwt-dct" in page


def test_arms_without_unmarked_images_are_refused(tiny: Callable) -> None:
    with pytest.raises(Exception, match="no rate stands without unmarked images"):
        tiny(arms=["marked"])


def test_attribution_counts_what_a_loop_counts(run: Run) -> None:
    bank = run_bank(run, "dwt-dct-svd")
    study = study_attribution(run, "dwt-dct-svd", [1, 5, 20], 0.05, ["identity"], bank, "the run's keys")
    sample = run.sample("dwt-dct-svd", "identity", "marked")
    bits, keys = (sample.logits > 0)[sample.test], run.keys("dwt-dct-svd", list(sample.images))[sample.test]
    from waterproof.bench.statistics.keybank import unpack

    others = unpack(bank.keys(0, bank.users), 32)
    for row in study.rows["identity"]:
        correct = 0
        for read, own in zip(bits, keys, strict=True):
            users = [k for k in others if (k != own).any()][: row.users - 1]
            scores = [int((read == k).sum()) for k in users]
            mine = int((read == own).sum())
            correct += mine >= row.threshold and all(mine > s for s in scores)
        assert row.correct.value == pytest.approx(correct / len(bits))
        assert row.correct.value + row.wrong.value + row.missed.value == pytest.approx(1)
    frame = study.frame()
    assert frame["bank"].unique().tolist() == ["the run's keys"]


def test_attribution_refuses_in_words_what_bits_cannot_express(run: Run, tmp_path: Path) -> None:
    study = study_attribution(run, "dwt-dct", [10, 10_000_000], 1e-4, ["identity"])
    refused = [row.refused for row in study.rows["identity"]]
    assert refused[0] == ""
    assert "bits" in refused[1]
    page = write_attribution(run, [study], tmp_path / "attribution").read_text(encoding="utf-8")
    assert "10,000,000" in page


def test_attacks_are_ranked_by_a_partial_score_that_is_never_called_q(run: Run) -> None:
    found = potency(run, "dwt-dct-svd", run.decision())
    assert {row.attack for row in found.ranked} == {"jpeg", "gaussian-blur"}
    assert found.ranked[0].score == "partial Q over psnr, ssim (weights re-normalised)"
    assert all(low <= row.rank <= high for row, low, high in zip(found.ranked, found.low, found.high, strict=True))
    curve = found.curves["jpeg"]
    summary = run.summary().set_index(["method", "attack"])
    rates = [summary.loc["dwt-dct-svd", f"jpeg(quality={q})"]["tpr"] for q in (80, 30)]
    assert curve.performance == pytest.approx(rates)


def test_a_baseline_says_that_it_keeps_no_logits(run: Run, tmp_path: Path) -> None:
    from waterproof.bench.baseline import freeze, load_results

    freeze(run, tmp_path / "base.parquet")
    with pytest.raises(StatisticsError, match="keeps no logits"):
        study_attribution(load_results(tmp_path / "base.parquet"), "dwt-dct")
