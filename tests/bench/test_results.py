"""Every reported number can be computed again by hand from the stored evidence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from waterproof.bench.benchmark import validate
from waterproof.bench.plan import make_plan
from waterproof.bench.results import Run, load_run
from waterproof.bench.run import evaluate, run_benchmark
from waterproof.bench.shard import apply_attack, keys_for, make_pair
from waterproof.bench.statistics.splits import one_per_source, split
from waterproof.bench.summary import families
from waterproof.core.errors import StatisticsError, StoreError
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SVD, DCT = "dwt-dct-svd(payload=48)", "dwt-dct"
ATTACKS = ["identity", {"jpeg": {"quality": [80, 40]}}, {"gaussian-noise": {"sd": 0.05}}, {"rotation": {"degrees": 9}}]


@pytest.fixture(scope="module")
def run(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """24 crops of photographs; several crops share a photograph."""
    benchmark = tiny(
        dataset={"samples": {"size": 256}},
        limit=24,
        methods=[DCT, {"dwt-dct-svd": {"payload": 48}}],
        attacks=ATTACKS,
        metrics=["psnr", "ssim"],
        decision={"fpr": 0.01, "calibration": 0.5},
        runtime={"shard": 8},
    )
    return run_benchmark(benchmark, tmp_path_factory.mktemp("results") / "run")


@pytest.fixture(scope="module")
def scores(run: Run) -> pd.DataFrame:
    return run.scores()


def _of(frame: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """The rows that have the wanted values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def _exact_threshold(k: int, alpha: float, sided: int = 1) -> int:
    """The smallest tau with sided * P(M >= tau) <= alpha, in integers."""
    numerator, denominator = alpha.as_integer_ratio()
    for tau in range(k + 2):
        tail = sided * sum(math.comb(k, i) for i in range(tau, k + 1))
        if tail * denominator <= numerator << k:
            return tau
    raise AssertionError


@pytest.mark.parametrize("fpr", [0.5, 0.01, 1e-6, 2.0**-31])
def test_the_threshold_of_theory_is_exact_integer_arithmetic(run: Run, fpr: float) -> None:
    for sided, sides in (("one", 1), ("two", 2)):
        summary = run.summary(fpr=fpr, rule="theory", sided=sided)
        for label, bits in ((DCT, 32), (SVD, 48)):
            rows = summary[summary["method"] == label]
            tau = _exact_threshold(bits, fpr, sides)
            assert set(rows["threshold"]) == {float(tau)}
            exact = sides * sum(math.comb(bits, i) for i in range(tau, bits + 1)) / 2**bits
            np.testing.assert_allclose(rows["fpr_nominal"], min(1.0, exact), rtol=1e-14)


def test_a_false_positive_rate_beyond_the_bits_is_refused_in_words_for_that_method_only(run: Run) -> None:
    summary = run.summary(fpr=2.0**-33)
    short, long = (summary[summary["method"] == label] for label in (DCT, SVD))
    assert short["tpr"].isna().all()
    assert short["threshold"].isna().all()
    assert short["note"].str.contains("32 bits cannot reach an FPR of 1.16415e-10").all()
    assert long["tpr"].notna().all()


def test_rates_are_counted_over_the_test_images_by_hand(run: Run, scores: pd.DataFrame) -> None:
    summary = run.summary().set_index(["method", "attack"])
    tested = scores[scores["split"] == "test"]
    for (method, attack), row in summary.iterrows():
        for arm, name, count in (("marked", "tpr", "n_positives"), ("unmarked", "fpr", "n_negatives")):
            mine = _of(tested, method=method, attack=attack, arm=arm)
            flags = mine["score"] >= row["threshold"]
            assert row[name] == pytest.approx(flags.mean(), rel=1e-12)
            assert row[count] == len(mine) > 0
            assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1
        positives = _of(tested, method=method, attack=attack, arm="marked")
        assert row["bit_accuracy"] == pytest.approx(positives["bit_accuracy"].mean(), rel=1e-12)
        assert row["n_sources"] == positives["source"].nunique()
        assert row["n_planned"] == 24


def test_a_two_sided_decision_also_flags_images_whose_bits_are_all_wrong(
    tiny: Callable, awkward: Callable, tmp_path: Path
) -> None:
    benchmark = tiny(methods=[awkward("Inverted")], metrics=[], decision={"calibration": 0})
    run = run_benchmark(benchmark, tmp_path / "run")
    one, two = (run.summary(fpr=1e-3, sided=sided).iloc[0] for sided in ("one", "two"))
    assert (one["bit_accuracy"] < 0.1, one["tpr"], two["tpr"]) == (True, 0.0, 1.0)
    assert families(run, run.decision(fpr=1e-3, sided="two"))["tpr"].max() == 1.0


def test_scores_are_bits_that_match_the_key_image_by_image(run: Run, scores: pd.DataFrame) -> None:
    plan = make_plan(validate(run.config["benchmark"]), run.store.index())
    method, label = plan.methods[1], SVD
    (group,) = plan.dataset.load(plan.records[:3])[0]
    pair, keys = make_pair(plan, method, group), keys_for(plan, method, group)
    for a, attack in enumerate(plan.attacks):
        for arm, images in (("marked", pair.marked), ("unmarked", pair.unmarked)):
            logits = method.decode(apply_attack(plan, a, images, Seed.root(0))).logits
            matches = ((logits > 0) == keys).sum(dim=1).tolist()
            rows = _of(scores, method=label, attack=attack.label, arm=arm).set_index("image")
            for image, count in zip(group.ids, matches, strict=True):
                tail = sum(math.comb(48, i) for i in range(count, 49))
                assert rows.loc[image, "score"] == count
                assert rows.loc[image, "bit_accuracy"] == count / 48
                assert rows.loc[image, "log10_p"] == pytest.approx(math.log10(tail) - 48 * math.log10(2), abs=1e-9)


def test_the_table_of_scores_has_a_row_for_every_image_arm_attack_and_method(scores: pd.DataFrame) -> None:
    assert scores.columns.tolist() == [
        "method", "attack", "arm", "image", "source", "split", "score", "bit_accuracy", "log10_p",
    ]  # fmt: skip
    assert len(scores) == 2 * 5 * 2 * 24
    assert not scores.duplicated(["method", "attack", "arm", "image"]).any()
    assert set(scores["split"]) == {"calibration", "test"}
    for row in scores[["source", "split"]].drop_duplicates().itertuples():
        assert split(row.source, 0.5) == row.split


@pytest.mark.parametrize("label", [DCT, SVD])
def test_the_roc_goes_through_the_points_of_scikit_learn(run: Run, scores: pd.DataFrame, label: str) -> None:
    for attack in run.attacks:
        curve = run.roc(label, attack)
        mine = _of(scores, method=label, attack=attack, split="test")
        truth = (mine["arm"] == "marked").to_numpy()
        fpr, tpr, thresholds = roc_curve(truth, mine["score"], drop_intermediate=False)
        np.testing.assert_array_equal(curve.thresholds, thresholds)
        np.testing.assert_allclose(curve.fpr, fpr, atol=1e-15)
        np.testing.assert_allclose(curve.tpr, tpr, atol=1e-15)
        assert (curve.n_positive, curve.n_negative) == (truth.sum(), (~truth).sum())


def test_the_area_is_scikit_learns_with_one_image_of_each_source(run: Run) -> None:
    row = _of(run.summary(), method=DCT, attack="jpeg(quality=80)").iloc[0]
    values = []
    for arm in ("marked", "unmarked"):
        scored, sources = run.sample(DCT, "jpeg(quality=80)", arm).tested()
        values.append(scored[one_per_source(sources, 0)])
    truth = np.r_[np.ones(len(values[0])), np.zeros(len(values[1]))]
    assert row["auc"] == pytest.approx(roc_auc_score(truth, np.concatenate(values)), abs=1e-12)
    assert row["auc_low"] <= row["auc"] <= row["auc_high"]


def test_the_matched_rate_takes_the_smallest_threshold_that_the_attacked_negatives_allow(run: Run) -> None:
    attack = "jpeg(quality=80)"
    row = _of(run.summary(fpr=0.25), method=DCT, attack=attack).iloc[0]
    positives, negatives = (run.sample(DCT, attack, arm).tested()[0] for arm in ("marked", "unmarked"))
    allowed = [t for t in np.unique(np.r_[positives, negatives]) if (negatives >= t).mean() <= 0.25]
    assert row["threshold_matched"] == min(allowed)
    assert row["tpr_matched"] == (positives >= min(allowed)).mean()
    assert row["fpr_matched"] == (negatives >= min(allowed)).mean() <= 0.25
    # At 1 % these few negatives say nothing, and it is not invented.
    refused = run.summary(fpr=0.01)
    assert "tpr_matched" not in refused or refused["tpr_matched"].isna().all()
    assert refused["note"].str.contains("attack-matched ROC: an FPR of 0.01 needs at least 100 negatives").all()


def test_families_pool_their_attacks_with_equal_weight(run: Run, scores: pd.DataFrame) -> None:
    table = families(run, run.decision()).set_index(["method", "family"])
    names = {a["label"]: a["family"] for a in run.config["attacks"]}
    tested = scores[scores["split"] == "test"].assign(family=lambda f: f["attack"].map(names))
    threshold = run.summary().drop_duplicates("method").set_index("method")["threshold"]
    for (method, family), row in table.iterrows():
        mine = _of(tested, method=method, family=family)
        flags = mine["score"] >= threshold[method]
        assert row["tpr"] == pytest.approx(flags[mine["arm"] == "marked"].mean(), rel=1e-12)
        assert row["fpr"] == pytest.approx(flags[mine["arm"] == "unmarked"].mean(), rel=1e-12)
        assert row["attacks"] == row["complete"] == list(names.values()).count(family)
        assert row["n_marked"] == (mine["arm"] == "marked").sum()
    assert list(table.loc[DCT].index) == ["none", "compression", "degradation", "geometric"]


def test_the_certified_rule_says_in_words_how_many_images_it_lacks(run: Run) -> None:
    summary = run.summary(rule="certified")
    assert "tpr" not in summary or summary["tpr"].isna().all()
    assert summary["threshold"].isna().all()
    sources = len(set(_of(run.images, split="calibration")["source"]))
    wanted = "certifying an FPR of 0.01 at 95% confidence needs at least 299 calibration negatives"
    assert summary["note"].str.contains(f"{wanted} of different sources, there are {sources}").all()
    assert families(run, run.decision(rule="certified"))["note"].str.contains("299").all()


def test_the_certified_threshold_bounds_the_calibration_images_by_clopper_and_pearson(run: Run) -> None:
    summary = run.summary(rule="certified", fpr=0.6)
    for method, bits in ((DCT, 32), (SVD, 48)):
        values, sources = run.sample(method, "identity", "unmarked").calibration()
        kept = values[one_per_source(sources, 0)]
        assert len(kept) >= 4
        bounds = {
            t: binomtest(int((kept >= t).sum()), len(kept), alternative="less").proportion_ci(0.95).high
            for t in range(bits + 2)
        }
        threshold = _of(summary, method=method)["threshold"].iloc[0]
        assert threshold == min(t for t, bound in bounds.items() if bound <= 0.6)
    assert set(summary["rule"]) == {"certified"}


def test_another_decision_gives_another_summary_of_the_same_evidence(run: Run) -> None:
    strict = run.deciding(fpr=1e-6)
    assert strict.decision().fpr == 1e-6
    assert run.decision().fpr == 0.01
    assert strict.summary().equals(run.summary(fpr=1e-6))
    assert (strict.summary()["threshold"] > run.summary()["threshold"]).all()
    assert strict.scores().equals(run.scores())
    assert run.deciding() is run
    assert (
        run.deciding(level=0.99).summary().eval("tpr_high - tpr_low").ge(run.summary().eval("tpr_high - tpr_low")).all()
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fpr": 0}, "fpr: input should be greater than 0, not 0"),
        ({"fpr": 1.5}, "fpr: input should be less than 1"),
        ({"rule": "guess"}, "rule: input should be 'theory', 'certified', 'fixed' or 'extrapolated'"),
        ({"sided": "three"}, "sided: input should be 'one' or 'two'"),
    ],
)
def test_a_decision_out_of_range_is_one_line(run: Run, wrong: dict, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        run.deciding(**wrong)


def test_unknown_names_are_answered_with_the_nearest_known_one(run: Run) -> None:
    with pytest.raises(StatisticsError, match=r"this run has no method 'dwt-dtc'\. Did you mean 'dwt-dct'\?"):
        run.sample("dwt-dtc", "identity", "marked")
    with pytest.raises(StatisticsError, match=r"this run has no attack 'jpeg.80.'\. Did you mean 'jpeg.quality=80.'\?"):
        run.roc(DCT, "jpeg(80)")
    with pytest.raises(StoreError, match="is no run folder"):
        load_run(run.folder / "nothing")


def test_quality_is_the_mean_over_the_test_images(run: Run) -> None:
    rows = run.summary().set_index(["method", "attack"])
    stored = pd.DataFrame(run.store.read("quality")).merge(run.cells, on="cell")
    stored = stored[stored["image"].map(run.images["split"]) == "test"]
    for metric in ("psnr", "ssim"):
        mean = stored[stored["observer"] == metric].groupby(["maker", "attack"])["value"].mean()
        for (method, attack), value in mean.items():
            assert rows.loc[(method, attack), metric] == pytest.approx(value, rel=1e-12)
        turned = rows.xs(next(a for a in run.attacks if a.startswith("rotation")), level="attack")
        assert turned[metric].isna().all()
        assert turned[f"{metric}_note"].str.contains("not comparable pixel by pixel after rotation").all()


def test_every_planned_cell_has_a_row(run: Run) -> None:
    cells = run.cells
    assert len(cells) == 5 * 2 * (2 + 2)
    assert set(cells["status"]) == {"ok", "skipped"}
    assert (_of(cells, status="ok")["n_ok"] == 24).all()
    assert _of(cells, status="skipped")["reason"].str.contains("not comparable").all()
    assert (run.ok, run.measured) == (True, True)
    assert cells["cell"].is_unique


def test_the_null_uses_the_unmarked_images_and_the_key_in_use(run: Run) -> None:
    report = run.null(SVD, "identity", fpr=0.01)
    sample = run.sample(SVD, "identity", "unmarked")
    flags = sample.values >= _exact_threshold(48, 0.01)
    assert (report.n, report.k, report.threshold) == (24, 48, _exact_threshold(48, 0.01))
    assert report.observed_fpr.value == flags.mean()
    assert report.sources == len(set(sample.sources))


def test_a_mark_without_a_payload_is_scored_and_ranked_but_theory_is_refused(
    tiny: Callable, awkward: Callable, tmp_path: Path
) -> None:
    benchmark = tiny(
        dataset={"deadleaves": {"count": 12}},
        methods=[awkward("Presence"), DCT],
        metrics=[],
        decision={"calibration": 0.5},
        runtime={"shard": 6},
    )
    run = run_benchmark(benchmark, tmp_path / "run")
    presence = _of(run.summary(), method="presence")
    assert (
        presence["note"]
        .str.contains("has no payload, so no theory gives its threshold: use the rule 'certified'")
        .all()
    )
    assert (presence["auc"] > 0.5).all()
    assert presence["bit_accuracy"].isna().all()
    assert _of(run.scores(), method="presence")["log10_p"].isna().all()
    certified = _of(run.summary(rule="certified", fpr=0.6), method="presence")
    calibration = run.sample("presence", "identity", "unmarked").calibration()[0]
    assert certified["threshold"].notna().all()
    assert certified["threshold"].iloc[0] > np.median(calibration) - 100
    with pytest.raises(StatisticsError, match="presence has no payload: its null has no theory to be tested"):
        run.null("presence")


def test_without_a_calibration_split_every_image_tests(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(tiny(decision={"calibration": 0}), tmp_path / "run")
    assert set(run.images["split"]) == {"test"}
    assert run.summary()["n_positives"].tolist() == [4, 4]


def test_evaluate_takes_what_a_benchmark_file_takes_and_resumes(tmp_path: Path) -> None:
    options = {"limit": 2, "metrics": [], "runtime": {"engine": "inline"}, "decision": {"calibration": 0}}
    arguments = (["dwt-dct"], {"deadleaves": {"count": 3}}, ["identity", {"jpeg": {"quality": [90, 30]}}])
    run = evaluate(*arguments, out=tmp_path / "mine", **options)
    assert (run.name, len(run.images), run.attacks[1:]) == ("mine", 2, ["jpeg(quality=90)", "jpeg(quality=30)"])
    assert repr(run).endswith("1 methods x 3 attacks)")
    again = evaluate(*arguments, out=tmp_path / "mine", **options)
    assert again.scores().equals(run.scores())


def test_a_run_without_metrics_or_with_nothing_but_failures_can_be_read(
    tiny: Callable, awkward: Callable, tmp_path: Path
) -> None:
    bare = run_benchmark(tiny(metrics=[]), tmp_path / "bare")
    assert bare.quality(DCT, "identity", "psnr")[2] == "not planned"
    lost = run_benchmark(tiny(methods=[awkward("Presence", broken=True)]), tmp_path / "lost")
    summary = lost.summary()
    assert summary["status"].tolist() == ["failed", "failed"]
    assert len(lost.scores()) == 0
