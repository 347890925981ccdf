"""JSON Schema (draft 2020-12) as a grammar of llguidance: what it takes is JSON, and valid.

It may take less than a schema allows, never more: objects with declared properties have no others unless the schema
says so, and properties come in the schema's order. A keyword that cannot be honoured is a fault, never ignored; what
llguidance reads in another way is written anew for it here. What keywords are is in `schema_keywords`.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any
from urllib.parse import quote

from ayaedge.grammar.disjoint import are_disjoint
from ayaedge.grammar.formats import FORMATS, REFUSED
from ayaedge.grammar.patterns import PatternError, rust_pattern
from ayaedge.grammar.schema_keywords import KEYWORDS_OF_TYPE, Schema, SchemaDocument, shortened
from ayaedge.grammar.written_schema import has_end, levels_of, schemas_of, types_of

_MOST_DEFINITIONS = 300
_MOST_LEVELS = 500
"""Of all definitions together. llguidance follows references by recursion: 1200 levels overflow a stack of 8 MB."""
_MOST_BRANCHES = 200
"""Of oneOf: each is compared with each."""
_MOST_REPEATS = 50_000
_WRITING: Any = {
    "lenient": False,
    "whitespace_flexible": False,  # one spelling, that of json.dumps: all that is not a value is forced
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'bfnrt"\\',  # with \u0061 a property could be written twice
}
_UNIONS = ("anyOf", "oneOf")
_INT64 = 2**63
_EXACT = 2**53
"""Integers up to here are floats without loss."""
_WIDEST = 10**15
_MOST_DECIMALS = 9
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


def schema_grammar(schema: object) -> str:
    """The grammar of a schema, for `matcher.Matcher`; SchemaError lists all that is wrong with it."""
    return _Converter(SchemaDocument(schema)).grammar()


def any_object() -> str:
    """The grammar of any JSON object."""
    return _compiled({"type": "object"})


def _compiled(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    found: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_WRITING)
    return found


class _Converter:
    """Writes a schema anew: each schema that a `$ref` leads to becomes a definition with a number."""

    def __init__(self, document: SchemaDocument):
        self._document = document
        self._targets: list[Schema] = [document.root]
        self._numbers = {id(document.root): 0}
        self._definitions: dict[str, Any] = {}

    def grammar(self) -> str:
        self._require_tags()
        for number, target in enumerate(self._targets):  # grows meanwhile
            if number > _MOST_DEFINITIONS:
                self._fault(target, f"more than {_MOST_DEFINITIONS} schemas are referred to: make it smaller")
                break
            self._definitions[str(number)] = self._written(target)
        self._document.raise_faults()
        if sum(map(levels_of, self._definitions.values())) > _MOST_LEVELS:
            self._fault(self._document.root, "its schemas are nested too deep: make it smaller or flatter")
            self._document.raise_faults()
        text = _compiled(self._from_root("#/$defs/0"))
        if reason := _reason_against(text):
            self._fault_where_it_is(reason)
        self._check_ends()
        self._document.raise_faults()
        return text

    def _fault(self, schema: Schema, reason: str, keyword: str = "") -> None:
        self._document.fault(schema, reason, keyword)

    def _from_root(self, pointer: str) -> dict[str, Any]:
        return {"$ref": pointer, "$defs": self._definitions}

    def _fault_where_it_is(self, reason: str) -> None:
        """Note what llguidance says at the innermost schema of which it says something."""
        places = [
            (self._document.place(target) + inner, f"#/$defs/{number}{inner}", "$ref" in node)
            for number, target in enumerate(self._targets)
            for node, inner in reversed(list(schemas_of(self._definitions[str(number)], "")))
            if isinstance(node, dict)
        ]
        for place, pointer, _ in sorted(places, key=lambda one: one[2]):  # those with a $ref last
            if found := _reason_against(_compiled(self._from_root(quote(pointer, safe="#/$~")))):
                self._document.faults.append(f"{place}: cannot be honoured: {found}")
                return
        self._document.faults.append(f"#: cannot be honoured: {reason}")

    def _require_tags(self) -> None:
        """A tag that tells the schemas of a union apart is always written, also where it has a default."""
        for node in self._document.nodes():
            mapping, branches = node.get("discriminator"), node.get("oneOf")
            if not isinstance(mapping, dict) or not isinstance(branches, list):
                continue
            for target in map(self._end_of_references, branches):
                name, required = mapping.get("propertyName"), target.get("required", [])
                known = target.get("properties")
                tag = known.get(name) if isinstance(known, dict) else None
                if isinstance(tag, dict) and {"const", "enum"} & set(tag) and isinstance(required, list):
                    target["required"] = list(dict.fromkeys([*required, name]))

    def _end_of_references(self, schema: Schema) -> dict[str, Any]:
        """The schema that a `$ref` leads to at last; an empty one for a boolean."""
        for _ in range(_MOST_DEFINITIONS):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            schema = self._document.resolve(schema["$ref"]) or {}
        return schema if isinstance(schema, dict) else {}

    @cached_property
    def _combined(self) -> set[int]:
        """The ids of schemas that hold together with others: they cannot say what others may add."""
        found: set[int] = set()
        for node in self._document.nodes():
            asserted = {key: value for key, value in node.items() if key not in ("$defs", "definitions")}
            joined = [key for key in ("$ref", "allOf", *_UNIONS) if key in asserted]
            if (
                len(joined) + bool(set(asserted) - {*joined, "discriminator", "type"}) > 1
                or "allOf" in joined
            ):
                self._combine(node, found)
        return found

    def _combine(self, node: Any, found: set[int]) -> None:
        work = [node]
        while work:
            part = work.pop()
            if not isinstance(part, dict) or id(part) in found:
                continue
            found.add(id(part))
            if isinstance(part.get("$ref"), str):
                work.append(self._document.resolve(part["$ref"]))
            for key in ("allOf", *_UNIONS):
                work += part[key] if isinstance(part.get(key), list) else []

    def _written(self, schema: Schema) -> Any:
        if isinstance(schema, bool):
            return schema
        found = self._document.asserted(schema)
        result: dict[str, Any] = {}
        for keyword, value in found.items():
            if keyword in ("properties", "patternProperties"):
                result[keyword] = {name: self._written(inner) for name, inner in value.items()}
            elif keyword in ("items", "additionalProperties", "propertyNames"):
                result[keyword] = self._written(value)
            elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
                result[keyword] = [self._written(inner) for inner in value]
            elif keyword == "$ref":
                result[keyword] = self._reference(schema)
            elif keyword == "enum":
                result[keyword] = [_plain(inner) for inner in value]
            elif keyword == "const":
                result["enum"] = _common(result.get("enum"), _plain(value))
            else:
                result[keyword] = value
        alone = id(schema) not in self._combined
        if alone and not {"type", "enum", "$ref", "allOf", *_UNIONS} & set(result):
            implied = [name for name, keywords in KEYWORDS_OF_TYPE.items() if (keywords & set(result))]
            result.update({"type": implied} if implied else {})
        self._write_union(schema, result)
        self._write_string(schema, result)
        self._write_array(schema, result)
        self._write_object(schema, result)
        _write_bounds(result)
        if alone and "type" in result and "enum" not in result:
            _limit_digits(result)
        return result

    def _reference(self, schema: dict[str, Any]) -> str:
        target = self._document.target(schema)
        if id(target) not in self._numbers:
            self._numbers[id(target)] = len(self._targets)
            self._targets.append(target)
        return f"#/$defs/{self._numbers[id(target)]}"

    def _write_union(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        """`oneOf` becomes `anyOf` once it is certain that one of its schemas holds at most."""
        if "oneOf" not in result:
            return
        branches: list[Schema] = schema["oneOf"]
        if len(branches) > _MOST_BRANCHES:
            self._fault(
                schema, f"has more than {_MOST_BRANCHES} schemas: use enum for single values", "oneOf"
            )
            return
        for number, one in enumerate(branches):
            for before in range(number):
                if not are_disjoint(self._document, one, branches[before], combined=self._combined):
                    reason = (
                        f"it is not certain that only one of its schemas {before} and {number} holds: use anyOf, "
                        "or give both a required property with different const values"
                    )
                    self._fault(schema, reason, "oneOf")
                    return
        union = {"anyOf": result.pop("oneOf")}
        result.update(union if "anyOf" not in result else {"allOf": [*result.get("allOf", []), union]})

    def _write_string(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        self._check_counts(schema, result, "minLength", "maxLength")
        if "pattern" in result:
            try:
                result["pattern"] = rust_pattern(result["pattern"])
            except PatternError as error:
                self._fault(schema, f"this pattern is not supported: {error}", "pattern")
        name = result.pop("format", None)
        if name in REFUSED:
            self._fault(schema, f"{name!r} is not supported: leave it out, or write a pattern", "format")
        if name in FORMATS:
            string = {"type": "string", **FORMATS[name]}
            others = [kind for kind in types_of(result) if kind != "string"]
            union = [string, *([{"type": others}] if others else [])]
            result["allOf"] = [*result.get("allOf", []), {"anyOf": union} if others else string]

    def _check_counts(self, schema: dict[str, Any], result: dict[str, Any], least: str, most: str) -> None:
        for keyword in (least, most):
            if keyword in result:
                result[keyword] = int(result[keyword])
                if keyword == most and result[keyword] >= 10**9:
                    del result[keyword]  # as if there were none
                elif result[keyword] > _MOST_REPEATS:
                    self._fault(schema, f"{_MOST_REPEATS} is the most that is supported: lower it", keyword)

    def _write_array(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        self._check_counts(schema, result, "minItems", "maxItems")
        if "prefixItems" in result and "items" not in result and id(schema) not in self._combined:
            result["items"] = result.get("minItems", 0) > len(result["prefixItems"])

    def _write_object(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        if "propertyNames" in result:
            self._write_names(schema, result)
        alone = id(schema) not in self._combined
        if (
            {"properties", "patternProperties"} & set(result)
            and "additionalProperties" not in result
            and alone
        ):
            # what is required and not declared may be anything
            for name in result.get("required", []):
                result.setdefault("properties", {}).setdefault(name, True)
            result["additionalProperties"] = False
        for pattern in list(result.get("patternProperties", {})):
            try:
                value = result["patternProperties"].pop(pattern)
                result["patternProperties"][rust_pattern(pattern)] = value
            except PatternError as error:
                self._fault(
                    schema, f"the pattern {shortened(pattern)} is not supported: {error}", "patternProperties"
                )
        self._write_counts_of_properties(schema, result)

    def _write_names(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        """Names out of a list are properties; names with a pattern are `patternProperties`."""
        names = self._end_of_references(schema["propertyNames"])
        written = self._written(names) if schema["propertyNames"] is not False else False
        del result["propertyNames"]
        others = result.get("additionalProperties", True)
        if written in ({}, {"type": "string"}):
            return
        if "patternProperties" not in result and isinstance(written, dict):
            if set(written) <= {"enum", "type"} and "enum" in written:
                known = result.get("properties", {})
                allowed = [name for name in written["enum"] if isinstance(name, str)]
                result["properties"] = {name: known.get(name, others) for name in allowed}
                result["additionalProperties"] = False
                return
            if set(written) in ({"pattern"}, {"pattern", "type"}) and "properties" not in result:
                result["patternProperties"] = {names["pattern"]: others}
                result["additionalProperties"] = False
                return
        self._fault(schema, "is supported for names in an enum, or with a pattern alone", "propertyNames")

    def _write_counts_of_properties(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        """Counts that say nothing new are left out. A free name may come twice, so it counts once."""
        required = len(set(result.get("required", [])))
        least = int(result.get("minProperties", 0))
        if least <= required:
            result.pop("minProperties", None)
        elif least > 1:
            reason = "is not supported beyond the required properties: list those"
            self._fault(schema, reason, "minProperties")
        closed = result.get("additionalProperties") is False and "patternProperties" not in result
        if closed and result.get("maxProperties", 0) >= len(result.get("properties", {})):
            result.pop("maxProperties", None)

    def _check_ends(self) -> None:
        """Each definition must have a value that ends; the least fixed point of those that do."""
        ends: set[str] = set()
        while True:
            found = {name for name, one in self._definitions.items() if has_end(one, ends)}
            if found == ends:
                break
            ends = found
        for name in set(self._definitions) - ends if not self._document.faults else ():
            self._fault(self._targets[int(name)], "can never end: it always leads to itself again")


def _reason_against(grammar: str) -> str:
    """What llguidance says against a grammar; empty if nothing."""
    from llguidance import LLMatcher

    failed, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
    reason = " ".join(str(reasons[0]).split()) if failed or reasons else ""
    return reason.partition(" while processing ")[0][:200]


def _plain(value: Any) -> Any:
    """A value whose numbers are written in the way in which models write them: 1.0 as 1."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    whole = isinstance(value, float) and value == int(value) and abs(value) < _INT64
    return int(value) if whole else value


def _common(known: list[Any] | None, value: Any) -> list[Any]:
    return [value] if known is None else [one for one in known if json.dumps(one) == json.dumps(value)]


def _write_bounds(result: dict[str, Any]) -> None:
    """Bounds as llguidance reads them, as floats: an integer that is none becomes the next one inside.

    Beside an excluded bound there are only numbers that are still inside of it as floats.
    """
    for key in _BOUNDS & set(result):
        bound = result[key]
        if isinstance(bound, int) and abs(bound) > _EXACT:
            near, inside = float(bound), math.inf if key.endswith("inimum") else -math.inf
            is_inside = near == bound or (near > bound) == (inside > 0)
            result[key] = near if is_inside else math.nextafter(near, inside)
    if {"exclusiveMinimum", "exclusiveMaximum"} & set(result) and "number" in types_of(result):
        step = _finest(result)
        result.setdefault("multipleOf", step)
        _include_whole_bounds(result, step)


def _include_whole_bounds(result: dict[str, Any], step: float) -> None:
    """An excluded whole number becomes the next step inside: between 62 and 62.5 llguidance would take 62 itself."""
    for key, bound, inwards in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if key in result and result[key] == int(result[key]):
            inside = float(Fraction(int(result.pop(key))) + inwards * Fraction(repr(step)))
            nearest = max if inwards > 0 else min
            result[bound] = nearest(inside, result.get(bound, inside))


def _limit_digits(result: dict[str, Any]) -> None:
    """A number without any bounds gets wide ones: a small model may never stop writing digits."""
    if "number" in types_of(result) and not {*_BOUNDS, "multipleOf"} & set(result):
        result.update({"minimum": -_WIDEST, "maximum": _WIDEST, "multipleOf": 10**-_MOST_DECIMALS})


def _finest(result: dict[str, Any]) -> float:
    """The step at which numbers within these bounds are told apart as floats, which have 15 digits."""
    bounds = [result[key] for key in _BOUNDS & set(result)]
    whole = max(len(str(int(abs(bound)))) for bound in bounds)
    decimals = max(6, *(-int(Decimal(repr(bound)).normalize().as_tuple().exponent) for bound in bounds))
    return float(f"1e-{min(decimals, max(0, 15 - whole), _MOST_DECIMALS)}")
