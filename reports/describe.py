"""What ``waterproof show`` says of a component or a preset."""

from __future__ import annotations

import inspect
import textwrap
from importlib import resources

from ..attacks.base import Attack
from ..bench.benchmark import presets
from ..bench.check import find_kind
from ..core.components import Component, field_roles, format_value
from ..core.errors import SpecError, nearest
from ..core.registry import entries, load_class


def describe(name: str) -> str:
    """The text for a component (docstring, parameters, strengths, citations) or a preset (its YAML).

    Raises:
        SpecError: nothing has this name.
    """
    if name in presets():
        folder = resources.files("waterproof" if not __package__ else __package__.rsplit(".", 1)[0])
        return (folder / "bench" / "presets" / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
    known = [n for _, n in entries()]
    if ":" not in name and name not in known:
        raise SpecError(f"nothing is called '{name}'.{nearest(name, [*known, *presets()])}")
    return _component(load_class(find_kind(name), name))


def _component(cls: type[Component]) -> str:
    text = inspect.cleandoc(cls.__doc__ or cls.summary or "no description").split("\nExample:")[0].rstrip()
    parts = [f"{cls.name}: {cls.kind}, version {cls.version}", "", text]
    fields = [line for name in cls.model_fields for line in _field(cls, name)]
    if fields:
        parts += ["", "parameters:", *fields]
    if issubclass(cls, Attack) and cls.strengths:
        values = ", ".join(format_value(v) for v in cls.strengths)
        parts += ["", f"strength is {cls.strength}; the peers' grid, from mild to hard: {values}"]
    if cls.references:
        parts += ["", "cite:", *(textwrap.indent(textwrap.fill(r, 100), "  ") for r in cls.references)]
    return "\n".join(parts)


def _field(cls: type[Component], name: str) -> list[str]:
    info = cls.model_fields[name]
    default = "required" if info.is_required() else f"default {format_value(info.default)}"
    knob = ", runtime knob" if field_roles(cls)[name] == "knob" else ""
    limits = ", ".join(str(m).replace("(", " ").replace(")", "") for m in info.metadata)
    head = f"  {name} ({default}{', ' + limits if limits else ''}{knob})"
    return [head, textwrap.indent(textwrap.fill(info.description or "", 96), "      ")]
