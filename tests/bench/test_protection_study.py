"""Protections are judged against clean images, beyond the editor's own randomness; else recovery is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pytest

from waterproof.bench.benchmark import validate
from waterproof.bench.plan import make_plan
from waterproof.bench.protection_study import study_protection
from waterproof.bench.run import run_benchmark
from waterproof.bench.shard import apply_attack, make_pair
from waterproof.core.errors import SpecError, StatisticsError
from waterproof.core.seeds import Seed
from waterproof.reports.terminal import print_summary
from waterproof.reports.write import write_report

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from waterproof.bench.results import Run

BENCHMARK: dict[str, Any] = {
    "name": "protected",
    "dataset": {"samples": {"size": 64}},
    "limit": 3,
    "methods": [{"null-protection": {"noise": "sign"}}, {"photoguard": {"steps": 3}}],
    "attacks": ["identity", {"jpeg": {"quality": 75}}, {"impress": {"steps": 2, "distance": "watson-1993"}}, "crop"],
    "metrics": ["psnr", "largest-change", "latent-distance"],
    "editing": {
        "editors": [{"image-to-image": {"steps": 4}}, "reconstruction"],
        "prompts": ["dark", "pale"],
        "seeds": 2,
    },
    "runtime": {"engine": "inline", "shard": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    benchmark = validate(BENCHMARK)
    return run_benchmark(benchmark, tmp_path_factory.mktemp("protected") / "run", make_plan(benchmark))


def test_clean_and_protected_images_are_measured_and_floors_only_where_nothing_was_done(run: Run) -> None:
    assert run.ok
    cells = run.cells
    assert set(cells["observer_kind"]) == {"metric"}
    floors = cells[cells["observer"].str.contains("against")]
    assert set(floors["attack"]) == {"identity"}
    assert floors["maker"].isna().all()
    skipped = cells[cells["status"] == "skipped"]
    assert set(skipped["attack"]) == {"crop(area=0.5)"}
    measured = cells[(cells["status"] == "ok") & ~cells["observer"].str.contains("against")]
    makers = measured.groupby("attack")["maker"].apply(lambda part: set(part.fillna("")))
    assert makers["identity"] == makers["jpeg(quality=75)"] == {"", *run.protections}


def test_what_is_left_after_purification_is_compared_with_the_clean_image(run: Run) -> None:
    plan = make_plan(validate(BENCHMARK))
    (group,) = plan.dataset.load(plan.records)[0]
    root = Seed.root(0)
    for m, method in enumerate(plan.methods):
        purified = apply_attack(plan, 1, make_pair(plan, method, group).marked, root)
        error = ((purified.numpy().astype(float) - group.numpy()) ** 2).mean(axis=(1, 2, 3))
        found = run.image_quality(run.protections[m], "jpeg(quality=75)", "psnr")["value"]
        np.testing.assert_allclose(found[list(group.ids)], 10 * np.log10(255**2 / error), rtol=1e-9)
    attacked = apply_attack(plan, 1, group, root)
    error = ((attacked.numpy().astype(float) - group.numpy()) ** 2).mean(axis=(1, 2, 3))
    clean = run.image_quality(None, "jpeg(quality=75)", "psnr")["value"]
    np.testing.assert_allclose(clean[list(group.ids)], 10 * np.log10(255**2 / error), rtol=1e-9)


def test_budgets_are_what_the_8_bit_images_show(run: Run) -> None:
    budgets = study_protection(run).budgets.set_index("method")
    assert list(budgets["promised"]) == [pytest.approx(7.65)] * 2
    assert list(budgets["found"]) == [8, 8]
    assert list(budgets["exceeded"]) == [0, 0]


def test_the_page_tells_engagement_recovery_fidelity_and_cost(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = write_report(run)
    text = page.read_text(encoding="utf-8")
    for words in (
        'id="engagement"',
        'id="recovery"',
        'id="fidelity"',
        'id="cost"',
        "network evaluations",
        "Not engaged",
    ):
        assert words in text
    assert "data:image/webp" in text
    for name in ("engagement", "recovery", "clean", "worst", "budgets"):
        assert len(pd.read_csv(page.parent / f"protection-{name}.csv"))
    costs = pd.read_csv(page.parent / "costs.csv").set_index("name")
    assert costs.loc["photoguard(steps=3)", ["evaluations", "backwards"]].tolist() == [3, 3]
    assert costs.loc["impress(steps=2, distance=watson-1993)", ["evaluations", "backwards"]].tolist() == [4, 4]
    print_summary(run)
    assert "refused" in capsys.readouterr().out


class Stub:
    """A run with chosen similarities: of the protected and purified images, and between draws of the clean ones."""

    def __init__(self, values: dict[tuple[str | None, str, bool], Iterable[float]], seeds: int = 2) -> None:
        self.values, self.protections, self.attacks = values, ["p"], ["identity", "jpeg", "blur"]
        params = {"editor": {"name": "image-to-image", "params": {}}, "measure": "ssim", "prompt": "", "seed": 0}
        metrics = [{"name": "edit", "label": "edit", "params": {**params, "other_seed": None}}]
        metrics += [{"name": "edit", "label": "floor", "params": {**params, "other_seed": 1}}] * (seeds > 1)
        attacks = [{"label": a, "name": a} for a in self.attacks]
        self.config = {"metrics": metrics, "attacks": attacks, "benchmark": {"decision": {"level": 0.95}}}

    def about(self, _kind: str, _label: str) -> dict[str, Any]:
        return {"largest_change": None}

    def image_quality(self, method: str | None, attack: str, label: str) -> pd.DataFrame:
        found = np.fromiter(self.values.get((method, attack, label == "floor"), [0.9] * 20), float)
        names = [f"i{i}" for i in range(len(found))]
        return pd.DataFrame({"value": found, "source": names}, index=names)


def stub(protected: float, floor: float, jpeg: float, blur: float, seeds: int = 2, spread: float = 0.02) -> Run:
    wave = spread * np.cos(np.arange(20))
    return cast(
        "Run",
        Stub(
            {
                ("p", "identity", False): protected + wave,
                (None, "identity", True): floor + wave,
                ("p", "jpeg", False): jpeg + wave,
                ("p", "blur", False): blur - 2 * wave,
            },
            seeds,
        ),
    )


def test_recovery_is_the_share_of_the_way_to_the_floor() -> None:
    study = study_protection(stub(protected=0.3, floor=0.7, jpeg=0.5, blur=0.4))
    assert study.engagement["engaged"].tolist() == [True]
    assert study.engagement["gap"].tolist() == pytest.approx([0.4])
    rows = study.recovery.set_index("attack")
    assert rows["recovery"].tolist() == pytest.approx([0.5, 0.25], abs=0.02)
    # Everything moves alike there, so that nothing is uncertain about the ratio; the other differs from image to image.
    assert rows.loc["jpeg", "recovery_high"] - rows.loc["jpeg", "recovery_low"] < 1e-9
    assert rows.loc["blur", "recovery_low"] < rows.loc["blur", "recovery"] < rows.loc["blur", "recovery_high"]
    assert float(study.worst["recovery"].iloc[0]) >= float(rows["recovery"].max()) - 1e-9


@pytest.mark.parametrize(
    ("protected", "floor", "seeds", "reason"),
    [(0.8, 0.5, 2, "no more than those of two draws"), (0.3, 0.7, 1, "two seeds or more are needed")],
)
def test_without_engagement_or_floor_there_is_no_recovery(
    protected: float, floor: float, seeds: int, reason: str
) -> None:
    study = study_protection(stub(protected, floor, 0.9, 0.9, seeds))
    assert study.engagement["engaged"].tolist() in ([False], [None])
    assert study.recovery["recovery"].isna().all()
    assert study.recovery["reason"].str.contains(reason).all()
    assert study.worst["recovery"].isna().all()


@pytest.mark.parametrize(
    ("noise", "floor", "engaged"), [(0.9, 1.0, [False, True]), (0.3, 1.0, [False, False]), (0.3, 0.7, [True, False])]
)
def test_a_protection_has_to_do_more_than_noise_of_its_size(noise: float, floor: float, engaged: list[bool]) -> None:
    wave = 0.02 * np.cos(np.arange(20))
    values = {
        ("noise", "identity", False): noise + wave,
        ("p", "identity", False): 0.3 + wave[::-1],
        (None, "identity", True): np.full(20, floor),
    }
    attacked = Stub(cast("Any", values))
    attacked.protections = ["noise", "p"]
    attacked.about = lambda _kind, label: {  # type: ignore[method-assign]
        "name": "null-protection" if label == "noise" else "photoguard",
        "largest_change": 7.65,
    }
    table = study_protection(cast("Run", attacked)).engagement.set_index("method")
    assert table["engaged"].tolist() == engaged
    assert table.loc["p", "beyond"] == pytest.approx(noise - 0.3, abs=0.01)
    assert ("noise" in table.loc["p", "reason"]) == (not engaged[1])


def test_the_interval_of_the_recovery_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        image = rng.normal(0, 0.1, 20)
        noise = rng.normal(0, 0.03, (3, 20))
        values = {
            ("p", "identity", False): 0.3 + image + noise[0],
            (None, "identity", True): 0.7 + image + noise[1],
            ("p", "jpeg", False): 0.5 + image + noise[2],
        }
        row = study_protection(cast("Run", Stub(values))).recovery.iloc[0]
        inside += bool(row["recovery_low"] <= 0.5 <= row["recovery_high"])
    assert 86 <= inside <= 99


def test_a_run_without_protections_or_without_identity_is_refused(run: Run) -> None:
    marks = stub(0.3, 0.7, 0.5, 0.4)
    cast("Any", marks).protections = []
    with pytest.raises(StatisticsError, match="judges no protection"):
        study_protection(marks)
    attacked = stub(0.3, 0.7, 0.5, 0.4)
    attacked.config["attacks"] = [{"label": "jpeg", "name": "jpeg"}]
    with pytest.raises(StatisticsError, match="add it to the attacks"):
        study_protection(attacked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["photoguard", "dwt-dct"]}, "give each a benchmark of its own"),
        ({"methods": ["dwt-dct"]}, "editing judges protections, and none of the methods is one"),
        (
            {"editing": {"editors": ["image-to-images"]}},
            "unknown editor 'image-to-images'. Did you mean 'image-to-image'",
        ),
        ({"editing": {"promts": ["dark"]}}, "unknown key 'promts'. Did you mean 'prompts'"),
        ({"editing": {"measures": []}}, "measures"),
    ],
)
def test_what_cannot_be_judged_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("'", ".")) as error:
        validate({**BENCHMARK, **changes})
    assert "\n" not in str(error.value)


def test_a_prompt_that_the_model_does_not_know_fails_its_own_cells(tmp_path: Path) -> None:
    changed = {
        **BENCHMARK, "limit": 1, "methods": [{"null-protection": {"noise": "uniform"}}], "attacks": ["identity"],
        "editing": {"editors": [{"image-to-image": {"steps": 4}}], "prompts": ["dark", "a cat"], "seeds": 1},
    }  # fmt: skip
    benchmark = validate(changed)
    run = run_benchmark(benchmark, tmp_path / "run", make_plan(benchmark))
    failed = run.cells[run.cells["status"] == "failed"]
    assert len(failed)
    assert failed["observer"].str.contains("a cat").all()
    assert failed["reason"].str.contains("does not know the word 'cat'").all()
    assert (run.cells[~run.cells["observer"].str.contains("a cat")]["status"] == "ok").all()
    assert "a cat" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("floor", "promised", "engaged", "reason"),
    [
        (1.0, None, [None], "has no noise of the same largest change"),
        (0.7, None, [True], ""),
        (1.0, 7.65, [None], "no noise"),
    ],
)
def test_without_noise_an_editor_that_draws_nothing_says_nothing(
    floor: float, promised: float | None, engaged: list[bool | None], reason: str
) -> None:
    values = {("p", "identity", False): np.full(20, 0.3), (None, "identity", True): np.full(20, floor)}
    alone = Stub(cast("Any", values))
    alone.about = lambda _kind, _label: {"name": "cloak", "largest_change": promised}  # type: ignore[method-assign]
    table = study_protection(cast("Run", alone)).engagement
    assert table["engaged"].tolist() == engaged
    assert reason in table["reason"].iloc[0]


def test_the_strongest_noise_of_the_size_is_the_one_to_beat_and_no_noise_is_none() -> None:
    values = {
        ("weak", "identity", False): np.full(20, 0.9),
        ("strong", "identity", False): np.full(20, 0.6),
        ("none", "identity", False): np.full(20, 1.0),
        ("p", "identity", False): np.full(20, 0.7),
        (None, "identity", True): np.full(20, 0.8),
    }
    changes = {"weak": 7.65, "strong": 8.0, "none": 0.0, "p": 0.9}
    several = Stub(cast("Any", values))
    several.protections = list(changes)
    several.about = lambda _kind, label: {  # type: ignore[method-assign]
        "name": "photoguard" if label == "p" else "null-protection",
        "largest_change": changes[label],
    }
    table = study_protection(cast("Run", several)).engagement.set_index("method")
    assert table.loc["p", "engaged"]
    changes["p"] = 7.65
    table = study_protection(cast("Run", several)).engagement.set_index("method")
    assert not table.loc["p", "engaged"]
    assert table.loc["p", "beyond"] == pytest.approx(-0.1)
