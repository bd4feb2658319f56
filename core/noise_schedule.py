"""The noise schedule of a diffusion model: diffusers' schedulers for it, and what its network's output means."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

Solver = Literal["ddim", "dpm-solver"]
"""``ddim``: Song et al. 2021, eta 0. ``dpm-solver``: DPM-Solver++ (2M), Lu et al. 2022."""

_SCHEDULERS = {
    ("ddim", False): "DDIMScheduler",
    ("ddim", True): "DDIMInverseScheduler",
    ("dpm-solver", False): "DPMSolverMultistepScheduler",
    ("dpm-solver", True): "DPMSolverMultistepInverseScheduler",
}


def make_scheduler(schedule: Mapping[str, Any], solver: Solver, inverse: bool = False) -> Any:
    """A scheduler of diffusers for a model's schedule.

    Args:
        schedule: the configuration that the model was trained with.
        solver: of the probability-flow equation.
        inverse: whether it runs from image to noise.
    """
    import diffusers

    scheduler: Any = getattr(diffusers, _SCHEDULERS[(solver, inverse)])
    taken = inspect.signature(scheduler.__init__).parameters
    changes: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    if solver == "ddim":
        # Diffusers inverts these two spacings only.
        spacing = schedule.get("timestep_spacing", "leading")
        changes = {"clip_sample": False, "timestep_spacing": "leading" if spacing == "linspace" else spacing}
    return scheduler(**{name: value for name, value in {**schedule, **changes}.items() if name in taken})


KINDS = ("epsilon", "v_prediction", "sample")
"""What networks are trained to predict."""

NOISES = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""What of a scheduler's configuration says how much noise there is at each time; the rest is a sampler's taste."""


def set_times(scheduler: Any, steps: int) -> None:
    """Sets the times of so many evaluations, none of them below 0.

    Where times are counted from the end ("trailing"), diffusers counts in floating point and adds a time -1 for 62 of
    the numbers from 1 to 999, 61 the smallest: the noisiest of all, as Python counts.

    Args:
        scheduler: of :func:`make_scheduler`.
        steps: evaluations of the network.
    """
    with warnings.catch_warnings():
        # diffusers turns tensors into arrays in a way that NumPy 2 calls old.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps)
    kept = scheduler.timesteps >= 0
    if bool(kept.all()):
        return
    scheduler.timesteps = scheduler.timesteps[kept]
    scheduler.num_inference_steps = len(scheduler.timesteps)
    if hasattr(scheduler, "sigmas"):
        # One for each time, and the one where the last step ends.
        scheduler.sigmas = torch.cat([scheduler.sigmas[:-1][kept], scheduler.sigmas[-1:]])


def estimates(kind: str, noisy: torch.Tensor, predicted: torch.Tensor, alpha: torch.Tensor) -> tuple[Any, Any]:
    """The clean values and the noise that a network sees in ``noisy = sqrt(alpha) clean + sqrt(1 - alpha) noise``.

    Args:
        kind: what the network was trained to predict: ``epsilon`` (the noise), ``v_prediction`` (the velocity
            sqrt(alpha) noise - sqrt(1 - alpha) clean; Salimans and Ho 2022) or ``sample`` (the clean values).
        noisy: values with noise.
        predicted: the network's output, of the same shape.
        alpha: the cumulated alpha of the time step, 0 to 1.

    Returns:
        clean values and noise.

    Raises:
        UserError: another kind.
    """
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if kind == "epsilon":
        return (noisy - noise * predicted) / signal, predicted
    if kind == "v_prediction":
        return signal * noisy - noise * predicted, signal * predicted + noise * noisy
    if kind == "sample":
        return predicted, (noisy - signal * predicted) / noise
    raise UserError(f"prediction_type is one of {', '.join(KINDS)}, not {kind}")
