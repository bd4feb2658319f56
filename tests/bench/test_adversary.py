"""Adversaries who know something: what they are given, which cells they make, and what a run stores of them."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.attacks.averaging import Averaging
from waterproof.attacks.base import HANDLES, Access, Attack, ModelAttack
from waterproof.attacks.model import FineTuneDecoder
from waterproof.bench import run as run_module
from waterproof.bench.adversary import Adversary
from waterproof.bench.benchmark import validate
from waterproof.bench.check import check_component
from waterproof.bench.engine import Worker, one_thread
from waterproof.bench.keys import colluders, key_word
from waterproof.bench.methods.base import Detector, Evidence, Watermark
from waterproof.bench.plan import Plan, make_plan
from waterproof.bench.run import run_benchmark
from waterproof.bench.shard import Finished, run_shard
from waterproof.bench.statistics import binomial
from waterproof.bench.store import Store
from waterproof.core import registry
from waterproof.core.components import param
from waterproof.core.errors import ContractError, DatasetError, SpecError
from waterproof.core.seeds import Seed
from waterproof.core.weights import load_state, save_state
from waterproof.core.words import WordEncoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from waterproof.bench.results import Run
    from waterproof.core.images import Images

SIDE = 64
BITS = 16


class Chequered(Watermark):
    """A mark that is alike in every image, a chequered pattern turned over where a bit is 0, and noise of the content.

    There are 16 squares, one for each bit.
    """

    name: ClassVar[str] = "chequered"
    family: ClassVar[str] = "post-hoc"

    noise: int = param(0, doc="largest grey level of what else the mark does to the image", ge=0, le=100)

    @property
    def bits(self) -> int:
        return BITS

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        height, width = images.size
        squares = np.where(keys.numpy().reshape(-1, 4, 4), 3, -3)
        mark = squares.repeat(height // 4, axis=1).repeat(width // 4, axis=2) * chequers(height, width)
        values = images.numpy() + mark[..., None]
        draws = [seed.child(record.id).numpy() for record in images.records]
        values = values + np.stack([rng.integers(-self.noise, self.noise + 1, (height, width, 3)) for rng in draws])
        return images.with_pixels(np.clip(values, 0, 255).astype(np.uint8))

    def decode(self, images: Images) -> Evidence:
        height, width = images.size
        found = images.numpy().astype(np.float64).mean(axis=3) * chequers(height, width)
        squares = found.reshape(len(images), 4, height // 4, 4, width // 4).mean(axis=(2, 4))
        return Evidence(logits=torch.from_numpy(squares.reshape(len(images), BITS)).float())


def chequers(height: int, width: int) -> np.ndarray:
    return np.where(np.indices((height, width)).sum(axis=0) % 2, -1, 1)


class TwoUsers(Chequered):
    """Writes the keys of two users and no other."""

    name: ClassVar[str] = "two-users"

    @property
    def users(self) -> tuple[str, ...]:
        return "01" * 8, "0011" * 4


class Fussy(Chequered):
    """Marks no image but those of the dataset."""

    name: ClassVar[str] = "fussy"

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        if any(name > "deadleaves-0001" for name in images.ids):
            raise ValueError("never seen such an image")
        return super().embed(images, keys, seed)


class Brightness(Detector):
    """A passive detector."""

    name: ClassVar[str] = "brightness-detector"

    def score(self, images: Images) -> Evidence:
        return Evidence(score=images.float().double().mean(dim=(1, 2, 3)))


class Presence(Chequered):
    """A mark without a payload."""

    name: ClassVar[str] = "presence"

    @property
    def bits(self) -> int:
        return 0


class Clumsy(ModelAttack):
    """Learns for a long time and fails."""

    name: ClassVar[str] = "clumsy"
    learns: ClassVar[bool] = True
    knowledge: ClassVar[frozenset[str]] = frozenset({"model", "clean-images"})

    @property
    def holdings(self) -> int:
        return 2

    def change_decoder(self, access: Access, seed: Seed) -> Any:
        raise ValueError("the loss is not finite")


def mine(name: str, **params: Any) -> dict[str, Any]:
    """A component of this file, as a benchmark file names it."""
    return {f"{__file__}:{name}": params}


def leaves(count: int, first: int = 0, size: int = SIDE) -> dict[str, Any]:
    return {"deadleaves": {"count": count, "first": first, "size": size}}


def planned(**fields: Any) -> Plan:
    default = {
        "name": "b",
        "dataset": leaves(3),
        "methods": [mine("Chequered")],
        "metrics": [],
        "attacks": ["identity"],
    }
    return make_plan(validate({**default, **fields}))


# Who knows whom -----------------------------------------------------------------------------------------------------

USERS = ("010101", "001100", "110000", "110101", "000111", "111000")


def test_more_colluders_begin_with_the_same_ones_and_the_owner_is_none_of_them() -> None:
    most = colluders(3, USERS[1], 5, USERS)
    assert set(most) == set(USERS) - {USERS[1]}
    for count in range(6):
        assert colluders(3, USERS[1], count, USERS) == most[:count]


def test_where_any_key_can_be_written_colluders_get_keys_of_their_own() -> None:
    key = "01" * 16
    most = colluders(3, key, 50)
    assert len({*most, key}) == 51
    assert {len(other) for other in most} == {32}
    assert colluders(3, key, 7) == most[:7]


def test_colluders_follow_the_seed_and_the_key() -> None:
    drawn = [colluders(seed, key, 3, USERS) for seed in range(4) for key in USERS[:2]]
    assert drawn == [colluders(seed, key, 3, USERS) for seed in range(4) for key in USERS[:2]]
    assert len({tuple(one) for one in drawn}) > 4


def test_more_colluders_than_there_are_users_are_refused() -> None:
    with pytest.raises(ContractError, match="6 other users are wanted, there are 5"):
        colluders(0, USERS[0], 6, USERS)


@pytest.mark.parametrize("name", registry.names("attack"))
def test_an_attack_gets_the_handles_that_it_names_and_no_other(name: str) -> None:
    attack = cast("Attack", registry.create("attack", name, {"attacks": ["jpeg"]} if name == "chain" else {}))
    everything = Access(**dict.fromkeys(HANDLES.values(), "a handle"))  # type: ignore[arg-type]
    given = everything.only_for(attack)
    filled = {handle for handle in HANDLES.values() if getattr(given, handle) is not None}
    assert filled == {HANDLES[knowledge] for knowledge in attack.knowledge}


def test_a_chain_hands_each_link_its_own_handles_only() -> None:
    chain = cast("Attack", registry.create("attack", "chain", {"attacks": ["collusion", "averaging"]}))
    assert chain.knowledge == {"marked-samples", "unmarked-counterparts", "copies"}
    asked: list[str] = []

    def copies(count: int) -> list[Images]:
        asked.append("copies")
        return []

    def samples(count: int) -> Images:
        asked.append("samples")
        raise LookupError

    with pytest.raises(LookupError):
        chain.prepare(Access(samples=samples, counterparts=samples, copies=copies, clean=samples))
    assert asked == ["samples"]


# Which cells --------------------------------------------------------------------------------------------------------


def skipped(plan: Plan) -> dict[str, set[str | None]]:
    """Reasons by the label of the attack."""
    found: dict[str, set[str | None]] = defaultdict(set)
    for cell in plan.cells:
        found[plan.names(cell)["attack"]].add(cell.skipped)
    return dict(found)


HELD = {"adversary": leaves(4, first=100)}
SIGNATURE = {"methods": ["stable-signature"]}


@pytest.mark.parametrize(
    ("attack", "fields", "reason"),
    [
        (
            {"averaging": {"images": 4}},
            {},
            "averaging(images=4) needs 4 images that the adversary holds: name a dataset",
        ),
        ({"averaging": {"images": 5}}, HELD, "averaging(images=5) needs 5 images, the adversary's dataset holds 4"),
        ({"forgery": {"images": 3, "estimate": "clean"}}, HELD, "needs 6 images, the adversary's dataset holds 4"),
        (
            {"averaging": {"images": 4}},
            {**HELD, "key": "per-image"},
            "needs many images with one key: set key to fixed",
        ),
        ("swap-decoder", HELD, "chequered has no decoder that makes the images, so swap-decoder has nothing to attack"),
        ("fine-tune-diffusion", {**HELD, **SIGNATURE}, "stable-signature has no diffusion that makes the images"),
        ({"fine-tune-decoder": {"images": 5}}, {**HELD, **SIGNATURE}, "holds 4"),
        ({"collusion": {"users": 900}}, SIGNATURE, "collusion(users=900): stable-signature knows"),
        ({"average-decoders": {"users": 900}}, SIGNATURE, "average-decoders(users=900): stable-signature knows"),
        ({"collusion": {"users": 3}}, {"methods": [mine("TwoUsers")]}, "two-users knows 2 different users"),
        ("collusion", {"methods": [mine("Presence")]}, "presence knows 1 different users"),
    ],
)
def test_an_attack_that_cannot_be_given_what_it_must_know_is_skipped_with_the_reason(
    attack: Any, fields: dict[str, Any], reason: str
) -> None:
    plan = planned(attacks=[attack, "identity"], **fields)
    reasons = skipped(plan)
    assert reasons.pop("identity") == {None}
    ((said,),) = reasons.values()
    assert said is not None
    assert reason in said
    assert "\n" not in said


def test_whoever_has_enough_attacks() -> None:
    attacks = [
        {"averaging": {"images": [4]}},
        {"forgery": {"images": 2, "estimate": "clean"}},
        {"collusion": {"users": 2}},
    ]
    for method in ("Chequered", "TwoUsers"):
        assert set().union(*skipped(planned(attacks=attacks, methods=[mine(method)], **HELD)).values()) == {None}
    model = [
        "swap-decoder",
        {"average-decoders": {"users": 10}},
        {"fine-tune-decoder": {"images": 4}},
        "quantise-decoder",
    ]
    assert set().union(*skipped(planned(attacks=model, **SIGNATURE, **HELD)).values()) == {None}


def test_images_with_a_key_each_can_be_averaged_where_there_is_no_key() -> None:
    plan = planned(attacks=[{"averaging": {"images": 4}}], methods=[mine("Presence")], key="per-image", **HELD)
    assert {cell.skipped for cell in plan.cells} == {None}


def test_a_passive_detector_is_no_target() -> None:
    plan = planned(attacks=["identity", "collusion"], methods=[mine("Brightness")])
    unmarked = {plan.names(c)["attack"]: c.skipped for c in plan.cells if c.arm == "unmarked"}
    said = "collusion(users=3) attacks a watermark; brightness-detector is a detector"
    assert unmarked == {"identity": None, "collusion(users=3)": said}


def test_the_adversarys_images_are_of_other_sources_than_the_judged_ones() -> None:
    with pytest.raises(DatasetError) as caught:
        planned(dataset={"samples": {"size": 64, "crops": 1}}, adversary={"samples": {"size": 128}})
    said = str(caught.value)
    assert "17 of its sources are also in the dataset, such as 'astronaut'" in said
    assert "\n" not in said
    planned(dataset=leaves(3), adversary=leaves(3, first=3))
    with pytest.raises(DatasetError, match="adversary: 1 of its sources"):
        planned(dataset=leaves(4), adversary=leaves(3, first=3))


def test_only_the_images_in_use_must_be_others() -> None:
    used = {record.source for record in planned(dataset=leaves(9), limit=4).records}
    free = next(i for i in range(9) if f"deadleaves-{i:06d}" not in used)
    assert planned(dataset=leaves(9), limit=4, adversary=leaves(1, first=free)).adversary is not None


def test_a_misspelt_dataset_of_the_adversary_is_one_clear_line() -> None:
    with pytest.raises(SpecError, match="Did you mean 'deadleaves'"):
        planned(adversary="deadleafs")
    with pytest.raises(SpecError, match="unknown parameter 'cout'"):
        planned(adversary={"deadleaves": {"cout": 3}})


BOTH = [{"jpeg": {"quality": 50}}, {"averaging": {"images": 2}}, "collusion"]
BLIND = {"jpeg(quality=50)"}


def named(plan: Plan) -> dict[tuple[str, ...], str]:
    """Identity by attack, arm, and the place of the observer."""
    return {(plan.names(c)["attack"], c.arm, c.observer, str(c.index)): c.id for c in plan.cells}


@pytest.mark.parametrize(
    "change",
    [
        {"adversary": leaves(5, first=100)},
        {"adversary": {"samples": {"size": SIDE}}},
        {"key": "01" * 8},
    ],
)
def test_cells_of_knowing_attacks_are_called_after_the_adversarys_images_and_the_key(change: dict[str, Any]) -> None:
    one, other = (named(planned(attacks=BOTH, **{**HELD, **fields})) for fields in ({}, change))
    assert one.keys() == other.keys()
    blind = {key for key in one if key[0] in BLIND and (key[1] == "unmarked" or "key" not in change)}
    assert {key for key in one if one[key] == other[key]} == blind


def test_cells_of_knowing_attacks_are_called_after_the_target_and_attacked_for_each() -> None:
    plan = planned(attacks=BOTH, methods=[mine("Chequered"), mine("Chequered", noise=5)], **HELD)
    unmarked = [cell for cell in plan.cells if cell.arm == "unmarked"]
    blind, knowing = ([c for c in unmarked if (plan.names(c)["attack"] in BLIND) is same] for same in (True, False))
    assert {cell.target for cell in blind} == {None}
    assert len({cell.work for cell in blind}) == 1
    assert all(cell.target == cell.index for cell in knowing)
    assert len({cell.work for cell in knowing}) == len({cell.id for cell in knowing}) == 4


def test_a_forger_has_no_use_for_marked_images_and_quality_is_that_of_the_forged() -> None:
    plan = planned(attacks=["identity", {"forgery": {"images": 2}}], metrics=["psnr"], **HELD)
    forged = [plan.names(cell) for cell in plan.cells if cell.attack == 1]
    assert {(row["arm"], row["maker"]) for row in forged} == {("unmarked", "chequered")}
    assert [row["observer"] for row in forged] == ["chequered", "psnr"]


def test_forged_are_the_datasets_own_images_also_where_the_mark_makes_its_own() -> None:
    attacks = ["identity", {"averaging": {"images": 2}}, {"forgery": {"images": 2}}, "swap-decoder"]
    plan = planned(attacks=attacks, methods=["stable-signature", mine("Chequered")], **HELD)
    makers = {(plan.names(c)["attack"], c.index): c.maker for c in plan.cells if c.arm == "unmarked"}
    assert makers == {
        ("identity", 0): 0, ("averaging(images=2)", 0): 0, ("forgery(images=2)", 0): None, ("swap-decoder", 0): 0,
        ("identity", 1): None, ("averaging(images=2)", 1): None, ("forgery(images=2)", 1): None, ("swap-decoder", 1): 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["averaging", "collusion", "swap-decoder"])
def test_attacks_that_know_something_keep_the_contract(name: str) -> None:
    for result in check_component(name):
        assert result.ok, f"{result.promise}: {result.detail}"


# A run --------------------------------------------------------------------------------------------------------------

TUNE = {"fine-tune-decoder": {"steps": 2, "images": 2, "crop": 32, "batch": 1, "learning_rate": 0.002}}
ATTACKS = [
    "identity",
    "swap-decoder",
    {"average-decoders": {"users": [1, 2]}},
    TUNE,
    {"collusion": {"users": 2}},
    {"collusion": {"users": 3, "how": "paste", "tile": 16}},
    {"averaging": {"images": 2}},
    {"forgery": {"images": 2}},
]


@pytest.fixture(scope="module")
def whole(tiny: Callable) -> Callable:
    """Three photographs of 64 x 64, a decoder's mark and a post-hoc one, every kind of knowing attack."""

    def build(**runtime: Any) -> Any:
        return tiny(
            dataset={"samples": {"size": SIDE}},
            limit=3,
            methods=["stable-signature", mine("Chequered")],
            attacks=ATTACKS,
            adversary=leaves(4, first=100),
            runtime={"engine": "inline", **runtime},
        )

    return build


@pytest.fixture(scope="module")
def reference(whole: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run: Run = run_benchmark(whole(shard=3), tmp_path_factory.mktemp("reference") / "run")
    assert run.ok
    return run


def logits(run: Run, attack: str, arm: str, method: str = "stable-signature") -> np.ndarray:
    found = run.sample(method, attack, arm).logits
    assert found is not None
    return found


def quality(run: Run, attack: str, method: str = "stable-signature") -> dict[str, float]:
    """PSNR by image."""
    cells = run.cells[(run.cells["attack"] == attack) & (run.cells["observer"] == "psnr")]
    (cell,) = cells[cells["maker"] == method]["cell"]
    return {row["image"]: row["value"] for row in run.store.read("quality") if row["cell"] == cell}


@pytest.mark.parametrize("runtime", [{"shard": 1}, {"shard": 1, "engine": "processes", "workers": 2}])
def test_what_is_stored_does_not_depend_on_shards_or_workers(
    runtime: dict[str, Any], whole: Callable, reference: Run, result_bytes: Callable, tmp_path: Path
) -> None:
    run = run_benchmark(whole(**runtime), tmp_path / "run")
    assert result_bytes(run.folder) == result_bytes(reference.folder)
    learnt = [{path.name for path in one.folder.glob("learnt/*.safetensors")} for one in (run, reference)]
    assert learnt[0] == learnt[1]


def test_a_finished_run_computes_nothing_again(
    whole: Callable, reference: Run, result_bytes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = result_bytes(reference.folder)
    monkeypatch.setattr(run_module, "_engine", lambda *_: pytest.fail("something was computed"))
    assert run_benchmark(whole(shard=3), reference.folder).ok
    assert result_bytes(reference.folder) == before


def test_only_what_is_learnt_for_long_is_kept_on_disk(reference: Run) -> None:
    """Two fine-tuned decoders, the marked and the original one, and two mean residuals of each method."""
    kept = [load_state(path) for path in (reference.folder / "learnt").glob("*.safetensors")]
    assert sorted(len(state) > 1 for state in kept) == [False] * 4 + [True] * 2
    assert {tuple(state["residual"].shape) for state in kept if len(state) == 1} == {(3, SIDE, SIDE)}


def test_the_post_hoc_mark_is_spared_by_attacks_on_models_with_the_reason(reference: Run) -> None:
    cells = reference.cells[(reference.cells["observer"] == "chequered") & (reference.cells["status"] == "skipped")]
    assert set(cells["attack"].str.split("(").str[0]) == {"swap-decoder", "average-decoders", "fine-tune-decoder"}
    assert cells["reason"].str.startswith("chequered has no decoder").all()


def test_without_the_marked_decoder_the_mark_is_gone(tiny: Callable, tmp_path: Path) -> None:
    fields = {"methods": ["stable-signature"], "attacks": ["identity", "swap-decoder"], "metrics": []}
    run = run_benchmark(tiny(dataset={"samples": {"size": 128}}, limit=4, **fields), tmp_path / "run")
    identity, swapped = (run.sample("stable-signature", a, "marked").values.mean() / 48 for a in run.attacks)
    assert identity > 0.8
    assert abs(swapped - 0.5) < 0.15


def test_the_swapped_decoders_image_is_the_originals_in_both_arms(reference: Run) -> None:
    plain = logits(reference, "identity", "unmarked")
    for arm in ("marked", "unmarked"):
        np.testing.assert_array_equal(logits(reference, "swap-decoder", arm), plain)


@pytest.mark.parametrize("arm", ["marked", "unmarked"])
def test_ones_own_decoder_averaged_alone_is_no_attack(reference: Run, arm: str) -> None:
    none = logits(reference, "identity", arm)
    np.testing.assert_array_equal(logits(reference, "average-decoders(users=1)", arm), none)
    if arm == "marked":
        assert set(quality(reference, "average-decoders(users=1)").values()) == {np.inf}
        assert not np.array_equal(logits(reference, "average-decoders(users=2)", arm), none)


def test_the_unmarked_copies_of_all_users_are_one(reference: Run) -> None:
    for method in reference.methods:
        for attack in ("collusion(users=2)", "collusion(users=3, how=paste, tile=16)"):
            none, mixed = (logits(reference, name, "unmarked", method) for name in ("identity", attack))
            np.testing.assert_array_equal(mixed, none)
            assert not np.array_equal(
                logits(reference, attack, "marked", method), logits(reference, "identity", "marked", method)
            )


def pair_by_hand(method: str, run: Run) -> tuple[Watermark, np.ndarray, np.ndarray, Plan]:
    """The method, its marked and its unmarked images ``[n, H, W, 3]`` in the order of the run, and the plan."""
    plan = make_plan(validate(run.config["benchmark"]), run.store.index())
    mark = next(m for m in plan.methods if m.label == method)
    assert isinstance(mark, Watermark)
    ((images,), _) = plan.dataset.load(plan.records)
    keys = torch.from_numpy(np.stack([run.owner_key(method)] * len(images)))
    seed = Seed.root(0).child("embed", plan.dataset.name, mark.name)
    pair = mark.mark(images, keys, seed)
    return mark, pair.marked.numpy(), pair.unmarked.numpy(), plan


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    error = ((one.astype(float) - other.astype(float)) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / error))


def test_quality_under_an_attack_on_the_model_is_measured_against_the_marked_image(reference: Run) -> None:
    _, marked, unmarked, plan = pair_by_hand("stable-signature", reference)
    # The swapped decoder's image is the unmarked one: measured against that, it would have no error.
    found = quality(reference, "swap-decoder")
    np.testing.assert_allclose([found[record.id] for record in plan.records], psnr(unmarked, marked), rtol=1e-5)


def test_a_forger_adds_what_he_saw_of_one_key_to_the_datasets_own_images(reference: Run) -> None:
    """The whole way by hand: the adversary's images marked with the owner's key, their mean residual, the reader."""
    mark, _, _, plan = pair_by_hand("stable-signature", reference)
    assert plan.adversary is not None
    dataset, index = plan.adversary
    ((held,), _) = dataset.load(index.records[:2])
    keys = torch.from_numpy(np.stack([reference.owner_key("stable-signature")] * 2))
    seen = mark.mark(held, keys, Seed.root(99))
    residual = (seen.marked.numpy().astype(np.float64) - seen.unmarked.numpy()).mean(axis=0)
    ((clean,), _) = plan.dataset.load(plan.records)
    forged = clean.with_pixels(np.clip(np.rint(clean.numpy() + residual), 0, 255).astype(np.uint8))
    evidence = mark.decode(forged).logits
    assert evidence is not None
    found = quality(reference, "forgery(images=2)")
    errors = psnr(forged.numpy(), clean.numpy())
    np.testing.assert_allclose([found[record.id] for record in plan.records], errors, rtol=1e-3)
    stored = {row["image"]: row["logits"] for row in rows_of(reference, "forgery(images=2)", "unmarked")}
    # Halves may round up here and down there, which moves a logit a little.
    for record, values in zip(plan.records, evidence.numpy(), strict=True):
        np.testing.assert_allclose(stored[record.id], values, atol=0.1)


def rows_of(run: Run, attack: str, arm: str, observer: str = "stable-signature") -> list[dict[str, Any]]:
    cells = run.cells[(run.cells["attack"] == attack) & (run.cells["observer"] == observer) & (run.cells["arm"] == arm)]
    (cell,) = cells["cell"]
    return [row for row in run.store.read("scores") if row["cell"] == cell]


def looked(worker_plan: Plan, adversary: Adversary) -> tuple[dict[tuple[str, str], bytes], list[str]]:
    """Logits by cell and image, and the stages that took time."""
    done: list[Finished] = []
    with one_thread():
        costs = run_shard(worker_plan, worker_plan.records, worker_plan.cells, done.append, adversary)
    assert all(row.status == "ok" for one in done for row in one.rows)
    values = {
        (one.cell.id, row.image): row.logits.tobytes() for one in done for row in one.rows if row.logits is not None
    }
    return values, [cost.stage for cost in costs]


def test_what_was_learnt_is_kept_and_the_next_worker_reads_it(
    tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[str] = []

    def counted(cls: type[Attack], method: str) -> None:
        original = getattr(cls, method)

        def watched(self: Attack, *handles: Any) -> Any:
            learnt.append(self.name)
            return original(self, *handles)

        monkeypatch.setattr(cls, method, watched)

    counted(FineTuneDecoder, "change_decoder")
    counted(Averaging, "learn")
    once = ["averaging", "averaging", "fine-tune-decoder", "fine-tune-decoder"]
    fields = {"methods": ["stable-signature"], "attacks": [TUNE, {"averaging": {"images": [1, 2]}}], "metrics": []}
    run = run_benchmark(
        tiny(dataset=leaves(2), adversary=leaves(2, first=100), **fields, runtime={"shard": 1}), tmp_path / "run"
    )
    assert run.ok
    assert sorted(learnt) == once
    worker = Worker(Store(run.folder))
    kept, stages = looked(worker.plan, worker.adversary)
    assert "learn" not in stages
    anew, stages = looked(worker.plan, Adversary(worker.plan, None))
    assert (sorted(learnt), stages.count("learn")) == (sorted(once * 2), 4)
    stored = {
        (row["cell"], row["image"]): np.asarray(row["logits"], np.float32).tobytes() for row in run.store.read("scores")
    }
    assert kept == anew == stored


def test_a_learner_that_fails_costs_its_own_cells(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(
        tiny(
            dataset=leaves(2),
            adversary=leaves(2, first=100),
            methods=["stable-signature"],
            attacks=["identity", mine("Clumsy"), "swap-decoder"],
        ),
        tmp_path / "run",
    )
    assert (run.ok, run.measured) == (False, True)
    assert dict(zip(run.cells["attack"], run.cells["status"], strict=True)) == {
        "identity": "ok", "clumsy": "failed", "swap-decoder": "ok",
    }  # fmt: skip
    assert {row["error"] for row in run.store.read("failures")} == {"ValueError: the loss is not finite"}


def test_samples_that_cannot_be_marked_cost_the_cells_of_that_mark(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(
        tiny(
            dataset=leaves(3),
            adversary=leaves(2, first=200),
            methods=[mine("Chequered"), mine("Fussy")],
            attacks=["identity", {"averaging": {"images": 2}}],
        ),
        tmp_path / "run",
    )
    bad = run.cells[run.cells["status"] != "ok"]
    assert set(bad["attack"]) == {"averaging(images=2)"}
    assert {maker or observer for maker, observer in zip(bad["maker"], bad["observer"], strict=True)} == {"fussy"}
    assert {row["error"] for row in run.store.read("failures")} == {"ValueError: never seen such an image"}


def test_images_of_another_size_than_the_adversarys_fail_with_both_sizes(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(
        tiny(
            dataset=leaves(2),
            adversary=leaves(2, first=100, size=32),
            methods=[mine("Chequered")],
            attacks=["identity", {"averaging": {"images": 2}}],
        ),
        tmp_path / "run",
    )
    (said,) = {row["error"] for row in run.store.read("failures")}
    assert "the marked images have 32 x 32 pixels, the attacked ones 64 x 64" in said


def test_with_more_images_more_forgeries_are_accepted_and_more_marks_removed(tiny: Callable, tmp_path: Path) -> None:
    """A mark of +-3 under noise of up to 100 grey levels: one image says little of it, a hundred nearly all."""
    numbers = [1, 10, 100]
    run = run_benchmark(
        tiny(
            dataset=leaves(12, size=32),
            adversary=leaves(100, first=100, size=32),
            methods=[mine("Chequered", noise=100)],
            attacks=["identity", {"forgery": {"images": numbers}}, {"averaging": {"images": numbers}}],
            metrics=[],
        ),
        tmp_path / "run",
    )
    assert run.ok
    limit = binomial.threshold(BITS, 0.01)

    def accepted(attack: str, arm: str) -> float:
        return float((run.sample("chequered(noise=100)", attack, arm).values >= limit).mean())

    forged = [accepted(f"forgery(images={n})", "unmarked") for n in numbers]
    assert accepted("identity", "unmarked") < 0.2
    assert forged == sorted(forged)
    assert forged[0] < 0.7
    assert forged[-1] == 1
    kept = [run.sample("chequered(noise=100)", f"averaging(images={n})", "marked").values.mean() for n in numbers]
    assert abs(kept[-1] / BITS - 0.5) < 0.25


def test_a_mark_that_ships_meets_many_images_and_users(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(
        tiny(
            dataset="samples",
            limit=2,
            adversary=leaves(4, first=100, size=256),
            methods=["dwt-dct-svd"],
            attacks=[
                "identity",
                {"averaging": {"images": [1, 4]}},
                {"forgery": {"images": 4}},
                {"collusion": {"users": [1, 3]}},
            ],
        ),
        tmp_path / "run",
    )
    assert run.ok
    values = {a: run.sample("dwt-dct-svd", a, "marked").values for a in run.summary()["attack"]}
    np.testing.assert_array_equal(values["collusion(users=1)"], values["identity"])
    assert values["collusion(users=3)"].mean() < values["identity"].mean()
    assert set(quality(run, "collusion(users=1)", "dwt-dct-svd").values()) == {np.inf}


@pytest.mark.parametrize("shard", [1, 3])
def test_images_with_a_key_each_meet_the_colluders_of_their_own_key(shard: int, tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(
        tiny(
            dataset=leaves(3),
            methods=[mine("Chequered")],
            attacks=["identity", {"collusion": {"users": 4}}],
            key="per-image",
            runtime={"shard": shard},
        ),
        tmp_path / "run",
    )
    plan = make_plan(validate(run.config["benchmark"]), run.store.index())
    mark = cast("Watermark", plan.methods[0])
    for record in plan.records:
        ((image,), _) = plan.dataset.load([record])
        (own,) = (row["logits"] for row in rows_of(run, "identity", "marked", "chequered") if row["image"] == record.id)
        (stored,) = (
            row["logits"]
            for row in rows_of(run, "collusion(users=4)", "marked", "chequered")
            if row["image"] == record.id
        )
        key = key_word(np.asarray(own) > 0)
        words = [key, *colluders(0, key, 3)]
        copies = [mark.embed(image, torch.tensor([[b == "1" for b in w]]), Seed.root(0)).numpy() for w in words]
        mixed = image.with_pixels(np.rint(np.mean(copies, axis=0)).astype(np.uint8))
        expected = mark.decode(mixed).logits
        assert expected is not None
        np.testing.assert_allclose(stored, expected[0].numpy(), atol=0.3)


# A diffusion model under attack -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny latent diffusion model of random weights."""
    import diffusers

    folder = tmp_path_factory.mktemp("words")
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sides = ("encoder_block_out_channels", "decoder_block_out_channels")
    counts = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        diffusers.UNet2DConditionModel(
            sample_size=16, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
            attention_head_dim=4, **kinds,
        ).save_pretrained(folder / "unet")  # fmt: skip
        diffusers.AutoencoderTiny(**dict.fromkeys(sides, (8, 8, 8)), **counts).save_pretrained(folder / "vae")
        encoder = WordEncoder(width=16)
    save_state(encoder.state_dict(), folder / "text_encoder" / "diffusion_pytorch_model.safetensors")
    (folder / "text_encoder" / "config.json").write_text(json.dumps(encoder.config), encoding="utf-8")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    diffusers.DDIMScheduler(**schedule).save_pretrained(folder / "scheduler")
    index = {"_class_name": "WordLatentDiffusion", "autoencoder": "vae"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return str(folder)


def test_a_mark_in_the_noise_meets_attacks_on_both_parts_of_its_model(
    words: str, tiny: Callable, tmp_path: Path
) -> None:
    tune = {"fine-tune-diffusion": {"steps": [0, 2], "images": 2, "batch": 1, "learning_rate": 0.01}}
    mark = {"tree-ring": {"model": words, "radius": 3, "steps": 2, "inversion_steps": 2}}
    run = run_benchmark(
        tiny(
            dataset={"prompts": {"model": words, "count": 2, "steps": 2}},
            methods=[mark],
            attacks=["identity", tune, {"quantise-decoder": {"bits": 3}}, {"forgery": {"images": 1}}],
            adversary={"prompts": {"model": words, "skip": 2, "count": 2, "steps": 2}},
            runtime={"shard": 1},
        ),
        tmp_path / "run",
    )
    bad = run.cells[run.cells["status"] != "ok"]
    (reason,) = bad["reason"]
    assert reason.startswith("not comparable pixel by pixel after fine-tune-diffusion(steps=2")
    (method,) = run.methods
    scores = {a: [run.sample(method, a, arm).values for arm in ("marked", "unmarked")] for a in run.attacks}
    none, untouched, tuned, rounded, forged = scores.values()
    np.testing.assert_array_equal(untouched, none)
    for attacked in (tuned, rounded):
        assert not np.array_equal(attacked, none)
    # The forger has the unmarked images only, which are the dataset's here as there.
    assert len(forged[0]) == 0
    assert not np.array_equal(forged[1], none[1])
    assert len(list((run.folder / "learnt").glob("*.safetensors"))) == 3
    plan = make_plan(validate(run.config["benchmark"]), run.store.index())
    makers = {plan.names(cell)["attack"]: cell.maker for cell in plan.cells if cell.arm == "unmarked"}
    assert makers == {attack: None if attack.startswith("forgery") else 0 for attack in run.attacks}


# What a chain may hold, and failures that stay where they are ------------------------------------------------------


class Careless(Attack):
    """Learns from marked samples, and fails."""

    name: ClassVar[str] = "careless"
    family: ClassVar[str] = "adversarial"
    learns: ClassVar[bool] = True
    knowledge: ClassVar[frozenset[str]] = frozenset({"marked-samples"})

    @property
    def holdings(self) -> int:
        return 1

    def learn(self, access: Access) -> dict[str, torch.Tensor]:
        raise ValueError("cannot learn")

    def apply(self, images: Images, seed: Seed) -> Images:
        return images


def test_a_learner_that_fails_costs_no_other_learners_cells(tiny: Callable, tmp_path: Path) -> None:
    attacks = [{"averaging": {"images": 1}}, mine("Careless"), {"averaging": {"images": 2}}]
    run = run_benchmark(
        tiny(dataset=leaves(2), adversary=leaves(2, first=100), methods=[mine("Chequered")], attacks=attacks),
        tmp_path / "run",
    )
    assert set(run.cells["attack"][run.cells["status"] != "ok"]) == {"careless"}


def test_colluders_with_short_keys_are_others_too() -> None:
    assert set(colluders(0, "01", 3)) == {"00", "10", "11"}
    with pytest.raises(ContractError, match="4 other users are wanted, there are 3"):
        colluders(0, "01", 4)


CHAINED = {"chain": {"attacks": [{"averaging": {"images": 2}}, "jpeg"]}}


def test_a_chain_holds_what_its_links_hold() -> None:
    (without,) = skipped(planned(attacks=[CHAINED])).values()
    assert all("name a dataset as 'adversary'" in str(reason) for reason in without)
    (few,) = skipped(planned(attacks=[CHAINED], adversary=leaves(1, first=100))).values()
    assert all("the adversary's dataset holds 1" in str(reason) for reason in few)
    mixed = {"chain": {"attacks": [{"collusion": {"users": 3}}, "jpeg"]}}
    (two,) = skipped(planned(attacks=[mixed], methods=[mine("TwoUsers")])).values()
    assert all("two-users knows 2 different users" in str(reason) for reason in two)


def test_a_chain_with_a_link_that_knows_marked_samples_runs(tiny: Callable, tmp_path: Path) -> None:
    fields = {"dataset": leaves(2), "methods": [mine("Chequered")], "adversary": leaves(2, first=100)}
    assert run_benchmark(tiny(attacks=[CHAINED], **fields), tmp_path / "run").ok


def test_an_attack_on_the_model_is_no_link_of_a_chain() -> None:
    with pytest.raises(SpecError, match="swap-decoder"):
        planned(attacks=[{"chain": {"attacks": ["swap-decoder", "jpeg"]}}], **SIGNATURE)


def test_copies_are_not_mixed_where_an_earlier_link_changed_the_image() -> None:
    darker = {"chain": {"attacks": [{"brightness": {"factor": 0.1}}, {"collusion": {"users": 2}}]}}
    with pytest.raises(SpecError, match=r"link 2: collusion.* can only come first"):
        planned(attacks=[darker])


def test_an_image_of_the_adversary_that_cannot_be_read_costs_those_who_need_it(tiny: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "held"
    folder.mkdir()
    for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    broken = folder / "2.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    run = run_benchmark(
        tiny(
            dataset=leaves(2),
            methods=[mine("Chequered")],
            attacks=[{"averaging": {"images": [2, 3]}}],
            adversary={"folder": {"root": str(folder), "size": SIDE}},
        ),
        tmp_path / "run",
    )
    bad = run.cells[run.cells["status"] != "ok"]
    assert set(bad["attack"]) == {"averaging(images=3)"}, set(bad["reason"])


def test_bits_that_no_weight_has_are_refused_before_the_run() -> None:
    with pytest.raises(SpecError, match="weights have 16 bits, or 2 to 8"):
        planned(attacks=[{"quantise-decoder": {"bits": 12}}], **SIGNATURE)
