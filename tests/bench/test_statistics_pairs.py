"""Matches between pairs of unmarked images: against slow loops, and by simulation."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from waterproof.bench.statistics import binomial, correlation, pairs
from waterproof.bench.statistics.pairs import PairReport, pair_matches
from waterproof.core.errors import StatisticsError


def loop(bits: np.ndarray, sources: np.ndarray) -> list[int]:
    """Matches of all pairs of images of different sources."""
    return [
        int((bits[i] == bits[j]).sum())
        for i, j in itertools.combinations(range(len(bits)), 2)
        if sources[i] != sources[j]
    ]


def clustered(draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Correlated bits of 20 sources of 1 to 4 images, in no order."""
    sources = draws.permutation(np.repeat(np.arange(20), draws.integers(1, 5, 20)))
    common = draws.standard_normal((20, 1))[sources] + draws.standard_normal((20, 12))[sources]
    return common + draws.standard_normal((len(sources), 12)) > 0.2, sources


@pytest.mark.parametrize("sided", ["one", "two"])
def test_the_numbers_are_those_of_a_loop_over_the_pairs(sided: str) -> None:
    bits, sources = clustered(np.random.default_rng(0))
    report = pair_matches(bits, sources, 0.05, sided)
    matches = np.array(loop(bits, sources))
    assert report.pairs == len(matches)
    assert report.histogram.dtype == np.int64
    assert report.histogram.tolist() == np.bincount(matches, minlength=13).tolist()
    assert report.share.value == pytest.approx(matches.mean() / 12, rel=1e-12)
    assert report.overdispersion.value == pytest.approx(
        np.sqrt(((matches - 6) ** 2).mean()) / (np.sqrt(12) / 2), rel=1e-12
    )
    flagged = (matches >= report.threshold) | ((matches <= 12 - report.threshold) & (sided == "two"))
    assert report.tail.value == pytest.approx(flagged.mean(), rel=1e-12)
    assert report.nominal_fpr == binomial.fpr(12, report.threshold, sided)
    assert (report.n, report.sources, report.k, report.sided) == (len(bits), 20, 12, sided)


def test_the_variance_is_that_of_leaving_out_one_source_at_a_time() -> None:
    bits, sources = clustered(np.random.default_rng(1))
    report = pair_matches(bits, sources, 0.05)
    left_out = []
    for source in range(20):
        kept = sources != source
        left_out.append(np.mean(loop(bits[kept], sources[kept])) / 12)
    spread = np.sqrt(19 / 20 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert report.share.low == pytest.approx(max(0.5, report.share.value - stats.t.ppf(0.975, 19) * spread), rel=1e-9)
    assert report.share.high > report.share.value + stats.t.ppf(0.975, 19) * spread


def test_payloads_longer_than_a_word_and_than_a_byte_can_count_are_compared_whole() -> None:
    draws = np.random.default_rng(2)
    for k in (64, 65, 255, 256, 300):
        bits = draws.random((40, k)) < 0.5
        bits[1] = bits[0]
        bits[2] = ~bits[0]
        report = pair_matches(bits, None, 0.01)
        assert report.histogram.tolist() == np.bincount(loop(bits, np.arange(40)), minlength=k + 1).tolist()


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, sources = clustered(np.random.default_rng(3))
    whole = pair_matches(bits, sources, 0.05)
    monkeypatch.setattr(pairs, "_CELLS", 3 * len(bits))
    parts = pair_matches(bits, sources, 0.05)
    assert parts == whole
    assert (parts.histogram == whole.histogram).all()


def test_the_order_of_the_images_does_not_matter() -> None:
    bits, sources = clustered(np.random.default_rng(4))
    turned = np.random.default_rng(5).permutation(len(bits))
    ours, theirs = pair_matches(bits, sources, 0.05), pair_matches(bits[turned], sources[turned], 0.05)
    for name in ("share", "overdispersion", "tail"):
        for end in ("value", "low", "high"):
            assert getattr(getattr(ours, name), end) == pytest.approx(getattr(getattr(theirs, name), end), rel=1e-3)


def test_exact_copies_within_a_source_change_no_estimate_and_no_verdict_for_the_worse() -> None:
    bits = np.random.default_rng(6).random((40, 32)) < 0.5
    single, copied = (
        pair_matches(bits, None, 1e-2),
        pair_matches(np.repeat(bits, 5, axis=0), np.repeat(np.arange(40), 5), 1e-2),
    )
    assert copied.pairs == 25 * single.pairs
    for name in ("share", "overdispersion", "tail"):
        ours, theirs = getattr(single, name), getattr(copied, name)
        assert theirs.value == pytest.approx(ours.value)
        assert (theirs.low, theirs.high) == pytest.approx((ours.low, ours.high), rel=0.02, abs=1e-9)
    for name in ("p_share", "p_dispersion", "p_tail"):
        assert getattr(copied, name) == pytest.approx(getattr(single, name), rel=1e-6)


def test_fair_coins_hold_and_a_true_null_is_seldom_refused() -> None:
    draws = np.random.default_rng(7)
    reports = [pair_matches(draws.random((30, 32)) < 0.5, None, 1e-2) for _ in range(250)]
    # 1 % each: more than 9 of 250 happens less than once in a thousand runs.
    assert sum(not r.holds for r in reports) <= 9
    assert all(r.warning == "" for r in reports if r.holds)


def test_two_sided_decisions_on_fair_coins_hold() -> None:
    draws = np.random.default_rng(8)
    reports = [pair_matches(draws.random((30, 32)) < 0.5, None, 1e-2, "two") for _ in range(100)]
    assert sum(not r.holds for r in reports) <= 5
    assert np.mean([r.tail.value for r in reports]) == pytest.approx(reports[0].nominal_fpr, rel=0.1)


LAWS = {
    "fair": lambda draws, m: draws.random((m, 32)) < 0.5,
    "biased": lambda draws, m: draws.random((m, 32)) < np.linspace(0.3, 0.8, 32),
    "alike": lambda draws, m: 0.7 * (draws.standard_normal((m, 1)) - 0.3) + draws.standard_normal((m, 32)) > 0,
    "identical": lambda draws, m: np.repeat(draws.random((m, 1)) < 0.5, 32, axis=1),
}


@pytest.mark.parametrize("law", LAWS)
def test_the_intervals_cover(law: str) -> None:
    draw, draws = LAWS[law], np.random.default_rng(9)
    reports = [pair_matches(draw(draws, 50), None, 1e-2) for _ in range(150)]
    tau = reports[0].threshold
    matches = np.concatenate([(draw(draws, 50_000) == draw(draws, 50_000)).sum(axis=1) for _ in range(8)])
    exact = {"fair": 0.5, "identical": 0.5}.get(law, matches.mean() / 32)
    truth = {
        "share": exact,
        "overdispersion": max(1.0, np.sqrt(((matches - 16) ** 2).mean()) / np.sqrt(8)),
        "tail": reports[0].nominal_fpr if law == "fair" else (matches >= tau).mean(),
    }
    for name, value in truth.items():
        rates = [getattr(report, name) for report in reports]
        held = sum(rate.low - 1e-9 <= value <= rate.high + 1e-9 for rate in rates)
        # At 95 %, fewer than 134 of 150 happen less than once in a thousand runs.
        assert held >= 134, name


def test_bits_that_depend_on_each_other_are_found_without_a_key() -> None:
    draws = np.random.default_rng(20)
    bits = 0.5 * draws.standard_normal((200, 1)) + draws.standard_normal((200, 48)) > 0
    report = pair_matches(bits, None, 1e-3)
    assert not report.holds
    # The bits are fair, and their sharing no more than half is not held against them.
    assert report.p_share > 0.01
    assert report.p_dispersion < 1e-6
    assert report.p_tail < 1e-6
    assert report.warning.startswith(
        "Unmarked images of different sources (200) resemble each other: the matching bits scatter 1."
    )
    assert report.warning.endswith(".")
    assert report.overdispersion.low > 1


def test_biased_bits_are_found_without_a_key() -> None:
    report = pair_matches(np.random.default_rng(11).random((100, 32)) < 0.7, None, 1e-2)
    # Two bits that are 1 with probability .7 agree with probability .58.
    assert report.share.low <= 0.58 <= report.share.high
    assert report.p_share < 1e-6


def test_a_constant_decoder_is_as_wrong_as_can_be() -> None:
    report = pair_matches(np.ones((20, 32), dtype=bool), None, 1e-2)
    assert (report.share.value, report.tail.value) == (1, 1)
    assert report.overdispersion.value == pytest.approx(np.sqrt(32))
    assert not report.holds


def test_no_pair_at_the_threshold_bounds_its_share_by_half_as_many_pairs_as_sources() -> None:
    report = pair_matches(np.random.default_rng(12).random((100, 48)) < 0.5, None, 1e-9)
    assert report.tail.value == 0
    assert report.tail.high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert report.p_tail == 1


def test_few_sources_have_numbers_but_no_interval() -> None:
    draws = np.random.default_rng(13)
    report = pair_matches(draws.random((14, 8)) < 0.5, None, 0.05)
    assert np.isnan([report.share.low, report.overdispersion.high]).all()
    assert report.share.method == "none: fewer than 15 sources"
    assert report.tail.high > 0
    two = pair_matches(draws.random((2, 8)) < 0.5, None, 0.05)
    assert (two.pairs, two.tail.method) == (1, "none: fewer than 3 sources")


def test_a_single_bit_can_be_examined() -> None:
    report = pair_matches(np.random.default_rng(14).random((50, 1)) < 0.5, None, 0.6)
    assert report.overdispersion.value == 1
    assert report.p_dispersion == 1


def test_ten_thousand_images_take_seconds() -> None:
    bits = np.random.default_rng(15).random((10_000, 48)) < 0.5
    start = time.perf_counter()
    report = pair_matches(bits, None, 1e-3)
    assert time.perf_counter() - start < 20
    assert report.pairs == 49_995_000
    assert report.holds


@pytest.mark.parametrize("dense", [0, 512])
def test_the_largest_eigenvalue_of_products_is_that_of_the_matrix_written_down(
    monkeypatch: pytest.MonkeyPatch, dense: int
) -> None:
    monkeypatch.setattr(correlation, "_DENSE", dense)
    draws = np.random.default_rng(16)
    bits = 0.6 * draws.standard_normal((60, 1)) + draws.standard_normal((60, 7)) > 0.4
    codes = draws.integers(0, 25, 60)
    unit = (bits - bits.mean(axis=0)) / bits.std(axis=0)
    matrix = np.corrcoef(unit.T)
    rows = np.zeros((25, 7, 7))
    for z, code in zip(unit, codes, strict=True):
        rows[code] += np.outer(z, z) - matrix * (z[:, None] ** 2 + z**2) / 2
    rows[:, np.arange(7), np.arange(7)] = 0
    flat = rows.reshape(25, 49)
    expected = np.linalg.eigvalsh(flat.T @ flat)[-1]
    assert correlation.top_of_products(unit, codes) == pytest.approx(expected, rel=0.01 if not dense else 1e-9)
    assert correlation.top_of_products(np.ones((60, 7)), codes) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("bits", "sources", "alpha", "message"),
    [
        (np.ones((4, 8)), None, 0.05, "booleans"),
        (np.ones(8, dtype=bool), None, 0.05, r"\[n, k\]"),
        (np.ones((4, 8), dtype=bool), ["a"] * 4, 0.05, "at least 2 sources, there is 1"),
        (np.ones((0, 8), dtype=bool), None, 0.05, "at least 2 sources, there is 0"),
        (np.ones((4, 8), dtype=bool), ["a"] * 3, 0.05, "3 sources for 4 images"),
        (np.ones((4, 8), dtype=bool), None, 1e-9, r"2\^-8"),
    ],
)
def test_what_cannot_be_compared_is_refused(bits, sources, alpha: float, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        pair_matches(bits, sources, alpha)


def test_a_report_equals_itself() -> None:
    bits = np.random.default_rng(17).random((20, 16)) < 0.5
    assert isinstance(pair_matches(bits, None, 0.05), PairReport)
    assert pair_matches(bits, None, 0.05) == pair_matches(bits, None, 0.05)
