"""Descent on images: the published steps, each image by itself, and refused where something is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from waterproof.core import effort
from waterproof.core.descent import adam, in_batches, signed_descent
from waterproof.core.errors import UserError
from waterproof.core.images import Images, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORDS = [Record("a"), Record("b"), Record("c")]


def drawn(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, 3, 6, 5))).float()


def quadratic(values: torch.Tensor) -> torch.Tensor:
    """A different pull for each image and place: sum of w (x - .3)^2."""
    weights = torch.linspace(0.1, 2, values[0].numel()).reshape(values[0].shape)
    return (weights * (values - 0.3).square()).flatten(1).sum(dim=1)


def slope(values: np.ndarray) -> np.ndarray:
    weights = np.linspace(0.1, 2, values[0].size).reshape(values[0].shape)
    return np.asarray(2 * weights * (values - 0.3))


def test_signed_steps_are_those_of_a_loop_in_numpy_and_stay_in_the_budget() -> None:
    clean = drawn()
    start = clean + 0.02 * torch.sin(torch.arange(clean.numel()).reshape(clean.shape).float())
    found = signed_descent(start, clean, quadratic, RECORDS, budget=0.05, step=0.02, steps=7, last_step=0.01)
    x, around = start.double().numpy(), clean.double().numpy()
    low, high = np.maximum(around - 0.05, 0), np.minimum(around + 0.05, 1)
    x = np.clip(x, low, high)
    for number in range(7):
        size = 0.02 * (1 - 0.99 * number / 7)
        x = np.clip(x - size * np.sign(slope(x)), low, high)
    np.testing.assert_allclose(found.numpy(), x, atol=1e-6)
    assert float((found - clean).abs().max()) <= 0.05 + 1e-6


@pytest.mark.parametrize("last", [None, 1e-3])
def test_adam_is_torchs_adam_with_its_cosine(last: float | None) -> None:
    start = drawn()
    found = adam(start, quadratic, RECORDS, rate=0.02, last_rate=last, steps=30, epsilon=1e-5)
    leaf = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([leaf], lr=0.02, eps=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30, eta_min=last) if last is not None else None
    for _ in range(30):
        optimizer.zero_grad()
        quadratic(leaf).sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        with torch.no_grad():
            leaf.clamp_(0, 1)
    torch.testing.assert_close(found, leaf.detach(), atol=1e-5, rtol=0)


def test_an_image_that_stops_falling_stays_where_it_was_and_the_others_go_on() -> None:
    def objective(values: torch.Tensor) -> torch.Tensor:
        # The second image's objective never falls by a share that counts.
        return quadratic(values) * torch.tensor([1.0, 0.0, 1.0]) + torch.tensor([0.0, 1.0, 0.0]) * (
            1 + 1e-6 * values.flatten(1).sum(dim=1)
        )

    start = drawn()
    many = adam(start, objective, RECORDS, rate=0.01, steps=40, tolerance=1e-3, patience=5)
    alone = adam(start[:1], lambda x: quadratic(x), RECORDS[:1], rate=0.01, steps=40, tolerance=1e-3, patience=5)
    torch.testing.assert_close(many[:1], alone)
    few = adam(start, objective, RECORDS, rate=0.01, steps=6)
    torch.testing.assert_close(many[1], few[1])


def test_what_is_not_finite_is_refused_with_the_image_and_the_step() -> None:
    def objective(values: torch.Tensor) -> torch.Tensor:
        return quadratic(values) * torch.tensor([1.0, float("nan"), 1.0])

    with pytest.raises(UserError, match=r"PhotoGuard: at step 1 of 4 the objective of image b .* smaller step"):
        adam(drawn(), objective, RECORDS, rate=0.1, steps=4, what="PhotoGuard")
    with pytest.raises(UserError, match=r"PGD: at step 1 of 2 the objective of image b"):
        signed_descent(drawn(), drawn(), objective, RECORDS, budget=1, step=0.1, steps=2)


def test_objectives_are_recorded_image_by_image() -> None:
    with effort.measured() as spent:
        adam(drawn(), quadratic, RECORDS, rate=0.01, steps=5)
    assert list(spent.objectives) == ["a", "b", "c"]
    values = [value for _, value in spent.objectives["b"]]
    assert values[0] == pytest.approx(float(quadratic(drawn())[1]))
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_have_one_length_and_every_image_meets_its_own_record(batch: int) -> None:
    images = Images((drawn() * 255).byte(), RECORDS)
    seen = []

    def change(values: torch.Tensor, records: Sequence[Record]) -> torch.Tensor:
        seen.append(len(values))
        assert len(values) == len(records)
        return torch.stack([1 - x if r.id == "b" else x for x, r in zip(values, records, strict=True)])

    changed = in_batches(images, batch, change)
    assert set(seen) == {batch}
    assert torch.equal(changed.pixels[[0, 2]], images.pixels[[0, 2]])
    assert torch.equal(changed.pixels[1], 255 - images.pixels[1])
    assert changed.ids == images.ids
    assert len(in_batches(images.take([]), batch, change)) == 0
