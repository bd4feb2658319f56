"""Images to look at: original, marked, their amplified difference, and the marked image after an attack."""

from __future__ import annotations

import base64
import io
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..bench.adversary import Adversary
from ..bench.benchmark import validate
from ..bench.plan import Plan, make_plan
from ..bench.shard import apply_attack, attack_seed, describe_error, make_pair
from ..core.seeds import Seed

if TYPE_CHECKING:
    import pandas as pd

    from ..bench.methods.base import Pair
    from ..bench.results import Run
    from ..core.images import Images

AMPLIFY = 12
"""Factor by which the difference between marked and unmarked is shown."""


@dataclass(frozen=True)
class Exhibit:
    """One row of the gallery.

    Attributes:
        method: label of the method.
        attack: label of the attack.
        why: ``clearest`` or ``worst`` cell, or ``forged``.
        image: id of the image.
        caption: numbers of this image and of its cell.
        pictures: (title, data URI) pairs.
    """

    method: str
    attack: str
    why: str
    image: str
    caption: str
    pictures: tuple[tuple[str, str], ...]


def choose(summary: pd.DataFrame, method: str) -> list[tuple[str, str]]:
    """The clearest and the worst attacked cell of a method: (attack, why) pairs."""
    column = "tpr" if "tpr" in summary and summary["tpr"].notna().any() else "bit_accuracy"
    if column not in summary:
        return []
    rows = summary[(summary["method"] == method) & (summary["attack_name"] != "identity")].dropna(subset=[column])
    if rows.empty:
        return []
    by = [column] + (["bit_accuracy"] if "bit_accuracy" in rows and column != "bit_accuracy" else [])
    rows = rows.sort_values(by, kind="stable")
    worst, best = rows.iloc[0]["attack"], rows.iloc[-1]["attack"]
    return [(str(best), "clearest")] + ([(str(worst), "worst")] if worst != best else [])


def choose_forgery(summary: pd.DataFrame, method: str) -> list[tuple[str, str]]:
    """The forgery of a method's mark that is accepted most often: (attack, "forged"), or nothing."""
    rows = summary[(summary["method"] == method) & (summary["attack_name"] == "forgery")]
    rows = rows.dropna(subset=["fpr"]) if "fpr" in rows else rows[:0]
    if rows.empty:
        return []
    return [(str(rows.sort_values("fpr", kind="stable").iloc[-1]["attack"]), "forged")]


def gallery(run: Run, summary: pd.DataFrame) -> tuple[list[Exhibit], str]:
    """Makes the gallery anew from the run's own recipe.

    Returns:
        the exhibits, and a sentence on what could not be shown (empty if all could).
    """
    try:
        plan = make_plan(validate(run.config["benchmark"]), run.store.index())
    except Exception as error:
        return [], f"The images are not at hand: {describe_error(error)}"
    exhibits: list[Exhibit] = []
    problems: list[str] = []
    for m, method in enumerate(run.methods):
        for attack, why in [*choose(summary, method), *choose_forgery(summary, method)]:
            try:
                exhibits.append(_exhibit(run, plan, m, attack, why))
            except Exception as error:
                problems.append(f"{method} under {attack}: {describe_error(error)}")
    return exhibits, "; ".join(problems)


def _exhibit(run: Run, plan: Plan, maker: int, attack: str, why: str) -> Exhibit:
    method = run.methods[maker]
    arm = "unmarked" if why == "forged" else "marked"
    sample = run.sample(method, attack, arm)
    middle = int(np.argsort(sample.values, kind="stable")[len(sample.values) // 2])
    image = str(sample.images[middle])
    record = next(r for r in plan.records if r.id == image)
    (group,) = plan.dataset.load([record])[0]
    pair = make_pair(plan, plan.methods[maker], group)
    index = next(i for i, a in enumerate(plan.attacks) if a.label == attack)
    attacked = _attacked(run, plan, index, maker, group, pair, arm)
    pictures: tuple[tuple[str, str], ...] = (("unmarked", picture_uri(_array(pair.unmarked))),)
    if why == "forged":
        change = _difference(pair.unmarked, attacked)
    else:
        change = _difference(pair.unmarked, pair.marked)
        pictures += (("marked", picture_uri(_array(pair.marked))),)
    pictures += ((f"difference x {AMPLIFY}", picture_uri(change)), (f"after {attack}", picture_uri(_array(attacked))))
    return Exhibit(method, attack, why, image, _caption(sample, middle), pictures)


def _attacked(run: Run, plan: Plan, index: int, maker: int, given: Images, pair: Pair, arm: str) -> Images:
    """An image after an attack, with what the run has learnt where the attack learns."""
    root = Seed.root(plan.benchmark.seed)
    images = pair.marked if arm == "marked" else pair.unmarked
    if not plan.attacks[index].knowledge:
        return apply_attack(plan, index, images, root)
    adversary = Adversary(plan, run.folder / "learnt")
    seed = attack_seed(plan, index, root)
    return adversary.attack(index, maker, given, pair, arm, seed, lambda *_: nullcontext())


def _caption(sample: Any, middle: int) -> str:
    if sample.bits:
        return f"{int(sample.values[middle])} of {sample.bits} bits read right (the median image of this cell)"
    return f"score {sample.values[middle]:.4g} (the median image of this cell)"


def _array(images: Images) -> np.ndarray:
    array: np.ndarray = images.numpy()[0]
    return array


def _difference(unmarked: Images, marked: Images) -> np.ndarray:
    change = _array(marked).astype(int) - _array(unmarked).astype(int)
    shown: np.ndarray = np.clip(128 + AMPLIFY * change, 0, 255).astype(np.uint8)
    return shown


def picture_uri(array: np.ndarray) -> str:
    """A picture ``[H, W, 3]`` inside a page, at most 512 pixels a side."""
    picture = Image.fromarray(array)
    if max(picture.size) > 512:
        picture.thumbnail((512, 512))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
