"""Attacks made of attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from waterproof.attacks.base import Access, Attack
from waterproof.attacks.chain import Chain, Combined, Identity
from waterproof.attacks.codec import Jpeg
from waterproof.attacks.degradation import GaussianNoise
from waterproof.attacks.geometry import Crop
from waterproof.attacks.photometric import Brightness
from waterproof.core import registry
from waterproof.core.components import knob, param
from waterproof.core.errors import SpecError
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from waterproof.core.images import Images

SEED = Seed.root(3)


class Curious(Attack):
    """Wants a decoder and remembers what it was given."""

    knowledge: ClassVar[frozenset[str]] = frozenset({"detector"})

    level: int = param(1, doc="A parameter.")
    workers: int = knob(1, doc="A runtime knob.")

    def apply(self, images: Images, seed: Seed) -> Images:
        return images

    def prepare(self, access: Access) -> Attack:
        assert access.decoder is not None
        assert access.queries is None
        return self.model_copy(update={"level": 99})


class Thief(Attack):
    """Asks for something that nobody hands out."""

    knowledge: ClassVar[frozenset[str]] = frozenset({"the-vault"})

    def apply(self, images: Images, seed: Seed) -> Images:
        return images


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Curious, Thief):
        monkeypatch.setattr(cls, "name", cls.__name__.lower())
    found = {"curious": Curious, "thief": Thief}
    load = registry.load_class
    monkeypatch.setattr(registry, "load_class", lambda kind, name: found.get(name) or load(kind, name))


def test_identity_returns_the_images(photographs: Images):
    assert Identity().apply(photographs, SEED) is photographs


def test_a_chain_is_its_links_one_after_another_on_8_bits(photographs: Images):
    chain = Chain(attacks=[{"gaussian-noise": {"sd": 0.1}}, {"brightness": {"factor": 0.5}}, "gaussian-noise"])
    by_hand = GaussianNoise(sd=0.1).apply(photographs, SEED.child("link", 0))
    by_hand = Brightness(factor=0.5).apply(by_hand, SEED.child("link", 1))
    by_hand = GaussianNoise().apply(by_hand, SEED.child("link", 2))
    np.testing.assert_array_equal(chain.apply(photographs, SEED).numpy(), by_hand.numpy())


def test_two_links_of_one_kind_draw_different_numbers(photographs: Images):
    grey = photographs.with_pixels(np.full((3, 64, 64, 3), 128, np.uint8))
    once = Chain(attacks=["gaussian-noise"]).apply(grey, SEED).numpy() - 128.0
    twice = Chain(attacks=["gaussian-noise", "gaussian-noise"]).apply(grey, SEED).numpy() - 128.0
    # Equal draws would double the deviation; independent ones add in squares.
    assert twice.std() / once.std() == pytest.approx(2**0.5, rel=0.02)


def test_spellings_of_one_chain_have_one_identity():
    spellings: list[Any] = [["jpeg"], [{"jpeg": {}}], [{"jpeg": None}], ({"jpeg": {"quality": 50, "repeats": 1}},)]
    assert len({Chain(attacks=spelling).spec().id for spelling in spellings}) == 1


def test_order_and_parameters_of_links_are_identity():
    chains: list[Any] = [["jpeg", "flip"], ["flip", "jpeg"], ["jpeg"], [{"jpeg": {"quality": 49}}, "flip"]]
    assert len({Chain(attacks=links).spec().id for links in chains}) == len(chains)


@pytest.mark.parametrize(
    "attack", [Chain(attacks=["jpeg"]), Chain(attacks=[{"chain": {"attacks": ["jpeg"]}}]), Combined()]
)
def test_a_new_version_of_a_link_is_a_new_identity(attack: Attack, monkeypatch: pytest.MonkeyPatch):
    before = attack.spec().id
    monkeypatch.setattr(Jpeg, "version", 2)
    assert attack.spec().id != before


def test_a_links_knob_is_kept_but_is_no_identity(registered: None):
    one, two = (Chain(attacks=[{"curious": {"workers": n}}]) for n in (1, 2))
    assert one.spec().id == two.spec().id
    assert two.links[0].workers == 2  # type: ignore[attr-defined]


def test_a_chain_is_labelled_by_its_links():
    assert Chain(attacks=["crop", {"jpeg": {"quality": 80}}]).label == "chain(crop(area=0.5) + jpeg(quality=80))"


def test_exact_geometry_is_undone_in_reverse_order(oblong: Images):
    chain = Chain(attacks=[{"rotation": {"degrees": 90}}, "flip", {"rotation": {"degrees": 180}}])
    assert chain.aligned
    result = chain.apply(oblong, SEED)
    assert result.size == (200, 120)
    np.testing.assert_array_equal(chain.undo(result).numpy(), oblong.numpy())


def test_a_chain_is_aligned_only_if_every_link_is():
    assert Chain(attacks=["jpeg", "flip"]).aligned
    assert not Chain(attacks=["jpeg", "crop", "flip"]).aligned


def test_a_chain_is_seeded_if_a_link_is():
    assert not Chain(attacks=["jpeg", "crop"]).seeded
    assert Chain(attacks=["jpeg", {"crop": {"position": "random"}}]).seeded


def test_a_chain_knows_what_its_links_know_and_passes_no_more(registered: None):
    chain = Chain(attacks=["jpeg", "curious"])
    assert chain.knowledge == {"detector"}
    everything = Access(queries=lambda images: torch.zeros(len(images)), decoder=lambda values: values)
    prepared = chain.prepare(everything)
    assert isinstance(prepared, Chain)
    assert prepared.links[1].level == 99  # type: ignore[attr-defined]
    assert chain.links[1].level == 1  # type: ignore[attr-defined]
    assert prepared.spec().params == chain.spec().params


def test_unknown_knowledge_is_refused(registered: None):
    with pytest.raises(SpecError, match="thief asks for unknown knowledge 'the-vault'"):
        Chain(attacks=["thief"]).prepare(Access())


def test_a_chain_is_unavailable_where_a_link_is(monkeypatch: pytest.MonkeyPatch):
    chain = Chain(attacks=["jpeg", "webp"])
    assert chain.unavailable() is None
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    assert "without WebP" in str(chain.unavailable())


@pytest.mark.parametrize(
    ("attacks", "says"),
    [
        (["jpg"], "chain: link 1: unknown attack 'jpg'. Did you mean 'jpeg'?"),
        (["flip", {"jpeg": {"qualty": 3}}], "chain: link 2: jpeg: unknown parameter 'qualty'. Did you mean 'quality'?"),
        ([{"crop": {"area": 2}}], "chain: link 1: crop: area: input should be less than or equal to 1, not 2"),
        ([{"chain": {"attacks": ["jpeg", "webb"]}}], "chain: link 1: chain: link 2: unknown attack 'webb'."),
        ([{"jpeg": {}, "flip": {}}], "chain: link 1 must be a name or one {name: parameters}"),
        ([{"jpeg": 80}], "chain: link 1 must be a name or one {name: parameters}"),
        ([["jpeg"]], "chain: link 1 must be a name or one {name: parameters}"),
        ("jpeg", "chain: attacks must be a list of names or of {name: parameters}, not 'jpeg'"),
        ([], "chain: attacks: tuple should have at least 1 item"),
    ],
)
def test_a_wrong_link_gives_one_clear_line(attacks: Any, says: str):
    with pytest.raises(SpecError) as caught:
        registry.create("attack", "chain", {"attacks": attacks})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resize_back", [True, False])
def test_combined_is_crop_then_brightness_then_jpeg(photographs: Images, resize_back: bool):
    by_hand = Crop(area=0.5, resize_back=resize_back).apply(photographs, SEED)
    by_hand = Jpeg(quality=80).apply(Brightness(factor=1.5).apply(by_hand, SEED), SEED)
    result = Combined(resize_back=resize_back).apply(photographs, SEED)
    np.testing.assert_array_equal(result.numpy(), by_hand.numpy())
    assert result.size == ((256, 256) if resize_back else (181, 181))
    assert not Combined(resize_back=resize_back).aligned
