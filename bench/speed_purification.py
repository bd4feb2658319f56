"""Speed of IMPRESS and PhotoGuard: ``python -m waterproof.bench.speed_purification``. Prints tables; asserts nothing.

Images in batches against the same images one at a time, turn by turn in one run; what share of a step the networks
take; and whether memory grows with the number of images.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..attacks.purification import TRACKS, impress_objective
from ..core.holding import open_autoencoder
from ..core.perceptual import scaled_perceptual
from ..core.registry import create
from ..core.seeds import Seed
from .engine import one_thread
from .methods.protections.base import towards
from .speed import peak_memory, photographs, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..core.images import Images

_WATSON = "watson-1993"


def main() -> None:
    """Runs the benchmark and prints its tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=8, help="images of each measurement, a multiple of the batches")
    parser.add_argument("--steps", type=int, default=3, help="steps of each optimisation")
    parser.add_argument("--repeats", type=int, default=3, help="how often all turns are taken")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of the images, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="images in a step")
    given = parser.parse_args()
    if any(given.images % batch for batch in given.batches):
        parser.error(f"--images {given.images} must be a multiple of each of --batches {given.batches}")
    cores = os.cpu_count() or 1
    say(f"{cores} cores, {given.images} images, {given.steps} steps; median of {given.repeats} turns\n")
    _say_batches(given, 1)
    if cores > 1:
        _say_batches(given, cores)
    with one_thread():
        for size in given.sizes:
            for name, share in shares(size, given.repeats):
                say(f"{name}, {size} px: {share}")
        say("")
        for batch in given.batches[:2]:
            small, large = (memory(count, batch, given.steps) / 2**20 for count in (given.images, 8 * given.images))
            say(f"peak memory, impress at 256 px in batches of {batch}: {small:.0f} MiB for {given.images} images, "
                f"{large:.0f} MiB for {8 * given.images} (ratio {large / small:.3f})")  # fmt: skip


def _say_batches(given: argparse.Namespace, threads: int) -> None:
    say(f"images per second, {threads} thread{'s' if threads > 1 else ''}; in brackets the ratio to the first")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in given.sizes:
            images = photographs(given.images, size)
            for name in ("impress", "photoguard"):
                calls = [_work(name, images, given.steps, batch) for batch in given.batches]
                seconds = turns(calls, given.repeats)
                cells = [
                    f"{batch} at a time {given.images / own:6.2f} /s ({seconds[0] / own:.2f})"
                    for batch, own in zip(given.batches, seconds, strict=True)
                ]
                say(f"  {name:<11}{size:4d} px   " + "   ".join(cells))
    finally:
        torch.set_num_threads(before)
    say("")


def _work(name: str, images: Images, steps: int, batch: int) -> Callable[[], object]:
    """One component on all images."""
    seed = Seed.root(0)
    if name == "impress":
        attack: Any = create("attack", "impress", {"steps": steps, "distance": _WATSON, "batch": batch})
        return partial(attack.apply, images, seed)
    method: Any = create("method", "photoguard", {"steps": steps, "batch": batch})
    return partial(method.protect, images, seed)


def turns(calls: Iterable[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call; they take turns, so that whatever else the machine does meets all alike."""
    calls = list(calls)
    for call in calls:
        call()
    times = np.zeros((repeats, len(calls)))
    for i in range(repeats):
        for j, call in enumerate(calls):
            started = time.perf_counter()
            call()
            times[i, j] = time.perf_counter() - started
    return [float(value) for value in np.median(times, axis=0)]


def shares(size: int, repeats: int, steps: int = 5) -> list[tuple[str, str]]:
    """What share of an optimisation goes into the networks, forward and backward, of one image.

    The networks are run alone, as often as the optimisation runs them, in turns with it.
    """
    images, network = photographs(1, size), open_autoencoder("shipped")
    given = images.float()
    distance, unit = scaled_perceptual(_WATSON)
    start = (given + 0.02).clamp(0, 1)

    def again(what: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def loop() -> None:
            for _ in range(steps):
                leaf = start.clone().requires_grad_(True)
                torch.autograd.grad(what(leaf).sum(), leaf)

        return loop

    whole = impress_objective(network, given, distance, unit, TRACKS["editing"], "mean")
    impress, autoencoder, perceptual, one = turns(
        [
            _work("impress", images, steps, 1),
            again(network.reconstruct),
            again(lambda values: distance(values, given)),
            again(whole),
        ],
        repeats,
    )
    encoder = towards(network, torch.zeros(()), 0.0)
    photoguard, encoded = turns([_work("photoguard", images, steps, 1), again(encoder)], repeats)
    return [
        ("impress", f"{impress / steps * 1000:.0f} ms a step: autoencoder {autoencoder / impress:.1%}, perceptual "
                    f"distance {perceptual / impress:.1%}, objective as a whole {one / impress:.1%}"),
        ("photoguard", f"{photoguard / steps * 1000:.0f} ms a step: encoder {encoded / photoguard:.1%}"),
    ]  # fmt: skip


def memory(count: int, batch: int, steps: int) -> int:
    """Peak bytes of IMPRESS on ``count`` images of 256 px."""
    images = photographs(count, 256)
    with peak_memory() as peak:
        _work("impress", images, steps, batch)()
    return peak[0]


if __name__ == "__main__":
    main()
