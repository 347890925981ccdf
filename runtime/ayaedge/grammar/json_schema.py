"""JSON Schema (draft 2020-12) to GBNF: what the grammar takes is JSON, and valid.

It may take less than a schema allows, never more: objects with declared properties have no others unless the schema
says so, and properties come in the schema's order. A keyword that cannot be honoured is a fault, never ignored.
How values are written is in `ayaedge.grammar.json_text`, what keywords mean together in `ayaedge.grammar.schema_merge`.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation, localcontext
from typing import Any

from ayaedge.grammar import gbnf, gbnf_check
from ayaedge.grammar.json_text import (
    COMMON,
    FORMATS,
    decimal_of,
    integer_between,
    number_between,
    quoted,
    string_except,
    string_of_length,
)
from ayaedge.grammar.patterns import PatternError, translate
from ayaedge.grammar.schema_keywords import KEYWORDS_OF_TYPE, TYPES, Schema, SchemaDocument
from ayaedge.grammar.schema_merge import are_disjoint, conjunction, fits_type, identity, type_names
from ayaedge.grammar.schema_recursion import components, confused_property

_MOST_SCHEMAS = 5000
"""Schemas in a schema, merged ones included."""
_MOST_BRANCHES = 200
"""Of anyOf and oneOf: each is compared with each."""
_MOST_VALUE_CHARACTERS = 100_000
"""Of all values of an enum."""
_DECIMALS = Context(
    prec=28, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, capitals=1, clamp=0, flags=[],
    traps=[InvalidOperation],
)  # fmt: skip
"""Of bounds, whatever the program's own decimals are like."""


def schema_grammar(schema: object) -> str:
    """The grammar of a schema; SchemaError lists all that is wrong with it."""
    return _Converter(SchemaDocument(schema)).grammar()


class _Converter:
    def __init__(self, document: SchemaDocument):
        self._document = document
        self._rules = gbnf.Rules(COMMON)
        self._components = components(document)
        self._names: dict[int, str] = {}
        """The rule of each schema, by its id."""
        self._places: dict[str, str] = {}
        """The place of each rule's schema."""
        self._waiting: deque[tuple[str, Schema]] = deque()
        self._kept: list[Any] = []
        """Schemas that were made by merging; ids are theirs as long as they are here."""
        self._conjunctions: dict[tuple[int, ...], Schema] = {}
        self._members: dict[int, list[Schema]] = {}
        """Of the conjunctions, by their id."""

    def grammar(self) -> str:
        root = self._rule(self._document.root)
        while self._waiting:
            if len(self._names) > _MOST_SCHEMAS:
                self._fault(
                    self._document.root, f"it comes to more than {_MOST_SCHEMAS} schemas: make it smaller"
                )
                break
            name, schema = self._waiting.popleft()
            self._rules.define(name, self._body(schema))
        self._document.raise_faults()
        text = self._rules.text(root)
        found = gbnf_check.faults(text)
        for fault in [fault for fault in found if fault.rule in self._places] or found:
            self._document.faults.append(f"{self._places.get(fault.rule, '#')}: {fault.reason}")
        self._document.raise_faults()
        return text

    def _fault(self, schema: Schema, reason: str, keyword: str = "") -> str:
        """Note a fault; gives a body with which the search for others goes on."""
        self._document.fault(schema, reason, keyword)
        return '"null"'

    def _rule(self, schema: Schema) -> str:
        """The name of a schema's rule, whose body may come later."""
        if schema is True or (isinstance(schema, dict) and not self._document.asserted(schema)):
            return "value"
        if id(schema) not in self._names:
            place = self._document.place(schema)
            name = self._rules.reserve(place.rpartition("/")[2])
            self._names[id(schema)], self._places[name] = name, place
            self._waiting.append((name, schema))
        return self._names[id(schema)]

    def _body(self, schema: Schema) -> str:
        if isinstance(schema, bool):
            return self._fault(schema, "false allows no value")
        found = self._document.asserted(schema)
        if set(found) == {"$ref"}:
            return self._rule(self._document.target(schema))
        if "$ref" in found or "allOf" in found:
            parts = self._document.parts(schema)
            if len(parts) < 2:
                return self._rule(parts[0] if parts else True)
            found = self._merged(schema, parts)
        if "anyOf" in found or "oneOf" in found:
            return self._union(schema, found)
        if "enum" in found or "const" in found:
            return self._values(schema, found)
        return self._typed(schema, found)

    def _merged(self, schema: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        found, reasons = conjunction([self._document.asserted(part) for part in parts], self._both)
        for keyword, reason in reasons:
            self._fault(schema, reason, keyword)
        return found

    def _both(self, one: Schema, other: Schema) -> Schema:
        """A schema for what is valid by both; the same for the same two, so that recursion ends."""
        members = [part for schema in (one, other) for part in self._members.get(id(schema), [schema])]
        unique = {id(member): member for member in members}
        key = tuple(sorted(unique))
        if key not in self._conjunctions:
            made = self._made({"allOf": list(unique.values())}, one)
            self._conjunctions[key], self._members[id(made)] = made, made["allOf"]
        return self._conjunctions[key]

    def _made(self, schema: dict[str, Any], origin: Schema) -> dict[str, Any]:
        self._kept.append(schema)
        self._document.name_place(schema, self._document.place(origin))
        return schema

    def _union(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        keyword = "anyOf" if "anyOf" in found else "oneOf"
        if "anyOf" in found and "oneOf" in found:
            return self._fault(schema, "cannot stand beside anyOf: merge the two", "oneOf")
        branches = found[keyword]
        if len(branches) > _MOST_BRANCHES:
            return self._fault(
                schema,
                f"has {len(branches)} schemas, more than {_MOST_BRANCHES}: use enum for single values",
                keyword,
            )
        if keyword == "oneOf":
            self._check_disjoint(schema, branches)
        if confused := confused_property(self._document, self._components, branches):
            self._fault(
                schema,
                f"two of its schemas lead back here through {confused!r} before they differ, which takes llama.cpp"
                " ever longer: let a required property with different const values come first in both",
                keyword,
            )
        rest = {name: value for name, value in found.items() if name != keyword}
        if rest:
            beside = self._made(rest, schema)
            branches = [self._made({"allOf": [beside, branch]}, branch) for branch in branches]
        names = [self._rule(branch) for branch in branches if branch is not False]
        if not names:
            return self._fault(schema, "allows no value", keyword)
        return " | ".join(dict.fromkeys(names))

    def _check_disjoint(self, schema: dict[str, Any], branches: list[Schema]) -> None:
        for number, one in enumerate(branches):
            for other_number, other in enumerate(branches[:number]):
                if not are_disjoint(self._document, one, other):
                    self._fault(
                        schema,
                        f"it is not certain that only one of its schemas {other_number} and {number} holds: use anyOf,"
                        " or give both a required property with different const values",
                        "oneOf",
                    )
                    return

    def _values(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        values = found.get("enum", [found.get("const")])
        if "const" in found:
            values = [value for value in values if identity(value) == identity(found["const"])]
        values = [value for value in values if fits_type(value, found.get("type"))]
        keyword = "enum" if "enum" in found else "const"
        if not values:
            return self._fault(schema, "no value of it is allowed by what stands beside it", keyword)
        kinds = {kind for value in values for kind in type_names(value)}
        beside = {keyword for kind in kinds for keyword in KEYWORDS_OF_TYPE.get(kind, set())}
        for name in sorted(beside & set(found)):
            self._fault(
                schema, f"cannot be combined with {keyword}: leave out the values it forbids, and it", name
            )
        texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]
        if sum(map(len, texts)) > _MOST_VALUE_CHARACTERS:
            return self._fault(
                schema, f"its values have more than {_MOST_VALUE_CHARACTERS} characters", keyword
            )
        return self._rules.one_of("values", texts)

    def _typed(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        """What is allowed of each type; without `type`, of those types that the keywords speak about."""
        implied = [name for name, keywords in KEYWORDS_OF_TYPE.items() if keywords & set(found)]
        types = found.get("type", implied or list(TYPES))
        types = [types] if isinstance(types, str) else types
        if "number" in types:
            types = [name for name in types if name != "integer"]
        return " | ".join(self._of_type(name, schema, found) for name in dict.fromkeys(types))

    def _of_type(self, name: str, schema: dict[str, Any], found: dict[str, Any]) -> str:
        relevant = {key: value for key, value in found.items() if key in KEYWORDS_OF_TYPE.get(name, set())}
        if name == "null":
            return '"null"'
        if name == "boolean":
            return '"true" | "false"'
        if not relevant:
            return name
        write = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }[name]
        return write(schema, relevant)

    def _object(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        properties: dict[str, Schema] = dict(found.get("properties", {}))
        required = set(found.get("required", []))
        others: Schema = found.get("additionalProperties", "properties" not in found)
        for name in found.get("required", []):
            if name not in properties:
                # declared nowhere: what all others are, or anything
                properties[name] = found.get("additionalProperties", True)
        for name in sorted(required):
            if properties[name] is False:
                self._fault(schema, f"{name!r} is required, and not allowed", "required")
        allowed = {name: value for name, value in properties.items() if value is not False}
        self._check_count(schema, found, len(required), len(allowed) if others is False else None)
        more = "" if others is False else self._free_pairs(properties, others)
        rest, first = "gap", '""'
        if more:
            rest = self._rules.add("others", f'("," gap {more})* gap')
            first = self._rules.add("first-other", f'{more} {rest} | ""')
        for name, value in reversed(allowed.items()):
            pair = f'{gbnf.literal(json.dumps(name, ensure_ascii=False) + ":")} " "? {self._rule(value)}'
            optional = name not in required
            first = self._rules.add("first", f"{pair} {rest}" + (f" | {first}" if optional else ""))
            rest = self._rules.add("rest", f'"," gap {pair} {rest}' + (f" | {rest}" if optional else ""))
        return f'"{{" gap {first} "}}"'

    def _free_pairs(self, properties: dict[str, Schema], others: Schema) -> str:
        value = self._rule(others)
        if not properties and value == "value":
            return "pair"
        name = string_except(self._rules, properties) if properties else "string"
        return self._rules.add("other", f'{name} ":" " "? {value}')

    def _check_count(
        self, schema: dict[str, Any], found: dict[str, Any], least: int, most: int | None
    ) -> None:
        """Counts of properties are honoured only where they say nothing new."""
        if found.get("minProperties", 0) > least:
            self._fault(
                schema, "is not supported beyond the required properties: list those", "minProperties"
            )
        if "maxProperties" in found and (most is None or most > found["maxProperties"]):
            self._fault(schema, "is not supported: list the properties instead", "maxProperties")

    def _array(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        prefix: list[Schema] = found.get("prefixItems", [])
        least, most = int(found.get("minItems", 0)), found.get("maxItems")
        items: Schema = found.get("items", not prefix or least > len(prefix))
        for value in (*prefix, items):  # those that no array can have are checked as well
            if value is not False:
                self._rule(value)
        known = prefix.index(False) if False in prefix else len(prefix)
        if items is False or known < len(prefix):
            most = min(known, known if most is None else int(most))
        if most is not None and least > most:
            return self._fault(
                schema, f"no array has {least} items or more, and {int(most)} at most", "minItems"
            )
        if not self._counts_fit(schema, least, most, "minItems", "maxItems"):
            return '"null"'
        most = None if most is None else int(most)
        elements = [self._rule(value) for value in prefix[:known][:most]]
        rest = "gap"
        if most is None or most > len(elements):
            # at least one item stands before these
            item = self._rule(items)
            start = max(len(elements), 1)
            more = self._rules.add("next-item", f'"," gap {item}')
            count = self._rules.repeat(more, max(0, least - start), None if most is None else most - start)
            rest = self._rules.add("items", f"{self._rules.add('more-items', count)} gap")
            elements = elements or [item]
        for number in range(len(elements) - 1, 0, -1):
            rest = self._rules.add(
                "items", f'"," gap {elements[number]} {rest}' + (" | gap" if number >= least else "")
            )
        if not elements:
            return '"[" gap "]"'
        inside = self._rules.add("items", f"{elements[0]} {rest}" + (' | ""' if least == 0 else ""))
        return f'"[" gap {inside} "]"'

    def _counts_fit(
        self, schema: dict[str, Any], least: float, most: float | None, minimum: str, maximum: str
    ) -> bool:
        fits = True
        for keyword, count in ((minimum, least), (maximum, most or 0)):
            if count > gbnf.MOST_REPEATS:
                self._fault(schema, f"{gbnf.MOST_REPEATS} is the most that is supported: lower it", keyword)
                fits = False
        return fits

    def _string(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        least, most = int(found.get("minLength", 0)), found.get("maxLength")
        most = None if most is None else int(most)
        if most is not None and least > most:
            return self._fault(
                schema, f"no string has {least} characters or more, and {most} at most", "minLength"
            )
        is_known = found.get("format") in FORMATS
        if is_known and set(found) != {"format"}:
            return self._fault(
                schema, "cannot be combined with a length or a pattern: leave those out", "format"
            )
        if is_known:
            return quoted(f"({FORMATS[found['format']]})")
        if "pattern" in found:
            return self._pattern(schema, found["pattern"], least, most)
        if not self._counts_fit(schema, least, most, "minLength", "maxLength"):
            return '"null"'
        return string_of_length(self._rules, least, most) if least or most is not None else "string"

    def _pattern(self, schema: dict[str, Any], pattern: str, least: int, most: int | None) -> str:
        try:
            part = translate(pattern, self._rules)
        except PatternError as error:
            return self._fault(schema, f"this pattern is not supported: {error}", "pattern")
        too_long = most is not None and (part.most is None or part.most > most)
        if part.least < least or too_long:
            longest = "any number of" if part.most is None else part.most
            return self._fault(
                schema,
                f"it allows {part.least} to {longest} characters: say in the pattern itself how many there may be",
                "pattern",
            )
        return quoted(part.body)

    def _integer(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        lows = [math.ceil(found[key]) for key in ("minimum",) if key in found]
        lows += [math.floor(found[key]) + 1 for key in ("exclusiveMinimum",) if key in found]
        highs = [math.floor(found[key]) for key in ("maximum",) if key in found]
        highs += [math.ceil(found[key]) - 1 for key in ("exclusiveMaximum",) if key in found]
        low, high = max(lows, default=None), min(highs, default=None)
        if low is not None and high is not None and low > high:
            return self._fault(schema, "no integer lies within its bounds")
        if any(abs(bound) >= 10**30 for bound in (low, high) if bound is not None):
            return self._fault(schema, "bounds of an integer may have 30 digits at most")
        return integer_between(low, high)

    def _number(self, schema: dict[str, Any], found: dict[str, Any]) -> str:
        with localcontext(_DECIMALS):
            bounds: dict[str, Decimal] = {key: decimal_of(value) for key, value in found.items()}
            low = _tightest(bounds, "minimum", "exclusiveMinimum", max)
            high = _tightest(bounds, "maximum", "exclusiveMaximum", min)
            body = number_between(
                low,
                high,
                open_low=low is not None and bounds.get("exclusiveMinimum") == low,
                open_high=high is not None and bounds.get("exclusiveMaximum") == high,
            )
        return body or self._fault(schema, "no number of at most 15 digits lies within its bounds")


def _tightest(bounds: dict[str, Decimal], one: str, other: str, choose: Any) -> Decimal | None:
    found: Iterator[Decimal] = (bounds[key] for key in (one, other) if key in bounds)
    tightest: Decimal | None = choose(found, default=None)
    return tightest
