"""Power planning as people read it: what a claim needs, what a run in hand can carry."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..bench.statistics.power import plan_claim, supports

if TYPE_CHECKING:
    from ..bench.results import Run
    from ..bench.statistics.power import Plan


def print_claim(**claim: Any) -> None:
    """Prints what a claim takes; arguments as :func:`waterproof.bench.statistics.power.plan_claim`."""
    title = f"To claim a TPR of {claim['tpr']:g} at an FPR of {claim['fpr']:g} with {claim['level']:.0%} confidence"
    _print(title, plan_claim(**claim))


def print_support(run: Run, level: float, power: float, tpr: float, cells: int | None = None) -> None:
    """Prints what the images of a run can support, for each payload length among its methods."""
    test = run.images[run.images["split"] == "test"]
    tested = int(test["source"].nunique())
    calibration = int(run.images.loc[run.images["split"] == "calibration", "source"].nunique())
    lengths = sorted({int(m["bits"]) for m in run.config["methods"]})
    for bits in lengths:
        methods = ", ".join(m["label"] for m in run.config["methods"] if int(m["bits"]) == bits)
        title = f"{run.name}, {methods}: {tested} test and {calibration} calibration sources can support"
        found = supports(tested, tested, calibration, bits or None, level, power, tpr, cells or len(run.attacks))
        _print(title, found)


def _print(title: str, found: Plan) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(title=escape(title), title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("what it carries")
    for fact in found.facts:
        number = fact.number
        text = "none" if math.isnan(number) else f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
        table.add_row(fact.what, text, fact.why)
    console.print(table)
