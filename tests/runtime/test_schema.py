from __future__ import annotations

import codecs
import ctypes
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_schema import random_schema, unsupported_schema

import ayaedge
from ayaedge import InvalidOptionError, llama
from ayaedge.decoder import Vocabulary, open_vocabulary
from ayaedge.schema import grammar_text

jsonschema = pytest.importorskip("jsonschema")

DECODER = Path(ayaedge.__file__).parent / "demo" / "decoder.gguf"
OBJECT = {"type": "json_object"}
_TOKEN = np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])


class Machine:
    """llama.cpp's grammar sampler over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary):
        self._llama, self._vocabulary = llama.library(), vocabulary
        handle = vocabulary._handle
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
        sampler = self._llama.llama_sampler_init_grammar(self._vocabulary._handle, grammar.encode(), b"root")
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
                if step >= length:
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
        return 3 if piece[:1] in b"{[," else 2


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
        {"type": "string", "pattern": "^[A-Z]{2}-\\d+(\\.\\d)?$", "maxLength": 99999999999, "minLength": 0}
        | {"pattern": "^[A-Z]{2}-\\d{1,3}$"},
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
    for seed in range(4):
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
        if pointer.startswith("#/$defs/") and "$ref" in pointer:
            continue
        with pytest.raises(InvalidOptionError) as raised:
            of_schema(schema)
        assert f"{pointer}: " in str(raised.value), schema
