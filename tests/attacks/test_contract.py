"""What every registered attack promises, whoever wrote it."""

from __future__ import annotations

import json
import pickle
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import pytest

from waterproof.attacks.base import HANDLES, Access, ModelAttack
from waterproof.core import registry
from waterproof.core.components import field_roles
from waterproof.core.errors import ContractError, SpecError
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from waterproof.attacks.base import Attack

NAMES = registry.names("attack")
LINKS = [{"crop": {"area": 0.7, "position": "random"}}, "gaussian-noise", {"jpeg": {"quality": 80}}]
CHOSEN: dict[str, dict[str, Any]] = {
    "chain": {"attacks": LINKS},
    "averaging": {"images": 5},
    "forgery": {"images": 5},
    "adverse-cleaner": {"bilateral": 4},
    "diffusion-regeneration": {"time": 20},
    "rinse": {"time": 20},
    "inversion-regeneration": {"steps": 2},
    "impress": {"steps": 1, "distance": "watson-1993"},
    "diffpure": {"level": 0.05, "steps": 1},
    "gridpure": {"rounds": 1, "steps": 1},
    "noisy-upscaling": {"steps": 1},
}
MORE: list[tuple[str, dict[str, Any]]] = [
    ("adverse-cleaner", {"bilateral": 2, "guided": 0}),
    ("diffpure", {"level": 0.05, "steps": 2, "solver": "ddim"}),
    ("non-local-means", {"patch": 3, "search": 9}),
    ("averaging", {"images": 3, "estimate": "clean", "scale": 0.5}),
    ("chain", {"attacks": ["flip", {"rotation": {"degrees": 90}}, {"chain": {"attacks": ["erase"]}}]}),
    ("chain", {"attacks": [{"collusion": {"users": 2}}, "jpeg"]}),
    ("collusion", {"users": 4, "how": "median"}),
    ("collusion", {"users": 4, "how": "paste", "tile": 20}),
    ("combined", {"resize_back": False}),
    ("crop", {"area": 0.3, "position": "random"}),
    ("crop", {"area": 0.3, "position": "random", "resize_back": False}),
    ("resize", {"side": 64, "back": False}),
    ("rotation", {"degrees": 20, "fit": "crop"}),
    ("rotation", {"degrees": 270}),
    ("flip", {"axis": "vertical"}),
    ("forgery", {"images": 3, "estimate": "smooth"}),
    ("gaussian-blur", {"sigma": 2, "kernel": 9}),
    ("jpeg", {"quality": 20, "subsampling": "4:4:4", "repeats": 3}),
    ("text", {"position": "centre", "colour": "black"}),
]
SEED = Seed.root(7).child("contract")


def attack_class(name: str) -> type[Attack]:
    return cast("type[Attack]", registry.load_class("attack", name))


ON_MODELS = [name for name in NAMES if issubclass(attack_class(name), ModelAttack)]
ON_IMAGES = [name for name in NAMES if name not in ON_MODELS]
CASES = [(name, CHOSEN.get(name, {})) for name in ON_IMAGES] + MORE
each_case = pytest.mark.parametrize(
    ("name", "params"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
KNOWING = [(n, p) for n, p in CASES if cast("Attack", registry.create("attack", n, p)).knowledge]
ORDERED = [name for name in NAMES if attack_class(name).strengths]


def make(name: str, params: dict[str, Any]) -> Attack:
    attack = cast("Attack", registry.create("attack", name, params))
    if reason := attack.unavailable():
        pytest.skip(reason)
    return attack


@pytest.fixture
def photographs(photographs: Images, request: pytest.FixtureRequest) -> Images:
    """The photographs; small cut-outs of them for attacks through networks, which have nothing to do with the size."""
    name = request.node.callspec.params.get("name", "")
    if attack_class(name).family not in ("regeneration", "purification"):
        return photographs
    return photographs.with_pixels(photographs.numpy()[:, 60:108, 90:138].copy())


@lru_cache(maxsize=8)
def drawn(size: tuple[int, int], what: str) -> np.ndarray:
    """Ten pictures, always the same."""
    return Seed.root(0).child(what).numpy().integers(0, 256, (10, *size, 3), dtype=np.uint8)


def holding(images: Images) -> Access:
    """What an adversary may hold of ``images``: others of their size, and the copies of other users."""

    def pictures(what: str, count: int) -> Images:
        return Images.from_numpy(drawn(images.size, what)[:count], [Record(f"{what} {i}") for i in range(count)])

    def copies(count: int) -> list[Images]:
        changes = [drawn(images.size, "copies")[user] // 32 for user in range(1, count)]
        return [images, *(images.with_pixels(images.numpy() // 2 + change) for change in changes)]

    def marked(count: int) -> Images:
        return pictures("marked", count)

    def unmarked(count: int) -> Images:
        return pictures("unmarked", count)

    return Access(samples=marked, counterparts=unmarked, clean=unmarked, copies=copies)


def applied(attack: Attack, images: Images, seed: Seed = SEED) -> Images:
    """The attack on ``images``, given what it must know of them."""
    return attack.prepare(holding(images).only_for(attack)).apply(images, seed)


def settings(name: str) -> list[Attack]:
    cls = attack_class(name)
    return [make(name, {**CHOSEN.get(name, {}), str(cls.strength): value}) for value in cls.strengths]


@pytest.fixture
def many_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    yield
    cv2.setNumThreads(before)


@each_case
def test_an_attack_returns_8_bit_images_of_the_same_records(name: str, params: dict[str, Any], photographs: Images):
    result = applied(make(name, params), photographs)
    assert result.numpy().dtype == np.uint8
    assert result.ids == photographs.ids
    assert result.numpy().shape[0] == 3


@each_case
def test_an_image_gets_the_same_result_alone_and_in_any_batch(name: str, params: dict[str, Any], photographs: Images):
    attack = make(name, params)
    together = applied(attack, photographs).numpy()
    for i in range(3):
        np.testing.assert_array_equal(applied(attack, photographs.take([i])).numpy()[0], together[i])
    np.testing.assert_array_equal(applied(attack, photographs.take([2, 0, 1])).numpy(), together[[2, 0, 1]])


@each_case
def test_the_number_of_threads_changes_nothing(
    name: str, params: dict[str, Any], photographs: Images, many_threads: None
):
    attack = make(name, params)
    with_four = applied(attack, photographs).numpy()
    cv2.setNumThreads(1)
    np.testing.assert_array_equal(applied(attack, photographs).numpy(), with_four)


@each_case
def test_an_attack_leaves_its_input_alone(name: str, params: dict[str, Any], photographs: Images):
    before = photographs.numpy().copy()
    applied(make(name, params), photographs)
    np.testing.assert_array_equal(photographs.numpy(), before)


@each_case
def test_an_attack_keeps_its_size_whatever_the_content(name: str, params: dict[str, Any], oblong: Images):
    black = oblong.with_pixels(np.zeros_like(oblong.numpy()))
    attack = make(name, params)
    assert applied(attack, black).size == applied(attack, oblong).size


@each_case
def test_an_aligned_attack_gives_back_the_size_once_undone(name: str, params: dict[str, Any], oblong: Images):
    attack = make(name, params)
    undone = attack.undo(applied(attack, oblong))
    assert undone.size == oblong.size or not attack.aligned


@each_case
def test_random_draws_follow_the_seed_and_nothing_else(name: str, params: dict[str, Any], photographs: Images):
    attack = make(name, params)
    first = applied(attack, photographs).numpy()
    again = applied(attack, photographs).numpy()
    other = applied(attack, photographs, Seed.root(8)).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) is not attack.seeded


@each_case
def test_two_ids_get_two_draws_only_where_the_attack_is_seeded(name: str, params: dict[str, Any], photographs: Images):
    attack = make(name, params)
    twins = Images(photographs.pixels[[0, 0]], (Record("one"), Record("other")))
    one, other = applied(attack, twins).numpy()
    assert np.array_equal(one, other) is not attack.seeded


@each_case
def test_a_spec_rebuilds_its_attack(name: str, params: dict[str, Any], photographs: Images):
    attack = make(name, params)
    spec = attack.spec()
    rebuilt = make(name, json.loads(json.dumps(spec.params)))
    assert rebuilt.spec().id == spec.id
    np.testing.assert_array_equal(applied(rebuilt, photographs).numpy(), applied(attack, photographs).numpy())


@each_case
def test_an_attack_travels_to_another_process(name: str, params: dict[str, Any], photographs: Images):
    attack = make(name, params)
    copy = pickle.loads(pickle.dumps(attack))  # noqa: S301
    assert copy == attack
    assert copy.spec().id == attack.spec().id
    np.testing.assert_array_equal(applied(copy, photographs).numpy(), applied(attack, photographs).numpy())


@pytest.mark.parametrize("name", [n for n in ON_IMAGES if attack_class(n).neutral is not None])
def test_the_neutral_strength_leaves_the_image(name: str, photographs: Images):
    cls = attack_class(name)
    attack = make(name, {**CHOSEN.get(name, {}), str(cls.strength): cls.neutral})
    assert attack.aligned
    result = applied(attack, photographs).numpy().astype(int)
    assert np.abs(result - photographs.numpy()).max() <= 1


@pytest.mark.parametrize("name", ORDERED)
def test_strengths_are_listed_in_order_of_damage(name: str):
    made = settings(name)
    damage = [attack.damage for attack in made]
    assert damage == sorted(damage)
    if made[0].harder:
        assert len(set(damage)) == len(damage)
    assert len({attack.spec().id for attack in made}) == len(made)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in ORDERED
        if n not in (*ON_MODELS, "crop", "rotation", "hue", "averaging", "forgery", "collusion", "impress", "gridpure")
    ],
)
def test_more_damage_means_more_error(name: str, photographs: Images):
    # Moved pixels and turned hues have no ordered pixel error, and who knows more of the mark harms the image less;
    # everything else has, on each side of neutral. Hundreds of evaluations of a network are not for here.
    made = settings(name)
    for sign in (-1, 1):
        side = [a for a in made if (cast("float", a.strength_value) - (a.neutral or 0)) * sign > 0]
        errors = []
        for attack in side:
            change = applied(attack, photographs).numpy().astype(float) - photographs.numpy()
            errors.append(float(np.mean(change**2)))
        assert errors == sorted(errors)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_identity_or_knob_and_documented(name: str):
    cls = registry.load_class("attack", name)
    assert "unclassified" not in field_roles(cls).values()
    assert all(info.description for info in cls.model_fields.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_class_agrees_with_its_catalogue_line(name: str):
    cls = attack_class(name)
    entry = registry.entries()["attack", name]
    assert (cls.name, cls.family, cls.summary) == (entry.name, entry.family, entry.summary)
    assert cls.strength is None or cls.strength in cls.model_fields
    assert bool(cls.strengths) is (cls.strength is not None)
    assert cls.__doc__


@pytest.mark.parametrize("name", ON_IMAGES)
def test_an_empty_batch_stays_empty(name: str, photographs: Images):
    assert len(applied(make(name, CHOSEN.get(name, {})), photographs.take([]))) == 0


@pytest.mark.parametrize("name", [n for n in ON_IMAGES if n != "text"])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (33, 1)])
def test_tiny_images_are_no_trouble(name: str, size: tuple[int, int]):
    tiny = Images.from_numpy(np.full((1, *size, 3), 90, np.uint8), [Record("tiny")])
    assert len(applied(make(name, CHOSEN.get(name, {})), tiny)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_asks_only_for_handles_that_there_are(name: str):
    assert make(name, CHOSEN.get(name, {})).knowledge <= set(HANDLES)


@pytest.mark.parametrize(("name", "params"), KNOWING, ids=lambda value: value if isinstance(value, str) else "")
def test_an_attack_that_must_know_something_says_so_when_it_was_told_nothing(
    name: str, params: dict[str, Any], photographs: Images
):
    attack = make(name, params)
    with pytest.raises(ContractError, match="was not prepared: it needs"):
        attack.apply(photographs, SEED)
    with pytest.raises(ContractError, match="was not given its"):
        attack.prepare(Access())


@pytest.mark.parametrize("name", ON_MODELS)
def test_an_attack_on_a_model_takes_no_images(name: str, photographs: Images):
    attack = make(name, {})
    assert attack.family == "model"
    assert "model" in attack.knowledge
    with pytest.raises(ContractError, match=f"{name}.* attacks the model that makes the images, not images"):
        attack.apply(photographs, SEED)


@pytest.mark.parametrize("name", ON_MODELS)
def test_an_attack_on_a_model_is_rebuilt_and_travels_as_it_is(name: str):
    attack = make(name, {})
    assert make(name, json.loads(json.dumps(attack.spec().params))).spec().id == attack.spec().id
    copy = pickle.loads(pickle.dumps(attack))  # noqa: S301
    assert copy == attack


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("averaging", {"images": 0}, "averaging: images: input should be greater than or equal to 1, not 0"),
        ("collusion", {"how": "vote"}, "'mean', 'median' or 'paste', not 'vote'"),
        ("quantise-decoder", {"bits": 1}, "quantise-decoder: bits: input should be greater than or equal to 2, not 1"),
        ("prune-decoder", {"share": 1.0}, "prune-decoder: share: input should be less than 1, not 1.0"),
        ("jpeg", {"quality": 0}, "jpeg: quality: input should be greater than or equal to 1, not 0"),
        ("jpeg", {"qualty": 50}, "jpeg: unknown parameter 'qualty'. Did you mean 'quality'?"),
        ("jpeg", {"subsampling": "4:1:1"}, "'4:2:0', '4:2:2' or '4:4:4', not '4:1:1'"),
        ("webp", {"method": 7}, "webp: method: input should be less than or equal to 6, not 7"),
        ("crop", {"area": 0}, "crop: area: input should be greater than 0, not 0"),
        ("resize", {"scale": 0.5, "side": 64}, "give either scale or side"),
        ("rotation", {"degrees": 400}, "rotation: degrees: input should be less than or equal to 360, not 400"),
        ("flip", {"axis": "diagonal"}, "'horizontal' or 'vertical', not 'diagonal'"),
        ("brightness", {"factor": float("nan")}, "brightness: factor: input should be a finite number"),
        ("gamma", {"gamma": 0}, "gamma: gamma: input should be greater than 0, not 0"),
        ("hue", {"shift": 0.6}, "hue: shift: input should be less than or equal to 0.5"),
        ("gaussian-blur", {"kernel": 4}, "gaussian-blur: kernel: a kernel has an odd number of pixels, e.g. 5, not 4"),
        ("median-blur", {"kernel": 4}, "median-blur: kernel: a kernel has an odd number of pixels, e.g. 5, not 4"),
        ("gaussian-noise", {"sd": 25}, "gaussian-noise: sd: input should be less than or equal to 1, not 25"),
        ("text", {"text": "  "}, "one line of visible characters"),
        ("text", {"text": "two\nlines"}, "one line of visible characters"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(name: str, params: dict[str, Any], says: str):
    with pytest.raises(SpecError) as caught:
        registry.create("attack", name, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
