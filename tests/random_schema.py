"""Random JSON schemas: those that ayaedge supports, and the same with something in them that it does not."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

Schema = dict[str, Any]

NAMES = [
    "a",
    "name",
    "größe",
    "नाम",
    "цвет",
    "with space",
    'quo"te',
    "back\\slash",
    "",
    "名前",
    "ab",
    "line\nbreak",
]
WORDS = [
    "red",
    "redder",
    "rot",
    "लाल",
    "красный",
    "赤",
    "أحمر",
    'a "b"',
    "tab\t",
    "🎈",
    "",
    "null",
    "e\u0301",
]
PATTERNS = [
    "^[A-Z]{2}-\\d{3}$", "^(yes|no)$", "^[^\"]{1,4}$", "^\\w+( \\w+){0,2}$", "^a$|^b$", "^[a-f0-9]+\\.$", "^\\S{2,}$",
    "^.{0,5}$", "^x?[\\s\\\\]y*$", "^$", "^(a(b|cd){1,3})+$", "^[ऀ-ॿ]+$", "^\\D\\W$", "^[\\]^-]$",
]  # fmt: skip
FORMATS = [
    "date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "uri", "hostname", "duration", "color"
]  # fmt: skip
UNSUPPORTED: dict[str, Any] = {
    "not": {"type": "null"}, "if": {}, "then": {}, "else": {}, "patternProperties": {"^a(?=b)": {}}, "contains": {},
    "propertyNames": {"maxLength": 3}, "dependentRequired": {"a": ["b"]}, "dependentSchemas": {},
    "unevaluatedProperties": False,
    "unevaluatedItems": False, "uniqueItems": True, "multipleOf": 0, "format": "iri", "pattern": "^a$b",
    "nullable": True, "maxlength": 3, "$anchor": "x",
    "$dynamicRef": "#x", "minContains": 2, "minLength": -1, "type": "text", "enum": [], "anyOf": [],
    "items": [{}], "required": "a", "$ref": "#/nowhere", "maximum": "3", "properties": [], "minimum": True,
}  # fmt: skip
"""Keywords with values that must be refused wherever they stand."""


def random_schema(chance: random.Random, *, bounded: bool = False) -> Schema:
    """A schema that is supported and that some value satisfies; with `bounded` all its values are short."""
    schema = _Generator(chance, bounded).schema(3)
    if not bounded and chance.random() < 0.2:
        node = {"type": "object", "properties": {"value": schema, "next": _maybe({"$ref": "#/$defs/node"})}}
        node["required"] = chance.choice([[], ["value"], ["value", "next"]])
        node["additionalProperties"] = False
        schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    elif chance.random() < 0.2:
        schema = {"$ref": "#/$defs/a~1b", "$defs": {"a/b": schema}, "description": "a reference"}
    return {"title": "Random", "default": math.inf, "examples": [date(2024, 2, 29)], **schema}


def unsupported_schema(chance: random.Random) -> tuple[Schema, str, str]:
    """A schema with one keyword that must be refused, its JSON pointer, and the keyword."""
    schema = copy.deepcopy(random_schema(chance))
    place, node = chance.choice(list(_schemas(schema, "#")))
    keyword = chance.choice(sorted(UNSUPPORTED))
    node[keyword] = UNSUPPORTED[keyword]
    return schema, f"{place}/{keyword}", keyword


def random_value(chance: random.Random, schema: Any, root: Any = None) -> Any:
    """A valid value for a `random_schema`, written as ayaedge lets models write: properties in the schema's order."""
    root = schema if root is None else root
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2].replace("~1", "/")
        return random_value(chance, root["$defs"][name], root)
    for keyword in ("anyOf", "oneOf", "enum"):
        if keyword in schema:
            choices = schema[keyword]
            # the last one ends recursion
            chosen = chance.choice(choices) if chance.random() < 0.7 else choices[-1]
            return _plain(chosen) if keyword == "enum" else random_value(chance, chosen, root)
    if "const" in schema:
        return _plain(schema["const"])
    if "allOf" in schema:
        required = schema["required"]
        parts = [{"type": "object", "required": required, **part} for part in schema["allOf"]]
        return {name: value for part in parts for name, value in random_value(chance, part, root).items()}
    kind = schema.get("type", "null")
    return _VALUES[kind if isinstance(kind, str) else kind[0]](chance, schema, root)


def _plain(value: Any) -> Any:
    """Whole numbers without a fraction."""
    return int(value) if isinstance(value, float) and value == int(value) else value


def _random_object(chance: random.Random, schema: Schema, root: Any) -> Any:
    required = schema.get("required", [])
    found = {
        name: random_value(chance, inner, root)
        for name, inner in schema.get("properties", {}).items()
        if name in required or chance.random() < 0.5
    }
    for pattern, inner in schema.get("patternProperties", {}).items():
        found[_MATCHES[PATTERNS.index(pattern)]] = random_value(chance, inner, root)
    for name in schema.get("propertyNames", {}).get("enum", []):
        found[name] = random_value(chance, schema["additionalProperties"], root)
    if "propertyNames" in schema:
        return found
    others = schema.get("additionalProperties", False)
    if others is not False and chance.random() < 0.5:
        found["some other"] = [1, {"x": None}] if others is True else random_value(chance, others, root)
    return found


def _random_array(chance: random.Random, schema: Schema, root: Any) -> Any:
    prefix, items = schema.get("prefixItems", []), schema.get("items", {})
    least, most = schema.get("minItems", 0), schema.get("maxItems", 4)
    count = chance.randint(least, max(least, min(most, len(prefix)) if items is False else most))
    return [random_value(chance, inner, root) for inner in [*prefix, *[items] * count][:count]]


def _random_string(chance: random.Random, schema: Schema, _root: Any) -> str:
    if "pattern" in schema:
        return _MATCHES[PATTERNS.index(schema["pattern"])]
    if schema.get("format") in _FORMATTED:
        return _FORMATTED[schema["format"]]
    length = chance.randint(schema.get("minLength", 0), schema.get("maxLength", 9))
    return "".join(chance.choices('aZ0 "\\/\n\téहि赤🎈\u200d', k=length))


def _random_integer(chance: random.Random, schema: Schema, _root: Any) -> int:
    low = schema.get("minimum", math.ceil(schema.get("exclusiveMinimum", -5000)))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 9001) - 1)
    if "multipleOf" in schema:
        return -(-low // schema["multipleOf"]) * schema["multipleOf"]
    return chance.randint(
        min(low, high) if "minimum" not in schema and "exclusiveMinimum" not in schema else low, high
    )


def _random_number(chance: random.Random, schema: Schema, _root: Any) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    low = (high or 0) - 3 if low is None else low
    middle = low + ((low + 3 if high is None else high) - low) * chance.choice([0.25, 0.5, 0.75])
    return _plain(round(middle, 6))


_MATCHES = ["AB-123", "yes", "ह'", "a_1 b", "b", "0f.", "नमस्ते", "a b", "x\\y", "", "abacdcd", "हि", "x!", "]"]
_FORMATTED = {
    "date": "2024-02-29", "time": "23:59:59.5Z", "date-time": "1999-12-31T00:00:00+05:30", "ipv4": "192.168.0.255",
    "uuid": "123e4567-e89b-12d3-a456-426614174000", "email": "first.last+tag@mail.example.org",
    "ipv6": "2001:db8::ff00:42:8329", "uri": "https://example.org/a?b=c#d", "hostname": "a-1.example.org",
    "duration": "P3DT4H",
}  # fmt: skip
_VALUES: dict[str, Callable[[random.Random, Schema, Any], Any]] = {
    "object": _random_object,
    "array": _random_array,
    "string": _random_string,
    "integer": _random_integer,
    "number": _random_number,
    "boolean": lambda chance, _schema, _root: chance.random() < 0.5,
    "null": lambda _chance, _schema, _root: None,
}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas(schema: Any, place: str) -> Iterator[tuple[str, Schema]]:
    """The schemas in a schema that restrict values, where every keyword is looked at."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for keyword in ("items", "additionalProperties", "propertyNames"):
        yield from _schemas(schema.get(keyword), f"{place}/{keyword}")
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for number, inner in enumerate(schema.get(keyword, [])):
            yield from _schemas(inner, f"{place}/{keyword}/{number}")
    for keyword in ("properties", "patternProperties", "$defs"):
        for name, inner in schema.get(keyword, {}).items():
            escaped = name.replace("~", "~0").replace("/", "~1")
            yield from _schemas(inner, f"{place}/{keyword}/{escaped}")


class _Generator:
    def __init__(self, chance: random.Random, bounded: bool):
        self._chance, self._bounded = chance, bounded

    def schema(self, depth: int) -> Schema:
        leaves: list[Callable[[], Schema]] = [
            self._string, self._string, self._integer, self._number, self._values, self._simple
        ]  # fmt: skip
        inner = [
            self._object,
            self._object,
            self._array,
            self._tuple,
            self._any_of,
            self._one_of,
            self._named,
            self._all_of,
        ]
        if depth and self._chance.random() < 0.7:
            return self._chance.choice(inner)(depth - 1)
        return self._chance.choice(leaves)()

    def _flip(self, probability: float = 0.5) -> bool:
        return self._chance.random() < probability

    def _simple(self) -> Schema:
        kinds: list[Any] = ["boolean", "null", ["null", "boolean"]]
        if not self._bounded:
            kinds += ["string", "number", "integer", "object", "array", ["integer", "string", "null"], None]
        kind = self._chance.choice(kinds)
        return {} if kind is None else {"type": kind}

    def _string(self) -> Schema:
        schema: Schema = {"type": "string"}
        kind = self._chance.randrange(4)
        if kind == 0 and not self._bounded:
            schema["pattern"] = self._chance.choice(PATTERNS)
        elif kind == 1:
            schema["format"] = self._chance.choice(FORMATS[: -1 if self._bounded else None])
        elif kind == 2 or self._bounded:
            least = self._chance.randrange(5)
            schema.update({"minLength": least} if self._flip() else {})
            if self._bounded or self._flip():
                schema["maxLength"] = least + self._chance.randrange(6)
        return schema

    def _integer(self) -> Schema:
        low = self._chance.randint(-1200, 1200)
        high = low + self._chance.choice([0, 1, 7, 90, 5000])
        schema: Schema = {"type": "integer"}
        if self._flip(0.7):
            schema.update({"minimum": low} if self._flip(0.7) else {"exclusiveMinimum": low - 0.5})
        if self._flip(0.7):
            schema.update({"maximum": high} if self._flip(0.7) else {"exclusiveMaximum": high + 1})
        elif self._flip():
            schema["multipleOf"] = self._chance.choice([1, 2, 5, 100])
        return schema

    def _number(self) -> Schema:
        low = round(self._chance.uniform(-100, 100), self._chance.randrange(5))
        high = low + self._chance.choice([0.5, 1, 33.25, 1e6])
        schema: Schema = {"type": "number"}
        if self._flip(0.7):
            schema[self._chance.choice(["minimum", "exclusiveMinimum"])] = low
        if self._flip(0.7):
            schema[self._chance.choice(["maximum", "exclusiveMaximum"])] = high
        return schema

    def _values(self) -> Schema:
        pool: list[Any] = [*WORDS, 1, 2.5, -0.0, 1e22, True, False, None, [1, "x"], {"k": [None]}, [], {}]
        if self._flip(0.3):
            return {"const": self._chance.choice(pool)}
        if self._flip():
            return {"type": "string", "enum": self._chance.sample(WORDS, self._chance.randint(1, 6))}
        return {"enum": self._chance.sample(pool, self._chance.randint(1, 8))}

    def _object(self, depth: int) -> Schema:
        names = self._chance.sample(NAMES, self._chance.randrange(5))
        schema: Schema = {"type": "object", "properties": {name: self.schema(depth) for name in names}}
        schema["required"] = [name for name in names if self._flip()]
        others: list[Any] = [False, False, None]
        if not self._bounded:
            others += [True, self.schema(0)]
        other = self._chance.choice(others)
        return schema if other is None else {**schema, "additionalProperties": other}

    def _named(self, depth: int) -> Schema:
        """Properties whose names come out of a list or follow a pattern."""
        if self._bounded or self._flip():
            names = self._chance.sample(NAMES, self._chance.randint(1, 3))
            schema: Schema = {"propertyNames": {"enum": names}, "additionalProperties": self.schema(depth)}
        else:
            pattern = self._chance.choice([one for one in PATTERNS if one not in ("^$", "^a$|^b$")])
            schema = {"patternProperties": {pattern: self.schema(depth)}, "minProperties": 1}
        return {"type": "object", **schema}

    def _array(self, depth: int) -> Schema:
        schema: Schema = {"type": "array", "items": self.schema(depth)}
        least = self._chance.randrange(3)
        schema.update({"minItems": least} if self._flip() else {})
        if self._bounded or self._flip():
            schema["maxItems"] = least + self._chance.randrange(3)
        return schema

    def _tuple(self, depth: int) -> Schema:
        schema: Schema = {"type": "array", "prefixItems": [self.schema(depth) for _ in range(2)]}
        schema["items"] = self._chance.choice([False, self.schema(0)])
        schema["minItems"] = self._chance.randrange(3)
        if self._bounded or self._flip():
            schema["maxItems"] = self._chance.randint(2, 4)
        return schema

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.schema(depth) for _ in range(self._chance.randint(1, 3))]}

    def _one_of(self, depth: int) -> Schema:
        if self._flip(0.3):  # the tag is the only property's name
            tagged = [
                {"type": "object", "properties": {name: self.schema(depth)}, "required": [name]}
                for name in ("first", "second")
            ]
            return {"oneOf": [*tagged, {"enum": ["neither"]}]}
        branches = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind, "default": kind}, "inner": self.schema(depth)},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for kind in ("one", "two")
        ]
        return {"oneOf": [*branches, {"type": "null"}], "discriminator": {"propertyName": "kind"}}

    def _all_of(self, depth: int) -> Schema:
        first = {"type": "object", "properties": {"a": self.schema(depth)}, "required": ["a"]}
        second = {"properties": {"b": self.schema(depth)}, "description": "more"}
        return {"allOf": [first, second], "required": ["b"] if self._flip() else []}
