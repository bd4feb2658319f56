"""What every dataset, method, attack and metric is: validated parameters, a version, and a frozen spec.

A component is a frozen pydantic model. Each of its fields is declared with :func:`param` (part of the identity of
every result) or with :func:`knob` (changes speed, never a value). A test fails on a field that is neither.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import SpecError, nearest
from .identity import file_digest, identity

_ROLE = "waterproof"


def param(default: Any = ..., *, doc: str, **constraints: Any) -> Any:
    """Declares a field that is part of a component's identity.

    Args:
        default: the default value; left out, the field is required.
        doc: one sentence with unit and range; shown by ``waterproof show``.
        **constraints: pydantic's, e.g. ``ge=0, le=1``.
    """
    return Field(default, description=doc, json_schema_extra={_ROLE: "identity"}, **constraints)


def knob(default: Any = ..., *, doc: str, **constraints: Any) -> Any:
    """Declares a runtime knob: it may change time or memory, never a stored value."""
    return Field(default, description=doc, json_schema_extra={_ROLE: "knob"}, **constraints)


class Spec(BaseModel):
    """The frozen description of a component: all that decides what it computes.

    Attributes:
        kind: ``dataset``, ``method``, ``attack`` or ``metric``.
        name: the registered name, or ``file.py:Class`` for a component outside the package.
        version: raised whenever the component computes something else.
        params: every identity parameter, defaults included.
        digests: SHA-256 of weights and files by their role.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    version: int
    params: dict[str, Any] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """The identity of this spec."""
        return identity("spec", self.model_dump(mode="json"))


class Component(BaseModel, ABC):
    """Base of everything that a person can add.

    Class attributes:
        kind: which contract this is.
        name: the name in the registry.
        version: raise it when the component computes something else; a test watches the source.
        summary: one line for listings.
        references: BibTeX-like one-line citations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ignored_types=(cached_property,))

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    summary: ClassVar[str] = ""
    references: ClassVar[tuple[str, ...]] = ()

    def digests(self) -> dict[str, str]:
        """SHA-256 digests of the weights and files that decide the results, by role."""
        return {}

    def unavailable(self) -> str | None:
        """Why this component cannot run here, with what to install or fetch; None if it can."""
        return None

    def identity_params(self) -> dict[str, Any]:
        """The identity parameters as JSON types."""
        knobs = {name for name, role in field_roles(type(self)).items() if role == "knob"}
        return self.model_dump(mode="json", exclude=knobs)

    def spec(self) -> Spec:
        """The frozen spec of this component; a component outside the package carries its source's digest."""
        digests = self.digests()
        source = external_source(type(self))
        if source is not None:
            digests = {**digests, "source": file_digest(source)}
        return Spec(
            kind=self.kind, name=self.name, version=self.version, params=self.identity_params(), digests=digests
        )

    def changed_params(self) -> dict[str, Any]:
        """The identity parameters that differ from their defaults."""
        fields = type(self).model_fields
        return {key: v for key, v in self.identity_params().items() if getattr(self, key) != fields[key].default}

    @property
    def label(self) -> str:
        """A short name with the parameters that differ from their defaults, e.g. ``dwt-dct(payload=48)``."""
        return labelled(self.name, self.changed_params())


def labelled(name: str, params: Mapping[str, Any]) -> str:
    """``name(key=value, ...)``, or the bare name.

    Example:
        >>> labelled("crop", {"area": 0.5})
        'crop(area=0.5)'
    """
    inside = ", ".join(f"{key}={format_value(value)}" for key, value in params.items())
    return f"{name}({inside})" if inside else name


C = TypeVar("C", bound=Component)


def format_value(value: object) -> str:
    """A parameter value as a person would write it: ``0.5``, ``[1, 2]``, ``centre``."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {format_value(v)}" for k, v in value.items()) + "}"
    return str(value)


def field_roles(cls: type[BaseModel]) -> dict[str, str]:
    """Maps each field of a component class to ``identity``, ``knob`` or ``unclassified``."""
    roles = {}
    for name, info in cls.model_fields.items():
        extra = info.json_schema_extra
        role = extra.get(_ROLE) if isinstance(extra, dict) else None
        roles[name] = str(role) if role in ("identity", "knob") else "unclassified"
    return roles


def external_source(cls: type) -> Path | None:
    """The source file of a class that lives outside this package, else None."""
    root = __name__.split(".")[0]
    if cls.__module__.split(".")[0] == root:
        return None
    path = inspect.getsourcefile(cls)
    return Path(path) if path else None


def build(cls: type[C], params: Mapping[str, Any]) -> C:
    """Builds a component and turns validation errors into one clear line.

    Raises:
        SpecError: an unknown parameter (with the nearest valid one), a bad value (with what would be right), or a
            class that leaves a part of its contract out.
    """
    if inspect.isabstract(cls):
        lacks = ", ".join(sorted(cls.__abstractmethods__))
        raise SpecError(f"{cls.name or cls.__name__} cannot be used: it lacks {lacks}, which every {cls.kind} defines")
    for key in params:
        if key not in cls.model_fields:
            raise SpecError(f"{cls.name}: unknown parameter '{key}'.{nearest(key, cls.model_fields)}")
    try:
        return cls(**params)
    except ValidationError as error:
        raise SpecError(f"{cls.name}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """One line for a pydantic error: where, what was given, what would be right."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "value"
        given = "" if item["type"] == "missing" else f", not {item.get('input')!r}"
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message[0].lower()}{message[1:]}{given}")
    return "; ".join(parts)
