"""The benchmark file: validated to the last parameter, and an error says the line and what would be right."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from waterproof.attacks.chain import Chain
from waterproof.bench.benchmark import Benchmark, Ref, expand, load_benchmark, presets, validate
from waterproof.bench.keys import key_bits
from waterproof.bench.yaml_lines import line_of, parse
from waterproof.core.errors import ContractError, SpecError
from waterproof.core.identity import canonical_json
from waterproof.datasets.base import Dataset

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "presets.json"

GOOD = """\
# a benchmark
name: mine
dataset: {deadleaves: {count: 4, size: 256}}
methods:
  - dwt-dct
  - dwt-dct-svd:
      payload: 48
attacks:
  - identity
  - jpeg:
      quality: [80, 50]
  - crop: {area: 0.5}
metrics: [psnr]
seed: 3
key: per-image
decision: {fpr: 0.01}
runtime:
  engine: inline
"""
BASE = {"name": "b", "dataset": "deadleaves", "methods": ["dwt-dct"], "attacks": ["identity"]}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Writes a benchmark file and reads it."""

    def read(text: str, **overrides: Any) -> Benchmark:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return load_benchmark(tmp_path / "mine.yaml", overrides)

    return read


def labels(benchmark: Benchmark) -> list[str]:
    return [attack.label for attack in benchmark.expanded_attacks()]


def message(error: pytest.ExceptionInfo[SpecError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_good_file_gives_what_it_says(load: Any) -> None:
    benchmark = load(GOOD)
    assert benchmark.name == "mine"
    assert benchmark.dataset == Ref(name="deadleaves", params={"count": 4, "size": 256})
    assert benchmark.methods == [Ref(name="dwt-dct"), Ref(name="dwt-dct-svd", params={"payload": 48})]
    assert labels(benchmark) == ["identity", "jpeg(quality=80)", "jpeg(quality=50)", "crop(area=0.5)"]
    assert (benchmark.seed, benchmark.key, benchmark.limit) == (3, "per-image", None)
    assert (benchmark.decision.fpr, benchmark.decision.rule) == (0.01, "theory")
    assert (benchmark.runtime.engine, benchmark.runtime.shard) == ("inline", 16)


def test_a_stored_benchmark_validates_to_itself(load: Any) -> None:
    benchmark = load(GOOD)
    assert validate(json.loads(benchmark.model_dump_json())) == benchmark


def test_a_file_without_a_name_is_called_after_itself(load: Any) -> None:
    assert load(GOOD.replace("name: mine", "# no name")).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("seed: 3", "sede: 3", 14, "unknown key 'sede'. Did you mean 'seed'?"),
        ("seed: 3", "colour: red", 14, "unknown key 'colour'."),
        ("{fpr: 0.01}", "{fpr: 0.01, rul: theory}", 16, "unknown key 'rul'. Did you mean 'rule'?"),
        ("  engine: inline", "  engin: inline", 18, "unknown key 'engin'. Did you mean 'engine'?"),
        ("  - dwt-dct\n", "  - dwtdct\n", 5, "unknown method 'dwtdct'. Did you mean 'dwt-dct'?"),
        ("  - identity", "  - idenity", 9, "unknown attack 'idenity'. Did you mean 'identity'?"),
        ("[psnr]", "[psnr, ssmi]", 13, "unknown metric 'ssmi'. Did you mean 'ssim'?"),
        ("{deadleaves:", "{deadleafs:", 3, "unknown dataset 'deadleafs'. Did you mean 'deadleaves'?"),
        ("  - identity", "  - psnr", 9, "unknown attack 'psnr'. 'psnr' is one of the metrics."),
        ("quality: [80", "qualty: [80", 10, "jpeg: unknown parameter 'qualty'. Did you mean 'quality'?"),
        ("payload: 48", "paylod: 48", 6, "dwt-dct-svd: unknown parameter 'paylod'. Did you mean 'payload'?"),
        ("count: 4", "count: 0", 3, "deadleaves: count: input should be greater than or equal to 1, not 0"),
        ("[80, 50]", "[80, 500]", 10, "jpeg: quality: input should be less than or equal to 100, not 500"),
        ("[80, 50]", "[]", 10, "jpeg: quality is an empty list"),
        ("[80, 50]", "[80, [50]]", 10, "jpeg: quality: input should be a valid integer"),
        ("area: 0.5", "area: big", 12, "crop: area: input should be a valid number"),
        ("fpr: 0.01", "fpr: 1", 16, "decision.fpr: input should be less than 1, not 1"),
        (
            "fpr: 0.01",
            "rule: guess",
            16,
            "decision.rule: input should be 'theory', 'certified', 'fixed' or 'extrapolated', not 'guess'",
        ),
        ("engine: inline", "shard: 0", 18, "runtime.shard: input should be greater than or equal to 1, not 0"),
        ("seed: 3", "seed: three", 14, "seed: input should be a valid integer"),
        ("seed: 3", "limit: 0", 14, "limit: input should be greater than or equal to 1, not 0"),
        ("key: per-image", "key: 1010", 15, "or a string of 0 and 1 in quotes, not 1010"),
        ("key: per-image", "key: random", 15, "key is 'fixed' (one key, from the seed), 'per-image'"),
        ("  - identity", "  - 3", 9, "a component is a name, or 'name: {parameter: value}', not 3"),
        ("  - identity", "  - {jpeg: 50}", 9, "a component is a name, or 'name: {parameter: value}'"),
        ("  - identity", "  - {jpeg: {}, crop: {}}", 9, "a component is a name, or 'name: {parameter: value}'"),
        ("seed: 3", "name: yours", 14, "'name' stands twice in one mapping"),
        ("area: 0.5", "area: 0.5, area: 0.7", 12, "'area' stands twice in one mapping"),
        ("seed: 3", "seed: [3", 15, "expected ',' or ']'"),
        ("seed: 3", "\tseed: 3", 14, "found character '\\t' that cannot start any token"),
        ("seed: 3", "? [a, b]\n: c", 14, "a key must be a word"),
        ("  - identity", "  - no_such_file.py:Blur", 9, "no such file: no_such_file.py"),
        ("  - identity", "  - flip: all", 9, "flip has one setting only: write 'flip' without 'all'"),
    ],
)
def test_an_error_says_the_line_and_what_would_be_right(load: Any, old: str, new: str, line: int, says: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(SpecError) as caught:
        load(GOOD.replace(old, new))
    assert f"mine.yaml, line {line}: " in message(caught)
    assert says in message(caught)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a benchmark file is a mapping with at least: dataset, methods, attacks"),
        ("- a\n- b", "a benchmark file is a mapping"),
        ("name: x\ndataset: samples\nattacks: [identity]", "'methods' is missing"),
        ("name: x\nmethods: [dwt-dct]\nattacks: [identity]", "'dataset' is missing"),
        (GOOD.replace("seed: 3", "seed: 2026-13-45"), "month must be in 1..12"),
        ("name: \0", "unacceptable character #x0000"),
        ("attacks: &a [*a]", "an alias that contains itself"),
    ],
)
def test_a_file_that_is_no_benchmark_gives_one_line(load: Any, text: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    assert says in message(caught)
    assert "mine.yaml" in message(caught)


def test_a_file_that_is_no_text_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo.yaml").write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(SpecError, match=r"photo\.yaml cannot be read as UTF-8 text"):
        load_benchmark(tmp_path / "photo.yaml")


def test_an_absent_file_and_a_misspelt_preset_are_named() -> None:
    with pytest.raises(SpecError, match=r"no such benchmark file: absent\.yaml"):
        load_benchmark("absent.yaml")
    with pytest.raises(SpecError, match=r"neither a benchmark file nor a preset\. Did you mean 'distortions'\?"):
        load_benchmark("distortion")


# Sweeps -------------------------------------------------------------------------------------------------------------


def test_a_list_as_strength_sweeps_and_other_parameters_stay() -> None:
    sweep = Ref(name="jpeg", params={"quality": [90, 10], "subsampling": "4:4:4"})
    assert [(a.quality, a.subsampling) for a in expand(sweep)] == [(90, "4:4:4"), (10, "4:4:4")]  # type: ignore[attr-defined]


def test_all_sweeps_over_the_peers_grid() -> None:
    benchmark = validate({**BASE, "attacks": [{"jpeg": "all"}]})
    qualities = [attack.strength_value for attack in benchmark.expanded_attacks()]
    assert qualities == [99, 95, 90, 80, 75, 70, 65, 60, 50, 40, 30, 20, 10]


def test_sweeps_are_opened_in_the_order_of_the_file() -> None:
    attacks = [{"jpeg": {"quality": [10, 90]}}, "identity", {"crop": {"area": [0.5, 0.9]}}]
    assert labels(validate({**BASE, "attacks": attacks})) == [
        "jpeg(quality=10)",
        "jpeg(quality=90)",
        "identity",
        "crop(area=0.5)",
        "crop(area=0.9)",
    ]


def test_a_chain_is_written_in_yaml_and_its_list_is_no_sweep(load: Any) -> None:
    link = "  - chain: {attacks: [flip, {jpeg: {quality: 30}}]}"
    benchmark = load(GOOD.replace("  - identity", link))
    chain = benchmark.expanded_attacks()[0]
    assert isinstance(chain, Chain)
    assert chain.label == "chain(flip + jpeg(quality=30))"


def test_an_error_inside_a_chain_names_the_link(load: Any) -> None:
    with pytest.raises(SpecError, match=r"line 9: chain: link 2: unknown attack 'jpg'\. Did you mean 'jpeg'\?"):
        load(GOOD.replace("  - identity", "  - chain: {attacks: [flip, jpg]}"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attacks": ["flip", "flip"]}, "the attack flip stands twice"),
        ({"attacks": ["jpeg", {"jpeg": {"quality": 50}}]}, "the attack jpeg(quality=50) stands twice"),
        ({"attacks": [{"jpeg": {"quality": [50, 70, 50]}}]}, "the attack jpeg(quality=50) stands twice"),
        ({"attacks": [{"jpeg": "all"}, {"jpeg": {"quality": 10}}]}, "the attack jpeg(quality=10) stands twice"),
        ({"methods": ["dwt-dct", {"dwt-dct": {"payload": 32}}]}, "the method dwt-dct stands twice"),
        ({"metrics": ["psnr", "ssim", "psnr"]}, "the metric psnr stands twice"),
    ],
)
def test_what_stands_twice_is_refused_however_it_is_written(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate({**BASE, **changes})
    assert says in message(caught)


def test_two_methods_that_reports_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "one" / "marked", tmp_path / "two" / "marked"]
    methods = [{"folder-marked": {"marked": str(folder), "command": "true"}} for folder in folders]
    with pytest.raises(SpecError, match="or two would share this name"):
        validate({**BASE, "methods": methods})
    titled = [{"folder-marked": {**m["folder-marked"], "title": f"mark {i}"}} for i, m in enumerate(methods)]
    assert len(validate({**BASE, "methods": titled}).methods) == 2


# Overrides ----------------------------------------------------------------------------------------------------------


def test_overrides_replace_fields_and_merge_into_decision_and_runtime(load: Any) -> None:
    text = GOOD.replace("{fpr: 0.01}", "{fpr: 0.01, sided: two}")
    benchmark = load(text, limit=2, methods=["rivagan"], decision={"fpr": 0.1}, runtime={"workers": 1})
    assert benchmark.limit == 2
    assert benchmark.methods == [Ref(name="rivagan")]
    assert (benchmark.decision.fpr, benchmark.decision.sided) == (0.1, "two")
    assert (benchmark.runtime.engine, benchmark.runtime.workers) == ("inline", 1)
    assert labels(benchmark) == labels(load(text))


def test_a_bad_override_is_refused_like_a_bad_line(load: Any) -> None:
    with pytest.raises(SpecError, match="limit: input should be greater than or equal to 1, not 0"):
        load(GOOD, limit=0)
    with pytest.raises(SpecError, match=r"unknown attack 'jpg'\. Did you mean 'jpeg'\?"):
        load(GOOD, attacks=["jpg"])


def test_an_error_in_an_override_names_no_line_of_the_file(load: Any) -> None:
    for overrides in ({"attacks": ["jpg"]}, {"decision": {"fpr": 7}}, {"methods": [{"dwt-dct": {"payload": 0}}]}):
        with pytest.raises(SpecError) as caught:
            load(GOOD, **overrides)
        assert "line" not in message(caught)


def test_an_override_does_not_hide_a_broken_section(load: Any) -> None:
    with pytest.raises(SpecError, match="decision: input should be a valid dictionary"):
        load(GOOD.replace("decision: {fpr: 0.01}", "decision: 0.01"))
    assert load(GOOD.replace("decision: {fpr: 0.01}", "decision: 0.01"), decision={"fpr": 0.1}).decision.fpr == 0.1


# Keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["fixed", "per-image", "0", "0110", "1" * 96])
def test_a_key_policy_is_fixed_per_image_or_bits(key: str) -> None:
    assert validate({**BASE, "key": key}).key == key


@pytest.mark.parametrize("key", ["", "random", "01 10", "0120", 1010, True, None, ["0", "1"], "１０"])
def test_other_key_policies_are_refused(key: object) -> None:
    with pytest.raises(SpecError, match="key is 'fixed'"):
        validate({**BASE, "key": key})


def test_a_fixed_key_is_the_same_for_all_images_and_a_per_image_key_is_not() -> None:
    assert (key_bits("fixed", 0, 48, "a") == key_bits("fixed", 0, 48, "b")).all()
    assert (key_bits("per-image", 0, 48, "a") != key_bits("per-image", 0, 48, "b")).any()
    assert (key_bits("per-image", 0, 48, "a") == key_bits("per-image", 0, 48, "a")).all()
    assert (key_bits("fixed", 0, 48, "a") != key_bits("fixed", 1, 48, "a")).any()
    assert key_bits("0110", 0, 4, "a").tolist() == [False, True, True, False]


def test_keys_stay_as_they_are() -> None:
    written = ["".join("01"[bit] for bit in key_bits(*args).astype(int)) for args in GOLDEN_KEYS]
    assert written == list(GOLDEN_KEYS.values())


def test_drawn_keys_have_as_many_ones_as_zeros() -> None:
    ones = sum(int(key_bits("per-image", 0, 64, str(i)).sum()) for i in range(200))
    # 12,800 fair bits: five standard deviations are 283.
    assert abs(ones - 6400) < 283


@pytest.mark.parametrize(
    ("key", "says"),
    [("0101", "the key has 4 bits, the method needs 5"), ("01x10", "not '01x10'"), ("randm", "not 'randm'")],
)
def test_a_key_that_does_not_fit_the_method_is_refused(key: str, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        key_bits(key, 0, 5, "a")


# Presets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_every_preset_validates_and_says_what_it_is(name: str) -> None:
    benchmark = load_benchmark(name)
    assert benchmark.name == name
    assert benchmark.summary


def test_the_distortions_are_one_list_of_at_most_60_attacks() -> None:
    attacks = load_benchmark("distortions").expanded_attacks()
    assert len(attacks) <= 60
    assert attacks[0].label == "identity"
    assert f" {len(attacks)} cells" in load_benchmark("distortions").summary
    families = {attack.family for attack in attacks}
    assert families >= {"none", "compression", "geometric", "photometric", "degradation", "overlay", "combined"}


def test_the_quick_preset_counts_what_it_announces() -> None:
    benchmark = load_benchmark("quick")
    dataset = benchmark.dataset.create("dataset")
    assert isinstance(dataset, Dataset)
    photographs = len(dataset.index().records)
    assert (len(benchmark.methods), len(labels(benchmark)), benchmark.limit) == (5, 12, None)
    assert benchmark.summary.startswith(f"five watermarks, twelve attacks, the {photographs} photographs")


def cells_of(benchmark: Benchmark) -> str:
    """A digest of all that decides the list of cells."""
    attacks = [[attack.name, attack.identity_params()] for attack in benchmark.expanded_attacks()]
    parts = [[kind, [r.model_dump() for r in getattr(benchmark, kind)]] for kind in ("methods", "metrics")]
    rest = [benchmark.dataset.model_dump(), benchmark.limit, benchmark.seed, benchmark.key]
    return hashlib.sha256(canonical_json([attacks, parts, rest]).encode()).hexdigest()


def test_a_preset_whose_cells_change_raises_its_version(update_golden: bool) -> None:
    new = {n: {"version": load_benchmark(n).version, "cells": cells_of(load_benchmark(n))} for n in presets()}
    old = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    silent = [n for n in new if n in old and new[n] != old[n] and new[n]["version"] == old[n]["version"]]
    assert not silent, (
        f"the cells of {', '.join(silent)} changed: raise the version in the preset "
        f"(if that version was never published, delete its entry in {GOLDEN.name} instead), then regenerate"
    )
    if update_golden:
        GOLDEN.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    else:
        assert new == old, "regenerate with: python -m pytest tests/bench/test_benchmark.py --update-golden"


# Lines --------------------------------------------------------------------------------------------------------------


def test_every_place_in_a_document_has_a_line() -> None:
    value, lines = parse("a: 1\nb:\n  - x\n  - y: 2\n", "text")
    assert value == {"a": 1, "b": ["x", {"y": 2}]}
    assert lines == {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "y"): 4}
    assert line_of(("b", 1, "y", "deeper", 3), lines) == 4
    assert line_of(("absent",), lines) == 1
    assert line_of(("absent",), {}) is None


def test_nothing_is_nothing_and_merge_keys_work() -> None:
    assert parse("", "text") == (None, {})
    assert parse("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", "text")[0] == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}


GOLDEN_KEYS = {
    ("fixed", 0, 32, ""): "01011000100011111101000100001011",
    ("fixed", 7, 8, "ignored"): "11011100",
    ("per-image", 0, 32, "a.png"): "10000101111110011011111111101111",
    ("0011", 0, 4, ""): "0011",
}
