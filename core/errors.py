"""The one family of errors that are a person's to mend: one clear line and an exit code, never a traceback."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UserError(Exception):
    """Something in the input, the files or the machine is wrong, and the message says what would be right.

    Attributes:
        exit_code: what the command line exits with.
    """

    exit_code: int = 2


class ImageError(UserError):
    """Pixels of the wrong type, shape or range."""


class SpecError(UserError):
    """A benchmark file, a component name or a parameter is wrong."""


class DatasetError(UserError):
    """A dataset is missing, empty or cannot be read."""


class ContractError(UserError):
    """A component returned something that its contract does not allow."""


class UnavailableError(UserError):
    """A component needs a package or a file that is not here; the message says what to fetch and where to put it."""


class StoreError(UserError):
    """A run folder cannot be written, read, or belongs to another run."""


class DiskFullError(StoreError):
    """The disk filled up while a run was at work: what is stored is kept, the rest is missing."""

    exit_code: int = 3


class StatisticsError(UserError):
    """The data cannot carry the statement that was asked for."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest valid word, or the list of valid words.

    Example:
        >>> nearest("jpg", ["jpeg", "webp"])
        " Did you mean 'jpeg'?"
    """
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid: {', '.join(words)}." if words else ""


def first_line(error: Exception) -> str:
    r"""The first line of an error's message, or the name of its type where it has none.

    Example:
        >>> first_line(ValueError("bad\nworse"))
        'bad'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
