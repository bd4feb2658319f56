"""The speed benchmark: ``python -m waterproof.bench.speed`` or ``tox -e speed``. Prints tables; asserts nothing.

Every claim is a ratio of two measurements of one run on one machine. An *image-attack* is one image under one attack:
its marked and its unmarked version attacked, both read, the marked one judged by PSNR and SSIM.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ..core.images import Images, Record
from ..core.seeds import Seed
from .benchmark import Benchmark, validate
from .engine import one_thread, run_inline, run_processes
from .plan import Plan, make_plan
from .run import _config, evaluate, open_tasks
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHARD = 8
_PLAIN: tuple[dict[str, Any], ...] = (
    {"jpeg": {"quality": [90, 50]}},
    {"webp": {"quality": 80}},
    {"crop": {"area": 0.5}},
    {"resize": {"scale": 0.5}},
    {"rotation": {"degrees": 9}},
    {"flip": {}},
    {"brightness": {"factor": 1.5}},
    {"contrast": {"factor": 1.5}},
    {"saturation": {"factor": 1.5}},
    {"sharpness": {"factor": 2.0}},
    {"gaussian-blur": {"sigma": 2.0}},
    {"median-blur": {"kernel": 5}},
    {"gaussian-noise": {"sd": 0.05}},
    {"erase": {"area": 0.1}},
)


def photographs(count: int, size: int) -> Images:
    """Real photographs, repeated as often as needed: only time is measured on them."""
    from ..core.registry import create
    from ..datasets.base import Dataset

    dataset = create("dataset", "samples", {"size": size})
    if not isinstance(dataset, Dataset):
        raise TypeError
    records = dataset.index().records[: min(count, 64)]
    arrays = {r.id: a for group in dataset.load(records)[0] for r, a in group}
    pick = [records[i % len(records)].id for i in range(count)]
    return Images.from_numpy(np.stack([arrays[i] for i in pick]), [Record(f"{n}-{i}") for n, i in enumerate(pick)])


def _save(images: Images, folder: Path) -> None:
    folder.mkdir()
    for i, picture in enumerate(images.pil()):
        picture.save(folder / f"{i:05d}.png", compress_level=1)


def _benchmark(folder: Path, method: str, attacks: list[Any], workers: int, name: str = "speed") -> Benchmark:
    return validate(
        {
            "name": name,
            "dataset": {"folder": {"root": str(folder), "policy": "native"}},
            "methods": [method],
            "attacks": attacks,
            "runtime": {"workers": workers, "shard": _SHARD},
        }
    )


@dataclass(frozen=True)
class Speed:
    """What a run of the engine reached.

    Attributes:
        rate: image-attacks per second.
        ideal: share of the ideal, the sum of component times measured alone in one process over the workers.
        busy: share of the workers' time that was spent inside components; what is missing from 1 is the engine's own
            work and waiting. ``ideal`` below ``busy`` means that components run slower side by side than alone: memory
            and caches are shared, whatever the engine does.
        attacks: number of attacks.
    """

    rate: float
    ideal: float
    busy: float
    attacks: int

    def __str__(self) -> str:
        return f"{self.rate:7.1f} /s   {self.ideal:4.0%} of the ideal, {self.busy:4.0%} busy in components"


def engine_rate(folder: Path, method: str, attacks: list[Any], workers: int) -> Speed:
    """Runs the engine and sets its rate beside the ideal.

    The rate is taken between the first and the last report of progress, so that the start of the worker processes
    (imports, a few seconds once) is no part of it. The ideal is the sum of all component times, taken alone in one
    process on a part of the same work, over the number of workers.
    """
    plan = make_plan(_benchmark(folder, method, attacks, workers))
    with tempfile.TemporaryDirectory(prefix="waterproof-") as out:
        component = _component_seconds(Path(out) / "alone", plan)
        store = Store(Path(out) / "run")
        store.begin(_config(plan), plan.index)
        tasks, units = open_tasks(plan, _SHARD, {})
        ticks: list[tuple[float, int]] = []

        def note(count: int, _doing: str = "") -> None:
            ticks.append((time.perf_counter(), count))

        run_processes(store, plan, tasks, note, workers)
        inside = sum(cost["seconds"] for cost in store.costs())
    seen = sum(n for _, n in ticks[1:])
    wall = (ticks[-1][0] - ticks[0][0]) * units / seen
    count = len(plan.records)
    attacked = len(plan.attacks)
    return Speed(count * attacked / wall, component * count / workers / wall, inside / workers / wall, attacked)


def _component_seconds(folder: Path, plan: Plan) -> float:
    """Seconds an image of all components together, in one process with nothing beside it; the first shard warms up."""
    store = Store(folder)
    store.begin(_config(plan), plan.index)
    tasks, _ = open_tasks(plan, _SHARD, {})
    part = tasks[:: max(1, len(tasks) // 4)][:4]
    run_inline(store, plan, part, _silent)
    counted = {task.shard for task in part[1:]}
    images = sum(len(plan.shards(_SHARD)[number]) for number in counted)
    return float(sum(cost["seconds"] for cost in store.costs() if cost["shard"] in counted)) / images


def _silent(_units: int, _doing: str = "") -> None:
    return None


def component_table(size: int, count: int = 8) -> list[tuple[str, str, float]]:
    """Milliseconds an image of every part of the distortions preset, in one thread."""
    from .benchmark import load_benchmark

    images = photographs(count, size)
    plan_attacks = load_benchmark("distortions").expanded_attacks()
    rows: list[tuple[str, str, float]] = []
    seed = Seed.root(0)
    with one_thread():
        for attack in plan_attacks:
            rows.append(("attack", attack.label, _milliseconds(partial(attack.apply, images, seed), count)))
        for name in ("dwt-dct", "dwt-dct-svd"):
            rows += _method_rows(name, images, count)
        rows += _metric_rows(images, count)
    return rows


def _method_rows(name: str, images: Images, count: int) -> list[tuple[str, str, float]]:
    import torch

    from ..core.registry import create
    from .methods.base import Watermark

    method = create("method", name)
    if not isinstance(method, Watermark):
        raise TypeError
    keys = torch.zeros((len(images), method.bits), dtype=torch.bool)
    return [
        ("mark", name, _milliseconds(lambda: method.embed(images, keys, Seed.root(0)), count)),
        ("read", name, _milliseconds(lambda: method.decode(images), count)),
    ]


def _metric_rows(images: Images, count: int) -> list[tuple[str, str, float]]:
    from ..core.registry import create
    from .metrics import Metric

    rows = []
    for name in ("psnr", "ssim"):
        metric = create("metric", name)
        if isinstance(metric, Metric):
            state = metric.prepare(images)
            other = images.with_pixels(images.numpy()[:, ::-1])
            rows.append(("metric", name, _milliseconds(partial(metric.compare, other, state), count)))
    return rows


def _milliseconds(call: Callable[[], object], count: int, repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) / count * 1000


def plain_rate(images: Images, package_method: str) -> float:
    """Image-attacks per second of a plain loop: invisible-watermark, Pillow and scikit-image, one image at a time."""
    from imwatermark import WatermarkDecoder, WatermarkEncoder
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bits", 32)
    encoder.set_by_bits([0, 1] * 16)
    attacks = _plain_attacks()
    started = time.perf_counter()
    for array in images.numpy():
        bgr = encoder.encode(np.ascontiguousarray(array[..., ::-1]), package_method)
        marked = np.ascontiguousarray(bgr[..., ::-1])
        for attack in attacks:
            hit, clean = (np.asarray(attack(Image.fromarray(a))) for a in (marked, array))
            decoder.decode(np.ascontiguousarray(hit[..., ::-1]), package_method)
            decoder.decode(np.ascontiguousarray(clean[..., ::-1]), package_method)
            with np.errstate(divide="ignore"):
                peak_signal_noise_ratio(marked, hit)
            structural_similarity(
                marked,
                hit,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=255,
            )
    return len(images) * len(attacks) / (time.perf_counter() - started)


def _plain_attacks() -> list[Callable[[Image.Image], Image.Image]]:
    """The same list as ``_PLAIN``, as a person would write it with Pillow and NumPy."""

    def codec(image: Image.Image, kind: str, quality: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

    def crop(image: Image.Image) -> Image.Image:
        w, h = image.size
        side = 0.5**0.5 / 2
        box = (w * (0.5 - side), h * (0.5 - side), w * (0.5 + side), h * (0.5 + side))
        return image.crop(box).resize(image.size, Image.Resampling.BILINEAR)

    def noise(image: Image.Image) -> Image.Image:
        values = np.asarray(image) + np.random.default_rng(0).normal(0, 0.05 * 255, (*image.size[::-1], 3))
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

    def erase(image: Image.Image) -> Image.Image:
        values = np.array(image)
        side = int(image.size[0] * 0.1**0.5)
        values[:side, :side] = 0
        return Image.fromarray(values)

    def halve(image: Image.Image) -> Image.Image:
        small = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BILINEAR)
        return small.resize(image.size, Image.Resampling.BILINEAR)

    return [
        lambda i: codec(i, "JPEG", 90),
        lambda i: codec(i, "JPEG", 50),
        lambda i: codec(i, "WEBP", 80),
        crop,
        halve,
        lambda i: i.rotate(9, Image.Resampling.BILINEAR),
        lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda i: ImageEnhance.Brightness(i).enhance(1.5),
        lambda i: ImageEnhance.Contrast(i).enhance(1.5),
        lambda i: ImageEnhance.Color(i).enhance(1.5),
        lambda i: ImageEnhance.Sharpness(i).enhance(2.0),
        lambda i: i.filter(ImageFilter.GaussianBlur(2.0)),
        lambda i: i.filter(ImageFilter.MedianFilter(5)),
        noise,
        erase,
    ]


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Samples the resident memory of this process and its children; the list's only entry becomes the peak in bytes."""
    import psutil

    me, peak, stop = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def memory(images: int, out: Path) -> int:
    """Peak bytes of a run over ``images`` procedural images at 256 px, both DWT marks, all its processes together."""
    with peak_memory() as peak:
        evaluate(
            ["dwt-dct", "dwt-dct-svd"],
            {"deadleaves": {"count": images, "size": 256}},
            ["identity", {"jpeg": {"quality": [80, 50]}}, {"gaussian-blur": {"sigma": 1.0}}],
            out=out,
        )
    return peak[0]


def _full() -> list[Any]:
    from .benchmark import load_benchmark

    return [ref.model_dump() for ref in load_benchmark("distortions-full").attacks]


def main() -> None:
    """Runs the benchmark and prints its tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=64, help="images for the engine's rate at 256 px")
    parser.add_argument("--plain", type=int, default=6, help="images for the plain loop")
    parser.add_argument("--memory", type=int, default=2000, help="images of the long memory run; 0 leaves it out")
    given = parser.parse_args()
    cores = os.cpu_count() or 1
    say(f"{cores} cores\n")
    with tempfile.TemporaryDirectory(prefix="waterproof-") as name:
        folder = Path(name)
        _say_rates(folder, given.images, cores)
        _say_ratios(folder, given.images, given.plain, cores)
        if given.memory:
            small, large = (memory(n, folder / f"memory-{n}") / 2**20 for n in (given.memory // 10, given.memory))
            say(f"peak memory: {small:.0f} MiB for {given.memory // 10} images, {large:.0f} MiB for {given.memory}")
            say(f"  ratio {large / small:.3f}\n")
    for size in (256, 512):
        say(f"milliseconds an image, one thread, {size} px")
        for kind, label, ms in component_table(size):
            say(f"  {kind:<8}{label:<62}{ms:9.2f}")


def _say_rates(folder: Path, count: int, cores: int) -> None:
    say("engine: image-attacks per second, dwt-dct, PSNR and SSIM, attacked negatives included")
    for size, images in ((256, count), (512, count // 2)):
        _save(photographs(images, size), folder / f"rate-{size}")
        speed = engine_rate(folder / f"rate-{size}", "dwt-dct", _full(), cores)
        say(f"  {size} px, {images} images x {speed.attacks} attacks: {speed}")
    say("")


def _say_ratios(folder: Path, count: int, plain: int, cores: int) -> None:
    say("against a plain loop (invisible-watermark, Pillow, scikit-image, one image at a time, one core)")
    for size in (256, 512):
        for method, package in (("dwt-dct", "dwtDct"), ("dwt-dct-svd", "dwtDctSvd")):
            images = folder / f"ratio-{size}"
            if not images.exists():
                _save(photographs(3 * count, size), images)
            with one_thread():
                slow = plain_rate(photographs(plain, size), package)
            speed = engine_rate(images, method, list(_PLAIN), cores)
            say(
                f"  {method:<12}{size} px, {speed.attacks} attacks: plain {slow:5.1f} /s   engine {speed}   "
                f"ratio {speed.rate / slow:5.1f}"
            )
    say("")


def say(text: str) -> None:
    """Prints a line at once."""
    import sys

    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
