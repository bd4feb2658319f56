"""TPR at many false-positive rates: what stricter thresholds cost, by theory, with the null beside it.

For a mark of k bits theory offers k thresholds and no more: flag an image if at least t of its bits match, at an FPR of
P(Binomial(k, 1/2) >= t). An FPR that lies between two of them gets the stricter one; one below 2^-k is refused. These
FPRs are theory's and hold as far as the null of the method holds, which is said in every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from .reported import published
from .statistics import binomial, intervals
from .summary import null_holds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Run


@dataclass(frozen=True)
class Strictness:
    """TPR of one method over its thresholds.

    Attributes:
        method: label.
        bits: payload length.
        theory_holds: whether unattacked, unmarked images give fair, independent bits; None where that was not tested.
        curves: by attack, one row for each threshold from k down to k / 2: ``threshold``, ``fpr`` (theory's), ``tpr``,
            ``low``, ``high``, ``n``, ``sources``.
        published: what the method's authors report: ``attack``, ``fpr``, ``tpr``; see :mod:`.reported`.
    """

    method: str
    bits: int
    theory_holds: bool | None
    curves: dict[str, pd.DataFrame]
    published: pd.DataFrame

    def at(self, fprs: Sequence[float]) -> pd.DataFrame:
        """A row for each attack and FPR; one that the payload cannot express has no TPR and says why."""
        rows = []
        for attack, curve in self.curves.items():
            known = {int(row["threshold"]): row for row in curve.to_dict("records")}
            for fpr in fprs:
                about: dict[Any, Any] = {
                    "method": self.method,
                    "attack": attack,
                    "fpr_asked": fpr,
                    "theory_holds": self.theory_holds,
                }
                about |= self._reported(attack, fpr)
                try:
                    row = known.get(binomial.threshold(self.bits, fpr))
                    low: dict[Any, Any] = {"note": "the threshold is below half of the bits"}
                    rows.append(about | (row or low))
                except StatisticsError as error:
                    rows.append(about | {"note": str(error)})
        return pd.DataFrame(rows)

    def _reported(self, attack: str, fpr: float) -> dict[str, float]:
        same = np.isclose(self.published["fpr"].astype(float), fpr, rtol=1e-6, atol=0)
        found = self.published["tpr"][(self.published["attack"] == attack) & same]
        return {"published": float(found.iloc[0])} if len(found) else {}


def strictness(run: Run, method: str) -> Strictness:
    """TPR of a method at every threshold, under every attack, on the test images.

    Args:
        run: the run.
        method: label of a method with a payload.

    Raises:
        StatisticsError: there is no payload, or no marked test image was scored.
    """
    bits = int(run.about("method", method)["bits"])
    if not bits:
        raise StatisticsError(f"{method} has no payload: theory gives it no thresholds")
    decided = run.decision()
    if decided.sided != "one":
        raise StatisticsError("TPR over thresholds is for one-sided decisions")
    curves = {}
    for attack in run.attacks:
        values, sources = run.sample(method, attack, "marked").tested()
        if not len(values):
            continue
        rows = []
        for threshold in range(bits, bits // 2 - 1, -1):
            rate = intervals.proportion(values >= threshold, sources, level=decided.level)
            about = {"threshold": threshold, "fpr": binomial.fpr(bits, threshold, "one")}
            count = {"n": len(values), "sources": len(np.unique(sources.astype(str)))}
            rows.append({**about, "tpr": rate.value, "low": rate.low, "high": rate.high, **count})
        curves[attack] = pd.DataFrame(rows)
    if not curves:
        raise StatisticsError(f"{method}: no marked test image was scored")
    name = run.about("method", method)["name"]
    return Strictness(method, bits, null_holds(run, method), curves, published(name))


def every_strictness(run: Run) -> list[Strictness]:
    """The methods of a run that have a payload and marked images."""
    found = []
    for method in run.methods:
        try:
            found.append(strictness(run, method))
        except StatisticsError:
            continue
    return found
