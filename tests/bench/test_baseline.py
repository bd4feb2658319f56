"""A frozen run answers like the run itself, and vouches for its content."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from waterproof.bench.baseline import Baseline, freeze, load_results
from waterproof.bench.results import Run, load_run
from waterproof.bench.run import run_benchmark
from waterproof.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def run(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    benchmark = tiny(dataset={"deadleaves": {"count": 12}}, methods=["dwt-dct", "dwt-dct-svd"], key="per-image")
    return run_benchmark(benchmark, tmp_path_factory.mktemp("baseline") / "run")


@pytest.fixture
def frozen(run: Run, tmp_path: Path) -> Baseline:
    freeze(run, tmp_path / "baseline.parquet")
    found = load_results(tmp_path / "baseline.parquet")
    assert isinstance(found, Baseline)
    return found


@pytest.mark.parametrize("rule", ["theory", "fixed"])
def test_it_gives_the_numbers_of_the_run(run: Run, frozen: Baseline, rule: str) -> None:
    decision = {"rule": rule, "threshold": 20.0 if rule == "fixed" else None}
    expected = run.deciding(**decision).summary()
    found = frozen.deciding(**decision).summary()
    # A rate over many keys and a verdict on the null need logits, and what attacks cost the image is not kept.
    kept = [c for c in expected if "keys" not in c and not c.startswith(("psnr", "null_holds", "theory"))]
    pd.testing.assert_frame_equal(found[kept], expected[kept])
    clean = [frame[frame["attack"] == "identity"]["psnr"].tolist() for frame in (expected, found)]
    assert clean[0] == clean[1]


def test_equal_runs_have_equal_digests(run: Run, frozen: Baseline, tmp_path: Path) -> None:
    assert freeze(run, tmp_path / "again.parquet") == frozen.digest
    assert frozen.digest.startswith("sha256:")


def test_it_is_small_enough_to_commit_and_names_no_folder(run: Run, frozen: Baseline) -> None:
    assert frozen.folder.stat().st_size < 60_000
    assert str(run.folder.parent).encode() not in frozen.folder.read_bytes()


def test_an_edited_score_is_found_out(frozen: Baseline) -> None:
    table = pq.read_table(frozen.folder)
    values = np.asarray(table["value"]).copy()
    values[3] += 1
    pq.write_table(table.set_column(2, "value", [values]), frozen.folder)
    with pytest.raises(StoreError, match="does not match its digest"):
        load_results(frozen.folder)


def test_it_cannot_carry_what_needs_logits(frozen: Baseline) -> None:
    with pytest.raises(Exception, match=r"no logits|no payload"):
        frozen.null("dwt-dct")


def test_other_files_and_absent_ones_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such run folder or baseline file"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreError, match="is no baseline file"):
        load_results(tmp_path / "text")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="is no baseline file"):
        load_results(tmp_path / "other.parquet")


def test_a_run_of_another_schema_is_refused(tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(tiny(), tmp_path / "run")
    path = run.folder / "run.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(StoreError, match="results of schema 99, this version of waterproof reads 1"):
        load_run(run.folder)
