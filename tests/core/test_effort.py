"""What work costs is counted where somebody asks, and reaches nothing else."""

from __future__ import annotations

import pytest

from waterproof.core import effort


def fail_after_four() -> None:
    with effort.measured():
        effort.count(backwards=4)
        raise RuntimeError


def test_nested_measurements_add_up_and_outside_of_them_nothing_counts() -> None:
    effort.count(evaluations=5)
    with effort.measured() as outer:
        effort.count(evaluations=1, backwards=1)
        with effort.measured() as inner:
            effort.count(evaluations=2)
            effort.objective("a", 0, 1, 0.5)
        with pytest.raises(RuntimeError):
            fail_after_four()
    assert (inner.evaluations, inner.backwards) == (2, 0)
    assert (outer.evaluations, outer.backwards, outer.objectives) == (3, 5, {"a": [(0, 0.5)]})


@pytest.mark.parametrize("steps", [1, 7, 200, 201, 3000])
def test_an_objectives_curve_keeps_both_ends_and_never_more_points_than_it_may(steps: int) -> None:
    with effort.measured() as spent:
        for step in range(steps):
            effort.objective("a", step, steps, -step)
    curve = spent.objectives["a"]
    assert (curve[0], curve[-1]) == ((0, 0), (steps - 1, 1 - steps))
    assert len(curve) <= effort.MOST_POINTS + 1
    assert len(curve) == steps or steps > effort.MOST_POINTS


def test_notes_reach_the_listener_at_most_so_often() -> None:
    heard: list[str] = []
    effort.note("nobody listens")
    with effort.telling(heard.append, every=60):
        effort.note("one")
        effort.note("two")
    with effort.telling(heard.append, every=0):
        effort.note("three")
        effort.note("four")
    assert heard == ["one", "three", "four"]


def test_the_peak_of_memory_is_a_plausible_number_of_megabytes() -> None:
    pytest.importorskip("resource")
    peak = effort.peak_memory()
    assert peak is not None
    assert 10 < peak < 1e6
