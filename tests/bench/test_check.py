"""The contract suite: it passes what keeps its contract and names the promise that something breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from waterproof.bench import check as checks
from waterproof.bench.check import Checked, check_component, find_kind, sample_images
from waterproof.core.components import build
from waterproof.core.errors import SpecError, UnavailableError
from waterproof.core.registry import entries, load_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Check = Callable[..., dict[str, Checked]]

PARTS = """\
from typing import ClassVar
import numpy as np
import torch
from waterproof.attacks.base import Attack
from waterproof.bench.methods.base import Detector, Evidence, Pair, Watermark
from waterproof.bench.metrics import Metric
from waterproof.core.components import param
from waterproof.core.images import Images, Record, group_by_size
from waterproof.datasets.base import Dataset, Index

class GoodMark(Watermark):
    bits: ClassVar[int] = 8
    def embed(self, images, keys, seed):
        pixels = images.numpy().copy()
        for i, key in enumerate(keys.numpy()):
            blue = pixels[i, :, :, 2]
            blue[...] = blue & 254 | np.resize(key, blue.shape)
        return images.with_pixels(pixels)
    def decode(self, images):
        blue = images.numpy()[..., 2] & 1
        votes = blue.reshape(len(images), -1)[:, : blue[0].size // 8 * 8].reshape(len(images), -1, 8).mean(axis=1)
        return Evidence(logits=torch.from_numpy((votes - 0.5).astype(np.float32)))

class GoodDetector(Detector):
    def score(self, images):
        return Evidence(score=torch.from_numpy(images.numpy().mean(axis=(1, 2, 3))))

class GoodAttack(Attack):
    family: ClassVar[str] = "degradation"
    strength: ClassVar[str] = "sd"
    seeded: ClassVar[bool] = True
    sd: float = param(5.0, ge=0, doc="standard deviation in grey levels")
    def apply(self, images, seed):
        pixels = [a + seed.child(r.id).numpy().normal(0, self.sd, a.shape) for r, a in images]
        return images.with_pixels(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

class GoodMetric(Metric):
    better: ClassVar[str] = "lower"
    def compare(self, images, prepared):
        return np.abs(images.numpy().astype(float) - prepared.numpy()).mean(axis=(1, 2, 3))

class GoodDataset(Dataset):
    def index(self, tick=None):
        return Index(tuple(Record(str(i)) for i in range(4)))
    def load(self, records):
        return group_by_size([(r, np.full((8, 8, 3), int(r.id), np.uint8)) for r in records]), []

# Watermarks that break one promise each ------------------------------------------------------------------------------

class Unread(GoodMark):
    def decode(self, images):
        return Evidence(logits=-torch.ones(len(images), 8))

class InPlace(GoodMark):
    def embed(self, images, keys, seed):
        images.pixels[:, 2] //= 2
        images.pixels[:, 2] *= 2
        return super().embed(images, keys, seed)

class Crowd(GoodMark):
    def embed(self, images, keys, seed):
        marked = super().embed(images, keys, seed).numpy().copy()
        marked[..., 0] = marked[..., 0].mean()
        return images.with_pixels(marked)

class CrowdReader(GoodMark):
    def decode(self, images):
        logits = super().decode(images).logits
        return Evidence(logits=logits - logits.mean() / 100)

class WrongShape(GoodMark):
    def decode(self, images):
        return Evidence(logits=torch.ones(len(images), 7))

class NotANumber(GoodMark):
    def decode(self, images):
        return Evidence(logits=super().decode(images).logits * float("nan"))

class InPlaceReader(GoodMark):
    def decode(self, images):
        images.pixels[:, 0] = 0
        return super().decode(images)

class Reversed(GoodMark):
    def embed(self, images, keys, seed):
        return super().embed(images.take([2, 1, 0][: len(images)]) if len(images) == 3 else images, keys, seed)

class Raising(GoodMark):
    def embed(self, images, keys, seed):
        raise RuntimeError("out of ink")

class Undeclared(GoodMark):
    force: int = 3

class Unpicklable(GoodMark):
    def __reduce__(self):
        raise TypeError("cannot be pickled")

# Others --------------------------------------------------------------------------------------------------------------

class MeanDetector(GoodDetector):
    def score(self, images):
        return Evidence(score=torch.full((len(images),), float(images.numpy().mean())))

class Silent(GoodDetector):
    def score(self, images):
        return Evidence()

class Unseeded(GoodAttack):
    seeded: ClassVar[bool] = False

class SharedDraw(GoodAttack):
    def apply(self, images, seed):
        noise = seed.numpy().normal(0, self.sd, images.numpy().shape)
        return images.with_pixels(np.clip(images.numpy() + noise, 0, 255).astype(np.uint8))

class Bare(GoodAttack):
    def apply(self, images, seed):
        return images.numpy()

class Homeless(GoodAttack):
    family: ClassVar[str] = ""

class NoField(GoodAttack):
    strength: ClassVar[str] = "sigma"

class Dimmer(GoodAttack):
    seeded: ClassVar[bool] = False
    def apply(self, images, seed):
        images.pixels.div_(2, rounding_mode="floor")
        return images

class Backwards(GoodMetric):
    better: ClassVar[str] = "higher"

class OneNumber(GoodMetric):
    def compare(self, images, prepared):
        return np.array([1.0])

class Repeating(GoodDataset):
    def index(self, tick=None):
        return Index((Record("1"), Record("1")))

class Growing(GoodDataset):
    _asked: ClassVar[list] = []
    def index(self, tick=None):
        self._asked.append(1)
        return Index(tuple(Record(str(i)) for i in range(len(self._asked))))

class Neighbours(GoodDataset):
    def load(self, records):
        return group_by_size([(r, np.full((8, 8, 3), len(records), np.uint8)) for r in records]), []

class Absent(GoodMark):
    def unavailable(self):
        return "needs the package 'glue': pip install glue"

class Half(Watermark):
    bits: ClassVar[int] = 8
    def decode(self, images):
        return Evidence(logits=torch.zeros(len(images), 8))

class Nothing:
    pass
"""


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks a class of the text above: the results by promise."""
    file = tmp_path / "parts.py"
    file.write_text(PARTS)

    def run(name: str, **params: Any) -> dict[str, Checked]:
        return {result.promise: result for result in check_component(f"{file}:{name}", params)}

    return run


@pytest.mark.parametrize("name", ["GoodMark", "GoodDetector", "GoodAttack", "GoodMetric", "GoodDataset"])
def test_a_component_of_a_user_that_keeps_its_contract_passes(check: Check, name: str) -> None:
    results = check(name)
    assert [r for r in results.values() if not r.ok] == []
    assert len(results) >= 5


EDITOR = {"editor": {"name": "image-to-image", "params": {"steps": 2}}}
BUILT_IN: dict[str, dict[str, Any]] = {"chain": {"attacks": ["flip", "jpeg"]}, "edit": EDITOR}
BRIEF: dict[str, dict[str, Any]] = {
    "impress": {"steps": 1, "distance": "watson-1993"},
    "inversion-regeneration": {"steps": 2},
    "diffpure": {"level": 0.05, "steps": 1},
    "gridpure": {"rounds": 1, "steps": 1},
    "noisy-upscaling": {"steps": 1},
    "photoguard": {"steps": 1},
    "mist": {"steps": 1},
    "cloak": {"steps": 1, "sampling_steps": 3, "distance": "watson-1993"},
    "image-to-image": {"steps": 2},
}
"""What takes many steps by default takes few here, and small images."""
NEEDS_FILES = ("folder", "folder-marked")


@pytest.mark.parametrize("name", [n for _, n in entries() if n not in (*NEEDS_FILES, "rivagan", "lpips")])
def test_every_built_in_component_keeps_its_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = find_kind(name)
    part = build(load_class(kind, name), {**BUILT_IN.get(name, {}), **BRIEF.get(name, {})})
    if reason := part.unavailable():
        pytest.skip(reason)
    if getattr(part, "family", "") in ("regeneration", "purification") or name in (*BRIEF, "edit", "reconstruction"):
        monkeypatch.setattr(checks, "sample_images", lambda side=48: sample_images(side))
    results = list(check_component(name, part.model_dump()))
    assert [r for r in results if not r.ok] == []
    # A metric without a reference has nothing to be ordered by.
    assert len(results) >= 5 - (not getattr(part, "compares", True))


@pytest.mark.parametrize(
    ("name", "promise", "detail"),
    [
        ("Unread", "reads its own mark", "bit accuracy on its own marked images is 0."),
        ("InPlace", "marking leaves its input alone", "changed its input"),
        ("Crowd", "marking does not depend on the batch", "image 0 is marked otherwise alone than in a batch"),
        ("CrowdReader", "scoring does not depend on the batch", "scores otherwise alone than in a batch"),
        ("WrongShape", "scoring returns finite evidence of the right shape", "[3, 7], expected [3, 8]"),
        ("NotANumber", "scoring returns finite evidence of the right shape", "NaN"),
        ("InPlaceReader", "scoring leaves its input alone", "changed its input"),
        ("Reversed", "marking returns images of the same records", "must return Images with the same records"),
        ("Raising", "marking returns images of the same records", "RuntimeError: out of ink"),
        ("Undeclared", "every parameter is declared with param() or knob()", "neither param() nor knob(): force"),
        ("Unpicklable", "survives pickling", "TypeError: cannot be pickled"),
        ("MeanDetector", "scoring does not depend on the batch", "image 0 scores otherwise alone than in a batch"),
        ("Silent", "scoring returns finite evidence of the right shape", "silent"),
        ("Unseeded", "draws only from the seed", "uses its seed but says seeded = False"),
        ("SharedDraw", "does not depend on batch or order", "is attacked otherwise alone than in a batch"),
        ("Bare", "returns images of the same records", "must return Images with the same records"),
        ("Homeless", "declares family and strength", "no family"),
        ("NoField", "declares family and strength", "its strength 'sigma' is no field"),
        ("Dimmer", "leaves its input alone", "changed its input"),
        ("Backwards", "nothing is better than the reference itself", "judged worse against itself"),
        ("OneNumber", "one finite number for each image", "returned array([1.])"),
        ("Repeating", "ids are unique", "ids repeat"),
        ("Growing", "lists the same images twice", "two indexes differ"),
        ("Neighbours", "loading does not depend on the batch", "depends on what is loaded with it"),
    ],
)
def test_a_broken_promise_is_named_with_what_happened_instead(
    check: Check, name: str, promise: str, detail: str
) -> None:
    result = check(name)[promise]
    assert not result.ok
    assert detail in result.detail


@pytest.mark.parametrize(
    "name", ["Unread", "InPlace", "Undeclared", "Unpicklable", "Unseeded", "Homeless", "Backwards"]
)
def test_a_component_that_breaks_one_promise_keeps_the_others(check: Check, name: str) -> None:
    assert sum(not result.ok for result in check(name).values()) == 1


def test_parameters_are_passed_on(check: Check) -> None:
    assert all(result.ok for result in check("GoodAttack", sd=0).values())
    with pytest.raises(SpecError, match=r"goodattack: unknown parameter 'ds'\. Did you mean 'sd'\?"):
        check("GoodAttack", ds=1)


def test_what_is_not_here_is_not_checked_and_says_what_to_install(check: Check) -> None:
    with pytest.raises(UnavailableError, match="absent: needs the package 'glue': pip install glue"):
        check("Absent")


def test_a_class_that_leaves_something_out_is_told_what(check: Check) -> None:
    with pytest.raises(SpecError, match="half cannot be used: it lacks embed, which every method defines"):
        check("Half")


def test_a_class_that_is_no_component_is_told_what_to_derive_from(check: Check) -> None:
    with pytest.raises(SpecError, match="Nothing is no component: derive it from Watermark, Detector, Protection"):
        check("Nothing")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("jpg", "nothing is called 'jpg'. Did you mean 'jpeg'?"),
        ("samples.py:Mark", "no such file: samples.py"),
        ("no_such_module:Mark", "no such module"),
    ],
)
def test_a_wrong_target_gives_one_line(target: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        list(check_component(target))
    assert says in str(caught.value)


def test_the_kind_of_a_target_is_found(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    kinds = {name: find_kind(f"{tmp_path / 'parts.py'}:{name}") for name in ("GoodMark", "GoodAttack", "GoodMetric")}
    assert kinds == {"GoodMark": "method", "GoodAttack": "attack", "GoodMetric": "metric"}
    assert (find_kind("jpeg"), find_kind("samples")) == ("attack", "dataset")


def test_the_images_to_check_with_are_always_the_same() -> None:
    one, other = sample_images(), sample_images()
    assert one.ids == ("smooth", "texture", "flat")
    assert bytes(one.numpy().data) == bytes(other.numpy().data)
