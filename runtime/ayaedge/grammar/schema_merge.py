"""What several JSON schemas mean together: keywords that must all hold, and schemas that cannot hold at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ayaedge.grammar.schema_keywords import TYPES, Schema, SchemaDocument

Both = Callable[[Schema, Schema], Schema]
"""Makes the schema that holds where two do."""

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


def fits_type(value: Any, types: str | list[str] | None) -> bool:
    """Whether a value has one of the types."""
    return types is None or bool(type_names(value) & _as_set(types))


def _as_set(types: str | list[str]) -> set[str]:
    return {types} if isinstance(types, str) else set(types)


def type_names(value: Any) -> set[str]:
    """The types that a value has: 1.0 is a number and an integer."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, (int, float)):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {{dict: "object", list: "array", str: "string", type(None): "null"}[type(value)]}


def _common_types(one: str | list[str], other: str | list[str]) -> list[str]:
    """The types in both; integers are numbers."""
    first, second = _as_set(one), _as_set(other)
    common = first & second
    if "integer" in first | second and "number" in first | second:
        common |= {"integer"} if "number" not in common else set()
    return [name for name in TYPES if name in common]


def conjunction(parts: Sequence[dict[str, Any]], both: Both) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """One schema for all of these, and for each keyword that cannot be merged the reason."""
    found: dict[str, Any] = {}
    reasons = _closed_faults(parts) + _item_faults(parts)
    for part in parts:
        for keyword, value in part.items():
            if keyword not in found:
                found[keyword] = value
                continue
            merged = _merged(keyword, found[keyword], value, both)
            if merged is None:
                reasons.append(
                    (keyword, "different ones in allOf, or beside $ref, cannot be merged: write one schema")
                )
            else:
                found[keyword] = merged
    if found.get("type") == [] or found.get("enum") == []:
        reasons.append(("", "its parts contradict each other: no value is allowed by all of them"))
    return found, reasons


def _merged(keyword: str, one: Any, other: Any, both: Both) -> Any:
    """What holds where both values of a keyword do; None if that cannot be written."""
    if identity(one) == identity(other):
        return one
    if keyword.startswith("min") or keyword == "exclusiveMinimum":
        return max(one, other)
    if keyword.startswith("max") or keyword == "exclusiveMaximum":
        return min(one, other)
    if keyword == "type":
        return _common_types(one, other)
    if keyword == "required":
        return list(dict.fromkeys([*one, *other]))
    if keyword == "enum":
        known = {identity(value) for value in other}
        return [value for value in one if identity(value) in known]
    if keyword == "properties":
        return {
            **one,
            **{name: both(one[name], value) if name in one else value for name, value in other.items()},
        }
    return both(one, other) if keyword in ("items", "additionalProperties") else None


def _closed_faults(parts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """`additionalProperties` speaks about the properties beside it: merging must not declare others."""
    for part in parts:
        if part.get("additionalProperties", True) is True:
            continue
        for other in parts:
            if set(other.get("properties", {})) - set(part.get("properties", {})):
                reason = "stands in a part of allOf, or beside $ref, that does not declare all properties of the others"
                return [("additionalProperties", reason + ": declare them in one schema")]
    return []


def _item_faults(parts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """`items` speaks about what follows the `prefixItems` beside it."""
    if (
        sum("prefixItems" in part for part in parts)
        and sum("items" in part or "prefixItems" in part for part in parts) > 1
    ):
        return [("prefixItems", "cannot be merged with items of another part: write one schema")]
    return []


@dataclass(frozen=True)
class _Summary:
    """What is certain about the values that a schema allows; None where nothing is."""

    types: set[str] | None = None
    values: set[object] | None = None
    tags: dict[str, set[object]] = field(default_factory=dict)
    """The values of those required properties that have only certain ones."""


def are_disjoint(document: SchemaDocument, one: Schema, other: Schema) -> bool:
    """Whether no value can be valid by both, as far as types, values and required properties tell."""
    if one is False or other is False:
        return True
    first, second = _summary(document, one), _summary(document, other)
    both_typed = first.types is not None and second.types is not None
    if both_typed and not _narrowed(first.types, second.types):
        return True
    if first.values is not None and second.values is not None and not first.values & second.values:
        return True
    objects_only = {"object"} in (first.types, second.types)
    tags = set(first.tags) & set(second.tags)
    return objects_only and any(not first.tags[name] & second.tags[name] for name in tags)


def _summary(document: SchemaDocument, schema: Schema, depth: int = 0) -> _Summary:
    types: set[str] | None = None
    values: set[object] | None = None
    if depth > _DEEPEST_UNION:
        return _Summary()
    parts = [document.asserted(part) for part in document.parts(schema)]
    for part in parts:
        known = [_Summary(_as_set(part["type"]) if "type" in part else None, _values_of(part))]
        known += [
            _union([_summary(document, branch, depth + 1) for branch in part[keyword]])
            for keyword in ("anyOf", "oneOf")
            if keyword in part
        ]
        for summary in known:
            types = _narrowed(types, summary.types)
            values = summary.values if values is None else values & (summary.values or values)
    return _Summary(types, values, required_values(document, parts, depth))


def required_values(
    document: SchemaDocument, parts: Sequence[dict[str, Any]], depth: int = 0
) -> dict[str, set[object]]:
    """The required properties of an object that can have certain values only, and those values' identities."""
    required = {name for part in parts for name in part.get("required", [])}
    found: dict[str, set[object]] = {}
    for part in parts:
        for name in required & set(part.get("properties", {})):
            allowed = _summary(document, part["properties"][name], depth + 1).values
            if allowed is not None:
                found[name] = allowed
    return found


def _narrowed(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return set(_common_types(sorted(one), sorted(other)))


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
