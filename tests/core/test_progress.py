"""Progress: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from waterproof.core.progress import progress_bar


def test_nothing_is_printed_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("counting", 10, "images") as tick:
        tick(4, "first")
        tick(6, "second")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_title_count_rate_and_what_is_at_work() -> None:
    screen = io.StringIO()
    with progress_bar("counting", 10, "images", Console(file=screen, force_terminal=True, width=160)) as tick:
        tick(4, "first")
        tick(3, "second")
    shown = screen.getvalue()
    for part in ("counting", "7/10", "images/s", "second"):
        assert part in shown


def test_an_unknown_total_is_no_trouble() -> None:
    screen = io.StringIO()
    with progress_bar("listing", None, "files", Console(file=screen, force_terminal=True, width=160)) as tick:
        tick(4, "")
    assert "4/?" in screen.getvalue()


def test_an_error_inside_goes_through() -> None:
    with pytest.raises(KeyError), progress_bar("counting", 1, "images"):
        raise KeyError
