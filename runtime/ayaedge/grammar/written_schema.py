"""A schema as `json_schema` writes it for llguidance: how deep it is, whether its values end, what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ayaedge.grammar.schema_keywords import KEYWORDS_OF_TYPE, escaped


def levels_of(node: Any) -> int:
    """How deep a written schema is nested."""
    if isinstance(node, dict):
        return 1 + max(map(levels_of, node.values()), default=0)
    return max(map(levels_of, node), default=0) if isinstance(node, list) else 0


def types_of(result: dict[str, Any]) -> list[str]:
    """The types that a written schema speaks about: all of them where it names none."""
    kinds = result.get("type", [*KEYWORDS_OF_TYPE, "boolean", "null"])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def has_end(node: Any, ends: set[str]) -> bool:
    """Whether some value of a written schema ends, if those definitions do."""
    if isinstance(node, bool):
        return node
    if "$ref" in node and node["$ref"].rpartition("/")[2] not in ends:
        return False
    if not all(has_end(part, ends) for part in node.get("allOf", [])):
        return False
    if "anyOf" in node and not any(has_end(part, ends) for part in node["anyOf"]):
        return False
    if "enum" in node or set(types_of(node)) - {"object", "array"}:
        return True
    return ("array" in types_of(node) and _arrayhas_end(node, ends)) or (
        "object" in types_of(node) and _objecthas_end(node, ends)
    )


def _arrayhas_end(node: dict[str, Any], ends: set[str]) -> bool:
    prefix, least = node.get("prefixItems", []), node.get("minItems", 0)
    needed = [*prefix[:least], *([node.get("items", True)] if least > len(prefix) else [])]
    return all(has_end(item, ends) for item in needed)


def _objecthas_end(node: dict[str, Any], ends: set[str]) -> bool:
    properties, others = node.get("properties", {}), node.get("additionalProperties", True)
    return all(
        has_end(properties.get(name, others if "patternProperties" not in node else True), ends)
        for name in node.get("required", [])
    )


def schemas_of(node: Any, place: str) -> Iterator[tuple[Any, str]]:
    """A written schema and those in it, with their JSON pointers."""
    yield node, place
    if not isinstance(node, dict):
        return
    for keyword, value in node.items():
        if keyword in ("properties", "patternProperties"):
            for name, inner in value.items():
                yield from schemas_of(inner, f"{place}/{keyword}/{escaped(name)}")
        elif keyword in ("items", "additionalProperties"):
            yield from schemas_of(value, f"{place}/{keyword}")
        elif keyword in ("anyOf", "allOf", "prefixItems"):
            for number, inner in enumerate(value):
                yield from schemas_of(inner, f"{place}/{keyword}/{number}")
