"""What the trainings of diffusion models share: building, the target of a prediction, the running mean of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...core.errors import SpecError, first_line
from ...core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from .recipes import Recipe

T = TypeVar("T")


def build(recipe: Recipe, schedule: Mapping[str, Any], make: Callable[[], T]) -> tuple[T, Any]:
    """The networks with first weights from the recipe's seed, and the scheduler that adds noise.

    Args:
        recipe: the recipe.
        schedule: parameters of diffusers' ``DDIMScheduler``.
        make: makes the networks, drawing from torch's global generator.

    Raises:
        SpecError: the model or the schedule is not what diffusers takes.
    """
    from diffusers import DDIMScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Seed.root(recipe.seed).child("weights", recipe.kind).integer)
        try:
            made, scheduler = make(), DDIMScheduler(**schedule)
        except (TypeError, ValueError, NotImplementedError, ZeroDivisionError) as error:
            raise SpecError(f"{recipe.name}: model or schedule: {first_line(error)}") from None
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise SpecError(f"{recipe.name}: prediction_type is epsilon or v_prediction, not {kind}")
    return made, scheduler


def target(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """What the network should predict: the noise or the velocity, as the schedule says."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: torch.Tensor = scheduler.get_velocity(clean, noise, times)
    return velocity


def follow(pairs: Iterable[tuple[nn.Module, nn.Module]], average: float, step: int) -> None:
    """Moves running means towards the weights; the first steps weigh more, or the mean would begin at chance.

    Args:
        pairs: of a mean and what it follows.
        average: decay.
        step: from 0.
    """
    decay = min(average, (1 + step) / (10 + step))
    for mean, current in pairs:
        for a, b in zip(mean.parameters(), current.parameters(), strict=True):
            a.data.lerp_(b.detach(), 1 - decay)
