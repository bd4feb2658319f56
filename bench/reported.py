"""What a method's authors published, beside what is measured here: reported numbers, never golden values."""

from __future__ import annotations

from importlib import resources

import pandas as pd

SOURCES = {
    "stable-signature": "read to .01 from the figure of Fernandez et al., ICCV 2023: Stable Diffusion's decoder, "
    "10 keys, 1,000 images; 'combined' there is brightness 2, here the released evaluation code's 1.5"
}
"""Where the numbers of a method come from, and what differs there."""


def published(method: str) -> pd.DataFrame:
    """Reported TPR of a method: ``attack`` (a label), ``fpr`` (by theory), ``tpr``; empty where there is none.

    Args:
        method: a registered name.

    Example:
        >>> published("stable-signature").query("attack == 'identity'")["tpr"].tolist()
        [0.97, 0.98, 0.99]
    """
    if method not in SOURCES:
        return pd.DataFrame(columns=["attack", "fpr", "tpr"])
    with (resources.files(__package__) / "published" / f"{method}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
