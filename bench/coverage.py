"""Do the intervals cover, do the tests hold their level? Simulated, printed as tables, written into the docs.

    python -m waterproof.bench.coverage                      every procedure, 2,000 repetitions
    python -m waterproof.bench.coverage auc mean --repetitions 500
    python -m waterproof.bench.coverage --write docs/coverage.md

A procedure that promises 95 % and covers 93.9 % in 2,000 repetitions is within chance of its promise; the error of a
simulated coverage is stated in every row.
"""

from __future__ import annotations

import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import SpecError, UserError, nearest
from ..core.progress import progress_bar
from ..core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of one procedure.

    Attributes:
        setting: what is simulated, in words.
        promise: the nominal coverage, or for a test one minus its level.
        hit: draws data, applies the procedure, says whether the promise was kept; None where it refused.
    """

    setting: str
    promise: float
    hit: Callable[[np.random.Generator], bool | None]


@dataclass(frozen=True, slots=True)
class Covered:
    """What a simulation found.

    Attributes:
        setting: what was simulated.
        promise: the nominal coverage.
        share: how often the promise was kept, among those that were not refused.
        repetitions: how many were drawn.
        refused: in how many the procedure refused to answer.
    """

    setting: str
    promise: float
    share: float
    repetitions: int
    refused: int

    @property
    def error(self) -> float:
        """Standard error of :attr:`share` if the promise is kept exactly."""
        return math.sqrt(self.promise * (1 - self.promise) / max(1, self.repetitions - self.refused))

    @property
    def short(self) -> bool:
        """Whether the promise is missed by more than chance (three standard errors)."""
        return self.share < self.promise - 3 * self.error


def simulate(case: Case, repetitions: int, seed: Seed) -> Covered:
    """Draws one case again and again; each repetition has a generator of its own."""
    hits = refused = 0
    for i in range(repetitions):
        hit = case.hit(seed.child(case.setting, i).numpy())
        # NumPy's True is another object than Python's.
        hits += hit is not None and bool(hit)
        refused += hit is None
    answered = repetitions - refused
    return Covered(case.setting, case.promise, hits / answered if answered else math.nan, repetitions, refused)


def table(name: str, title: str, found: list[Covered]) -> str:
    """A Markdown table of one procedure."""
    lines = [f"### {name}", "", title, "", "| setting | promised | kept | error | refused |", "|" + " --- |" * 5]
    for row in found:
        mark = " **short**" if row.short else ""
        refused = f"{row.refused / row.repetitions:.1%}" if row.refused else "–"
        kept = "–" if math.isnan(row.share) else f"{row.share:.1%}{mark}"
        lines.append(f"| {row.setting} | {row.promise:.1%} | {kept} | ±{row.error:.1%} | {refused} |")
    return "\n".join(lines) + "\n"


_HEAD = """# Do the intervals cover?

Every interval and every test that waterproof prints, simulated: data are drawn whose truth is known, the procedure is
applied, and how often it keeps its promise is counted. Written by
`python -m waterproof.bench.coverage --write docs/coverage.md`; {repetitions:,} repetitions a row, seed {seed}.
"Error" is the standard error of a share if the promise is kept exactly; **short** marks a promise that is missed by
more than three of them. "Refused": the procedure said in words that the data cannot carry the statement, which is no
failure to cover.
"""


def run(
    procedures: Annotated[list[str] | None, typer.Argument(help="Names of procedures. [default: all]")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of each setting.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the simulations.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core. Changes no number.")] = 0,
    write: Annotated[Path | None, typer.Option(help="Write the tables into this Markdown file.")] = None,
) -> None:
    """Simulate whether intervals cover and tests hold their level."""
    from .coverage_cases import PROCEDURES
    from .coverage_verdicts import verdict_table

    known = [*PROCEDURES, "verdicts"]
    for name in procedures or ():
        if name not in known:
            raise SpecError(f"there is no procedure '{name}'.{nearest(name, known)}")
    texts = [_HEAD.format(repetitions=repetitions, seed=seed)]
    named = [name for name in procedures or known if name in PROCEDURES]
    for name, title, found in tables(named, repetitions, seed, workers or os.cpu_count() or 1):
        texts.append(table(name, title, found))
        typer.echo(texts[-1])
    if "verdicts" in (procedures or known):
        texts.append(verdict_table(repetitions, seed))
        typer.echo(texts[-1])
    if write is not None:
        write.write_text("\n".join(texts), encoding="utf-8")
        typer.echo(f"written: {write}")


def tables(names: list[str], repetitions: int, seed: int, workers: int = 1) -> Iterator[tuple[str, str, list[Covered]]]:
    """Simulates procedures one after the other; yields name, description and rows, whatever the number of workers."""
    from .coverage_cases import PROCEDURES

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else nullcontext() as pool:
        for name in names:
            title, cases = PROCEDURES[name]
            tasks = [(name, i, repetitions, seed) for i in range(len(cases))]
            found = []
            with progress_bar(name, len(cases), "settings") as tick:
                for row in pool.map(_simulated, tasks) if pool else map(_simulated, tasks):
                    found.append(row)
                    tick(1, row.setting)
            yield name, title, found


def _simulated(task: tuple[str, int, int, int]) -> Covered:
    from .coverage_cases import PROCEDURES

    name, i, repetitions, seed = task
    return simulate(PROCEDURES[name][1][i], repetitions, Seed.root(seed).child("coverage", name))


def main() -> None:
    """Runs the command; a wrong name is one line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    try:
        app()
    except UserError as error:
        typer.echo(f"coverage: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
