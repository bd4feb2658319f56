"""What a regression check catches: injected losses of TPR among 58 cells, and how the verdict calls them."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from ..core.seeds import Seed
from .statistics import paired

CELLS = 58
MARGIN = 0.01
_WORDS = ("regression", "undecided", "small change", "equivalent")


@lru_cache(maxsize=1 << 16)
def _change(lost: int, won: int, n: int) -> paired.Change:
    """A change of rates depends on the pairs that differ only; whether the others are detected does not matter."""
    kind = np.repeat([0, 1, 2], [lost, won, n - lost - won])
    return paired.rate_change((kind == 0) | (kind == 2), (kind == 1) | (kind == 2))


def called(n: int, loss: float, discordance: float, repetitions: int, seed: Seed) -> Counter[str]:
    """How the verdict calls one cell that lost ``loss``, while 57 others did not change (5 % of their pairs differ).

    Args:
        n: images, each a source of its own.
        loss: of TPR.
        discordance: share of images whose detection differs between the runs.
        repetitions: simulated comparisons.
        seed: of the draws.
    """
    rng, found = seed.child(n, str(loss), str(discordance)).numpy(), Counter[str]()
    lost, won = (discordance + loss) / 2, (discordance - loss) / 2
    for _ in range(repetitions):
        b, c, _rest = rng.multinomial(n, [lost, won, 1 - lost - won])
        counts = [
            (int(b), int(c)),
            *((int(x), int(y)) for x, y, _ in rng.multinomial(n, [0.025, 0.025, 0.95], CELLS - 1)),
        ]
        cells = [_change(*pair, n) for pair in counts]
        worse, better = paired.holm([x.p_worse for x in cells]), paired.holm([x.p_better for x in cells])
        found[paired.verdict(cells[0], MARGIN, float(worse[0]), float(better[0]))] += 1
    return found


def verdict_table(repetitions: int, seed: int) -> str:
    """A Markdown table of :func:`called` over numbers of images, losses and discordances."""
    root = Seed.root(seed).child("coverage", "verdicts")
    lines = [
        "### verdicts",
        "",
        f"The TPR loses some points in one of {CELLS} cells (margin {MARGIN:g}, Holm at .05 over all): "
        f"the share of {repetitions:,} comparisons in which the verdict on that cell is ...",
        "",
        "| images | lost | pairs that differ | " + " | ".join(_WORDS) + " | identical or improvement |",
        "|" + " --- |" * (len(_WORDS) + 4),
    ]
    for n in (200, 1000, 5000):
        for loss in (0.0, 0.01, 0.02, 0.05, 0.10):
            for discordance in (max(0.02, loss), max(0.05, loss + 0.02), max(0.10, loss + 0.05)):
                found = called(n, loss, discordance, repetitions, root)
                shares = [found[word] / repetitions for word in _WORDS]
                other = 1 - sum(shares)
                cells = [f"{n:,}", f"{loss:.2f}", f"{discordance:.2f}", *(f"{s:.3f}" for s in (*shares, abs(other)))]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
