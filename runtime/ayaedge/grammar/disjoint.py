"""Which JSON schemas cannot hold at once, as far as types, values and required properties tell."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from ayaedge.grammar.schema_keywords import TYPES, Schema, SchemaDocument

_DEEPEST_UNION = 10


def identity(value: Any) -> object:
    """Equal exactly for values that JSON Schema calls equal: 1 is 1.0, and is not true."""
    if isinstance(value, dict):
        return frozenset((key, identity(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(identity(inner) for inner in value)
    if isinstance(value, (bool, str)) or value is None:
        return (type(value).__name__, value)
    return ("number", value)


@dataclass(frozen=True)
class _Summary:
    """What is certain about the values that a schema allows; None where nothing is."""

    types: set[str] | None = None
    values: set[object] | None = None
    tags: dict[str, set[object]] = field(default_factory=dict)
    """The values of those required properties that have only certain ones."""
    required: frozenset[str] = frozenset()
    declared: frozenset[str] | None = None
    """The only properties that an object may have."""
    written: frozenset[str] | None = None
    """The only properties that an answer's object has: what the schema declares is not added to."""


def are_disjoint(document: SchemaDocument, one: Schema, other: Schema, combined: Container[int] = ()) -> bool:
    """Whether no answer under the one is valid by the other, and the other way round.

    An answer has no property that is not declared, but of the schemas whose ids are `combined`.
    """
    if one is False or other is False:
        return True
    first, second = _summary(document, one, combined), _summary(document, other, combined)
    both_typed = first.types is not None and second.types is not None
    if both_typed and not _narrowed(first.types, second.types):
        return True
    if first.values is not None and second.values is not None and not first.values & second.values:
        return True
    if {"object"} not in (first.types, second.types):
        return False
    tags = set(first.tags) & set(second.tags)
    if any(not first.tags[name] & second.tags[name] for name in tags):
        return True
    return _never_fits(first, second) and _never_fits(second, first)


def _never_fits(written: _Summary, other: _Summary) -> bool:
    """Whether an object written under the one is invalid by the other: it lacks a property, or has one too many."""
    lacks = written.written is not None and bool(other.required - written.written)
    return lacks or (other.declared is not None and bool(written.required - other.declared))


def _summary(
    document: SchemaDocument, schema: Schema, combined: Container[int] = (), depth: int = 0
) -> _Summary:
    types: set[str] | None = None
    values: set[object] | None = None
    if depth > _DEEPEST_UNION:
        return _Summary()
    nodes = document.parts(schema)
    parts = [document.asserted(node) for node in nodes]
    for part in parts:
        known = [_Summary(_types_of(part), _values_of(part))]
        known += [
            _union([_summary(document, branch, depth=depth + 1) for branch in part[keyword]])
            for keyword in ("anyOf", "oneOf")
            if keyword in part
        ]
        for summary in known:
            types = _narrowed(types, summary.types)
            values = summary.values if values is None else values & (summary.values or values)
    required = frozenset(name for part in parts for name in part.get("required", []))
    declared = written = None
    if len(parts) == 1 and not {"patternProperties", "propertyNames"} & set(parts[0]):
        properties = frozenset(parts[0].get("properties", {}))
        others = parts[0].get("additionalProperties")
        declared = properties if others is False else None
        alone = "properties" in parts[0] and others is None and id(nodes[0]) not in combined
        written = properties | required if alone else declared
    return _Summary(types, values, _tags(document, parts, required, depth), required, declared, written)


def _tags(
    document: SchemaDocument, parts: Sequence[dict[str, Any]], required: frozenset[str], depth: int
) -> dict[str, set[object]]:
    found: dict[str, set[object]] = {}
    for part in parts:
        for name in required & set(part.get("properties", {})):
            allowed = _summary(document, part["properties"][name], depth=depth + 1).values
            if allowed is not None:
                found[name] = allowed
    return found


def _narrowed(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    """The types in both; integers are numbers."""
    if one is None or other is None:
        return other if one is None else one
    common = one & other
    if {"integer", "number"} <= one | other and "number" not in common:
        common = common | {"integer"}
    return {name for name in TYPES if name in common}


def _types_of(part: dict[str, Any]) -> set[str] | None:
    types = part.get("type")
    if types is None and {"const", "enum"} & set(part):
        return {name for value in part.get("enum", [part.get("const")]) for name in _types_of_value(value)}
    return None if types is None else {types} if isinstance(types, str) else set(types)


def _types_of_value(value: Any) -> set[str]:
    """The types that a value has: 1.0 is a number and an integer."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, (int, float)):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {{dict: "object", list: "array", str: "string", type(None): "null"}[type(value)]}


def _values_of(part: dict[str, Any]) -> set[object] | None:
    if "const" in part:
        return {identity(part["const"])}
    return {identity(value) for value in part["enum"]} if "enum" in part else None


def _union(summaries: Sequence[_Summary]) -> _Summary:
    types: set[str] | None = set()
    values: set[object] | None = set()
    for summary in summaries:
        types = None if types is None or summary.types is None else types | summary.types
        values = None if values is None or summary.values is None else values | summary.values
    return _Summary(types, values)
