"""The model card: what was trained, on what, how far, and how good it is; beside the weights it speaks of."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ...core.weights import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .photographs import Photographs
    from .recipes import Recipe
    from .trainer import Trained


def write_card(
    folder: Path,
    recipe: Recipe,
    photographs: Photographs,
    trained: Trained,
    quality: Mapping[str, float],
    device: str,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``card.json``, ``README.md``, ``curve.csv`` and ``curve.png`` beside the weights in ``folder``.

    Args:
        folder: holds the weights.
        recipe: what they were trained by.
        photographs: what they were trained on.
        trained: how far.
        quality: measured on photographs that were kept out of the training.
        device: what they were trained on.
        facts: anything else that a reader needs.
    """
    weights = sorted(path for path in folder.rglob("*.safetensors"))
    card = {
        "kind": recipe.kind,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_id": recipe.id,
        "data": {
            "digest": photographs.digest,
            "trained_on": len(photographs.train),
            "kept_out": len(photographs.validation),
            "rejected": len(photographs.rejected),
        },
        "training": {
            "steps": trained.step,
            "of": trained.steps,
            "seconds": round(trained.seconds),
            "device": device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
        "quality": {name: round(value, 4) for name, value in quality.items()},
        "facts": dict(facts or {}),
        "digests": {path.relative_to(folder).as_posix(): digest_of(path) for path in weights},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_text(card), encoding="utf-8")
    write_curve(folder, trained.curve)


def write_curve(folder: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """The training curve as a table and a picture."""
    from matplotlib.figure import Figure

    frame = pd.DataFrame(list(curve)).set_index("step")
    frame.to_csv(folder / "curve.csv", float_format="%.5g")
    figure = Figure(figsize=(3.2 * frame.shape[1], 2.6), layout="constrained")
    axes = figure.subplots(1, frame.shape[1], squeeze=False)[0]
    smooth = frame.rolling(max(1, len(frame) // 40), min_periods=1, center=True).median()
    for axis, name in zip(axes, frame.columns, strict=True):
        axis.plot(frame.index, frame[name], color="0.8", linewidth=0.7)
        axis.plot(smooth.index, smooth[name], color="C0", linewidth=1.4)
        axis.set(xlabel="step", title=name + (", dB" if name == "psnr" else ""))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "curve.png", dpi=110, metadata={"Software": None})


def _text(card: Mapping[str, Any]) -> str:
    training, data, recipe = card["training"], card["data"], card["recipe"]
    unfinished = "" if training["steps"] == training["of"] else " **The training is not finished.**"
    lines = [
        f"# {recipe['name']}",
        "",
        recipe["summary"],
        "",
        f"Made by `waterproof train {card['kind']}` from the recipe in `card.json` (seed {recipe['seed']}). "
        f"{training['steps']:,} of {training['of']:,} steps of {recipe['batch']} crops, "
        f"{training['seconds'] / 60:.0f} minutes on {training['device']}"
        f"{' (' + str(training['threads']) + ' threads)' if training['device'] == 'cpu' else ''}, "
        f"torch {training['torch']}.{unfinished}",
        "",
        f"Trained on {data['trained_on']} photographs, {data['kept_out']} more kept out to measure with "
        f"(digest of both `{data['digest'][:16]}`). No photograph is part of the weights' folder.",
        "",
        "![training curve](curve.png)",
        "",
        "| measured on the photographs kept out | value |",
        "| --- | --- |",
        *(f"| {name} | {value:g} |" for name, value in card["quality"].items()),
        "",
    ]
    if card["facts"]:
        lines += ["| fact | value |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in card["facts"].items()]
        lines.append("")
    lines += ["| file | SHA-256 |", "| --- | --- |"]
    lines += [f"| {name} | `{digest}` |" for name, digest in card["digests"].items()]
    return "\n".join(lines) + "\n"
