from __future__ import annotations

import contextlib
import decimal
import json
import math
import random
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayaedge import InvalidOptionError
from ayaedge.grammar.schema import grammar_text
from grammar_machine import EndlessError, Machine, check, demo_machine, of_schema
from random_schema import PATTERNS, random_schema, random_value, unsupported_schema


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with demo_machine() as found:
        yield found


CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "any value": (
        {},
        ["1", "null", '"x"', '{"a": [1, {}]}', "-0.5e-3", "[]"],
        ["", "01", "nul", "[1, ]", " 1"],
    ),
    "anything, as true": (True, ["{}", "[[]]"], ["{"]),
    "strings": (
        {"type": "string"},
        ['""', '"ह है"', '"é\\n"', '"🎈"', '"a/b"'],
        ['"', '"\n"', '"\\ud800"', '"\\x"', "'a'", '"\\u00e9"', '"\\u0001"'],
    ),
    "short strings": (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"हिं"', '"\\néx"'],
        ['"a"', '"abcd"'],
    ),
    "long strings": (
        {"type": "string", "minLength": 2500, "maxLength": 4001},
        [f'"{"a" * count}"' for count in (2500, 3000, 3001, 4001)],
        [f'"{"a" * count}"' for count in (0, 2000, 2499, 4002)],
    ),
    "no string but the empty one": ({"type": "string", "maxLength": 0}, ['""'], ['"a"']),
    "a property and no other": (
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
        ['{"a": null}'],
        ["{}", '{"b": null}', '{"a": null, "b": 1}', '{"a":  null}', '{"a": null}\n'],
    ),
    "one spelling": (
        {"properties": {"a": {"enum": [None, [1, 2]]}, "b": {"items": {"const": 1}}}},
        ['{"a": null}', '{"a": [1, 2], "b": [1, 1]}'],
        [
            '{"a":null}',
            '{\n  "a": null\n}',
            '{ "a": null }',
            '{"a" : null}',
            '{"a": null,"b": []}',
            '{"a": [1,2]}',
            '{"b": [1,1]}',
            '{"b": [\n  1,\n  1\n]}',
            '{"a": null,\n "b": []}',
        ],
    ),
    "optional properties in their order": (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]},
        ['{"b": 2}', '{"a": 1, "b": 2}', '{"a": 1, "b": 2, "c": 3}', '{"b": 2, "c": 3}'],
        ["{}", '{"a": 1}', '{"b": 2, "a": 1}', '{"a": 1, "b": 2, }', '{, "b": 2}'],
    ),
    "only optional properties": (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}}},
        ["{}", '{"a": 1}', '{"b": 2}', '{"a": 1, "b": 2}'],
        ["{ }", '{"b": 2, "a": 1}', '{"a": 1, }'],
    ),
    "other properties of a type": (
        {"properties": {"ab": {"const": 1}}, "additionalProperties": {"type": "boolean"}},
        ["{}", '{"ab": 1}', '{"a": true}', '{"abc": true, "": false}', '{"ab": 1, "x": true, "y": true}'],
        ['{"ab": true}', '{"x": 1}', '{"\\u0061b": true}', '{"x": true, "ab": 1}'],
    ),
    "a map": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        ["{}", '{"ह": 1, "\\n": 2}'],
        ['{"a": "b"}'],
    ),
    "what is required and not declared": (
        {"required": ["a"]},
        ['{"a": []}', '{"a": 1, "b": 2}'],
        ["{}", '{"b": 1}'],
    ),
    "a forbidden property": ({"properties": {"a": False}}, ["{}"], ['{"a": 1}']),
    "an empty object": ({"type": "object", "properties": {}}, ["{}"], ['{"a": 1}']),
    "arrays": (
        {"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 3},
        ["[1]", "[1, 1]", "[1, 1, 1]"],
        ["[]", "[1, 1, 1, 1]", "[1, ]", "[1,1]", "[\n  1,\n  1\n]", "[2]"],
    ),
    "long arrays": (
        {"items": {"const": 1}, "minItems": 1100, "maxItems": 2500},
        [json.dumps([1] * count) for count in (1100, 2500)],
        [json.dumps([1] * count) for count in (1099, 2501)],
    ),
    "no items": ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    "items that may be the same": (
        {"type": "array", "items": {"const": 1}, "uniqueItems": False, "maxItems": 2},
        ["[1, 1]"],
        ["[1, 1, 1]"],
    ),
    "tuples": (
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1, "maxItems": 4},
        ["[1]", "[1, 2]", "[1, 2, 3, 3]"],
        ["[]", "[1, 3]", "[1, 2, 3, 3, 3]"],
    ),
    "whole tuples": (
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 2},
        ["[1, 2]"],
        ["[1]", "[1, 2, 3]"],
    ),
    "tuples that want more items than are described": (
        {"prefixItems": [{"const": 1}], "minItems": 2},
        ['[1, "x"]', "[1, 2, 3]"],
        ["[1]"],
    ),
    "a tuple that ends early": ({"prefixItems": [{"const": 1}, False]}, ["[]", "[1]"], ["[1, 1]"]),
    "an enum": (
        {"enum": ["a", "ab", 1, None, {"k": [1.5]}, "é", True]},
        ['"a"', '"ab"', "1", "null", '{"k": [1.5]}', '"é"', "true"],
        ['"abc"', "1.0", '"e\u0301"', "false"],
    ),
    "an enum of a type": ({"type": ["string", "null"], "enum": ["a", 1, None]}, ['"a"', "null"], ["1"]),
    "a const beside an enum": ({"enum": [1, 2], "const": 2.0}, ["2"], ["1"]),
    "an integer constant as a float": ({"type": "integer", "const": 3.0}, ["3"], ["3.0"]),
    "values beside a bound": (
        {"enum": [1, 5, "abc", "a"], "minimum": 3, "minLength": 2},
        ["5", '"abc"'],
        ["1", '"a"'],
    ),
    "floats in an enum": ({"enum": [1.5, -0.0, 1e22]}, ["1.5", "0", "1" + "0" * 22], ["-0.0", "1e22"]),
    "several types": ({"type": ["integer", "null"], "minimum": 3}, ["3", "null"], ["2", "3.5", '"a"']),
    "anyOf": ({"anyOf": [{"type": "null"}, {"const": "x"}, False]}, ["null", '"x"'], ['"y"']),
    "anyOf beside other keywords": (
        {
            "type": "object",
            "properties": {"a": {"const": 1}},
            "anyOf": [{"required": ["a"]}, {"properties": {"b": {"const": 2}}, "required": ["b"]}],
        },
        ['{"a": 1}', '{"a": 1, "b": 2}', '{"b": 2}'],
        ['{"a": 2}', "{}", '{"b": 1}'],
    ),
    "oneOf with disjoint types": (
        {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
        ["true", "null"],
        ["1"],
    ),
    "oneOf with a tag": (
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "$defs": {
                name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}
                for name in ("cat", "dog")
            },
        },
        ['{"kind": "cat"}', '{"kind": "dog"}'],
        ['{"kind": "cow"}', "{}"],
    ),
    "allOf": (
        {
            "allOf": [
                {"properties": {"a": {"minimum": 3}}},
                {"properties": {"a": {"maximum": 4, "type": "integer"}}},
            ],
            "required": ["a"],
        },
        ['{"a": 3}', '{"a": 4}'],
        ['{"a": 2}', '{"a": 5}', "{}"],
    ),
    "allOf with types and enums": (
        {"allOf": [{"type": ["number", "string"]}, {"enum": [1, 2.5, "a", None]}, {"enum": ["a", 2.5, 1.0]}]},
        ["1", "2.5", '"a"'],
        ["null", "1.0"],
    ),
    "allOf with bounds": (
        {"allOf": [{"type": "number", "minimum": 1}, {"type": "integer", "minimum": 3}, {"maximum": 4}]},
        ["3", "4"],
        ["2", "5", "3.5"],
    ),
    "a reference with siblings": (
        {
            "$ref": "#/$defs/s",
            "maxLength": 2,
            "description": "x",
            "$defs": {"s": {"type": "string", "minLength": 1}},
        },
        ['"a"', '"ab"'],
        ['""', '"abc"'],
    ),
    "a reference with an escaped name": (
        {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}},
        ["1"],
        ["2"],
    ),
    "recursion": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "v": {"const": 1},
                        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    },
                    "required": ["v", "next"],
                }
            },
        },
        ['{"v": 1, "next": null}', '{"v": 1, "next": {"v": 1, "next": {"v": 1, "next": null}}}'],
        ['{"v": 1}', '{"v": 1, "next": {}}'],
    ),
    "recursion at the root": (
        {"type": "array", "items": {"$ref": "#"}},
        ["[]", "[[], [[]]]"],
        ["[1]"],
    ),
    "recursion with a tag that comes first": (
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"op": {"const": op}, "of": {"$ref": "#"}},
                    "required": ["op"],
                }
                for op in ("not", "neg")
            ]
        },
        ['{"op": "not", "of": {"op": "neg"}}'],
        ['{"op": "and"}'],
    ),
    "a pattern": (
        {"type": "string", "pattern": "^[A-Z]{2}-\\d{1,3}$", "maxLength": 99999999999, "minLength": 4},
        ['"AB-1"', '"AB-123"'],
        ['"AB-"', '"ab-1"', '"AB-1234"', '"xAB-1"'],
    ),
    "a pattern anywhere": ({"type": "string", "pattern": "b+"}, ['"abba"', '"b"'], ['"a"', '""']),
    "a pattern beside a length": ({"pattern": "^a+$", "maxLength": 3}, ['"a"', '"aaa"'], ['"aaaa"', "1"]),
    "multiples": (
        {"type": "integer", "multipleOf": 5, "minimum": -5},
        ["-5", "0", "35"],
        ["3", "-10", "5.0"],
    ),
    "multiples of a fraction": (
        {"type": "number", "multipleOf": 0.25},
        ["0.50", "3", "-1.75"],
        ["0.3", "1e3"],
    ),
    "properties with a pattern": (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}, "^s_": {"type": "string"}}},
        ["{}", '{"n_a": 1, "s_a": "x"}'],
        ['{"n_a": "x"}', '{"other": 1}', '{"s_a": 1}'],
    ),
    "names out of a list": (
        {
            "type": "object",
            "propertyNames": {"enum": ["a", "b"]},
            "additionalProperties": {"type": "integer"},
        },
        ["{}", '{"a": 1, "b": 2}', '{"b": 2}'],
        ['{"c": 1}', '{"a": "x"}', '{"a": 1, "a": 2}', '{"b": 1, "a": 2}'],
    ),
    "names with a pattern": (
        {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z]$"},
            "additionalProperties": {"type": "integer"},
        },
        ["{}", '{"c": 1}'],
        ['{"cc": 1}', '{"c": "x"}'],
    ),
    "at least one property": (
        {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1},
        ['{"a": null}', '{"a": null, "b": null}'],
        ["{}"],
    ),
    "a tag with a default": (
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {
                name: {"type": "object", "properties": {"kind": {"const": name, "default": name}}}
                for name in ("cat", "dog")
            },
        },
        ['{"kind": "cat"}', '{"kind": "dog"}'],
        ["{}", '{"kind": "cow"}'],
    ),
    "an enum with external tags": (
        {
            "oneOf": [
                {"type": "object", "properties": {"Circle": {"type": "number"}}, "required": ["Circle"]},
                {"type": "object", "properties": {"Square": {"type": "null"}}, "required": ["Square"]},
                {"type": "string", "enum": ["Point"]},
            ]
        },
        ['{"Circle": 1.5}', '{"Square": null}', '"Point"'],
        ["{}", '{"Circle": 1, "Square": null}', '"Circle"'],
    ),
    "annotations that are no JSON": (
        {
            "type": "object",
            "properties": {
                "default": {"type": "number", "default": math.inf, "examples": [math.nan, {1}]},
                "day": {
                    "type": "string",
                    "format": "date",
                    "default": date(2024, 2, 29),
                    "title": {"not": {}},
                },
            },
            "required": ["default"],
            "x-of-some-tool": object,
        },
        ['{"default": 1}', '{"default": 1.5, "day": "2024-02-29"}'],
        ["{}", '{"default": "x"}'],
    ),
    "bounds that are no floats": (
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        ["0", "9007199254740993"],
        ["18446744073709551616", "-1"],
    ),
    "addresses": (
        {"type": "string", "format": "ipv6"},
        ['"::1"', '"2001:db8::ff00:42:8329"', '"1:2:3:4:5:6:7:8"'],
        ['"te45791, "', '"1::2::3"', '"12345::"', '"1:2:3"', '""'],
    ),
    "host names": (
        {"type": "string", "format": "hostname"},
        ['"a"', '"a-1.example.org"', f'"{"x" * 63}.org"'],
        ['"-a"', '"a..b"', '"a b"', f'"{"x" * 64}.org"', f'"{"a." * 127}"', '"é"', '""'],
    ),
    "addresses of pages": (
        {"type": "string", "format": "uri"},
        ['"https://example.org/a?b=c#d"', '"mailto:a@b.c"', '"http://[::1]:80/"'],
        ['"foo"', '"http://a b"', '"http://%zz"', '"1http://x"', '"http://é"', '""'],
    ),
    "durations": (
        {"type": "string", "format": "duration"},
        ['"P1D"', '"PT1H30M"', '"P1Y2M3DT4H5M6S"', '"P2W"'],
        ['"P"', '"PT"', '"1D"', '"P1S"', '"P1.5D"', '"P1W2D"'],
    ),
    "times": (
        {"type": "string", "format": "time"},
        ['"23:59:59Z"', '"00:00:00.5-05:30"'],
        ['"23:59:60Z"', '"24:00:00Z"', '"12:00:00"'],
    ),
    "a pattern with what JSON escapes": (
        {"pattern": '^["\\\\\\n]+$'},
        ['"\\"\\\\\\n"'],
        ['""', '"n"', '"\n"'],
    ),
    "numbers": (
        {"type": "number"},
        ["0", "-1", "12.5", "999999999999999", "-0.123456789"],
        ["1.", ".5", "1e", "+1", "00", "1e100", "12345678901234567890", "0.1234567891"],
    ),
    "probabilities": (
        {"type": "number", "minimum": 0, "maximum": 1},
        ["0", "1", "0.5", "0.123456", "1.0", "0.0", "1.000000"],
        ["1.1", "-0.5", "2", "10", "-0", "1.000001"],
    ),
    "probabilities without their ends": (
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ["0.5", "0.000001", "0.999999"],
        ["0", "1", "0.0", "0.000000", "1.0"],
    ),
    "numbers between a whole number and the next half": (
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 62, "exclusiveMaximum": 62.5},
                {"type": "number", "exclusiveMinimum": -3.5, "exclusiveMaximum": -3.0},
            ]
        },
        ["62.2", "62.000001", "-3.2", "-3.000001"],
        ["62", "62.0", "62.5", "-3", "-3.0", "-3.5"],
    ),
    "positive numbers": (
        {"type": "number", "exclusiveMinimum": 0},
        ["0.000001", "1", "12345678901234", "999999999.999999"],
        ["0", "-1", "0.0"],
    ),
    "numbers below a bound": (
        {"type": "number", "maximum": -2.5},
        ["-2.5", "-2.51", "-3", "-123456789012"],
        ["-2.4", "0", "2.5", "-2"],
    ),
    "dates": (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2000-02-29"', '"1999-12-31"', '"2023-04-30"'],
        ['"0000-01-01"', '"2023-02-29"', '"1900-02-29"', '"2023-04-31"', '"2023-13-01"', '"2023-1-1"', '""'],
    ),
    "moments": (
        {"type": "string", "format": "date-time"},
        ['"2024-02-29T23:59:59Z"', '"2024-01-01T00:00:00.123+05:30"'],
        ['"2024-02-30T23:59:59Z"', '"2024-01-01T24:00:00Z"', '"2024-01-01T00:00:00"'],
    ),
    "a format that is none of JSON Schema": ({"type": "string", "format": "colour"}, ['"red"', '""'], ["1"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_grammar_takes_what_is_valid_and_nothing_else(machine: Machine, name: str) -> None:
    schema, good, bad = CASES[name]
    grammar = of_schema(schema)
    assert [text for text in good if not machine.accepts(grammar, text)] == []
    assert [text for text in bad if machine.accepts(grammar, text)] == []
    for text in good:
        check(schema, text)
    for seed in range(0 if name.startswith("long") else 4):
        check(schema, machine.walk(grammar, random.Random(seed), 15 * seed))


def test_random_walks_through_random_schemas_are_valid(machine: Machine) -> None:
    for seed in range(120):
        chance = random.Random(seed)
        schema = random_schema(chance, bounded=seed % 2 == 0)
        text = machine.walk(of_schema(schema), chance, chance.randrange(60))
        check(schema, text)


def test_unsupported_keywords_are_named_with_their_place() -> None:
    for seed in range(300):
        schema, pointer, _ = unsupported_schema(random.Random(seed))
        with pytest.raises(InvalidOptionError) as raised:
            of_schema(schema)
        assert f"{pointer}: " in str(raised.value), schema


def test_valid_documents_are_taken(machine: Machine) -> None:
    for seed in range(300):
        chance = random.Random(seed)
        schema = random_schema(chance)
        text = json.dumps(random_value(chance, schema), ensure_ascii=False)
        check(schema, text)
        assert machine.accepts(of_schema(schema), text), (schema, text)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (-3, 12), (7, 105), (-105, -7), (99, 1000), (None, 15), (-15, None), (-1, 1)]
)
def test_every_integer_is_judged_by_its_bounds(machine: Machine, low: int | None, high: int | None) -> None:
    bounds = {"minimum": low, "maximum": high}
    grammar = of_schema(
        {"type": "integer"} | {key: value for key, value in bounds.items() if value is not None}
    )
    for value in [*range(-130, 131), -10000, -1000, -999, 999, 1000, 1001, 10**14]:
        inside = (low is None or low <= value) and (high is None or value <= high)
        assert machine.accepts(grammar, str(value)) == inside, value


@pytest.mark.parametrize("seed", range(12))
def test_numbers_are_judged_by_their_bounds(machine: Machine, seed: int) -> None:
    chance = random.Random(seed)
    low = round(chance.uniform(-3, 3), seed % 4)
    schema = {"type": "number", chance.choice(["minimum", "exclusiveMinimum"]): low}
    if seed % 3:
        schema[chance.choice(["maximum", "exclusiveMaximum"])] = low + chance.choice([0.25, 1, 2.5])
    grammar, valid = of_schema(schema), jsonschema.Draft202012Validator(schema).is_valid
    values = [low, low + 1e-6, low - 1e-6, *(schema.get(key, 0) for key in ("maximum", "exclusiveMaximum"))]
    kept = possible = 0
    for value in [*values, *(chance.uniform(low - 1, low + 4) for _ in range(60))]:
        text = f"{value:.{chance.randrange(7)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        if text.strip("-0.") or not text.startswith("-"):
            right, taken = valid(json.loads(text)), machine.accepts(grammar, text)
            assert right or not taken, text
            kept, possible = kept + taken, possible + right
    assert kept > 0.8 * possible  # llguidance leaves out a few at a negative bound
    for walk in range(10):
        check(schema, machine.walk(grammar, chance, walk))


def test_every_day_is_judged_as_the_calendar_does(machine: Machine) -> None:
    grammar = of_schema({"type": "string", "format": "date"})
    for year in (1000, 1900, 1999, 2000, 2023, 2024, 9600, 9999):
        for month in (1, 2, 4, 12):
            for day in (0, 1, 28, 29, 30, 31, 32):
                text = f"{year}-{month:02}-{day:02}"
                assert machine.accepts(grammar, f'"{text}"') == is_date(text), text


def is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_of_a_pattern_match_it(machine: Machine, pattern: str) -> None:
    grammar = of_schema({"type": "string", "pattern": pattern})
    for seed in range(25):
        text = json.loads(machine.walk(grammar, random.Random(seed), seed % 10))
        assert re.search(pattern, text), text


@pytest.mark.parametrize(
    "pattern",
    [
        "^(?=a)a$", "^(?<n>a)$", "^(a$", "^a)$", "^[a$", "^[]$", "^[b-a]$", "^a**$",
                "^\\1$", "^\\bx$", "^\\p{L}$", "^a{3,1}$", "^a{,3}$", "^a{$", "^(^a)$", "^a$b$", "^\\", "^*$",
        "^[\\d-z]$", "^[\\D]$", "^(^a|b)$",
               "^" + "(" * 500 + "a" + ")" * 500 + "$", "^(a{40000}){40000}$", "^a{99999}$", "(?i)^a$",
        "^\\u12$", "^\\é$",
    ],
)  # fmt: skip
def test_a_pattern_that_is_not_supported_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"#/pattern: "):
        of_schema({"type": "string", "pattern": pattern})


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet='ab^$.*+?{}[]()|\\-dDwWsSnux0123, "é&~'))
def test_any_pattern_is_honoured_or_refused(machine: Machine, pattern: str) -> None:
    pattern = f"^(?:{pattern})$"  # a random walk does not come upon it elsewhere
    try:
        grammar = of_schema({"type": "string", "pattern": pattern})
    except InvalidOptionError:
        return
    meant = re.compile(pattern)  # which warns of what may change its meaning
    with contextlib.suppress(EndlessError):
        text = json.loads(machine.walk(grammar, random.Random(0), 2, most=30))
        assert meant.search(text), text


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^\\d$", "1", "३"), ("^\\w$", "a", "é"), ("^\\s$", " ", "\ufeff"), ("^\\D$", "a", "३"), ("^\\W$", "-", "é"),
        ("^\\S$", "a", "\u2028"), ("^[^\\w]$", "-", "é"), ("^.$", "a", "\u2028"), ("^[^a]$", "\u2028", "a"),
    ],
)  # fmt: skip
def test_a_class_has_what_all_readers_see_in_it(machine: Machine, pattern: str, good: str, bad: str) -> None:
    grammar = of_schema({"type": "string", "pattern": pattern})
    assert machine.accepts(grammar, json.dumps(good, ensure_ascii=False))
    assert not machine.accepts(grammar, json.dumps(bad, ensure_ascii=False))


FAULTS: dict[str, tuple[Any, str]] = {
    "no schema": ([], "a schema must be a dictionary"),
    "nothing": (False, "#: cannot be honoured: Unsatisfiable"),
    "keys that are no strings": ({1: 2}, "keys in a JSON schema must be strings"),
    "what is no JSON": ({"const": {1, 2}}, "something that is no JSON"),
    "not a number": ({"minimum": float("nan")}, "JSON cannot write"),
    "broken Unicode": ({"const": "\ud800"}, "not valid Unicode"),
    "a misspelt keyword": ({"tilte": "x"}, "#/tilte: is no keyword"),
    "a place with special names": (
        {"properties": {"a/b~": {"not": {}}}},
        "#/properties/a~1b~0/not: is not supported",
    ),
    "several faults": ({"minLength": "1", "not": {}}, "2 faults"),
    "bounds that exclude each other": (
        {"type": "integer", "minimum": 3, "maximum": 2},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "no number between": (
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "lengths that exclude each other": (
        {"minLength": 3, "maxLength": 2},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "counts that exclude each other": (
        {"minItems": 3, "maxItems": 2},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "more items than a tuple has": (
        {"prefixItems": [{}], "items": False, "minItems": 2},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "too many characters": ({"type": "string", "maxLength": 10**6}, "#/maxLength: 50000 is the most"),
    "too many items": ({"type": "array", "minItems": 10**6}, "#/minItems: 50000 is the most"),
    "a long number": ({"type": "number", "maximum": 1e300}, "#: cannot be honoured"),
    "values of other types": ({"type": "string", "enum": [1]}, "#: cannot be honoured: Unsatisfiable"),
    "values that another keyword forbids": ({"enum": ["a"], "minLength": 2}, "#: cannot be honoured: Unsat"),
    "a format beside a length": (
        {"type": "string", "format": "date", "maxLength": 3},
        "#: cannot be honoured",
    ),
    "a format that is not honoured": ({"items": {"format": "iri"}}, "#/items/format: 'iri' is not supported"),
    "items that differ": (
        {"properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}},
        "#/properties/tags/uniqueItems: is not supported: use a list instead of a set, with maxItems",
    ),
    "a uniqueness that is no truth value": ({"uniqueItems": 1}, "#/uniqueItems: is not supported"),
    "names that are too hard": (
        {"properties": {"a": {"propertyNames": {"maxLength": 3}}}},
        "#/properties/a/propertyNames: is supported for names in an enum",
    ),
    "patterns of properties that may both hold": (
        {"properties": {"ü": {"patternProperties": {"^a": {}, "b$": {}}}}},
        "#/properties/ü: cannot be honoured: patternProperty regexes",
    ),
    "a multiple of nothing": ({"multipleOf": 0}, "#/multipleOf: must be a number above 0"),
    "a required property that is forbidden": (
        {"properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "counts of properties": (
        {"properties": {"a": {}}, "minProperties": 2},
        "#/minProperties: is not supported",
    ),
    "oneOf that may hold twice": (
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        "#/oneOf: it is not certain",
    ),
    "oneOf of untagged objects": (
        {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        "#/oneOf: it is not certain",
    ),
    "allOf with two patterns": (
        {"allOf": [{"type": "string", "pattern": "^a$"}, {"type": "string", "pattern": "^b$"}]},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "allOf of other types": (
        {"allOf": [{"type": "string"}, {"type": "null"}]},
        "#: cannot be honoured: Unsatisfiable",
    ),
    "a reference to nowhere": ({"$ref": "#/$defs/x"}, "#/$ref: '#/$defs/x' leads to no schema"),
    "a reference elsewhere": ({"$ref": "https://example.org/s"}, "leads to no schema in this document"),
    "a reference to itself": ({"$ref": "#"}, "can never end"),
    "a value without end": ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "can never end"),
    "recursion through allOf": (
        {"allOf": [{"$ref": "#"}, {"type": "string"}], "maxLength": 3},
        "#: cannot be honoured: circular references",
    ),
    "an identifier inside": (
        {"properties": {"a": {"$id": "x"}}},
        "#/properties/a/$id: must be at the root only",
    ),
    "too many definitions": (
        {
            "$defs": {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(3000)},
            "$ref": "#/$defs/0",
        },
        "#/$defs/300: more than 300 schemas are referred to",
    ),
    "definitions that are nested too deep": (
        {
            "$ref": "#/$defs/0",
            "$defs": {
                str(n): {"items": {"items": {"items": {"$ref": f"#/$defs/{n + 1}"} if n < 199 else {}}}}
                for n in range(200)
            },
        },
        "#: its schemas are nested too deep",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_schema_that_cannot_be_honoured_is_refused(name: str) -> None:
    schema, message = FAULTS[name]
    with pytest.raises(InvalidOptionError) as raised:
        of_schema(schema)
    assert message in str(raised.value)


def nested(levels: int, wrap: Any) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(levels):
        schema = wrap(schema)
    return schema


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"type": "array", "items": inner},
        lambda inner: {"properties": {"a": inner}},
        lambda inner: {"anyOf": [inner, {"type": "boolean"}]},
        lambda inner: {"allOf": [inner, inner]},
        lambda inner: {"anyOf": [inner, inner]},
        lambda inner: {"enum": [inner]},
        lambda inner: [inner],
    ],
)
@pytest.mark.parametrize("levels", [12, 45, 10_000])
def test_deep_schemas_are_taken_or_refused(machine: Machine, wrap: Any, levels: int) -> None:
    try:
        grammar = of_schema(nested(levels, wrap))
    except InvalidOptionError:
        assert levels > 12 or isinstance(wrap(1), list)
        return
    check(nested(levels, wrap), machine.walk(grammar, random.Random(0), 10))


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(InvalidOptionError, match="deeper than 100 levels"):
        of_schema(schema)


def test_a_chain_of_references_may_be_long(machine: Machine) -> None:
    definitions: dict[str, Any] = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(100)}
    schema = {"$ref": "#/$defs/0", "$defs": {**definitions, "100": {"type": "null"}}}
    assert machine.accepts(of_schema(schema), "null")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner)
    | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "required", "items", "enum", "const", "anyOf", "allOf", "oneOf", "$ref", "pattern",
             "minLength", "maximum", "minItems", "format", "prefixItems", "additionalProperties", "$defs", "x"]
        ) | st.text(),
        inner | st.sampled_from(["string", "object", "array", "#", "#/items", "^a$", {}, {"$ref": "#"}, True, False]),
    ),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(json_like)
def test_anything_as_a_schema_is_taken_or_refused(machine: Machine, schema: Any) -> None:
    for form in (
        schema,
        {"type": "json_schema", "schema": schema},
        {"type": "json_schema", "json_schema": schema},
    ):
        try:
            grammar = grammar_text(response_format=form)
        except InvalidOptionError:
            continue
        if grammar is not None and isinstance(form, dict):
            check(schema, machine.walk(grammar, random.Random(0), 5))


RECURSIVE: dict[str, Any] = {
    "alternatives that differ late": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"of": {"$ref": "#"}, "op": {"const": op}},
                "required": ["op"],
            }
            for op in ("not", "neg")
        ]
    },
    "nothing between": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    "levels with branches": {
        "$ref": "#/$defs/0",
        "$defs": {
            **{
                str(level): {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {"a": {"$ref": f"#/$defs/{level + 1}"}, "b": {"const": branch}},
                            "required": ["a", "b"],
                        }
                        for branch in range(4)
                    ]
                }
                for level in range(8)
            },
            "8": {"type": "null"},
        },
    },
}


@pytest.mark.parametrize("name", RECURSIVE)
def test_recursion_that_is_told_apart_late_takes_no_longer(machine: Machine, name: str) -> None:
    """llama.cpp followed each alternative on its own: their number grew with every level."""
    grammar = of_schema(RECURSIVE[name])
    for seed in range(3):
        text = machine.walk(grammar, random.Random(seed), 200)
        if name != "nothing between":  # on which jsonschema itself recurses without end
            check(RECURSIVE[name], text)


def test_a_strict_schema_of_openai_is_honoured(machine: Machine) -> None:
    step = {
        "type": "object",
        "properties": {"explanation": {"type": "string"}, "output": {"type": ["string", "null"]}},
        "required": ["explanation", "output"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}},
            "final": {"type": "string"},
        },
        "required": ["steps", "final"],
        "additionalProperties": False,
        "$defs": {"step": step},
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    grammar = grammar_text(response_format=form)
    assert machine.accepts(grammar, '{"steps": [{"explanation": "a", "output": null}], "final": "b"}')
    assert not machine.accepts(grammar, '{"steps": [], "final": "b", "more": 1}')


def test_a_key_is_not_written_twice_in_other_letters(machine: Machine) -> None:
    schema = {"properties": {"a": {"const": 1}, "\t": {"const": 1}}, "additionalProperties": {"const": 2}}
    grammar = of_schema(schema)
    assert machine.accepts(grammar, '{"a": 1, "\\t": 1, "b": 2}')
    for text in (
        '{"\\u0061": 2}', '{"\\u0009": 2}', '{"a": 1, "a": 1}', '{"a": 1, "\\u0061": 2}', '{"b": 2, "a": 2}',
    ):  # fmt: skip
        assert not machine.accepts(grammar, text), text


def test_values_stay_as_they_are_written_also_decomposed(machine: Machine) -> None:
    for text in ("é", "e\u0301", "\u1112\u1161", "ﬁ"):
        grammar = of_schema({"const": text})
        assert machine.walk(grammar, random.Random(0), 9) == json.dumps(text, ensure_ascii=False)


def test_bounds_are_the_same_whatever_the_programs_decimals_are_like(monkeypatch: pytest.MonkeyPatch) -> None:
    schemas = [
        {"type": "number", "minimum": 0.123456789, "maximum": 12345.678901},
        {"type": "number", "exclusiveMinimum": -1.5},
        {"type": "number", "minimum": 0.1, "exclusiveMaximum": 0.3},
    ]

    def grammars() -> list[str | None]:
        return [grammar_text(response_format={"type": "json_schema", "schema": one}) for one in schemas]

    expected = grammars()
    monkeypatch.setattr(decimal.DefaultContext, "prec", 2)
    for own in (
        decimal.Context(prec=3),
        decimal.Context(traps=[decimal.Inexact, decimal.Rounded, decimal.FloatOperation]),
        decimal.Context(Emax=1, Emin=-1),
        decimal.Context(rounding=decimal.ROUND_UP, traps=[]),
    ):
        with decimal.localcontext(own) as context:
            assert grammars() == expected
            assert not any(context.flags.values())
