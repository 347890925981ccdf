"""A JSON Schema as a document: its keywords checked, its references resolved, a JSON pointer for each of its places.

Knows which keywords there are and what their values look like; `ayaedge.grammar.json_schema` decides what they allow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from urllib.parse import unquote

from ayaedge.checks import shown
from ayaedge.errors import list_faults

Schema: TypeAlias = "dict[str, Any] | bool"

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_DEEPEST = 100
_TOO_DEEP = f"this JSON schema is nested deeper than {_DEEPEST} levels: use $ref, or make it flatter"
_TOO_LARGE = "this JSON schema is too large: make it smaller"
_MOST_NODES = 20_000
_MOST_CHARACTERS = 1_000_000
_MOST_DIGITS = 1000

_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
KEYWORDS_OF_TYPE = {
    "object": {
        "properties", "required", "additionalProperties", "minProperties", "maxProperties", "patternProperties",
        "propertyNames",
    },
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": _BOUNDS,
    "integer": _BOUNDS,
}  # fmt: skip
"""The keywords that say something about values of one type only."""

_UNREAD = {
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema",
    "$comment", "contentEncoding", "contentMediaType", "contentSchema",
}  # fmt: skip
"""Annotations: their values may be anything, also what is no JSON."""
_ANNOTATIONS = {*_UNREAD, "$defs", "definitions", "discriminator"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_INNER_SCHEMAS = {"items", "additionalProperties", "propertyNames", "anyOf", "oneOf", "allOf", "prefixItems"}
_REFUSED = {
    "not": "say what is allowed instead",
    "if": "use anyOf with a schema for each case",
    "then": "use anyOf with a schema for each case",
    "else": "use anyOf with a schema for each case",
    "dependentRequired": "use anyOf with a schema for each case",
    "dependentSchemas": "use anyOf with a schema for each case",
    "dependencies": "use anyOf with a schema for each case",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "uniqueItems": "use a list instead of a set, with maxItems, and drop what comes twice afterwards",
    "additionalItems": "use items after prefixItems",
    "contains": "use prefixItems for what must be there",
    "minContains": "leave it out",
    "maxContains": "leave it out",
    "nullable": 'add "null" to type',
    "$anchor": "refer to it by a JSON pointer",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "refer to it by a JSON pointer",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "refer to it by a JSON pointer",
    "$vocabulary": "leave it out",
}


class SchemaError(ValueError):
    """A schema that cannot be honoured; the message lists all reasons."""


def _is_schema(value: object) -> bool:
    return isinstance(value, (dict, bool))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_type(value: object) -> bool:
    return isinstance(value, str) and value in TYPES


def _are_schemas(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _are_named(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _are_types(value: object) -> bool:
    return _is_type(value) or (isinstance(value, list) and bool(value) and all(map(_is_type, value)))


_TEXT = (lambda value: isinstance(value, str), "a string")
_COUNT = (_is_count, "a whole number of 0 or more")
_NUMBER = (_is_number, "a number")
_SCHEMAS = (_are_schemas, "a list of schemas that is not empty")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_are_types, f"one or several of {', '.join(TYPES)}"),
    "properties": (_are_named, "a dictionary of schemas"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of strings",
    ),
    "additionalProperties": (_is_schema, "a schema"),
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "items": (_is_schema, "a schema; a list of them belongs into prefixItems"),
    "prefixItems": _SCHEMAS,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "patternProperties": (_are_named, "a dictionary of schemas"),
    "propertyNames": (_is_schema, "a schema"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list that is not empty"),
    "const": (lambda _: True, "a value"),
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "allOf": _SCHEMAS,
    "$ref": _TEXT,
    "$id": (lambda _: False, "at the root only"),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": _TEXT,
    "format": _TEXT,
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
}


class SchemaDocument:
    """A schema with its faults; its dictionaries are copies, and each has one place."""

    def __init__(self, schema: object):
        if not _is_schema(schema):
            name = shortened(type(schema).__name__)
            raise SchemaError(f"a schema must be a dictionary or a boolean, not {name}")
        schema = _Cleaning().copy(schema)
        if reason := _unusable(schema):
            raise SchemaError(reason)
        self.root: Schema = json.loads(json.dumps(schema))
        self.faults: list[str] = []
        self._places = {id(node): place for node, place in _walk(self.root)}
        self._asserted: dict[int, dict[str, Any]] = {}
        self._remainders: dict[int, dict[str, Any]] = {}

    def nodes(self) -> Iterator[dict[str, Any]]:
        """All schemas of the document that are dictionaries."""
        work: list[Any] = [self.root]
        while work:
            node = work.pop()
            if isinstance(node, list):
                work += node
            elif isinstance(node, dict):
                yield node
                for keyword, value in node.items():
                    if keyword in _INNER_SCHEMAS:
                        work.append(value)
                    elif keyword in _NAMED_SCHEMAS and isinstance(value, dict):
                        work += value.values()

    def raise_faults(self) -> None:
        """SchemaError with all faults found so far, if there are any."""
        if self.faults:
            raise SchemaError(list_faults("this JSON schema", list(dict.fromkeys(self.faults))))

    def fault(self, schema: Schema, reason: str, keyword: str = "") -> None:
        """Note what is wrong with a schema, or with one of its keywords."""
        place = self.place(schema)
        self.faults.append(f"{place}/{keyword}: {reason}" if keyword else f"{place}: {reason}")

    def place(self, schema: Schema) -> str:
        """The JSON pointer of a schema; of `true` and `false` nobody knows it."""
        return self._places.get(id(schema), "#")

    def name_place(self, schema: dict[str, Any], place: str) -> None:
        """Say where a schema comes from that was made of others."""
        self._places[id(schema)] = place

    def asserted(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The keywords of a schema that restrict values; notes a fault for each that is wrong or not supported."""
        if id(schema) not in self._asserted:
            self._asserted[id(schema)] = {
                keyword: value
                for keyword, value in schema.items()
                if not self._is_annotation(keyword, schema) and self._is_good(schema, keyword, value)
            }
        return self._asserted[id(schema)]

    def target(self, schema: dict[str, Any]) -> Schema:
        """The schema that `$ref` leads to; true, and a fault, if it leads nowhere."""
        found = self.resolve(schema["$ref"])
        if found is None:
            reason = (
                f"{shortened(schema['$ref'])} leads to no schema in this document, as '#/$defs/name' would"
            )
            self.fault(schema, reason, "$ref")
        return True if found is None else found

    def resolve(self, reference: str) -> Schema | None:
        """The schema at a JSON pointer that begins with #, or None."""
        start, *keys = unquote(reference).split("/")
        node: Any = self.root if start == "#" else None
        for key in (key.replace("~1", "/").replace("~0", "~") for key in keys):
            if not _has(node, key):
                return None
            node = node[int(key) if isinstance(node, list) else key]
        return node if _is_schema(node) else None

    def parts(self, schema: Schema) -> list[dict[str, Any]]:
        """The schemas without `$ref` and `allOf` that must all hold; those that say nothing are left out."""
        found: list[dict[str, Any]] = []
        seen: set[int] = set()
        work: list[tuple[Schema, tuple[int, ...]]] = [(schema, ())]
        while work:
            part, above = work.pop()
            if id(part) in above:
                self.fault(schema, "can never end: it always leads to itself again")
            if part is False:
                self.fault(schema, "false allows no value")
            if isinstance(part, bool) or id(part) in seen:
                continue
            seen.add(id(part))
            asserted = self.asserted(part)
            inner = [self.target(part)] if "$ref" in asserted else []
            inner += asserted.get("allOf", [])
            rest = {key: value for key, value in part.items() if key not in ("$ref", "allOf")}
            if not inner:
                if asserted:
                    found.append(part)
            elif any(key in asserted for key in rest):
                found.append(self._remainder(part, rest))
            work += [(below, (*above, id(part))) for below in reversed(inner)]
        return found

    def _remainder(self, schema: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
        """A schema less its `$ref` and `allOf`, made once."""
        key = id(schema)
        if key not in self._remainders:
            self._remainders[key] = rest
            self.name_place(rest, self.place(schema))
        return self._remainders[key]

    def _is_annotation(self, keyword: str, schema: dict[str, Any]) -> bool:
        if keyword == "$id":
            return schema is self.root
        if keyword == "uniqueItems":
            return schema[keyword] is False
        return keyword in _ANNOTATIONS

    def _is_good(self, schema: dict[str, Any], keyword: str, value: Any) -> bool:
        if keyword in _REFUSED:
            self.fault(schema, f"is not supported: {_REFUSED[keyword]}", keyword)
        elif keyword not in _CHECKS:
            self.fault(
                schema, "is no keyword that is known here: correct it or leave it out", escaped(keyword)
            )
        elif not _CHECKS[keyword][0](value):
            self.fault(schema, f"must be {_CHECKS[keyword][1]}, not {shortened(value)}", keyword)
        else:
            return True
        return False


def escaped(key: str) -> str:
    """A key as a part of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def shortened(value: object) -> str:
    """A value for a message."""
    text = shown(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Cleaning:
    """Copies a schema without what says nothing about values, as far as it has a sane size."""

    def __init__(self) -> None:
        self._nodes = 0

    def copy(self, schema: Any, depth: int = 0) -> Any:
        self._nodes += 1
        if depth > _DEEPEST:
            raise SchemaError(_TOO_DEEP)
        if self._nodes > _MOST_NODES:
            raise SchemaError(_TOO_LARGE)
        if isinstance(schema, list):
            return [self.copy(inner, depth + 1) for inner in schema]
        if not isinstance(schema, dict):
            return schema
        found: dict[Any, Any] = {}
        for keyword, value in schema.items():
            if isinstance(keyword, str) and (keyword in _UNREAD or keyword.startswith("x-")):
                continue
            if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
                value = {name: self.copy(inner, depth + 2) for name, inner in value.items()}
            elif keyword in _INNER_SCHEMAS:
                value = self.copy(value, depth + 1)
            found[keyword] = value
        return found


def _has(node: Any, key: str) -> bool:
    if isinstance(node, dict):
        return key in node
    return (
        isinstance(node, list) and key.isascii() and key.isdigit() and len(key) < 9 and int(key) < len(node)
    )


def _walk(root: Any) -> Iterator[tuple[Any, str]]:
    """All dictionaries of a document with their JSON pointers."""
    work: list[tuple[Any, str]] = [(root, "#")]
    while work:
        node, place = work.pop()
        if isinstance(node, dict):
            yield node, place
            work += [(value, f"{place}/{escaped(key)}") for key, value in node.items()]
        elif isinstance(node, list):
            work += [(value, f"{place}/{number}") for number, value in enumerate(node)]


def _unusable(schema: object) -> str | None:
    """Why something is no JSON document of a sane size, or None."""
    work: list[tuple[Any, int]] = [(schema, 0)]
    nodes = characters = 0
    while work:
        node, depth = work.pop()
        nodes += 1
        if depth > _DEEPEST:
            return _TOO_DEEP
        if isinstance(node, dict):
            characters += sum(len(key) for key in node if isinstance(key, str))
            if reason := next((why for why in map(_unusable_key, node) if why), None):
                return reason
            work += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, (list, tuple)):
            work += [(value, depth + 1) for value in node]
        elif reason := _unusable_leaf(node):
            return reason
        elif isinstance(node, str):
            characters += len(node)
        if nodes + len(work) > _MOST_NODES or characters > _MOST_CHARACTERS:
            return _TOO_LARGE
    return None


def _unusable_key(key: object) -> str | None:
    if not isinstance(key, str):
        return f"keys in a JSON schema must be strings, not {shortened(key)}"
    return _unusable_leaf(key)


def _unusable_leaf(value: object) -> str | None:
    if isinstance(value, str):
        if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            return f"this JSON schema has a string that is not valid Unicode: {ascii(value)[:60]}"
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"this JSON schema has a number that JSON cannot write: {value}"
    if isinstance(value, int) and value.bit_length() > _MOST_DIGITS:
        return "this JSON schema has an integer that is too large"
    if value is None or isinstance(value, (int, float)):
        return None
    return f"this JSON schema has something that is no JSON: {shortened(value)}"
