"""Quality degradation, curves and ranks of attacks against published numbers; ranks of methods against simulations."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from waterproof.bench.statistics.degradation import METRICS, SCALES, Curve, at_performance, degradation, over_datasets
from waterproof.bench.statistics.intervals import clopper_pearson
from waterproof.bench.statistics.ranking import rank_attacks, rank_methods
from waterproof.core.errors import StatisticsError

MIDDLE = {
    "fid": 20.0,
    "clip-fid": 5.0,
    "psnr": 30.0,
    "ssim": 0.8,
    "nmi": 1.3,
    "lpips": 0.2,
    "aesthetics": 0.5,
    "artifacts": -0.1,
}


def published(quality: list[float], flagged: list[int]) -> Curve:
    """A curve of the WAVES project page (wavesbench.github.io, An et al. 2024): Q, and images flagged of 15,000."""
    return Curve(tuple(quality), tuple(n / 15000 for n in flagged), "detection")


TREE_RING_WM1_WM2 = published([0.084225, 0.123836, 0.159311, 0.189475], [12349, 8061, 5299, 3790])
STABLE_SIGNATURE_REGEN = published([0.290679, 0.279749, 0.294707, 0.310450, 0.324783], [16, 10, 15, 13, 9])
# Against StegaStamp, the six that head its ranking of 26; strengths as published (RCrop's number runs downwards).
STEGASTAMP = {
    "Rotation": published(
        [0.306210, 0.408693, 0.557867, 0.646705, 0.726209, 0.802064, 0.861595], [15000, 15000, 7443, 4, 6, 0, 0]
    ),
    "RCrop": published(
        [0.602220, 0.551608, 0.498817, 0.435060, 0.402540, 0.358698, 0.308028],
        [29, 57, 2174, 10141, 14340, 14988, 15000],
    ),
    "Regen-Diff": published([0.312317, 0.309166, 0.323985, 0.337591, 0.351122], [14993, 14929, 14642, 13929, 12258]),
    "Regen-DiffP": published([0.312660, 0.310303, 0.325703, 0.340983, 0.356187], [14991, 14939, 14652, 13807, 12127]),
    "Rinse-2xDiff": published(
        [0.287371, 0.307067, 0.415523, 0.391795, 0.388840, 0.403077], [14967, 14962, 14842, 14465, 13498, 11983]
    ),
    "Rinse-4xDiff": published(
        [0.388105, 0.387631, 0.387496, 0.390929, 0.424455, 0.506323, 0.611716, 0.718280],
        [14023, 14057, 14190, 14310, 14320, 13936, 13139, 11087],
    ),
}


def columns(curve: Curve) -> list[float]:
    return [at_performance(curve, 0.95), at_performance(curve, 0.7), curve.mean_performance, curve.mean_degradation]


def test_the_ends_of_every_scale_count_a_tenth_and_nine_tenths() -> None:
    assert degradation({scale.metric: scale.a for scale in SCALES}).value == pytest.approx(0.1, abs=1e-12)
    assert degradation({scale.metric: scale.b for scale in SCALES}).value == pytest.approx(0.9, abs=1e-12)
    assert sum(Fraction(scale.weight).limit_denominator(100) for scale in SCALES) == 1
    assert len(METRICS) == 8


def test_q_agrees_with_a_sum_written_out() -> None:
    expected = (
        (0.8 * (20 - 1.20183) / (53.40250 - 1.20183) + 0.1) / 8
        + (0.8 * (5 - 0.28221) / (19.01775 - 0.28221) + 0.1) / 8
        + (0.8 * (30 - 41.97327) / (12.14651 - 41.97327) + 0.1) / 12
        + (0.8 * (0.8 - 0.97944) / (0.32231 - 0.97944) + 0.1) / 12
        + (0.8 * (1.3 - 1.70687) / (1.06458 - 1.70687) + 0.1) / 12
        + (0.8 * (0.2 - 0.01796) / (0.62057 - 0.01796) + 0.1) / 4
        + (0.8 * (0.5 - 0.02420) / (1.82333 - 0.02420) + 0.1) / 8
        + (0.8 * (-0.1 - 0.00190) / (-0.58100 - 0.00190) + 0.1) / 8
    )
    score = degradation(MIDDLE)
    assert (score.name, score.missing, score.note) == ("Q", (), "")
    assert score.value == pytest.approx(expected, rel=1e-12)


def test_q_is_not_clipped() -> None:
    assert degradation({"psnr": 5.0}).value > 1
    assert degradation({"psnr": 60.0}).value < 0


@given(st.sets(st.sampled_from(METRICS), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_a_partial_score_names_its_metrics_and_never_claims_to_be_q(metrics: set[str]) -> None:
    score = degradation({metric: MIDDLE[metric] for metric in metrics})
    listed = ", ".join(metric for metric in METRICS if metric in metrics)
    assert score.name == f"partial Q over {listed} (weights re-normalised)"
    assert set(score.missing) == set(METRICS) - metrics
    weighed = {s.metric: (s.weight, degradation({s.metric: MIDDLE[s.metric]}).value) for s in SCALES}
    total = sum(weighed[metric][0] for metric in metrics)
    assert score.value == pytest.approx(sum(w * v for w, v in (weighed[m] for m in metrics)) / total)


def test_an_untouched_image_has_no_score_and_the_note_says_why() -> None:
    score = degradation({**MIDDLE, "psnr": math.inf})
    assert math.isnan(score.value)
    assert "untouched" in score.note
    assert score.name == "Q"


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ({}, "no metric is given"),
        ({"pnsr": 30.0}, "'pnsr' is not a metric of Q. Did you mean 'psnr'"),
        ({"ssim": math.nan}, "the mean ssim of the cell is nan"),
        ({"ssim": math.inf}, "the mean ssim of the cell is inf"),
        ({"psnr": -math.inf}, "the mean psnr of the cell is -inf"),
        ({"psnr": math.inf, "lpips": math.nan}, "the mean lpips of the cell is nan"),
    ],
)
def test_impossible_means_are_refused_in_words(means: dict[str, float], words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        degradation(means)


def test_the_published_curves_give_the_reference_values() -> None:
    assert columns(TREE_RING_WM1_WM2) == pytest.approx([-math.inf, 0.101, 0.492, 0.139], abs=5e-4)
    assert columns(STABLE_SIGNATURE_REGEN) == pytest.approx([-math.inf, -math.inf, 0.001, 0.300], abs=5e-4)
    assert columns(STEGASTAMP["Rotation"]) == pytest.approx([0.331, 0.456, 0.357, 0.616], abs=5e-4)


def test_a_strength_that_runs_downwards_does_not_give_an_end_point() -> None:
    crop = STEGASTAMP["RCrop"]
    # What interpolating on the published order backwards gives: the last strength, for both targets.
    backwards = [float(np.interp(t, crop.performance[::-1], crop.degradation[::-1])) for t in (0.95, 0.7)]
    assert backwards == [crop.degradation[0], crop.degradation[0]]
    assert columns(crop)[:2] == pytest.approx([0.403, 0.432], abs=5e-4)


def test_of_equal_performances_the_lowest_degradation_counts() -> None:
    """Rotation's reference values rest on this: its two weakest strengths both leave all of 15,000 images flagged."""
    rotation = STEGASTAMP["Rotation"]
    without = Curve(rotation.degradation[1:], rotation.performance[1:], rotation.task)
    assert columns(without)[:2] == pytest.approx([0.423, 0.498], abs=5e-4)
    level = Curve((0.7, 0.4, 0.6, 0.5), (0.8, 0.8, 0.2, 0.2), "detection")
    assert [at_performance(level, target) for target in (0.8, 0.5, 0.2)] == pytest.approx([0.4, 0.45, 0.5])


def test_the_head_of_the_published_ranking() -> None:
    rows = rank_attacks(STEGASTAMP)
    assert [row.attack for row in rows] == [
        "Rotation",
        "Regen-Diff",
        "Regen-DiffP",
        "Rinse-4xDiff",
        "Rinse-2xDiff",
        "RCrop",
    ]
    # Within 0.01 of one another at the higher target; the first three are told apart by the next columns, or not.
    assert [row.ranks[0] for row in rows] == [1, 1, 1, 4, 4, 6]
    assert [row.rank for row in rows] == [1, 2, 2, 4, 5, 6]
    assert {(row.task, row.score) for row in rows} == {("detection", "Q")}


curves = st.lists(st.tuples(st.floats(0, 1.5), st.integers(0, 20)), min_size=1, max_size=8)


@given(curves, st.randoms(), st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_the_order_of_the_strengths_does_not_matter(points: list[tuple[float, int]], random, target: float) -> None:
    shuffled = random.sample(points, len(points))
    first, second = (
        Curve(*zip(*((q, n / 20) for q, n in some), strict=True), "detection") for some in (points, shuffled)
    )
    assert at_performance(first, target) == at_performance(second, target)


@given(curves, st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_the_crossing_agrees_with_a_walk_down_the_curve(points: list[tuple[float, int]], target: float) -> None:
    curve = Curve(*zip(*((q, n / 20) for q, n in points), strict=True), "detection")
    lowest: dict[float, float] = {}
    for lost, left in zip(curve.degradation, curve.performance, strict=True):
        lowest[left] = min(lost, lowest.get(left, math.inf))
    walk = sorted(lowest.items(), reverse=True)
    if walk[0][0] < target:
        expected = -math.inf
    elif walk[-1][0] > target:
        expected = math.inf
    else:
        expected = lowest.get(target, math.nan)
        for (above, start), (below, end) in pairwise(walk):
            if above > target > below:
                expected = start + (above - target) / (above - below) * (end - start)
    assert at_performance(curve, target) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_infinities_tie_and_a_chain_of_near_equals_is_one_rank() -> None:
    def flat(lost: float, left: float) -> Curve:
        return Curve((lost,), (left,), "detection")

    rows = rank_attacks({"a": flat(0.50, 0.3), "b": flat(0.51, 0.3), "c": flat(0.52, 0.3), "d": flat(0.54, 0.3)})
    assert {row.at_high for row in rows} == {-math.inf}
    assert [row.ranks for row in rows] == [(1, 1, 1, 1)] * 3 + [(1, 1, 1, 4)]
    assert [row.rank for row in rows] == [1, 1, 1, 4]
    never = rank_attacks({"a": flat(0.5, 1.0), "b": flat(0.4, 1.0), "c": flat(0.9, 0.1)})
    assert [(row.attack, row.rank) for row in never] == [("c", 1), ("b", 2), ("a", 3)]
    exact = rank_attacks({"a": flat(0.50, 0.3), "b": flat(0.505, 0.3)}, tie=0)
    assert [row.rank for row in exact] == [1, 2]


def test_a_lower_degradation_at_the_target_is_more_potent() -> None:
    rows = rank_attacks(
        {
            "harmless": Curve((0.1, 0.2), (1.0, 0.99), "identification"),
            "costly": Curve((0.1, 0.9), (1.0, 0.0), "identification"),
            "cheap": Curve((0.1, 0.3), (1.0, 0.0), "identification"),
        },
        targets=(0.7, 0.4),
    )
    assert [row.attack for row in rows] == ["cheap", "costly", "harmless"]
    assert [row.at_high for row in rows] == pytest.approx([0.16, 0.34, math.inf])
    assert rows[0].task == "identification"


def test_curves_average_over_datasets_strength_by_strength() -> None:
    first, second = Curve((0.1, 0.5), (1.0, 0.2), "detection"), Curve((0.3, 0.7), (0.8, 0.0), "detection")
    mean = over_datasets([first, second])
    assert (mean.degradation, mean.performance) == (pytest.approx((0.2, 0.6)), pytest.approx((0.9, 0.1)))
    with pytest.raises(StatisticsError, match="2 and 3 strengths"):
        over_datasets([first, Curve((0.1, 0.2, 0.3), (1, 1, 1), "detection")])


def test_curves_of_another_task_or_score_are_never_mixed() -> None:
    detection = Curve((0.1,), (1.0,), "detection")
    with pytest.raises(StatisticsError, match="differ in task: detection and identification"):
        rank_attacks({"a": detection, "b": Curve((0.1,), (1.0,), "identification")})
    with pytest.raises(StatisticsError, match="differ in score: Q and partial Q over psnr"):
        over_datasets([detection, Curve((0.1,), (1.0,), "detection", degradation({"psnr": 30}).name)])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Curve((), (), "detection"), "there are none"),
        (lambda: Curve((0.1,), (1.0, 0.5), "detection"), "1 degradations for 2 performances"),
        (lambda: Curve((math.nan,), (1.0,), "detection"), "NaN or infinite"),
        (lambda: Curve((0.1,), (1.2,), "detection"), "0..1"),
        (lambda: Curve((0.1,), (1.0,), ""), "name the task"),
        (lambda: at_performance(Curve((0.1,), (1.0,), "detection"), 1.0), "target is 1"),
        (lambda: rank_attacks({}), "there is no curve"),
        (lambda: rank_attacks(STEGASTAMP, targets=(0.7, 0.95)), "the higher one first"),
        (lambda: rank_attacks(STEGASTAMP, tie=-1), "tie is -1"),
        (lambda: rank_methods({}), "no method to rank"),
        (lambda: rank_methods({"a": np.zeros(3)}), r"a: values must be an array \[sources, cells\], not \[3\]"),
        (lambda: rank_methods({"a": np.zeros((0, 2))}), r"not \[0, 2\]"),
        (lambda: rank_methods({"a": np.zeros((3, 2)), "b": np.zeros((3, 1))}), "b has 3 sources and 1 cells, a has 3"),
        (lambda: rank_methods({"a": np.full((3, 2), 1.5)}), "there are 1.5 to 1.5"),
        (lambda: rank_methods({"a": np.full((3, 2), np.inf)}), "0..1"),
        (lambda: rank_methods({"a": np.zeros((3, 2))}, level=1), "level is 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_words(build, words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        build()


def drawn(rates: list[float], sources: int, seed: int, cells: int = 4) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    hard = draws.random((sources, cells)) / 2
    return {f"m{j}": draws.random((sources, cells)) / 2 + hard < rate for j, rate in enumerate(rates)}


def test_methods_far_apart_have_sharp_ranks_and_their_own_groups() -> None:
    rows = rank_methods(drawn([0.3, 0.9, 0.6], 300, 0))
    assert [(row.name, row.rank, row.rank_low, row.rank_high, row.group) for row in rows] == [
        ("m1", 1, 1, 1, 1),
        ("m2", 2, 2, 2, 2),
        ("m0", 3, 3, 3, 3),
    ]
    assert {(row.sources, row.cells, row.level, row.note) for row in rows} == {(300, 4, 0.95, "")}


def test_methods_that_overlap_share_a_group() -> None:
    rows = rank_methods(drawn([0.9, 0.89, 0.5, 0.49, 0.1], 200, 1))
    assert [row.group for row in rows] == [1, 1, 2, 2, 3]
    assert [(row.rank_low, row.rank_high) for row in rows] == [(1, 2), (1, 2), (3, 4), (3, 4), (5, 5)]


def test_the_ends_of_a_ladder_are_told_apart_though_its_steps_are_not() -> None:
    # Each method flags six images more than the next: too few to tell them apart, where twelve are enough.
    ladder = {name: np.arange(60)[:, None] < 30 + 6 * step for step, name in enumerate("cba")}
    rows = rank_methods(ladder)
    assert [(row.name, row.rank_low, row.rank_high) for row in rows] == [("a", 1, 2), ("b", 1, 3), ("c", 2, 3)]
    assert [row.group for row in rows] == [1, 1, 1]


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=7), st.integers(6, 120), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_ranks_lie_in_their_intervals_and_groups_are_runs(rates: list[float], sources: int, seed: int) -> None:
    rows = rank_methods(drawn(rates, sources, seed))
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True)
    for row in rows:
        assert row.rank == 1 + sum(other.value > row.value + 1e-12 for other in rows)
        assert 1 <= row.rank_low <= row.rank <= row.rank_high <= len(rows)
        assert 0 <= row.low <= row.value <= row.high <= 1
    assert rows[0].group == 1
    assert all(after.group - before.group in (0, 1) for before, after in pairwise(rows))
    for row in rows:
        for other in rows:
            overlap = row.rank_low <= other.rank_high and other.rank_low <= row.rank_high
            assert not overlap or row.group == other.group


def test_the_comparison_agrees_with_every_pattern_of_signs() -> None:
    """Two methods and 12 sources: the 4,096 sign patterns give the exact p-value."""
    draws = np.random.default_rng(5)
    for _ in range(30):
        a, b = draws.random((2, 12, 3)) < draws.uniform(0.2, 0.95, (2, 1, 1))
        gap = a.mean(axis=1) - b.mean(axis=1)
        signs = 1 - 2 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1)
        norm = max(float(np.sqrt(gap @ gap)), 1e-9)
        strength = max(abs(gap.sum()) - 1, 0) / math.sqrt(gap @ gap + 1)
        p = float(np.mean(np.abs(signs @ gap) / norm >= strength - 1e-9))
        if abs(p - 0.05) < 0.01:
            continue
        rows = rank_methods({"a": a, "b": b})
        assert (rows[0].rank_high == 1) == (p <= 0.05)


def test_with_one_cell_the_comparison_is_stricter_than_exact_mcnemar_by_one_source() -> None:
    both, n = 20, 60
    for wins in range(1, 25):
        a, b = np.zeros((n, 1)), np.zeros((n, 1))
        a[: both + wins] = 1
        b[:both] = 1
        apart = rank_methods({"a": a, "b": b})[0].rank_high == 1
        assert not apart or stats.binomtest(0, wins).pvalue <= 0.05
        assert apart or stats.binomtest(2, wins + 2).pvalue > 0.01


def test_the_value_of_one_cell_has_the_interval_of_a_proportion() -> None:
    flags = np.arange(80)[:, None] < 71
    row = rank_methods({"a": flags})[0]
    assert (row.low, row.high) == pytest.approx(clopper_pearson(71, 80))
    assert (row.value, row.rank, row.rank_low, row.rank_high, row.group) == (71 / 80, 1, 1, 1, 1)
    whole = rank_methods({"a": np.ones((80, 5))})[0]
    assert (whole.low, whole.high) == clopper_pearson(80, 80)


def test_every_cell_weighs_the_same() -> None:
    table = np.zeros((50, 2))
    table[:, 0] = 1
    table[:10, 1] = 1
    assert rank_methods({"a": table})[0].value == pytest.approx((1.0 + 0.2) / 2)


def test_an_incomplete_row_gets_no_rank_and_changes_nobody_elses() -> None:
    values = {name: table.astype(float) for name, table in drawn([0.3, 0.9, 0.6], 100, 0).items()}
    hole = values["m1"].copy()
    hole[7, 2] = hole[8, 1] = np.nan
    rows = rank_methods({**values, "m1": hole})
    assert rows[:2] == rank_methods({"m0": values["m0"], "m2": values["m2"]})
    last = rows[2]
    assert (last.name, last.rank, last.rank_low, last.rank_high, last.group) == ("m1", None, None, None, None)
    assert last.note == "incomplete: 2 of 400 values are missing"
    assert math.isnan(last.value)
    assert [row.rank for row in rank_methods({"m1": hole})] == [None]


def test_equal_methods_share_rank_and_group_in_any_order() -> None:
    values = drawn([0.9, 0.5], 100, 3)
    twins = {"z": values["m0"], "b": values["m1"], "a": values["m0"][:, ::-1]}
    rows = rank_methods(twins)
    assert [(row.name, row.rank, row.group) for row in rows] == [("a", 1, 1), ("z", 1, 1), ("b", 3, 2)]
    assert rank_methods(dict(reversed(twins.items()))) == rows


def test_too_few_sources_tell_nothing_apart_and_the_note_says_so() -> None:
    rows = rank_methods({"a": np.ones((5, 9)), "b": np.zeros((5, 9))})
    assert [(row.rank, row.rank_low, row.rank_high, row.group) for row in rows] == [(1, 1, 2, 1), (2, 1, 2, 1)]
    assert {row.note for row in rows} == {"5 sources are too few to tell any two methods apart"}
    single = rank_methods({"a": np.ones((1, 1)), "b": np.zeros((1, 1))})
    assert single[0].note.startswith("1 source is too few")
    assert (single[0].low, single[0].high) == clopper_pearson(1, 1)


def test_ranks_depend_on_the_values_and_the_seed_only() -> None:
    values = drawn([0.62, 0.6, 0.55, 0.5], 150, 8)
    assert rank_methods(values) == rank_methods(values)
    assert rank_methods(values, level=0.5)[0].rank_high <= rank_methods(values, level=0.999)[0].rank_high


def covered(tables: list[np.ndarray], truth: np.ndarray) -> int:
    """How many tables ``[methods, sources, cells]`` give intervals that hold all ranks which ``truth`` allows."""
    best = 1 + (truth[None] > truth[:, None]).sum(axis=1)
    worst = truth.size - (truth[None] < truth[:, None]).sum(axis=1)
    count = 0
    for seed, table in enumerate(tables):
        rows = {row.name: row for row in rank_methods({str(j): flags for j, flags in enumerate(table)}, seed=seed)}
        count += all(rows[str(j)].rank_low <= best[j] and rows[str(j)].rank_high >= worst[j] for j in range(truth.size))
    return count


@pytest.mark.parametrize(
    ("rates", "sources", "cells"),
    [
        ([0.9] * 3, 50, 1),
        ([0.97, 0.97, 0.97, 0.7, 0.7, 0.3], 50, 1),
        ([0.5] * 6, 40, 4),
        ([0.8, 0.8, 0.7, 0.7], 120, 4),
    ],
)
def test_rank_intervals_cover_also_where_methods_tie(rates: list[float], sources: int, cells: int) -> None:
    tables = [np.stack(list(drawn(rates, sources, seed, cells).values())) for seed in range(300)]
    # Fewer than this happens once in ten thousand runs if the coverage is 95 %.
    assert covered(tables, np.array(rates)) >= stats.binom.ppf(1e-4, 300, 0.95)


def test_rank_intervals_cover_where_a_rare_source_costs_one_method_everything() -> None:
    draws = np.random.default_rng(0)
    tables = []
    for _ in range(300):
        all_or_none = np.repeat(draws.random((2, 50, 1)) >= 0.03, 20, axis=2)
        a_little = draws.random((2, 50, 20)) >= 0.03
        tables.append(np.concatenate([all_or_none, a_little]))
    assert covered(tables, np.ones(4)) >= stats.binom.ppf(1e-4, 300, 0.95)


@pytest.mark.parametrize(("sources", "top"), [(20, 0.99), (50, 0.9), (200, 0.99)])
def test_the_interval_of_a_value_covers(sources: int, top: float) -> None:
    rates = np.linspace(0.1, top, 6)
    draws = np.random.default_rng(sources)
    hits = 0
    for _ in range(500):
        common = np.sqrt(0.4) * draws.standard_normal((sources, 1))
        flags = stats.norm.cdf(common + np.sqrt(0.6) * draws.standard_normal((sources, 6))) < rates
        row = rank_methods({"a": flags})[0]
        hits += row.low <= rates.mean() <= row.high
    assert hits >= stats.binom.ppf(1e-4, 500, 0.95)
