"""Which parts of a JSON schema lead back to themselves, and whether a reader can tell recursive alternatives apart.

llama.cpp follows all alternatives that still fit. If two of them recurse before they differ, their number doubles with
each level, and a dozen levels take minutes for a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ayaedge.grammar.schema_keywords import Schema, SchemaDocument
from ayaedge.grammar.schema_merge import required_values

_OTHERS = "other properties"
_ITEMS = "items"


def components(document: SchemaDocument) -> dict[int, int]:
    """A number for each dictionary and list of the document, by id: the same for those that lead to each other.

    Tarjan's algorithm, without recursion.
    """
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    found: dict[int, int] = {}
    path: list[int] = []
    work = [(document.root, _successors(document, document.root))] if isinstance(document.root, dict) else []
    for node, _ in work:
        order[id(node)] = lowest[id(node)] = 0
        path.append(id(node))
    while work:
        node, successors = work[-1]
        key = id(node)
        following = next(successors, None)
        if following is None:
            work.pop()
            if work:
                above = id(work[-1][0])
                lowest[above] = min(lowest[above], lowest[key])
            if lowest[key] == order[key]:
                while key not in found:
                    found[path.pop()] = order[key]
        elif id(following) not in order:
            order[id(following)] = lowest[id(following)] = len(order)
            path.append(id(following))
            work.append((following, _successors(document, following)))
        elif id(following) not in found:
            lowest[key] = min(lowest[key], order[id(following)])
    return found


def _successors(document: SchemaDocument, node: Any) -> Iterator[Any]:
    values = list(node.values()) if isinstance(node, dict) else list(node)
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        values.append(document.resolve(node["$ref"]))
    return iter([value for value in values if isinstance(value, (dict, list))])


@dataclass(frozen=True)
class _Shape:
    """Of one alternative: where it recurses, and what it has in which order."""

    recursive: set[str]
    properties: list[str]
    tags: dict[str, set[object]]

    def tells_apart(self, other: _Shape, before: str) -> bool:
        """Whether a required property that differs comes before the property `before`."""
        return any(
            not self.tags[name] & other.tags[name]
            and _place(self.properties, name) < _place(self.properties, before)
            and _place(other.properties, name) < _place(other.properties, before)
            for name in set(self.tags) & set(other.tags)
        )


def _place(properties: Sequence[str], name: str) -> int:
    return properties.index(name) if name in properties else len(properties)


def confused_property(
    document: SchemaDocument, numbers: dict[int, int], branches: Sequence[Schema]
) -> str | None:
    """The property in which two of these alternatives recurse before they differ, or None."""
    component = numbers.get(id(branches))
    shapes = [_shape(document, numbers, component, branch) for branch in branches if branch is not False]
    for number, one in enumerate(shapes):
        for other in shapes[:number]:
            for name in _shared(one, other):
                if not one.tells_apart(other, name):
                    return name
    return None


def _shared(one: _Shape, other: _Shape) -> list[str]:
    shared = one.recursive & other.recursive
    for first, second in ((one, other), (other, one)):
        if _OTHERS in first.recursive:
            shared |= second.recursive - {_ITEMS} - set(first.properties)
    return sorted(shared)


def _shape(
    document: SchemaDocument, numbers: dict[int, int], component: int | None, branch: Schema
) -> _Shape:
    recursive: set[str] = set()
    properties: list[str] = []
    parts = [document.asserted(part) for part in document.parts(branch)]
    for part in parts:
        declared: dict[str, Schema] = part.get("properties", {})
        properties += [name for name in declared if name not in properties]
        inner = [*declared.items(), (_OTHERS, part.get("additionalProperties"))]
        inner += [(_ITEMS, value) for value in [part.get("items"), *part.get("prefixItems", [])]]
        recursive |= {
            name for name, value in inner if component is not None and numbers.get(id(value)) == component
        }
    return _Shape(recursive, properties, required_values(document, parts))
