"""One loop for every training: progress, checkpoints, resume with the same result, a budget of minutes.

Every draw of step i comes from a generator seeded by the recipe's seed and i, and the learning rate is a function of
i. So a checkpoint is the weights and the optimiser's sums; a training that was killed and resumed ends, on one machine,
with the bytes of one that was not.
"""

from __future__ import annotations

import math
import os
import pickle
import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import SpecError, StoreError, first_line
from ...core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from ...core.progress import Tick
    from .recipes import Recipe

_FORMAT = 1
CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint inside the folder of a training."""


class Task(ABC):
    """What is trained.

    Attributes:
        recipe: the recipe.
        data: digest of the training images.
        modules: the networks, trained or not, that a checkpoint holds.
    """

    recipe: Recipe
    data: str
    modules: dict[str, nn.Module]

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes: every parameter of ``modules`` that wants a gradient."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    @abstractmethod
    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of one step and numbers for the training curve.

        Args:
            step: from 0.
            generator: of every random draw of this step.
        """


@dataclass
class Trained:
    """How far a training has come.

    Attributes:
        step: steps that are done.
        steps: steps of the recipe.
        seconds: time spent in them, over all sittings.
        curve: rows of numbers, one every few steps.
    """

    step: int
    steps: int
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.step >= self.steps


def fit(
    task: Task, folder: Path, minutes: float | None = None, device: str = "cpu", tick: Tick | None = None
) -> Trained:
    """Trains, or goes on with what ``folder`` holds.

    Args:
        task: what to train.
        folder: where the checkpoint is.
        minutes: stop after so many; the next call goes on. None: until the end.
        device: ``cpu`` or ``cuda``.
        tick: progress, one unit for each step.

    Raises:
        StoreError: the checkpoint is damaged or belongs to another recipe or to other images.
    """
    recipe, started = task.recipe, time.perf_counter()
    for module in task.modules.values():
        module.to(device)
    optimizer = torch.optim.AdamW(
        task.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    done = _resume(task, optimizer, folder, device)
    before = done.seconds
    if tick is not None:
        tick(done.step, "")
    root = Seed.root(recipe.seed).child("train", recipe.kind)
    while not done.finished:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(done.step)
        loss, numbers = task.loss(done.step, root.child(done.step).torch())
        if not math.isfinite(numbers["loss"]):
            raise StoreError(
                f"the training of {recipe.name} diverged at step {done.step}: the loss is {numbers['loss']}; "
                "a smaller learning_rate, or clip: 1, would help"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(task.parameters(), recipe.clip)
        optimizer.step()
        if done.step % max(1, recipe.steps // 400) == 0:
            done.curve.append({"step": done.step, **numbers})
        done.step += 1
        done.seconds = before + time.perf_counter() - started
        if tick is not None:
            tick(1, ", ".join(f"{name} {value:.3g}" for name, value in numbers.items()))
        out_of_time = minutes is not None and time.perf_counter() - started > 60 * minutes
        if done.step % recipe.checkpoint == 0 or done.finished or out_of_time:
            _save(task, optimizer, done, folder)
        if out_of_time:
            break
    for module in task.modules.values():
        module.eval()
    return done


def _resume(task: Task, optimizer: torch.optim.Optimizer, folder: Path, device: str) -> Trained:
    path = folder / CHECKPOINT
    if not path.is_file():
        return Trained(0, task.recipe.steps)
    stored = _read(path, device)
    for key, mine, what in (("recipe", task.recipe.id, "recipe"), ("data", task.data, "set of training images")):
        if stored[key] != mine:
            raise StoreError(
                f"{path} belongs to another {what}: train into another folder, or delete the file to begin again"
            )
    try:
        for name, module in task.modules.items():
            module.load_state_dict(stored["modules"][name])
        optimizer.load_state_dict(stored["optimizer"])
        return Trained(stored["step"], task.recipe.steps, stored["seconds"], stored["curve"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path} does not fit its recipe ({error}): delete it to begin again") from None


def _read(path: Path, device: str) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            # About pickles of other programs, which are refused here anyway.
            warnings.simplefilter("ignore")
            stored = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise StoreError(f"{path} is damaged ({reason[:120]}): delete it to begin again") from None
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise StoreError(f"{path} is no checkpoint of this version: delete it to begin again")
    return stored


def _save(task: Task, optimizer: torch.optim.Optimizer, done: Trained, folder: Path) -> None:
    """Whole or not at all: a temporary file, then a rename."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "format": _FORMAT,
        "recipe": task.recipe.id,
        "data": task.data,
        "step": done.step,
        "seconds": done.seconds,
        "curve": done.curve,
        "modules": {name: module.state_dict() for name, module in task.modules.items()},
        "optimizer": optimizer.state_dict(),
    }
    temporary = folder / f".{CHECKPOINT}.{os.getpid()}"
    try:
        torch.save(state, temporary)
        temporary.replace(folder / CHECKPOINT)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {folder / CHECKPOINT}: {error}") from None


def choose_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where there is one, else ``cpu``.

    Raises:
        SpecError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise SpecError(f"device is auto, cpu or cuda, not '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise SpecError("torch sees no CUDA device here: use --device cpu")
    return name
