"""Errors: one family for what a person can mend, with an exit code and the nearest valid word."""

from __future__ import annotations

import pytest

from waterproof.core import errors
from waterproof.core.errors import DiskFullError, UserError, nearest

FAMILY = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]


def test_every_error_is_a_user_error_that_ends_with_2_or_3_where_a_run_was_cut_short() -> None:
    assert len(FAMILY) >= 8
    assert all(issubclass(error, UserError) for error in FAMILY)
    assert {error for error in FAMILY if error.exit_code != 2} == {DiskFullError}
    assert DiskFullError.exit_code == 3


@pytest.mark.parametrize(
    ("word", "valid", "says"),
    [
        ("jpg", ["jpeg", "webp"], " Did you mean 'jpeg'?"),
        ("zzz", ["webp", "jpeg"], " Valid: jpeg, webp."),
        ("zzz", [], ""),
        ("", ["a"], " Valid: a."),
    ],
)
def test_the_nearest_word_is_suggested_or_all_are_listed(word: str, valid: list[str], says: str) -> None:
    assert nearest(word, valid) == says
    assert nearest(word, iter(valid)) == says
