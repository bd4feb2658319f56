"""The contract suite: does a component keep what its contract promises? For built-in components and for yours."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..attacks.base import Access, Attack, ModelAttack
from ..core.autoencoders import load_autoencoder
from ..core.components import Component, build, field_roles
from ..core.errors import SpecError, UnavailableError, UserError, nearest
from ..core.images import Images, Record
from ..core.latent_diffusion import load_latent_diffusion
from ..core.registry import KINDS, entries, load_class
from ..core.seeds import Seed
from ..datasets.base import Dataset
from .editing import Editor
from .keys import key_bits
from .methods.base import Detector, Method, Protection, Watermark
from .metrics import Metric
from .shard import score


@dataclass(frozen=True, slots=True)
class Checked:
    """One promise and whether it was kept.

    Attributes:
        promise: what the contract says.
        ok: whether it was kept.
        detail: what happened instead.
    """

    promise: str
    ok: bool
    detail: str = ""


class _BrokenError(Exception):
    """A promise was not kept."""


def find_kind(target: str) -> str:
    """The kind of a registered name or of a ``file.py:Class``."""
    for kind, name in entries():
        if name == target:
            return kind
    if ":" in target:
        for kind in KINDS:
            try:
                load_class(kind, target)
            except SpecError as error:
                if "is no" not in str(error):
                    raise
                continue
            return kind
        raise SpecError(
            f"{target} is no component: derive it from Watermark, Detector, Protection, Attack, Dataset, Metric or "
            "Editor"
        )
    raise SpecError(f"nothing is called '{target}'.{nearest(target, [name for _, name in entries()])}")


def check_component(target: str, params: dict[str, Any] | None = None) -> Iterator[Checked]:
    """Runs every check that fits the component, one after another.

    Args:
        target: a registered name, or ``file.py:Class``.
        params: its parameters.

    Raises:
        SpecError: there is no such component, or a parameter is wrong.
        UnavailableError: it needs something that is not here.
    """
    kind = find_kind(target)
    part = build(load_class(kind, target), params or {})
    reason = part.unavailable()
    if reason:
        raise UnavailableError(f"{part.label}: {reason}")
    for promise, test in _checks(part):
        try:
            test()
        except (_BrokenError, UserError) as error:
            yield Checked(promise, False, str(error))
        except Exception as error:
            yield Checked(promise, False, f"{type(error).__name__}: {error}")
        else:
            yield Checked(promise, True)


Check = tuple[str, Callable[[], None]]


def _checks(part: Component) -> Iterator[Check]:
    yield "every parameter is declared with param() or knob()", lambda: _fields(part)
    yield "the spec is JSON and the same twice", lambda: _spec(part)
    yield "survives pickling", lambda: _pickles(part)
    if isinstance(part, Watermark):
        yield from _watermark(part)
    elif isinstance(part, Detector):
        yield from _scorer(part)
    elif isinstance(part, Protection):
        yield from _changes_images(partial(_protected, part), part)
        yield "keeps to its budget, rounded to grey levels", lambda: _budget(part)
    elif isinstance(part, Editor):
        yield from _changes_images(lambda images, seed: part.edit(images, "", seed), part)
    elif isinstance(part, ModelAttack):
        yield from _model_attack(part)
    elif isinstance(part, Attack):
        yield from _attack(part)
    elif isinstance(part, Metric):
        yield from _metric(part)
    elif isinstance(part, Dataset):
        yield from _dataset(part)


def _fields(part: Component) -> None:
    bad = [name for name, role in field_roles(type(part)).items() if role == "unclassified"]
    _need(not bad, f"neither param() nor knob(): {', '.join(bad)}")


def _spec(part: Component) -> None:
    _need(part.spec().id == build(type(part), part.model_dump()).spec().id, "two equal components differ in identity")


def _pickles(part: Component) -> None:
    _need(pickle.loads(pickle.dumps(part)) == part, "comes back changed")  # noqa: S301  our own bytes


def sample_images(side: int = 256) -> Images:
    """Three images to check with: smooth, textured and flat; always the same."""
    rng = Seed.root(0).child("check").numpy()
    y, x = np.mgrid[0:side, 0:side] / side
    smooth = np.stack([x, y, (x + y) / 2], axis=-1) * 200 + 28
    texture = rng.normal(128, 40, (side, side, 3))
    flat = np.full((side, side, 3), 126.0)
    arrays = np.clip(np.stack([smooth, texture, flat]), 0, 255).astype(np.uint8)
    names = ("smooth", "texture", "flat")
    # Marks that are born with the image need a prompt, if an empty one, and a seed.
    return Images.from_numpy(arrays, [Record(name, caption="", seed=i) for i, name in enumerate(names)])


def _unchanged(images: Images) -> bool:
    return bool((images.pixels == sample_images().pixels).all())


def _watermark(mark: Watermark) -> Iterator[Check]:
    seed = Seed.root(1)
    names = ("smooth", "texture", "flat")
    keys = torch.from_numpy(np.stack([key_bits("per-image", 2, mark.bits, name, mark.users) for name in names]))

    def pair_shape() -> None:
        images = sample_images()
        pair = mark.mark(images, keys, seed)
        for side in (pair.marked, pair.unmarked):
            _need(isinstance(side, Images) and side.ids == images.ids, "must return Images with the same records")

    def not_in_place() -> None:
        images = sample_images()
        mark.mark(images, keys, seed)
        _need(_unchanged(images), "changed its input")

    def alone() -> None:
        images = sample_images()
        together = mark.mark(images, keys, seed).marked.numpy()
        for i in range(3):
            single = mark.mark(images.take([i]), keys[i : i + 1], seed).marked.numpy()[0]
            _need(np.array_equal(single, together[i]), f"image {i} is marked otherwise alone than in a batch")

    def reads_back() -> None:
        pair = mark.mark(sample_images(), keys, seed)
        rows = score(mark, pair.marked)
        if mark.bits:
            hits = [float(((_value(r) > 0) == k.numpy()).mean()) for r, k in zip(rows, keys, strict=True)]
            _need(float(np.mean(hits)) > 0.6, f"bit accuracy on its own marked images is {np.mean(hits):.2f}")
        else:
            clean = score(mark, pair.unmarked)
            higher = sum(_value(m) > _value(c) for m, c in zip(rows, clean, strict=True))
            _need(int(higher) >= 2, "marked images do not score above unmarked ones")

    yield "marking returns images of the same records", pair_shape
    yield "marking leaves its input alone", not_in_place
    yield "marking does not depend on the batch", alone
    yield "reads its own mark", reads_back
    yield from _scorer(mark)


def _scorer(method: Method) -> Iterator[Check]:
    def evidence() -> None:
        score(method, sample_images())

    def not_in_place() -> None:
        images = sample_images()
        score(method, images)
        _need(_unchanged(images), "changed its input")

    def alone() -> None:
        images = sample_images()
        together = score(method, images)
        for i in range(3):
            (single,) = score(method, images.take([i]))
            same = np.array_equal(_value(single), _value(together[i]))
            _need(same, f"image {i} scores otherwise alone than in a batch")

    yield "scoring returns finite evidence of the right shape", evidence
    yield "scoring leaves its input alone", not_in_place
    yield "scoring does not depend on the batch", alone


def _value(row: Any) -> np.ndarray:
    return np.asarray(row.value if row.logits is None else row.logits)


def practice_access(images: Images) -> Access:
    """Handles as a run would give them: the images again and again, with a mark of three grey levels and without it."""

    def shifted(number: int, batch: Images) -> Images:
        pattern = 3 * (np.indices(batch.size).sum(axis=0) % (number + 2) - 1)[..., None]
        return batch.with_pixels(np.clip(batch.numpy().astype(int) + pattern, 0, 255).astype(np.uint8))

    def many(count: int) -> Images:
        samples = sample_images(min(images.size))
        return samples.take([i % len(samples) for i in range(count)])

    return Access(
        samples=lambda count: shifted(0, many(count)),
        counterparts=many,
        clean=many,
        copies=lambda count: [shifted(i, images) for i in range(count)],
    )


def _applied(attack: Attack, images: Images, seed: Seed) -> Images:
    """What an attack makes of images, given what it must know."""
    if attack.knowledge:
        attack = attack.prepare(practice_access(images).only_for(attack))
    return attack.apply(images, seed)


def _attack(attack: Attack) -> Iterator[Check]:
    yield from _changes_images(partial(_applied, attack), attack)
    yield "declares family and strength", lambda: _family(attack)


def _protected(protection: Protection, images: Images, seed: Seed) -> Images:
    return protection.protect(images, seed)


def _changes_images(change: Callable[[Images, Seed], Images], part: Component) -> Iterator[Check]:
    """What attacks, protections and editors promise alike."""
    seed = Seed.root(1)

    def shape() -> None:
        images = sample_images()
        out = change(images, seed)
        _need(isinstance(out, Images) and out.ids == images.ids, "must return Images with the same records")

    def not_in_place() -> None:
        images = sample_images()
        change(images, seed)
        _need(_unchanged(images), "changed its input")

    def alone() -> None:
        images = sample_images()
        together = change(images, seed).numpy()
        for i in (2, 0, 1):
            single = change(images.take([i]), seed).numpy()[0]
            _need(np.array_equal(single, together[i]), f"image {i} is attacked otherwise alone than in a batch")

    def seeds() -> None:
        first, again, other = (change(sample_images(), s).numpy() for s in (seed, seed, Seed.root(2)))
        _need(np.array_equal(first, again), "the same seed gives other images")
        _need(getattr(part, "seeded", True) or np.array_equal(first, other), "uses its seed but says seeded = False")

    yield "returns images of the same records", shape
    yield "leaves its input alone", not_in_place
    yield "does not depend on batch or order", alone
    yield "draws only from the seed", seeds


def _budget(protection: Protection) -> None:
    images, promised = sample_images(), protection.largest_change
    if promised is None:
        return
    change = protection.protect(images, Seed.root(1)).pixels.int() - images.pixels.int()
    _need(int(change.abs().max()) <= promised + 0.5, f"changes a value by {int(change.abs().max())}, not {promised:g}")


def _family(attack: Attack) -> None:
    _need(bool(attack.family), "no family")
    known = attack.strength is None or attack.strength in type(attack).model_fields
    _need(known, f"its strength '{attack.strength}' is no field")


def _model_attack(attack: ModelAttack) -> Iterator[Check]:
    """On the shipped models, at the attack's first strength."""
    easy = attack.model_copy(update={str(attack.strength): attack.strengths[0]} if attack.strengths else {})
    images = sample_images(64)

    def attacked(seed: int) -> torch.Tensor:
        original = load_autoencoder("shipped")
        access = replace(practice_access(images), model=original, original=original, others=lambda n: [original] * n)
        before = [p.clone() for p in original.model.parameters()]
        if attack.part == "decoder":
            changed = easy.change_decoder(access.only_for(attack), Seed.root(seed)).decoder_modules()["decoder"]
        else:
            model = load_latent_diffusion("shipped")
            changed = easy.change_diffusion(model, access.only_for(attack), Seed.root(seed)).unet
        same = all(torch.equal(a, b) for a, b in zip(before, original.model.parameters(), strict=True))
        _need(same, "changed the model that it was given")
        return torch.cat([p.detach().flatten() for p in changed.parameters()])

    def finite() -> None:
        _need(bool(torch.isfinite(attacked(1)).all()), "NaN or infinite weights")

    def seeds() -> None:
        a, b = attacked(1), attacked(1 if attack.seeded else 2)
        _need(torch.equal(a, b), "two attacks with one seed differ, or it draws but says seeded = False")

    yield "gives a model with finite weights and leaves the old one alone", finite
    yield "draws only from the seed", seeds
    yield "declares family and strength", lambda: _family(attack)


def _metric(metric: Metric) -> Iterator[Check]:
    images = sample_images()
    other = images.with_pixels(np.clip(images.numpy().astype(int) + 9, 0, 255).astype(np.uint8))

    def shape() -> None:
        values = metric.compare(other, metric.prepare(images))
        _need(values.shape == (3,) and not np.isnan(values).any(), f"returned {values!r}")

    def order() -> None:
        same, moved = (metric.compare(x, metric.prepare(images)) for x in (images, other))
        better = same >= moved if metric.better == "higher" else same <= moved
        _need(bool(better.all()), "an image is judged worse against itself than a changed one")

    yield "one finite number for each image", shape
    if metric.compares:
        yield "nothing is better than the reference itself", order


def _dataset(dataset: Dataset) -> Iterator[Check]:
    def stable() -> None:
        _need(dataset.index().digest == dataset.index().digest, "two indexes differ")

    def independent() -> None:
        records = dataset.index().records[:3]
        together = {r.id: a for group in dataset.load(records)[0] for r, a in group}
        for record in reversed(records):
            (group,) = dataset.load([record])[0]
            _need(
                np.array_equal(group.numpy()[0], together[record.id]), f"{record.id} depends on what is loaded with it"
            )

    def unique() -> None:
        ids = [record.id for record in dataset.index().records]
        _need(len(ids) == len(set(ids)), "ids repeat")

    yield "lists the same images twice", stable
    yield "ids are unique", unique
    yield "loading does not depend on the batch", independent


def _need(kept: bool, otherwise: str) -> None:
    if not kept:
        raise _BrokenError(otherwise)
