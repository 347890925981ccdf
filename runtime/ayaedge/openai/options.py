"""OpenAI's options of a completion, checked and translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from ayaedge.checks import (
    brief,
    nearest,
    plain,
    require_flag,
    require_real,
    require_string,
    require_strings,
    require_whole,
)
from ayaedge.errors import InvalidOptionError
from ayaedge.openai.messages import NO_TOOLS, is_empty
from ayaedge.options import AnswerKeywords


@dataclass(frozen=True)
class CompletionOptions:
    """What a request asks for, apart from its messages."""

    options: dict[str, Any]
    """Keyword options of `AyaVision.ask`; what was not given is not here."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with a chunk that holds the usage."""
    model: str | None = None


_BOOKKEEPING = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "user",
    }
)  # fmt: skip
"""Accepted and ignored: they would change nothing in an answer."""


_NEUTRAL: dict[str, tuple[tuple[object, ...], str]] = {
    "n": ((1,), "one answer is written per request"),
    "frequency_penalty": ((0,), "ayaedge has no such penalty"),
    "presence_penalty": ((0,), "ayaedge has no such penalty"),
    "logit_bias": ((), "ayaedge biases no tokens; choices or grammar restrict an answer"),
    "tools": ((), f'{NO_TOOLS}; with tool_choice "none" they are passed over'),
    "functions": ((), f'{NO_TOOLS}; with function_call "none" they are passed over'),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "function_call": (("none", "auto"), NO_TOOLS),
    "modalities": ((["text"],), "Aya Vision answers in text"),
    "audio": ((), "Aya Vision answers in text"),
    "prediction": ((), "ayaedge takes no predicted answer"),
    "web_search_options": ((), "ayaedge works offline"),
    "moderation": ((), "ayaedge works offline"),
    "reasoning_effort": (("none",), "Aya Vision does not reason before it answers"),
    "verbosity": (("medium",), "say in the question how long the answer should be"),
}
"""What OpenAI's API has and ayaedge has not: the values that, like None and what is empty, ask for nothing, and why
others are refused."""


_CALLED_BY = {"tools": "tool_choice", "functions": "function_call"}
"""The options whose `none` says that nothing of a list may be called: then it changes nothing in an answer."""


def _stop(name: str, value: object) -> tuple[str, ...]:
    stops = (require_string(name, value),) if isinstance(value, str) else require_strings(name, value)
    if "" in stops:
        raise InvalidOptionError(f"{name} holds an empty string, at which no answer could begin")
    return stops


_TRANSLATED = (
    "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "logprobs",
    "top_logprobs", "response_format",
)  # fmt: skip


def _check_of(name: str, hint: Any) -> Callable[[str, object], object]:
    """What requires a value of the type that a keyword of `AyaVision.ask` has."""
    if name == "stop":
        return _stop
    kinds = set(get_args(hint) or (hint,)) - {NoneType}
    if kinds == {float}:
        return require_real
    if kinds == {int}:
        return require_whole
    return require_strings if kinds == {Sequence[str]} else require_string


_PASSED_ON: dict[str, Callable[[str, object], object]] = {
    name: _check_of(name, hint)
    for name, hint in get_type_hints(AnswerKeywords).items()
    if name not in _TRANSLATED
}
"""Keywords of `AyaVision.ask`, and what requires their types; ranges are checked there."""


_KNOWN = frozenset({*_PASSED_ON, *_TRANSLATED, *_NEUTRAL, *_BOOKKEEPING})


_STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})


def parse_options(arguments: Mapping[str, object], *, strict: bool = True) -> CompletionOptions:
    """Everything of a request but its `messages`, which may be among the arguments and are passed over.

    The names are OpenAI's, and those of `AyaVision.ask` that OpenAI does not have. None stands for the default of
    `AyaVision.ask`: a temperature of 0, for one. Fields that only keep books are ignored. InvalidOptionError for what
    is unknown, of the wrong type, or cannot be had here; ranges are checked by `AyaVision.ask`. Unless `strict`, what
    is unknown is ignored, as OpenAI's own service does.
    """
    if not isinstance(arguments, Mapping):
        raise InvalidOptionError(f"a request is a dictionary of options, not {brief(arguments)}")
    for name in arguments:
        if strict and name not in _KNOWN:
            raise InvalidOptionError(f"there is no option {brief(name)}{nearest(name, _KNOWN)}")
    given = {name: value for name, value in arguments.items() if value is not None}
    _refuse_what_we_lack(given)
    options = {name: check(name, given[name]) for name, check in _PASSED_ON.items() if name in given}
    form = given.get("response_format")
    if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
        options["response_format"] = form
    if limits := _answer_limits(given):
        options["max_tokens"] = limits.pop()
    if (top := _top_logprobs(given)) is not None:
        options["top_logprobs"] = top
    return CompletionOptions(
        options,
        stream=require_flag("stream", given.get("stream", False)),
        include_usage=_include_usage(given.get("stream_options", {}), strict),
        model=require_string("model", given["model"]) if "model" in given else None,
    )


def _refuse_what_we_lack(given: Mapping[str, object]) -> None:
    for name, (neutral, reason) in _NEUTRAL.items():
        value = plain(given.get(name))
        if value is None or is_empty(value) or (type(value) in (int, float, str, list) and value in neutral):
            continue
        if name in _CALLED_BY and isinstance(value, (list, tuple)):
            choice = given.get(_CALLED_BY[name])
            if isinstance(choice, str) and choice == "none":
                continue
        only = f"; the only value is {' or '.join(map(repr, neutral))}" if neutral else ""
        raise InvalidOptionError(f"{name} cannot be {brief(value)}: {reason}{only}")


def _answer_limits(given: Mapping[str, object]) -> set[int]:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    limits = {require_whole(name, given[name]) for name in names}
    if len(limits) > 1:
        raise InvalidOptionError("max_tokens and max_completion_tokens differ: give one of them")
    return limits


def _top_logprobs(given: Mapping[str, object]) -> int | None:
    wanted = require_flag("logprobs", given.get("logprobs", False))
    if "top_logprobs" not in given:
        return 0 if wanted else None
    if not wanted:
        raise InvalidOptionError("top_logprobs needs logprobs to be true")
    return require_whole("top_logprobs", given["top_logprobs"])


def _include_usage(options: object, strict: bool) -> bool:
    if not isinstance(options, Mapping):
        raise InvalidOptionError(f"stream_options must be a dictionary, not {brief(options)}")
    for name in options:
        if strict and name not in _STREAM_OPTIONS:
            raise InvalidOptionError(
                f"stream_options has no option {brief(name)}{nearest(name, _STREAM_OPTIONS)}"
            )
    wanted = options.get("include_usage")
    return wanted is not None and require_flag("stream_options.include_usage", wanted)
