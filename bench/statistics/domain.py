"""Which numbers the statistics take; everything else is refused with one clear line."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError

Sided = Literal["one", "two"]
"""``one``: only many matches are evidence; ``two``: an attack that flips bits leaves evidence too."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def open_unit(value: float, name: str) -> float:
    """Returns ``value`` if it lies strictly between 0 and 1.

    Raises:
        StatisticsError: it does not.
    """
    number = float(value)
    if not 0 < number < 1:
        raise StatisticsError(f"{name} is {number:g}; it must lie strictly between 0 and 1")
    return number


def sidedness(value: str) -> Sided:
    """Returns ``value`` if it is ``"one"`` or ``"two"``.

    Raises:
        StatisticsError: it is not.
    """
    for valid in get_args(Sided):
        if value == valid:
            return valid  # type: ignore[no-any-return]
    raise StatisticsError(f"sided is {value!r}; it must be 'one' or 'two'")


def finite(values: npt.ArrayLike, name: str) -> FloatArray:
    """Returns ``values`` as a float64 vector ``[n]`` with ``n >= 1`` and nothing but finite numbers.

    Raises:
        StatisticsError: it is empty, has another shape, or holds NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise StatisticsError(f"{name} must be a vector [n], not an array of shape {list(array.shape)}")
    if not array.size:
        raise StatisticsError(f"{name}: there are none; at least one is needed")
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise StatisticsError(f"{name}: {bad} of {array.size} are NaN or infinite; leave out the images that failed")
    return array


def boolean(values: npt.ArrayLike, name: str) -> BoolArray:
    """Returns ``values`` as a bool vector ``[n]`` with ``n >= 1``.

    Raises:
        StatisticsError: it is empty, has another shape, or is not boolean.
    """
    array = np.asarray(values)
    if array.ndim != 1 or not array.size:
        raise StatisticsError(f"{name} must be a vector [n] with at least one element, not {list(array.shape)}")
    if array.dtype != np.bool_:
        raise StatisticsError(f"{name} must be booleans, not {array.dtype}")
    return array
