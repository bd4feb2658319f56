"""YAML with line numbers, so that an error can say where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from ..core.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Hashable

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; plain YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' stands twice in one mapping", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    """Parses YAML.

    Args:
        text: the document.
        name: what to call it in messages, e.g. the file name.

    Returns:
        The value, and the line (from 1) of every place in it.

    Raises:
        SpecError: the text is not YAML; the message has the line.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = loader.construct_document(node) if node is not None else None
        lines: dict[Place, int] = {}
        if node is not None:
            _collect(node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{name}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: PyYAML lets an impossible date through to Python's own types.
        raise SpecError(f"{name}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply, or an alias that contains itself") from None
    finally:
        if loader is not None:
            loader.dispose()
    return value, lines


def _collect(node: yaml.Node, place: Place, lines: dict[Place, int]) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            lines[(*place, key.value)] = key.start_mark.line + 1
            _collect(child, (*place, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _collect(child, (*place, i), lines)


def line_of(place: Place, lines: dict[Place, int]) -> int | None:
    """The line of a place, or of the nearest place around it."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)
