"""Methods that can write the keys of their users only: who gets which key, and what attribution makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from waterproof.bench.attribution_study import study_attribution
from waterproof.bench.keys import key_bits
from waterproof.bench.methods.base import Evidence, Watermark
from waterproof.bench.run import run_benchmark
from waterproof.bench.statistics import binomial
from waterproof.bench.statistics.keybank import KeyBank
from waterproof.bench.strictness import strictness
from waterproof.core.errors import ContractError, StatisticsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from waterproof.bench.results import Run
    from waterproof.core.images import Images
    from waterproof.core.seeds import Seed

USERS = ("0000000000000000000000000000000000000001", "1111111111111111111100000000000000000000", "01" * 20)


class Corner(Watermark):
    """Writes its 40 bits as black and white pixels in the first row; three users."""

    name: ClassVar[str] = "corner"
    family: ClassVar[str] = "post-hoc"

    @property
    def bits(self) -> int:
        return 40

    @property
    def users(self) -> tuple[str, ...]:
        return USERS

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        array = images.numpy().copy()
        array[:, 0, :40] = 255 * keys.numpy()[:, :, None]
        return images.with_pixels(array)

    def decode(self, images: Images) -> Evidence:
        return Evidence(logits=images.pixels[:, 1, 0, :40].float() - 127.5)


@pytest.mark.parametrize("policy", ["fixed", "per-image"])
def test_keys_are_those_of_users(policy: str) -> None:
    drawn = ["".join("01"[b] for b in key_bits(policy, 3, 40, f"image {i}", USERS).astype(int)) for i in range(60)]
    assert set(drawn) <= set(USERS)
    assert len(set(drawn)) == (1 if policy == "fixed" else 3)
    assert drawn == [
        "".join("01"[b] for b in key_bits(policy, 3, 40, f"image {i}", USERS).astype(int)) for i in range(60)
    ]


def test_a_given_key_must_be_a_users() -> None:
    assert key_bits(USERS[1], 0, 40, "", USERS).sum() == 20
    with pytest.raises(ContractError, match="no user of this method has the key 0000"):
        key_bits("0" * 40, 0, 40, "", USERS)


@pytest.fixture(scope="module")
def run(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    method = f"{__file__}:Corner"
    fields = {
        "dataset": "samples",
        "methods": [method],
        "attacks": ["identity", {"jpeg": {"quality": 80}}],
        "metrics": [],
    }
    return run_benchmark(tiny(**fields, key="per-image", limit=20), tmp_path_factory.mktemp("users") / "run")


def test_a_run_knows_its_users(run: Run) -> None:
    method = run.methods[0]
    assert run.about("method", method)["users"] == list(USERS)
    assert (run.sample(method, "identity", "marked").values == 40).all()
    assert "".join("01"[b] for b in run.owner_key(method).astype(int)) in USERS


def test_users_are_among_the_million_and_are_found(run: Run) -> None:
    study = study_attribution(run, run.methods[0], [3, 1000, 10**6], fpr=1e-3, attacks=["identity"])
    assert study.bank == "the 3 users' keys, then random ones"
    assert [row.correct.value for row in study.rows["identity"]] == [1.0, 1.0, 1.0]
    assert [row.users for row in study.rows["identity"]] == [3, 1000, 10**6]


def test_a_bank_is_extended_by_random_keys() -> None:
    given = KeyBank.of(np.eye(40, dtype=bool)[:5])
    bank, random = given.extended(200_000, seed=7), KeyBank.random(200_000, 40, 7)
    whole = np.concatenate([given.keys(0, 5), random.keys(0, 199_995)])
    for start, stop in ((0, 3), (0, 5), (3, 9), (5, 5), (5, 9), (65_530, 65_550), (0, 200_000), (131_070, 131_079)):
        assert np.array_equal(bank.keys(start, stop), whole[start:stop])
    with pytest.raises(StatisticsError, match="cannot be extended"):
        random.extended(300_000, 0)
    with pytest.raises(StatisticsError, match="cannot be extended"):
        given.extended(4, 0)


def test_tpr_at_every_threshold_is_what_a_loop_counts(run: Run) -> None:
    method = run.methods[0]
    study = strictness(run, method)
    values, _ = run.sample(method, "jpeg(quality=80)", "marked").tested()
    for row in study.curves["jpeg(quality=80)"].to_dict("records"):
        assert row["tpr"] == sum(value >= row["threshold"] for value in values) / len(values)
        assert row["low"] <= row["tpr"] <= row["high"]
    table = study.at([1e-2, 1e-6, 1e-13])
    assert table[table["attack"] == "identity"]["threshold"].tolist()[:2] == [
        binomial.threshold(40, f) for f in (1e-2, 1e-6)
    ]
    assert "note" in table
    assert table["note"].notna().sum() == 2
    assert table["tpr"].isna().sum() == 2


def test_published_numbers_stand_beside_measured_ones(run: Run) -> None:
    """Reported cells are cells of the preset, at thresholds that its FPRs have; they are marked as reported."""
    from dataclasses import replace

    from waterproof.bench.benchmark import expand, load_benchmark
    from waterproof.bench.reported import SOURCES, published
    from waterproof.reports.figures_strictness import strictness_curves

    benchmark = load_benchmark("stable-signature")
    labels = {attack.label for ref in benchmark.attacks for attack in expand(ref)}
    for name in SOURCES:
        table = published(name)
        assert set(table["attack"]) <= labels
        assert set(table["fpr"]) <= set(benchmark.fprs)
        assert table["tpr"].between(0, 1).all()
    assert published("dwt-dct").empty
    method = run.methods[0]
    study = strictness(run, method)
    assert "published" not in study.at([1e-6])
    reported = replace(study, published=published("stable-signature"))
    row = reported.at([1e-6]).query("attack == 'identity'").iloc[0]
    assert (row["published"], row["tpr"]) == (0.99, 1.0)
    figure = strictness_curves([reported], {"identity": "none", "jpeg(quality=80)": "compression"})
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections if c.get_facecolor().size == 0) == 3
