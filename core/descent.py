"""Gradient descent on images: signed steps inside a budget (PGD), and Adam; every image by itself, whatever its batch.

An objective gives one number for each image, which is to fall. Both loops record it step by step
(:mod:`.effort`), refuse to go on where it is not finite, and draw nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from . import effort
from .errors import UserError
from .images import Images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .images import Record

Objective = Callable[[torch.Tensor], torch.Tensor]
"""Float images ``[B, 3, H, W]`` to one number each, ``[B]``."""


def in_batches(images: Images, batch: int, change: Callable[[torch.Tensor, Sequence[Record]], torch.Tensor]) -> Images:
    """Changes images in batches of one length, the last one filled up, so that no image's bytes depend on the others.

    Args:
        images: the images.
        batch: how many at a time.
        change: floats ``[batch, 3, H, W]`` in 0 to 1 and their records to floats of the same shape.
    """
    done = []
    for start in range(0, len(images), batch):
        places = [min(start + i, len(images) - 1) for i in range(batch)]
        part = images.take(places)
        wanted = min(batch, len(images) - start)
        done.append(Images.from_float(change(part.float(), part.records)[:wanted].detach(), part.records[:wanted]))
    if not done:
        return images
    return Images(torch.cat([part.pixels for part in done]), images.records)


def noise_for(
    records: Sequence[Record], shape: Sequence[int], draw: Callable[[Record], torch.Generator]
) -> torch.Tensor:
    """Standard normal noise, each image's from its own generator: ``[B, *shape]``."""
    return torch.stack([torch.randn(tuple(shape), generator=draw(record)) for record in records])


def signed_descent(
    start: torch.Tensor,
    around: torch.Tensor,
    objective: Objective,
    records: Sequence[Record],
    *,
    budget: float,
    step: float,
    steps: int,
    last_step: float = 1.0,
    what: str = "PGD",
) -> torch.Tensor:
    """Projected gradient descent in the maximum norm (Madry et al., ICLR 2018): x <- clip(x - step sign(gradient)).

    Args:
        start: floats ``[B, 3, H, W]``.
        around: the images that the result stays near.
        objective: what is to fall.
        records: of the images, for the record of the objective and for messages.
        budget: largest change of a value, in the unit of the images (0 to 1).
        step: the first step.
        steps: how many.
        last_step: what the step falls to, linearly, as a share of the first; the step after the last would be that.
        what: for messages.

    Raises:
        UserError: the objective or its gradient is not finite.
    """
    low, high = (around - budget).clamp(min=0), (around + budget).clamp(max=1)
    values = torch.minimum(torch.maximum(start, low), high)
    for number in range(steps):
        gradient = _gradient(values, objective, records, number, steps, what)
        share = 1 - (1 - last_step) * number / steps
        values = torch.minimum(torch.maximum(values - step * share * gradient.sign(), low), high)
    return values


def adam(
    start: torch.Tensor,
    objective: Objective,
    records: Sequence[Record],
    *,
    rate: float,
    steps: int,
    last_rate: float | None = None,
    epsilon: float = 1e-8,
    low: float = 0.0,
    high: float = 1.0,
    tolerance: float = 0.0,
    patience: int = 50,
    what: str = "Adam",
) -> torch.Tensor:
    """Adam (Kingma and Ba 2015; betas .9 and .999) on pixels, which are clipped after every step.

    Args:
        start: floats ``[B, 3, H, W]``, clipped only after the first step.
        objective: what is to fall.
        records: of the images.
        rate: the first learning rate, in the unit of the images.
        steps: how many at most.
        last_rate: where a cosine takes the rate; None keeps it.
        epsilon: of Adam.
        low: smallest value.
        high: largest value.
        tolerance: an image stops where its objective has not fallen by this share of itself in ``patience`` steps; 0:
            none stops.
        patience: see ``tolerance``.
        what: for messages.

    Raises:
        UserError: the objective or its gradient is not finite.
    """
    values, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    going = torch.ones(len(start), dtype=torch.bool)
    best, since = torch.full((len(start),), math.inf), torch.zeros(len(start))
    for number in range(steps):
        gradient, found = _gradient_and_value(values, objective, records, number, steps, what)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        now = _cosine(rate, last_rate, number, steps)
        mean, spread = first / (1 - 0.9 ** (number + 1)), second / (1 - 0.999 ** (number + 1))
        moved = (values - now * mean / (spread.sqrt() + epsilon)).clamp(low, high)
        values = torch.where(going[:, None, None, None], moved, values)
        if tolerance:
            better = found < best * (1 - tolerance)
            best, since = torch.where(better, found, best), torch.where(better, 0.0, since + 1)
            going &= since < patience
            if not bool(going.any()):
                break
    return values


def _cosine(first: float, last: float | None, step: int, steps: int) -> float:
    """The learning rate of a step, from 0, as torch's CosineAnnealingLR with T_max = steps gives it."""
    return first if last is None else last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def _gradient(
    values: torch.Tensor, objective: Objective, records: Sequence[Record], step: int, steps: int, what: str
) -> torch.Tensor:
    return _gradient_and_value(values, objective, records, step, steps, what)[0]


def _gradient_and_value(
    values: torch.Tensor, objective: Objective, records: Sequence[Record], step: int, steps: int, what: str
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        leaf = values.detach().requires_grad_(True)
        found = objective(leaf)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
    found = found.detach()
    for i, record in enumerate(records):
        if not (bool(torch.isfinite(found[i])) and bool(torch.isfinite(gradient[i]).all())):
            raise UserError(
                f"{what}: at step {step + 1} of {steps} the objective of image {record.id} or its gradient is not a "
                "finite number: try a smaller step or learning rate"
            )
        # An image that fills a batch up stands in it more than once.
        if record not in records[:i]:
            effort.objective(record.id, step, steps, float(found[i]))
    effort.note(f"{what}: step {step + 1} of {steps}, {records[0].id}")
    return gradient, found
