"""Planned numbers of images against exact integers, statsmodels and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from waterproof.bench.statistics import thresholds
from waterproof.bench.statistics.mcnemar import change_power, images_for_change, smallest_change
from waterproof.bench.statistics.power import plan_claim, supports
from waterproof.bench.statistics.roc import needed_negatives
from waterproof.bench.statistics.sizes import (
    certification_power,
    design_effect,
    effective_images,
    interval_width,
    negatives_for_certified,
    negatives_for_empirical,
    positives_for_width,
)
from waterproof.bench.statistics.tails import fit_tail
from waterproof.core.errors import StatisticsError


def exact_tail(n: int, p: Fraction, most: int) -> Fraction:
    """P(X <= most) for X ~ Binomial(n, p), in integers."""
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(most + 1)), Fraction(0))


def widest(rate: Fraction, n: int, level: float) -> float:
    """Width at the whole numbers on either side of the expected count, by statsmodels."""
    counts = {math.floor(rate * n), math.ceil(rate * n)}
    ends = [proportion_confint(count, n, alpha=1 - level, method="beta") for count in counts]
    return max(high - low for low, high in ends)


@given(st.integers(0, 1000), st.integers(1, 3000), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=150, deadline=None)
def test_a_planned_width_is_that_of_the_widest_count_that_is_expected(rate: int, n: int, level: float) -> None:
    assert interval_width(rate / 1000, n, level) == pytest.approx(widest(Fraction(rate, 1000), n, level), rel=1e-9)


@pytest.mark.parametrize("tpr", ["0", "0.001", "0.1", "0.37", "0.5", "0.9", "0.99", "0.999", "1"])
@pytest.mark.parametrize("width", [0.3, 0.1, 0.04])
def test_from_the_planned_number_on_every_number_of_positives_is_enough(tpr: str, width: float) -> None:
    n = positives_for_width(float(tpr), width)
    rate = Fraction(tpr)
    assert n == 1 or widest(rate, n - 1, 0.95) > width
    # The sawtooth repeats once in 1 / tpr images; four times the number is far beyond it.
    later = {*range(n, n + 300), *range(n + 300, 4 * n + 100, 7)}
    assert max(widest(rate, more, 0.95) for more in later) <= width


def test_positives_for_narrow_intervals_are_found_fast_and_right() -> None:
    for tpr, width in ((0.5, 0.001), (0.9999, 0.0002), (0.9, 0.002)):
        n = positives_for_width(tpr, width)
        assert interval_width(tpr, n - 1) > width
        steps = np.unique(np.geomspace(n, 2 * n, 400).astype(int))
        assert max(interval_width(tpr, int(more)) for more in (*range(n, n + 200), *steps)) <= width


def test_an_interval_as_wide_as_planned_is_what_comes_out() -> None:
    n = positives_for_width(0.9, 0.1)
    draws = np.random.default_rng(0).binomial(n, 0.9, 4000)
    widths = np.array([interval_width(hits / n, n) for hits in range(n + 1)])[draws]
    assert np.mean(widths) == pytest.approx(0.1, rel=0.03)


def test_an_empirical_rate_needs_one_over_it() -> None:
    assert [negatives_for_empirical(10.0**-power) for power in range(1, 8)] == [10**power for power in range(1, 8)]
    for fpr in (0.02, 0.003):
        n = negatives_for_empirical(fpr, 0.5)
        rate = Fraction(repr(fpr))
        assert widest(rate, n - 1, 0.95) > 0.5 * fpr
        assert max(widest(rate, more, 0.95) for more in range(n, n + 1000, 11)) <= 0.5 * fpr
    with pytest.raises(StatisticsError, match="relative_width"):
        negatives_for_empirical(0.01, 0)


@pytest.mark.parametrize(("fpr", "true_fpr", "power"), [(0.1, 0.05, 0.9), (0.2, 0.05, 0.8), (0.05, 0.01, 0.95)])
def test_planned_negatives_certify_with_the_planned_power(fpr: float, true_fpr: float, power: float) -> None:
    plan = negatives_for_certified(fpr, 0.95, power, true_fpr)
    bound, real, miss = Fraction(repr(fpr)), Fraction(repr(true_fpr)), Fraction(1, 20)

    def chance(n: int) -> Fraction:
        # The bound keeps fpr if at most so many are flagged that P(X <= them | fpr) <= 5 %.
        allowed = -1
        while exact_tail(n, bound, allowed + 1) <= miss:
            allowed += 1
        return exact_tail(n, real, allowed)

    assert plan.least == needed_negatives(fpr)
    assert chance(plan.least - 1) == 0 < chance(plan.least)
    assert chance(plan.planned - 1) < power <= chance(plan.planned)
    assert all(chance(n) >= power for n in range(plan.planned, plan.planned + 60))
    assert plan.power == pytest.approx(float(chance(plan.planned)), rel=1e-9)
    assert exact_tail(plan.planned, bound, plan.allowed) <= miss < exact_tail(plan.planned, bound, plan.allowed + 1)


def test_the_planned_negatives_satisfy_the_certified_rule() -> None:
    plan = negatives_for_certified(0.02, true_fpr=0.01)
    draws = np.random.default_rng(1)
    kept = 0
    for _ in range(400):
        scores = draws.random(plan.planned)
        kept += thresholds.certified(scores, None, 0.02).value <= 0.99
    assert abs(kept / 400 - plan.power) < 4 * math.sqrt(0.1 * 0.9 / 400)
    with pytest.raises(StatisticsError, match=f"at least {plan.least} "):
        thresholds.certified(draws.random(plan.least - 1), None, 0.02)


def test_certification_fails_where_it_must() -> None:
    assert certification_power(2994, 1e-3, 0.0) == 0
    assert certification_power(2995, 1e-3, 0.0) == 1
    with pytest.raises(StatisticsError, match=r"only an FPR below 0\.001"):
        negatives_for_certified(1e-3, true_fpr=1e-3)
    with pytest.raises(StatisticsError, match="more than"):
        negatives_for_certified(1e-7, true_fpr=9.9e-8)


@pytest.mark.parametrize(("n", "discordance", "sided"), [(40, 0.3, "one"), (25, 0.2, "two"), (12, None, "one")])
def test_the_power_of_mcnemars_test_is_the_exact_sum_over_tables(n: int, discordance: float | None, sided) -> None:
    tpr, change, alpha = Fraction(9, 10), Fraction(1, 5), 0.05
    after = tpr - change
    differ = tpr * (1 - after) + (1 - tpr) * after if discordance is None else Fraction(repr(discordance))
    lost, gained = (differ + change) / 2, (differ - change) / 2
    total = Fraction(0)
    for losses in range(n + 1):
        for gains in range(n + 1 - losses):
            pairs = losses + gains
            p = Fraction(sum(math.comb(pairs, i) for i in range(losses, pairs + 1)), 2**pairs)
            if (2 * p if sided == "two" else p) <= Fraction(1, 20):
                ways = math.comb(n, losses) * math.comb(n - losses, gains)
                total += ways * lost**losses * gained**gains * (1 - differ) ** (n - pairs)
    assert change_power(n, 0.9, 0.2, discordance, alpha, 1, sided) == pytest.approx(float(total), rel=1e-9)


@pytest.mark.parametrize(("cells", "discordance"), [(1, None), (1, 0.08), (10, 0.12)])
def test_planned_pairs_detect_the_loss_as_often_as_planned(cells: int, discordance: float | None) -> None:
    n = images_for_change(0.9, 0.08, discordance, power=0.8, cells=cells)
    differ = 0.9 * 0.18 + 0.1 * 0.82 if discordance is None else discordance
    draws = np.random.default_rng(2)
    tables = draws.multinomial(n, [(differ + 0.08) / 2, (differ - 0.08) / 2, 1 - differ], size=20_000)
    p = stats.binom.sf(tables[:, 0] - 1, tables[:, 0] + tables[:, 1], 0.5)
    seen = np.mean(p * cells <= 0.05)
    assert seen == pytest.approx(change_power(n, 0.9, 0.08, discordance, cells=cells), abs=4 * math.sqrt(0.16 / 20_000))
    assert seen == pytest.approx(0.8, abs=0.04)
    if cells == 1:
        table = [[0, int(tables[0, 0])], [int(tables[0, 1]), 0]]
        assert mcnemar(table, exact=True).pvalue == pytest.approx(min(1, 2 * p[0]), rel=1e-9)


@pytest.mark.parametrize(
    ("tpr", "change", "discordance", "cells"),
    [(0.9, 0.05, None, 1), (0.9, 0.05, 0.05, 58), (1.0, 0.2, None, 1), (1.0, 1.0, None, 1), (0.55, 0.1, 1.0, 1)],
)
def test_from_the_planned_number_on_every_number_of_pairs_is_enough(tpr, change, discordance, cells) -> None:
    n = images_for_change(tpr, change, discordance, cells=cells)
    assert change_power(n - 1, tpr, change, discordance, cells=cells) < 0.8
    assert min(change_power(m, tpr, change, discordance, cells=cells) for m in range(n, n + 400)) >= 0.8


def test_pairs_for_small_losses_are_found_where_few_pairs_differ() -> None:
    n = images_for_change(0.999, 0.002, 0.003)
    assert change_power(n - 1, 0.999, 0.002, 0.003) < 0.8
    assert min(change_power(m, 0.999, 0.002, 0.003) for m in range(n, n + 3000, 13)) >= 0.8


def test_no_loss_is_seen_more_often_than_the_level() -> None:
    # As many gains as losses: the loss is next to nothing.
    for n in (10, 60, 500):
        assert change_power(n, 0.5, 1e-9, 0.4) <= 0.05
        assert change_power(n, 0.5, 1e-9, 0.4, cells=58) <= 0.05 / 58


def test_the_smallest_loss_is_just_seen() -> None:
    for gains in (True, False):
        loss = smallest_change(200, 0.9, gains=gains)
        assert change_power(200, 0.9, loss, None if gains else loss) >= 0.8
        less = loss - 1e-4
        assert change_power(200, 0.9, less, None if gains else less) < 0.8
    assert smallest_change(500, 0.9, cells=58) > smallest_change(500, 0.9) > smallest_change(5000, 0.9)
    # Five losses of five have a p-value of 1/32; four of four cannot reach 5 %.
    assert math.isnan(smallest_change(4, 1.0))
    assert smallest_change(5, 1.0) == pytest.approx(0.8 ** (1 / 5), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.9, 0.95), "cannot lose"),
        ((0.9, 0.0), "between 0 and the TPR"),
        ((0.9, 0.05, 0.04), r"it lies in 0\.05\.\.0\.25"),
        ((0.9, 0.05, 0.3), r"it lies in 0\.05\.\.0\.25"),
        ((0.9, 1e-4), "more than 1000000 pairs"),
    ],
)
def test_impossible_changes_are_refused(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        images_for_change(*arguments)


def test_images_that_share_a_source_are_worth_less() -> None:
    assert (design_effect(1, 0.9), design_effect(8, 0.0), design_effect(8, 1.0)) == (1, 1, 8)
    assert effective_images(800, 8, 1.0) == 100
    # The variance of a mean of 50 sources of 4 images, correlation .3.
    draws = np.random.default_rng(3)
    shared, own = draws.normal(size=(20_000, 50, 1)), draws.normal(size=(20_000, 50, 4))
    means = (math.sqrt(0.3) * shared + math.sqrt(0.7) * own).mean((1, 2))
    assert 1 / means.var() == pytest.approx(effective_images(200, 4, 0.3), rel=0.05)
    for wrong in ((0.5, 0.1), (4, -0.1), (4, 1.1), (math.inf, 0.1)):
        with pytest.raises(StatisticsError):
            design_effect(*wrong)


def test_a_plan_collects_the_counts_with_their_statements() -> None:
    plan = plan_claim(1e-3, 0.9, 0.05, power=0.9, change=0.05, cells=24)
    numbers = {fact.key: fact.number for fact in plan.facts}
    assert numbers == {
        "positives": positives_for_width(0.9, 0.05),
        "certify": 2995,
        "certify_power": negatives_for_certified(1e-3).planned,
        "express": 1000,
        "measure": negatives_for_empirical(1e-3, 0.5),
        "extrapolate": 300,
        "pairs": images_for_change(0.9, 0.05, power=0.9, cells=24),
        "pairs_best": images_for_change(0.9, 0.05, 0.05, power=0.9, cells=24),
    }
    assert plan["certify"].sentence.startswith("calibration negatives of different sources, at least: 2,995 (fewer ")
    assert len(plan.sentences) == len(plan.facts)
    with pytest.raises(KeyError):
        plan["nothing"]


def test_a_plan_for_a_payload_says_what_its_bits_reach() -> None:
    plan = plan_claim(1e-6, 0.9, 0.1, bits=48)
    assert (plan["bits_fpr"].number, plan["bits_threshold"].number) == (2.0**-48, 41)
    short = plan_claim(1e-3, 0.9, 0.1, bits=8)
    assert math.isnan(short["bits_threshold"].number)
    assert short["bits_threshold"].sentence.endswith("none (8 bits cannot reach an FPR of 0.001; 10 bits can)")
    assert "extrapolate" not in {fact.key for fact in short.facts}


def test_a_plan_knows_that_sources_repeat() -> None:
    plan = plan_claim(1e-2, 0.9, 0.1, images_per_source=8, icc=0.3)
    assert plan["design_effect"].number == pytest.approx(3.1)
    for key in ("positives", "pairs"):
        images = plan[f"{key}_clustered"].number
        assert images % 8 == 0
        assert effective_images(images, 8, 0.3) >= plan[key].number > effective_images(images - 8, 8, 0.3)
    assert "positives_clustered" not in {fact.key for fact in plan_claim(1e-2, 0.9, 0.1).facts}


def test_what_a_run_supports_is_what_the_rules_then_accept() -> None:
    facts = supports(162, 150, 450)
    scores = np.random.default_rng(4).normal(size=450)
    smallest = facts["certified_fpr"].number
    thresholds.certified(scores, None, smallest)
    with pytest.raises(StatisticsError):
        thresholds.certified(scores, None, smallest * (1 - 1e-9))
    farthest = facts["extrapolated_fpr"].number
    fit_tail(scores).upper(farthest)
    with pytest.raises(StatisticsError):
        fit_tail(scores).upper(farthest * 0.999)
    assert facts["empirical_fpr"].number == 1 / 150
    assert facts["unseen_fpr"].number == pytest.approx(proportion_confint(0, 150, alpha=0.1, method="beta")[1])
    for rate in (50, 90, 99):
        assert facts[f"width_{rate}"].number == pytest.approx(widest(Fraction(rate, 100), 162, 0.95))
    assert facts["loss"].number == smallest_change(162, 0.9)
    assert facts["loss_cells_best"].number == smallest_change(162, 0.9, cells=58, gains=False)
    assert "any of 58 cells" in facts["loss_cells"].sentence


@given(st.integers(1, 10**6), st.sampled_from([0.9, 0.95, 0.99]))
@settings(max_examples=200, deadline=None)
def test_the_bound_of_no_false_positive_can_be_certified(n: int, level: float) -> None:
    bound = supports(0, n, n, 16, level)["unseen_fpr"].number
    assert needed_negatives(bound, level) <= n
    assert bound == pytest.approx(1 - (1 - level) ** (1 / n), rel=1e-9)


def test_a_run_without_images_supports_nothing_and_says_so() -> None:
    facts = supports(0, 0, 0)
    assert all(math.isnan(fact.number) for fact in facts.facts)
    assert all(": none (" in sentence for sentence in facts.sentences)
    assert supports(0, 0, 0, bits=32)["bits_fpr"].number == 2.0**-32
    with pytest.raises(StatisticsError, match="n_calibration is -1"):
        supports(1, 1, -1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fpr": 0}, "fpr is 0"),
        ({"tpr": 1.2}, r"0\.\.1"),
        ({"width": 1.5}, "width"),
        ({"width": 1e-6}, "more than"),
        ({"icc": 2}, "icc"),
        ({"cells": 0}, "cells is 0"),
        ({"bits": 0}, "bits"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        plan_claim(**{"fpr": 1e-2, "tpr": 0.9, "width": 0.1, **arguments})
