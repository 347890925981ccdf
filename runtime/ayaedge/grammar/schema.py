"""What a caller asks of an answer's form, as a grammar for llguidance, and answers of that form as Python's values.

A form is a `response_format` (OpenAI's dictionaries, or a pydantic model), a list of choices, or a grammar in GBNF.
What a model may write under the grammar is in `grammar.matcher`; what JSON Schema means is in `grammar.json_schema`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from ayaedge.errors import InvalidOptionError, list_faults
from ayaedge.grammar.gbnf import GbnfError, gbnf_grammar
from ayaedge.grammar.json_schema import any_object, schema_grammar
from ayaedge.grammar.schema_keywords import SchemaError, shortened

_MOST_CHOICES = 10_000
_MOST_CHOICE_CHARACTERS = 100_000
"""Of all choices together."""
_FORMATS = "'text', 'json_object' or 'json_schema'"


def grammar_text(
    *, response_format: object = None, grammar: object = None, choices: object = None
) -> str | None:
    """The grammar, in llguidance's notation, of the form that an answer shall have; None for any text.

    `response_format` is `{"type": "text"}`, `{"type": "json_object"}`, `{"type": "json_schema", "json_schema":
    {"name": ..., "schema": ...}}`, the same with the schema directly, or a pydantic model class. `choices` are texts
    of which the answer is one, `grammar` is GBNF. At most one of the three; InvalidOptionError lists what is wrong.
    llguidance takes every grammar that this gives.
    """
    given = {"response_format": response_format, "grammar": grammar, "choices": choices}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidOptionError(
            f"only one of {' and '.join(names)} can be given: they all fix the answer's form"
        )
    if choices is not None:
        return _of_choices(choices)
    if grammar is not None:
        return _checked(grammar)
    return None if response_format is None else _of_format(response_format)


def parse_answer(text: str, response_format: object) -> Any:
    """The value that an answer of this form spells: what `json.loads` gives, or an instance of the pydantic model.

    Raises ValueError for an answer that is not of the form, one that was cut off for example; its kind is
    `json.JSONDecodeError` or pydantic's `ValidationError`.
    """
    if _is_model(response_format):
        return response_format.model_validate_json(text)  # type: ignore[attr-defined]
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the answer is nested too deep to be read") from None


def _is_model(form: object) -> bool:
    """Whether this is a pydantic model class, told by its methods: pydantic need not be installed."""
    return isinstance(form, type) and callable(getattr(form, "model_json_schema", None))


def _of_format(form: object) -> str | None:
    if _is_model(form):
        return _of_schema(_model_schema(form))
    if not isinstance(form, dict):
        raise InvalidOptionError(
            f"response_format must be a dictionary or a pydantic model class, not {shortened(form)}"
        )
    kind = form.get("type")
    if kind == "text":
        _check_keys(form, {"type"})
        return None
    if kind == "json_object":
        _check_keys(form, {"type"})
        return any_object()
    if kind == "json_schema":
        return _of_schema(_schema_of(form))
    raise InvalidOptionError(f"response_format.type must be {_FORMATS}, not {shortened(kind)}")


def _schema_of(form: dict[Any, Any]) -> object:
    """The schema in OpenAI's dictionary, or directly in `response_format`."""
    if "json_schema" in form:
        _check_keys(form, {"type", "json_schema"})
        form = form["json_schema"]
        if not isinstance(form, dict):
            raise InvalidOptionError(
                f"response_format.json_schema must be a dictionary, not {shortened(form)}"
            )
    _check_keys(form, {"type", "name", "description", "schema", "strict"})
    if "schema" not in form:
        raise InvalidOptionError("response_format: the schema is missing: {'schema': {...}}")
    return form["schema"]


def _check_keys(form: dict[Any, Any], known: set[str]) -> None:
    unknown = [key for key in form if key not in known]
    if unknown:
        expected = ", ".join(sorted(known))
        raise InvalidOptionError(f"response_format has no key {shortened(unknown[0])} there, only {expected}")


def _model_schema(model: Any) -> object:
    try:
        return model.model_json_schema()
    except Exception as error:
        raise InvalidOptionError(f"{model.__name__} has no JSON schema: {error}") from error


def _of_schema(schema: object) -> str:
    try:
        return schema_grammar(schema)
    except SchemaError as error:
        raise InvalidOptionError(f"response_format: {error}") from None


def _checked(grammar: object) -> str:
    if not isinstance(grammar, str):
        raise InvalidOptionError(f"grammar must be GBNF text, not {shortened(grammar)}")
    grammar = grammar.removeprefix("\ufeff")  # of a file that was read as it is
    try:
        return gbnf_grammar(grammar)
    except GbnfError as error:
        raise InvalidOptionError(f"grammar: {error}") from None


def _of_choices(choices: object) -> str:
    if isinstance(choices, (str, bytes)) or not isinstance(choices, Sequence) or not choices:
        raise InvalidOptionError(
            f"choices must be a list of texts that is not empty, not {shortened(choices)}"
        )
    faults = [
        f"{number} {reason}" for number, choice in enumerate(choices) if (reason := _choice_fault(choice))
    ]
    if faults:
        raise InvalidOptionError(list_faults("choices", faults))
    if len(choices) > _MOST_CHOICES or sum(map(len, choices)) > _MOST_CHOICE_CHARACTERS:
        raise InvalidOptionError(
            f"choices are {len(choices)}, with {sum(map(len, choices))} characters: at most {_MOST_CHOICES} with "
            f"{_MOST_CHOICE_CHARACTERS} characters are possible"
        )
    texts = dict.fromkeys(unicodedata.normalize("NFC", choice) for choice in choices)
    from llguidance import LLMatcher

    grammar: str = LLMatcher.grammar_from_regex("|".join(map(_exactly, texts)))
    if reason := LLMatcher.validate_grammar(grammar):
        raise InvalidOptionError(f"choices cannot be told apart by llguidance: {reason[:200]}")
    return grammar


def _exactly(text: str) -> str:
    """A regular expression for this text."""
    return "".join(
        character if character.isalnum() or not character.isascii() else f"\\x{ord(character):02X}"
        for character in text
    )


def _choice_fault(choice: object) -> str | None:
    if not isinstance(choice, str) or not choice:
        return f"must be a text that is not empty, not {shortened(choice)}"
    if "\0" in choice:
        return "has a NUL character, which no answer can have"
    try:
        choice.encode()
    except UnicodeEncodeError as error:
        return f"is not valid Unicode: {error.reason}"
    return None
