"""Attribution on a run's own evidence: which of N users marked an image, and who is accused wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from .statistics.attribution import Attribution, attribute
from .statistics.keybank import KeyBank
from .summary import null_holds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.progress import Tick
    from .results import Run

USERS = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
"""Numbers of users that are tried unless others are given."""


@dataclass(frozen=True)
class AttributionStudy:
    """Attribution of one method's images.

    Attributes:
        method: label of the method.
        bits: payload length.
        fpr: family-wise FPR that every threshold keeps, if bits are fair and independent.
        bank: whose keys the other users have, in words.
        rows: by attack, a row for each number of users.
        missing: attacks without images, and why.
        theory_holds: whether unattacked, unmarked images give fair, independent bits; None where that was not tested.
    """

    method: str
    bits: int
    fpr: float
    bank: str
    rows: dict[str, tuple[Attribution, ...]]
    missing: dict[str, str]
    theory_holds: bool | None

    def frame(self) -> pd.DataFrame:
        """One row for each attack and number of users."""
        return pd.DataFrame([self._flat(attack, row) for attack, rows in self.rows.items() for row in rows])

    def _flat(self, attack: str, row: Attribution) -> dict[str, Any]:
        flat: dict[str, Any] = {"method": self.method, "attack": attack, "users": row.users, "bits": row.bits}
        flat |= {"bank": self.bank, "rule": row.rule, "threshold": row.threshold, "fpr_family": row.fpr}
        flat |= {
            "fpr_attained": row.attained,
            "n_marked": row.marked,
            "n_unmarked": row.unmarked,
            "sources": row.sources,
        }
        for name in ("correct", "wrong", "missed", "closed", "false"):
            rate = getattr(row, name)
            ends = (rate.value, rate.low, rate.high) if rate else (None,) * 3
            flat |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        theory = {name: getattr(row, name) for name in ("theory_closed", "theory_correct", "theory_false")}
        return {**flat, **theory, "note": row.note, "refused": row.refused}


def study_attribution(
    run: Run,
    method: str,
    users: Sequence[int] = USERS,
    fpr: float | None = None,
    attacks: Sequence[str] | None = None,
    bank: KeyBank | None = None,
    bank_name: str = "random keys",
    threads: int | None = None,
    tick: Tick | None = None,
) -> AttributionStudy:
    """Attributes a run's test images among users, under every attack.

    Args:
        run: the run.
        method: label of a method with a payload.
        users: numbers of users.
        fpr: family-wise FPR: the chance that an unmarked image is attributed to anybody. None takes the run's FPR.
        attacks: labels; None takes all.
        bank: the other users' keys; None draws random ones from the run's seed, after the keys of the method's own
            users where it has some.
        bank_name: what to call the bank.
        threads: how many work; None: one for each core.
        tick: progress, one unit for each attack.

    Raises:
        StatisticsError: no payload, no such attack, or no marked image at all.

    Example:
        >>> study_attribution(load_run("runs/quick"), "rivagan", [10, 1000]).frame()  # doctest: +SKIP
    """
    bits = int(run.about("method", method)["bits"])
    if not bits:
        raise StatisticsError(f"{method} has no payload: it cannot tell users apart")
    limit = run.decision().fpr if fpr is None else fpr
    seed = int(run.config["benchmark"]["seed"])
    own = run.about("method", method).get("users")
    if bank is None and own:
        bank = KeyBank.of(np.array([[bit == "1" for bit in key] for key in own]))
        bank = bank.extended(max(bank.users, *users) + len(own) + 1, seed)
        bank_name = f"the {len(own)} users' keys, then random ones"
    rows: dict[str, tuple[Attribution, ...]] = {}
    missing: dict[str, str] = {}
    for attack in attacks or run.attacks:
        marked, unmarked = (run.sample(method, attack, arm) for arm in ("marked", "unmarked"))
        if marked.logits is None or unmarked.logits is None:
            raise StatisticsError(f"{run.folder} is a baseline, which keeps no logits: attribute its run instead")
        if not marked.test.any():
            missing[attack] = marked.reason or "no marked test image was scored"
            continue
        rows[attack] = tuple(
            attribute(
                (marked.logits > 0)[marked.test],
                run.keys(method, list(marked.images))[marked.test],
                (unmarked.logits > 0)[unmarked.test] if unmarked.test.any() else None,
                users,
                limit,
                marked_sources=marked.sources[marked.test],
                unmarked_sources=unmarked.sources[unmarked.test],
                bank=bank,
                seed=seed,
                level=run.decision().level,
                threads=threads,
            )
        )
        if tick is not None:
            tick(1, f"{method} {attack}")
    if not rows:
        raise StatisticsError(
            f"{method}: no marked image to attribute ({'; '.join(sorted(set(missing.values()))[:2])})"
        )
    return AttributionStudy(method, bits, limit, bank_name, rows, missing, null_holds(run, method))


def run_bank(run: Run, method: str) -> KeyBank:
    """The keys that the run's own images carry, each once: real keys instead of random ones."""
    keys = run.keys(method, list(run.images.index))
    return KeyBank.of(np.unique(keys, axis=0)).distinct()
