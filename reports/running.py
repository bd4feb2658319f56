"""What the judging commands need before they can judge: a run of unmarked images, studies with progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.attribution_study import AttributionStudy, run_bank, study_attribution
from ..bench.benchmark import load_benchmark
from ..bench.results import load_run
from ..bench.run import make_listed_plan, run_benchmark
from ..bench.statistics.keybank import KeyBank
from ..bench.yaml_lines import parse
from ..core.errors import SpecError, StatisticsError, StoreError
from ..core.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bench.results import Run


def null_run(target: str, out: Path | None, data: Path | None, **asked: Any) -> Run:
    """The run whose null is asked for: the one in a folder, or a new one of unmarked images only.

    Args:
        target: a run folder, or methods as YAML.
        out: folder of a new run; None: ``runs/null-`` and the method's name.
        data: a folder of images.
        **asked: ``dataset``, ``attacks``, ``limit``, ``seed``, ``key``; None where not given.

    Raises:
        SpecError: a name or parameter is wrong, or a run folder is given options that only a new run can take.
        StoreError: nothing was measured.
    """
    given = {name: value for name, value in {**asked, "data": data}.items() if value is not None}
    if (Path(target) / "run.json").is_file():
        if given or out is not None:
            names = ", ".join(f"--{name}" for name in [*given, *(["out"] if out else [])])
            raise SpecError(f"{target} is a run and fixes {names}: leave them out, or give a method instead of a run")
        return load_run(target)
    if Path(target).is_file() and Path(target).suffix != ".py":
        raise SpecError(f"{target} is a file; give the folder of a run (a baseline keeps no logits) or a method")
    if Path(target).is_dir() or (target.endswith("/") and not target.endswith(".py")):
        raise SpecError(f"{target} is no run folder (there is no run.json in it); give one, or a method")
    methods = parse(target if target.lstrip().startswith("[") else f"[{target}]", "the command line")[0]
    fields: dict[str, Any] = {"methods": methods, "arms": ["unmarked"], "metrics": [], "key": given.get("key", "fixed")}
    fields |= {name: given[name] for name in ("limit", "seed") if name in given}
    if "dataset" in given:
        fields["dataset"] = parse(given["dataset"], "the command line")[0]
    if data is not None:
        fields["dataset"] = {"folder": {"root": str(data)}}
    if "attacks" in given:
        text = given["attacks"]
        fields["attacks"] = parse(text if text.lstrip().startswith("[") else f"[{text}]", "the command line")[0]
    benchmark = load_benchmark("quick", {**fields, "name": "null", "summary": ""})
    label = "-".join(ref.name for ref in benchmark.methods)
    folder = out or Path("runs") / ("null-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in label)[:60])
    run = run_benchmark(benchmark, folder, make_listed_plan(benchmark))
    if not run.measured:
        reasons = "; ".join(run.cells["reason"].dropna().unique()[:2])
        raise StoreError(f"{folder}: no unmarked image was scored: {reasons}")
    return run


def attribution_studies(
    run: Run,
    users: Sequence[int],
    fpr: float | None,
    methods: Sequence[str] | None,
    attacks: Sequence[str] | None,
    bank: str | None,
) -> list[AttributionStudy]:
    """Attribution of every method (or of those named), with progress.

    Raises:
        StatisticsError: no method has a payload, or a name is wrong.
    """
    named = methods or [m["label"] for m in run.config["methods"] if m["bits"]]
    if not named:
        raise StatisticsError("no method of this run has a payload: nobody can be named")
    studies = []
    with progress_bar("attributing", len(named) * len(attacks or run.attacks), "cells") as tick:
        for method in named:
            run.about("method", run.known("method", method))
            keys, name = _bank(run, method, bank)
            studies.append(study_attribution(run, method, users, fpr, attacks, keys, name, tick=tick))
    return studies


def _bank(run: Run, method: str, bank: str | None) -> tuple[KeyBank | None, str]:
    if bank is None:
        return None, "random keys"
    if bank == "run":
        keys = run_bank(run, method)
        return keys, f"the {keys.users} keys of the run's own images"
    keys = KeyBank.read(bank, int(run.about("method", method)["bits"]))
    return keys, f"{keys.users:,} keys of {Path(bank).name}"
