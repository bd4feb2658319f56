"""Progress for long work: a bar with rate and time left on a terminal, quiet elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Tick = Callable[[int, str], None]
"""Called with the number of units done since the last call and a word on what is at work."""


@contextmanager
def progress_bar(title: str, total: int | None, unit: str, console: Console | None = None) -> Iterator[Tick]:
    """Shows progress on stderr while the block runs; prints nothing where stderr is no terminal.

    Args:
        title: what is being done.
        total: number of units, None where unknown.
        unit: their name, e.g. ``"image-attacks"``.
        console: where to print instead of stderr.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else "", style="progress.data.speed")

    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[doing]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, doing="")

        def tick(units: int, doing: str = "") -> None:
            progress.update(task, advance=units, doing=doing)

        yield tick
