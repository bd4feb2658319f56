"""One lazy registry of everything that has a name. Listing it imports no component and no torch."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalogue import CATALOGUE
from .errors import SpecError, nearest

if TYPE_CHECKING:
    from types import CodeType, ModuleType

    from .components import Component

KINDS = ("dataset", "method", "attack", "metric", "editor")
_ROOT = __name__.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered component.

    Attributes:
        kind: one of :data:`KINDS`.
        name: what a benchmark file says.
        target: ``module:attribute``.
        family: a heading for listings.
        summary: one line.
        origin: the distribution that registered it.
    """

    kind: str
    name: str
    target: str
    family: str = ""
    summary: str = ""
    origin: str = _ROOT


def _plugin(kind: str, point: EntryPoint) -> Entry:
    origin = point.dist.name if point.dist is not None else "?"
    return Entry(kind, point.name, point.value, "plugin", f"from the package {origin}", origin)


@lru_cache(maxsize=1)
def entries() -> dict[tuple[str, str], Entry]:
    """All entries by (kind, name): the package's own, then entry points ``waterproof.methods``, ``.attacks``, ...

    Raises:
        SpecError: two distributions register one name.
    """
    found: dict[tuple[str, str], Entry] = {}
    own = [Entry(kind, name, f"{_ROOT}.{target}", family, text) for kind, name, target, family, text in CATALOGUE]
    plugins = [_plugin(kind, p) for kind in KINDS for p in entry_points(group=f"waterproof.{kind}s")]
    for entry in own + plugins:
        key = (entry.kind, entry.name)
        if key in found:
            raise SpecError(
                f"{entry.kind} '{entry.name}' is registered twice, by {found[key].origin} ({found[key].target}) "
                f"and by {entry.origin} ({entry.target}): uninstall one or rename it"
            )
        found[key] = entry
    return found


def names(kind: str) -> list[str]:
    """The registered names of a kind, in the order of the catalogue."""
    return [name for k, name in entries() if k == kind]


def load_class(kind: str, name: str) -> type[Component]:
    """The component class called ``name``; ``file.py:Class`` and ``module:Class`` reach classes that nobody registered.

    Raises:
        SpecError: an unknown name (with the nearest valid one), or a target that is no component of this kind.
    """
    if ":" in name:
        target = name
    else:
        entry = entries().get((kind, name))
        if entry is None:
            elsewhere = [k for k, n in entries() if n == name]
            hint = f" '{name}' is one of the {elsewhere[0]}s." if elsewhere else nearest(name, names(kind))
            raise SpecError(f"unknown {kind} '{name}'.{hint}")
        target = entry.target
    cls = _resolve(target)
    # Late: pydantic takes longer to import than a listing takes altogether.
    from .components import Component

    if not (isinstance(cls, type) and issubclass(cls, Component) and cls.kind == kind):
        raise SpecError(f"{target} is no {kind}: it must be a class derived from the {kind} contract")
    # A name that is only inherited would give two classes one identity.
    if not vars(cls).get("name"):
        cls.name = cls.__name__.lower()
    return cls


def create(kind: str, name: str, params: dict[str, Any] | None = None) -> Component:
    """Builds the component ``name`` of ``kind`` with ``params``.

    Raises:
        SpecError: unknown name or parameter, or a bad value.

    Example:
        >>> create("attack", "jpeg", {"quality": 50}).label
        'jpeg(quality=50)'
    """
    from .components import build

    return build(load_class(kind, name), params or {})


def _resolve(target: str) -> object:
    place, _, attribute = target.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and not place.startswith(error.name):
            raise SpecError(f"{target} needs the package '{error.name}', which is not installed") from None
        raise SpecError(f"cannot import '{place}' of {target}: no such module") from None
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"cannot import '{place}' of {target}: {_cause(error)}") from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise SpecError(f"'{place}' has no '{attribute}'.{nearest(attribute, public)}")
    return getattr(module, attribute)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles the file every time: cached bytecode of a file that was edited within a second would be the old code."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SpecError(f"no such file: {path}")
    # The content is part of the name: an edited file is loaded anew, as its spec carries the new digest.
    named = f"{path.resolve()}\n".encode() + path.read_bytes()
    name = f"{path.stem}_{hashlib.sha256(named).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    if module_spec is None or module_spec.loader is None:
        raise SpecError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SpecError(f"{path} fails when it is loaded: {_cause(error)}") from error
    return module


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
