from __future__ import annotations

import codecs
import ctypes
import decimal
import enum
import json
import random
import re
import unicodedata
import uuid
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ayaedge
from ayaedge import InvalidOptionError, llama
from ayaedge.decoder.vocabulary import Vocabulary, open_vocabulary
from ayaedge.grammar.gbnf import Rules
from ayaedge.grammar.patterns import PatternError, translate
from ayaedge.grammar.schema import grammar_text, parse_answer
from random_schema import PATTERNS, random_schema, random_value, unsupported_schema

jsonschema = pytest.importorskip("jsonschema")

DECODER = Path(ayaedge.__file__).parent / "demo" / "decoder.gguf"
OBJECT = {"type": "json_object"}
_TOKEN = np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])


class Machine:
    """llama.cpp's grammar sampler over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary):
        self._llama, self._vocabulary = llama.library(), vocabulary
        handle = vocabulary.handle
        ids = range(vocabulary.size)
        self.ends = [token for token in ids if self._llama.llama_vocab_is_eog(handle, token)]
        self.pieces = [vocabulary.piece(token) for token in ids]
        # an answer's text has no special tokens, although the grammar would take their names as text
        self.plain = [
            token
            for token in ids
            if not self._llama.llama_vocab_is_control(handle, token)
            and not self._llama.llama_vocab_get_attr(handle, token) & 0b11
        ]

    def start(self, grammar: str) -> Any:
        sampler = self._llama.llama_sampler_init_grammar(self._vocabulary.handle, grammar.encode(), b"root")
        assert sampler, f"llama.cpp refuses\n{grammar}"
        return sampler

    def allowed(self, sampler: Any, tokens: list[int]) -> list[int]:
        data = np.zeros(len(tokens), _TOKEN)
        data["id"] = tokens
        pointer = data.ctypes.data_as(ctypes.POINTER(self._llama.llama_token_data))
        array = self._llama.llama_token_data_array(pointer, len(tokens), -1, False)
        self._llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return [int(token) for token in data["id"][data["logit"] > -np.inf]]

    def accepts(self, grammar: str, text: str) -> bool:
        sampler = self.start(grammar)
        try:
            for token in self._vocabulary.tokenize(text):
                if not self.allowed(sampler, [token]):
                    return False
                self._llama.llama_sampler_accept(sampler, token)
            return bool(self.allowed(sampler, self.ends))
        finally:
            self._llama.llama_sampler_free(sampler)

    def walk(self, grammar: str, chance: random.Random, length: int) -> str:
        """A random text of the grammar; after `length` tokens it takes the shortest way to the end."""
        sampler, data = self.start(grammar), b""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for step in range(10_000):
                choices = self.allowed(sampler, [*self.plain, *self.ends])
                assert choices, f"a dead end after {data!r} in\n{grammar}"
                chance.shuffle(choices)
                if step >= length and chance.random() < 0.8:
                    choices.sort(key=self._delay)
                token = next(token for token in choices if _continues(decoder, self.pieces[token]))
                if token in self.ends:
                    return data.decode()
                self._llama.llama_sampler_accept(sampler, token)
                decoder.decode(self.pieces[token])
                data += self.pieces[token]
        finally:
            self._llama.llama_sampler_free(sampler)
        raise AssertionError(f"no end after {data!r} in\n{grammar}")

    def _delay(self, token: int) -> int:
        """How far from the end a token leads, as a guess."""
        piece = self.pieces[token]
        if token in self.ends:
            return 0
        if piece in (b'"', b"}", b"]"):
            return 1
        return 3 if piece[:1] in (b"{", b"[", b",") else 2


def _continues(decoder: codecs.IncrementalDecoder, piece: bytes) -> bool:
    """Whether the text stays UTF-8: llama.cpp takes overlong forms, which a model has no reason to write."""
    state = decoder.getstate()
    try:
        decoder.decode(piece)
    except UnicodeDecodeError:
        return False
    finally:
        decoder.setstate(state)
    return True


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with open_vocabulary(DECODER) as vocabulary:
        yield Machine(vocabulary)


def of_schema(schema: object) -> str:
    text = grammar_text(response_format={"type": "json_schema", "schema": schema})
    assert text is not None
    return text


def check(schema: Any, text: str) -> None:
    """The text is JSON, reads and writes without loss, and is valid."""
    value = json.loads(text)
    text.encode()
    checker = jsonschema.FormatChecker(["date", "uuid", "ipv4", "email"])
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "any value": (
        {},
        ["1", "null", '"x"', '{"a": [1, {}]}', "-0.5e-3", "[]"],
        ["", "01", "nul", "[1,]", " 1"],
    ),
    "anything, as true": (True, ["{}", "[[]]"], ["{"]),
    "strings": (
        {"type": "string"},
        ['""', '"ह है"', '"\\u00e9\\n"', '"🎈"', '"a/b\\/"'],
        ['"', '"\n"', '"\\ud800"', '"\\x"', "'a'"],
    ),
    "short strings": (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"हिं"', '"\\n\\u00e9x"'],
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
        ['{"a":null}', '{"a": null}', '{\n  "a": null\n}', '{ "a":null }'],
        ["{}", '{"b":null}', '{"a":null,"b":1}', '{"a":  null}', '{"a":null}\n'],
    ),
    "optional properties in their order": (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]},
        ['{"b":2}', '{"a":1,"b":2}', '{"a":1, "b":2,\n "c":3}', '{"b":2,"c":3}'],
        ["{}", '{"a":1}', '{"b":2,"a":1}', '{"a":1,"b":2,}', '{,"b":2}'],
    ),
    "only optional properties": (
        {"properties": {"a": {"const": 1}, "b": {"const": 2}}},
        ["{}", "{ }", '{"a":1}', '{"b":2}', '{"a":1,"b":2}'],
        ['{"b":2,"a":1}', '{"a":1,}'],
    ),
    "other properties of a type": (
        {"properties": {"ab": {"const": 1}}, "additionalProperties": {"type": "boolean"}},
        ["{}", '{"ab":1}', '{"a":true}', '{"abc":true,"":false}', '{"ab":1,"x":true,"y":true}'],
        ['{"ab":true}', '{"x":1}', '{"\\u0061b":true}', '{"x":true,"ab":1}'],
    ),
    "a map": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        ["{}", '{"ह":1,"\\n":2}'],
        ['{"a":"b"}'],
    ),
    "what is required and not declared": (
        {"required": ["a"]},
        ['{"a":[]}', '{"a":1,"b":2}'],
        ["{}", '{"b":1}'],
    ),
    "a forbidden property": ({"properties": {"a": False}}, ["{}"], ['{"a":1}']),
    "an empty object": ({"type": "object", "properties": {}}, ["{}"], ['{"a":1}']),
    "arrays": (
        {"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 3},
        ["[1]", "[1,1]", "[1, 1, 1]", "[\n  1,\n  1\n]"],
        ["[]", "[1,1,1,1]", "[1,]", "[2]"],
    ),
    "long arrays": (
        {"items": {"const": 1}, "minItems": 1100, "maxItems": 2500},
        [json.dumps([1] * count) for count in (1100, 2500)],
        [json.dumps([1] * count) for count in (1099, 2501)],
    ),
    "no items": ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    "tuples": (
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1, "maxItems": 4},
        ["[1]", "[1,2]", "[1,2,3,3]"],
        ["[]", "[1,3]", "[1,2,3,3,3]"],
    ),
    "whole tuples": (
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 2},
        ["[1,2]"],
        ["[1]", "[1,2,3]"],
    ),
    "tuples that want more items than are described": (
        {"prefixItems": [{"const": 1}], "minItems": 2},
        ['[1,"x"]', "[1,2,3]"],
        ["[1]"],
    ),
    "a tuple that ends early": ({"prefixItems": [{"const": 1}, False]}, ["[]", "[1]"], ["[1,1]"]),
    "an enum": (
        {"enum": ["a", "ab", 1, None, {"k": [1.5]}, "é", True]},
        ['"a"', '"ab"', "1", "null", '{"k":[1.5]}', '"é"', "true"],
        ['"abc"', "1.0", '"e\u0301"', "false"],
    ),
    "an enum of a type": ({"type": ["string", "null"], "enum": ["a", 1, None]}, ['"a"', "null"], ["1"]),
    "a const beside an enum": ({"enum": [1, 2], "const": 2.0}, ["2"], ["1"]),
    "an integer constant as a float": ({"type": "integer", "const": 3.0}, ["3.0"], ["3"]),
    "several types": ({"type": ["integer", "null"], "minimum": 3}, ["3", "null"], ["2", "3.5", '"a"']),
    "anyOf": ({"anyOf": [{"type": "null"}, {"const": "x"}, False]}, ["null", '"x"'], ['"y"']),
    "anyOf beside other keywords": (
        {
            "type": "object",
            "properties": {"a": {"const": 1}},
            "anyOf": [{"required": ["a"]}, {"maxProperties": 1}],
        },
        ["{}", '{"a":1}'],
        ['{"a":2}'],
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
        ['{"kind":"cat"}', '{"kind":"dog"}'],
        ['{"kind":"cow"}', "{}"],
    ),
    "allOf": (
        {
            "allOf": [
                {"properties": {"a": {"minimum": 3}}},
                {"properties": {"a": {"maximum": 4, "type": "integer"}}},
            ],
            "required": ["a"],
        },
        ['{"a":3}', '{"a":4}'],
        ['{"a":2}', '{"a":5}', "{}"],
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
        ['{"v":1,"next":null}', '{"v":1,"next":{"v":1,"next":{"v":1,"next":null}}}'],
        ['{"v":1}', '{"v":1,"next":{}}'],
    ),
    "recursion at the root": (
        {"type": "array", "items": {"$ref": "#"}},
        ["[]", "[[],[[]]]"],
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
        ['{"op":"not","of":{"op":"neg"}}'],
        ['{"op":"and"}'],
    ),
    "a pattern": (
        {"type": "string", "pattern": "^[A-Z]{2}-\\d{1,3}$", "maxLength": 99999999999, "minLength": 4},
        ['"AB-1"', '"AB-123"'],
        ['"AB-"', '"ab-1"', '"AB-1234"', '"xAB-1"'],
    ),
    "a pattern with what JSON escapes": (
        {"pattern": '^["\\\\\\n]+$'},
        ['"\\"\\\\\\n"'],
        ['""', '"n"', '"\n"'],
    ),
    "numbers": (
        {"type": "number"},
        ["0", "-0", "12.5", "1e5", "-1.25E-3", "1234567890123456789"],
        ["1.", ".5", "1e", "+1", "00", "1e100", "12345678901234567890"],
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
        ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"', '"2023-13-01"', '"2023-1-1"', '""'],
    ),
    "moments": (
        {"type": "string", "format": "date-time"},
        ['"2024-02-29T23:59:59Z"', '"2024-01-01T00:00:00.123+05:30"'],
        ['"2024-02-30T23:59:59Z"', '"2024-01-01T24:00:00Z"', '"2024-01-01T00:00:00"'],
    ),
    "a format that is not known": ({"type": "string", "format": "colour"}, ['"red"', '""'], ["1"]),
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
        text = json.dumps(random_value(chance, schema), ensure_ascii=False, separators=(",", ":"))
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
    for value in [*range(-130, 131), -10000, -1000, -999, 999, 1000, 1001, 10**18]:
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
    for value in [*values, *(chance.uniform(low - 1, low + 4) for _ in range(60))]:
        text = f"{value:.{chance.randrange(7)}f}"
        if text.strip("-0.") or not text.startswith("-"):
            assert machine.accepts(grammar, text) == valid(json.loads(text)), text
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
        "a", "^a", "a$", "^a|b$", "^(?=a)a$", "^(?<n>a)$", "^(a$", "^a)$", "^[a$", "^[]$", "^[b-a]$", "^a**$",
        "^(a?)*$",        "^\\1$", "^\\bx$", "^\\p{L}$", "^a{3,1}$", "^a{,3}$", "^a{$", "^(^a)$", "^a$b$", "^\\", "^*$",
        "^[\\d-z]$",
        "^\x01$",        "^" + "(" * 500 + "a" + ")" * 500 + "$", "^(a{40000}){40000}$", "^a{99999}$", "(?i)^a$",
        "^\\u12$", "^\\é$", "",
    ],
)  # fmt: skip
def test_a_pattern_that_is_not_supported_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"#/pattern: "):
        of_schema({"type": "string", "pattern": pattern})


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet='ab^$.*+?{}[]()|\\-dDwWsSnux0123, "é'))
def test_any_pattern_is_translated_or_refused(pattern: str) -> None:
    try:
        part = translate(f"^{pattern}$", Rules())
    except PatternError:
        return
    re.compile(f"^{pattern}$")  # which warns of what may change its meaning
    assert part.most is None or part.least <= part.most


FAULTS: dict[str, tuple[Any, str]] = {
    "no schema": ([], "a schema must be a dictionary"),
    "nothing": (False, "#: false allows no value"),
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
    "bounds that exclude each other": ({"type": "integer", "minimum": 3, "maximum": 2}, "#: no integer"),
    "no number between": ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "#: no number"),
    "lengths that exclude each other": ({"minLength": 3, "maxLength": 2}, "#/minLength: no string"),
    "counts that exclude each other": ({"minItems": 3, "maxItems": 2}, "#/minItems: no array"),
    "more items than a tuple has": (
        {"prefixItems": [{}], "items": False, "minItems": 2},
        "#/minItems: no array",
    ),
    "too many characters": ({"type": "string", "maxLength": 10**6}, "#/maxLength: 50000 is the most"),
    "too many items": ({"type": "array", "minItems": 10**6}, "#/minItems: 50000 is the most"),
    "a huge integer": ({"type": "integer", "maximum": 10**40}, "30 digits"),
    "a long number": ({"type": "number", "maximum": 1e300}, "15 digits"),
    "values of other types": ({"type": "string", "enum": [1]}, "#/enum: no value"),
    "values that another keyword restricts": (
        {"enum": ["a"], "minLength": 1},
        "#/minLength: cannot be combined",
    ),
    "a format beside a length": (
        {"type": "string", "format": "date", "maxLength": 3},
        "#/format: cannot be combined",
    ),
    "a pattern that may be too long": (
        {"pattern": "^a+$", "maxLength": 5},
        "#/pattern: it allows 1 to any number",
    ),
    "a required property that is forbidden": (
        {"properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
        "#/required: 'b' is required, and not allowed",
    ),
    "counts of properties": (
        {"properties": {"a": {}}, "minProperties": 1},
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
    "allOf that closes the other": (
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
        "#/additionalProperties: stands in a part of allOf",
    ),
    "allOf with two patterns": (
        {"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}]},
        "#/pattern: different ones",
    ),
    "allOf of other types": ({"allOf": [{"type": "string"}, {"type": "null"}]}, "contradict each other"),
    "a reference to nowhere": ({"$ref": "#/$defs/x"}, "#/$ref: '#/$defs/x' leads to no schema"),
    "a reference elsewhere": ({"$ref": "https://example.org/s"}, "leads to no schema in this document"),
    "a reference to itself": ({"$ref": "#"}, "can never end"),
    "a value without end": ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "can never end"),
    "recursion with nothing between": ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "begins with itself"),
    "recursion through allOf": (
        {"allOf": [{"$ref": "#"}, {"type": "string"}], "maxLength": 3},
        "can never end",
    ),
    "recursion that cannot be told apart": (
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"of": {"$ref": "#"}, "op": {"const": op}},
                    "required": ["op"],
                }
                for op in ("not", "neg")
            ]
        },
        "#/anyOf: two of its schemas lead back here through 'of'",
    ),
    "an identifier inside": (
        {"properties": {"a": {"$id": "x"}}},
        "#/properties/a/$id: must be at the root only",
    ),
    "too many properties": ({"properties": {f"p{n}": {} for n in range(1200)}}, "ways"),
    "too many values": ({"enum": [chr(0x4E00 + n) for n in range(5000)]}, "ways"),
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
        assert levels > 12 or isinstance(wrap(1), list) or "anyOf" in wrap(1) or "allOf" in wrap(1)
        return
    check(nested(levels, wrap), machine.walk(grammar, random.Random(0), 10))


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(InvalidOptionError, match="deeper than 100 levels"):
        of_schema(schema)


def test_a_chain_of_references_is_refused_before_it_gets_too_long(machine: Machine) -> None:
    for count in (100, 3000):
        definitions: dict[str, Any] = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(count)}
        schema = {"$ref": "#/$defs/0", "$defs": {**definitions, str(count): {"type": "null"}}}
        if count == 100:
            assert machine.accepts(of_schema(schema), "null")
            continue
        with pytest.raises(InvalidOptionError, match="chain"):
            of_schema(schema)


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


CRASHING = {
    "counts that run backwards": 'root ::= "a"{5,3}',
    "deep parentheses": f"root ::= {'(' * 10_000}[a]{')' * 10_000}",
    "a long chain": "root ::= a0\n" + "".join(f"a{n} ::= a{n + 1}\n" for n in range(9000)) + 'a9000 ::= "x"',
    "ways that double": "root ::= a0\n"
    + "".join(f"a{n} ::= a{n + 1} | a{n + 1}\n" for n in range(60))
    + 'a60 ::= "x"',
    "beginnings that double": "root ::= a0\n"
    + "".join(f'a{n} ::= a{n + 1} "p" | a{n + 1} "q"\n' for n in range(30))
    + 'a30 ::= "x"',
    "empty parts that double": "root ::= a0\n"
    + "".join(f"a{n} ::= a{n + 1} a{n + 1}\n" for n in range(30))
    + 'a30 ::= "x"?',
    "left recursion": 'root ::= root "a" | "b"',
    "left recursion behind what may be empty": 'root ::= x root "a" | "b"\nx ::= "c"?',
    "recursion without a character": 'root ::= b root\nb ::= c\nc ::= ""',
    "empty repetition": 'root ::= ("a"?)*',
    "no end": 'root ::= "a" root',
    "a dead end": "root ::= [z-a]",
    "NUL in a literal": 'root ::= "\\x00"',
    "NUL": 'root ::= "a"\0',
    "half a character": 'root ::= "\\ud83d"',
    "no text": "\ud800",
    "a token": 'root ::= <[1]> "a"',
    "a token that is not": 'root ::= !<[1]> "a"',
    "a count that is taken as endless": 'root ::= "a"{0,3000}',
    "a count that is too large": 'root ::= "a"{3000}',
    "counts that multiply": 'root ::= ("a" "b"{0,100}){50}',
    "an endless count": f'root ::= "a"{{{"9" * 50}}}',
    "large repetitions": f'root ::= "{"a" * 100_000}"{{2000}}',
    "nothing": "",
    "a comment": "# root",
    "another root": 'start ::= "a"',
    "an undefined rule": "root ::= a",
    "a rule that is not even used": 'root ::= "a" b{0}',
    "two definitions": 'root ::= "a"\nroot ::= "b"',
    "an unknown escape": 'root ::= "\\q"',
    "an open literal": 'root ::= "a',
    "an open class": "root ::= [a",
    "an empty class": "root ::= []",
    "a negated empty class": "root ::= [^]",
    "a lonely count": "root ::= *",
    "a count of an empty text": 'root ::= ""*',
    "a closing parenthesis": 'root ::= "a")',
    "an open parenthesis": 'root ::= ("a"',
    "a second line that goes on": 'root ::= "a"\n| "b"',
    "too much": 'root ::= "a"' + " " * 10**6,
}


@pytest.mark.parametrize("name", CRASHING)
def test_a_grammar_that_llama_cpp_could_not_bear_is_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"^grammar"):
        grammar_text(grammar=CRASHING[name])


GOOD_GRAMMARS = {
    'root ::= "a" | "b" # one of two\n': (["a", "b"], ["c", ""]),
    "root ::= item+\nitem ::= [a-c\\-] (\",\" ws)? \n\nws ::= [ \\t]*": (["a,  b-c"], ["", "d"]),
    'root ::= (\n  "x" |\n  "y"\n){2,3} .\r\n': (["xyक", "xxxx"], ["xx"]),
    'root ::= "\\"\\x41\\u00e9\\U0001F388" [^a-z\\]] "z"{0}': (['"Aé🎈A'], ['"Aé🎈a']),
    'root ::= expr\nexpr ::= [0-9] tail\ntail ::= ("+" expr)?': (["1", "1+2+3"], ["1+"]),
    'root ::= ""': ([""], ["a"]),
    'root ::= "a"{2}{2} "b"??': (["aaaa", "aaaab"], ["aaa"]),
}  # fmt: skip


@pytest.mark.parametrize("grammar", GOOD_GRAMMARS)
def test_a_good_grammar_is_passed_through(machine: Machine, grammar: str) -> None:
    assert grammar_text(grammar=grammar) == grammar
    good, bad = GOOD_GRAMMARS[grammar]
    assert [text for text in good if not machine.accepts(grammar, text)] == []
    assert [text for text in bad if machine.accepts(grammar, text)] == []


grammar_parts = st.sampled_from(
    ['"a"', '"ab"', "[a-c]", "[^a]", ".", "a", "b", "root", "(", ")", "|", "*", "+", "?", "{2}", "{0,2}", "{1,}", " ",
     "\n", '""', "\nroot ::= ", "\na ::= ", "\nb ::= ", "#", "\\", "<", "{5,3}", "é", "::=", "-"]
)  # fmt: skip


@settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=40)
    | st.lists(grammar_parts, max_size=40).map(lambda parts: 'root ::= "a" ' + "".join(parts))
)
def test_any_text_as_a_grammar_is_refused_or_works(machine: Machine, grammar: str) -> None:
    try:
        grammar_text(grammar=grammar)
    except InvalidOptionError:
        return
    sampler, chance = machine.start(grammar), random.Random(0)
    for _ in range(10):
        choices = machine.allowed(sampler, machine.plain)
        if not choices:
            assert machine.allowed(sampler, machine.ends)
            break
        machine._llama.llama_sampler_accept(sampler, chance.choice(choices))
    machine._llama.llama_sampler_free(sampler)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1
    )
)
def test_any_choices_can_be_given_and_nothing_else(machine: Machine, choices: list[str]) -> None:
    grammar = grammar_text(choices=choices)
    assert grammar is not None
    expected = {unicodedata.normalize("NFC", choice) for choice in choices}
    assert all(machine.accepts(grammar, choice) for choice in expected)
    assert not machine.accepts(grammar, max(expected, key=len) + "x")
    assert machine.accepts(grammar, choices[0][:-1]) == (choices[0][:-1] in expected)
    assert machine.walk(grammar, random.Random(0), 5) in expected


def test_choices_are_composed_and_may_begin_with_one_another(machine: Machine) -> None:
    grammar = grammar_text(choices=["yes", "yes, but", "e\u0301", "हाँ", "yes"])
    assert grammar is not None
    assert all(machine.accepts(grammar, text) for text in ("yes", "yes, but", "é", "हाँ"))
    assert not any(machine.accepts(grammar, text) for text in ("", "ye", "yes,", "e\u0301", "no"))


@pytest.mark.parametrize(
    "choices",
    ["yes", [], [""], ["a", 1], ["a\0"], ["\ud800"], b"ab", {"a": 1}, 5, ["x"] * 20_000,
     [chr(0x4E00 + n) for n in range(3000)], ["x" * 200_000]],
)  # fmt: skip
def test_choices_that_make_no_sense_are_refused(choices: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"^choices"):
        grammar_text(choices=choices)


def test_only_one_form_can_be_asked_for() -> None:
    with pytest.raises(InvalidOptionError, match="only one of response_format and choices"):
        grammar_text(response_format=OBJECT, choices=["a"])
    assert grammar_text() is None
    assert grammar_text(response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    "form",
    [1, "json", [], {}, {"type": "xml"}, {"type": []}, {"type": "json_schema"},
     {"type": "json_schema", "json_schema": 1}, {"type": "json_object", "schema": {}},
     {"type": "json_schema", "json_schema": {"name": "x"}}, int, object()],
)  # fmt: skip
def test_a_response_format_that_makes_no_sense_is_refused(form: Any) -> None:
    with pytest.raises(InvalidOptionError, match="response_format"):
        grammar_text(response_format=form)


def test_a_json_object_is_any_object(machine: Machine) -> None:
    grammar = grammar_text(response_format=OBJECT)
    assert grammar is not None
    for text in ("{}", '{"a": [1, {"b": null}], "ह": "x"}', '{\n  "a": true\n}'):
        assert machine.accepts(grammar, text)
        assert parse_answer(text, OBJECT) == json.loads(text)
    for text in ("[]", "1", '{"a"}', '{"a":1,}', "{   }"):
        assert not machine.accepts(grammar, text)
    for seed in range(10):
        assert isinstance(json.loads(machine.walk(grammar, random.Random(seed), 10 * seed)), dict)


def test_the_schema_may_stand_as_openai_writes_it() -> None:
    schema = {"type": "null"}
    wrapped = {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "strict": True, "schema": schema},
    }
    assert grammar_text(response_format=wrapped) == of_schema(schema)


def test_an_answer_that_is_cut_off_or_too_deep_is_a_value_error() -> None:
    for text in ("", '{"a":', "[" * 100_000):
        with pytest.raises(ValueError, match=r"line 1|too deep"):
            parse_answer(text, OBJECT)


def test_a_pydantic_model_gives_grammar_and_value(machine: Machine) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Colour(enum.Enum):
        RED = "red"
        BLUE = "blue"

    class Cat(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        kind: Literal["cat"]
        lives: Annotated[int, pydantic.Field(ge=0, le=9)] = 9

    class Dog(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        kind: Literal["dog"]
        friends: list[Dog | None] = pydantic.Field(default_factory=list)

    class Everything(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        """What models ask for."""

        pet: Cat | Dog = pydantic.Field(discriminator="kind")
        name: Annotated[str, pydantic.Field(min_length=1, max_length=20, description="whose")]
        colour: Colour
        share: Annotated[float, pydantic.Field(gt=0, lt=1)]
        day: date
        moment: datetime
        number: uuid.UUID
        pair: tuple[int, bool]
        counts: dict[str, int]
        code: Annotated[str, pydantic.Field(pattern=r"^[A-Z]{3}-\d{2}$")]
        note: str | None = None
        page: pydantic.HttpUrl | None = None
        anything: Any = None

    grammar = grammar_text(response_format=Everything)
    assert grammar is not None
    wanted = Everything(
        pet=Dog(kind="dog", friends=[None, Dog(kind="dog")]), name="हिं", colour=Colour.RED, share=0.5,
        day=date(2024, 2, 29), moment=datetime.fromisoformat("2024-02-29T12:00:00+00:00"), number=uuid.UUID(int=7),
        pair=(1, True), counts={"a": 1}, code="ABC-12",
    )  # fmt: skip
    text = wanted.model_dump_json()
    assert machine.accepts(grammar, text), text
    assert parse_answer(text, Everything) == wanted
    with pytest.raises(ValueError, match="name"):
        parse_answer("{}", Everything)
    narrow = grammar_text(response_format=Cat)
    assert narrow is not None
    for seed in range(20):
        assert isinstance(parse_answer(machine.walk(narrow, random.Random(seed), 20), Cat), Cat)


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


def test_a_model_without_a_schema_is_refused() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Odd(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        thing: Vocabulary

    with pytest.raises(InvalidOptionError, match="Odd has no JSON schema"):
        grammar_text(response_format=Odd)
