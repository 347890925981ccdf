"""OpenAI's chat-completion dictionaries to ayaedge's own types, and answers back to such dictionaries.

Knows dictionaries only: no model, no template, no network. Whatever it is given, it either understands all of it or
says what it does not: nothing of a conversation is left out without an error. It opens no files and decodes no
pictures; a caller that is not trusted can therefore only ever name data that it sends along.
"""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayaedge.checks import plain
from ayaedge.errors import InvalidOptionError, PromptError
from ayaedge.images.encoded_image import Picture
from ayaedge.images.load import file_url_path
from ayaedge.text.prompt import Role

if TYPE_CHECKING:
    from ayaedge.answers import Answer
    from ayaedge.text.text_stream import Piece, TokenLogprob

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
_NO_TOOLS = "Aya Vision was not trained to call tools"
_PART_KINDS = ("text", "image_url", "image")
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_call_id", "cache_control"})
"""Understood, or of no meaning here; any other must be empty."""
_PART_FIELDS = frozenset({"type", "cache_control", "prompt_cache_breakpoint"})
"""Of every part, beside the field that is called as its type."""
_SHOWN = 60
_LEAST_LOGPROB = -9999.0
"""What OpenAI's service writes for a token that is practically impossible; JSON has no infinity."""


@dataclass(frozen=True)
class ChatMessage:
    """One message, as ayaedge's own types."""

    role: Role
    text: str
    images: tuple[Picture, ...] = ()
    """Only a user's message has pictures; they stand before its text, wherever they stood among its parts."""


@dataclass(frozen=True)
class CompletionOptions:
    """What a request asks for, apart from its messages."""

    options: dict[str, Any]
    """Keyword options of `AyaVision.ask`; what was not given is not here."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with a chunk that holds the usage."""
    model: str | None = None


def parse_messages(messages: object, *, trusted: bool) -> list[ChatMessage]:
    """The messages of a request; PromptError names the place of the first thing that is not understood.

    Pictures are data URLs. With `trusted`, for callers of this process, they are also `file://` URLs and parts of the
    form `{"type": "image", "image": ...}` that hold any `Picture`. `detail` is accepted and changes nothing: the
    options `tiles` and `max_tiles` decide how finely a picture is seen. Text parts are joined without a separator, as
    the chat template of the reference does. Whether the roles follow each other sensibly is the template's matter.
    """
    if not isinstance(messages, (list, tuple)):
        raise PromptError(f"messages must be a list of messages, not {_shown(messages)}")
    if not messages:
        raise PromptError("messages is empty: a conversation has at least one message")
    return [_message(message, f"messages[{number}]", trusted) for number, message in enumerate(messages)]


def _message(message: object, place: str, trusted: bool) -> ChatMessage:
    fields = _fields(message, place, "a message with role and content")
    _check_fields(fields, place, _MESSAGE_FIELDS)
    given = fields.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        what = f"not {_shown(given)}" if "role" in fields else "and is missing"
        raise PromptError(f"{place}.role must be one of {', '.join(_ROLES)}, {what}")
    content, place = fields.get("content"), f"{place}.content"
    if content is None and role == "assistant":
        return ChatMessage(role, "")
    if isinstance(content, str):
        return ChatMessage(role, _unicode(content, place))
    if not isinstance(content, (list, tuple)):
        what = f"not {_shown(content)}" if "content" in fields else "and is missing"
        raise PromptError(f"{place} must be a string or a list of parts, {what}")
    if not content:
        raise PromptError(f"{place} is an empty list: give at least one part")
    parts = [_part(part, f"{place}[{number}]", role, trusted) for number, part in enumerate(content)]
    return ChatMessage(
        role, "".join(text for text, _ in parts), tuple(image for _, images in parts for image in images)
    )


def _part(part: object, place: str, role: str, trusted: bool) -> tuple[str, tuple[Picture, ...]]:
    """The text of one part, and its picture, if any."""
    fields = _fields(part, place, "a part with a type")
    kind = fields.get("type")
    if kind not in _PART_KINDS:
        kinds = ", ".join(_PART_KINDS if trusted else _PART_KINDS[:2])
        what = f"not {_shown(kind)}" if "type" in fields else "and is missing"
        raise PromptError(f"{place}.type must be one of {kinds}, {what}")
    _check_fields(fields, place, {*_PART_FIELDS, kind})
    if kind not in fields:
        raise PromptError(f"{place}.{kind} is missing")
    value, inner = fields[kind], f"{place}.{kind}"
    if kind == "text":
        if not isinstance(value, str):
            raise PromptError(f"{inner} must be a string, not {_shown(value)}")
        return _unicode(value, inner), ()
    if role != "user":
        raise PromptError(f"{place}: only a message of the user may have pictures, this one has role {role}")
    if kind == "image_url":
        return "", (_url_picture(value, inner, trusted),)
    _check_picture(value, inner, trusted)
    return "", (value,)


def _check_picture(image: object, place: str, trusted: bool) -> None:
    """Only what JSON could hold is refused; whether anything else is a picture is found out when it is read."""
    if not trusted:
        raise PromptError(f"{place}: such parts are for programs that embed ayaedge; send an image_url")
    if image is None or isinstance(image, (bool, int, float, list, tuple, Mapping)):
        raise PromptError(
            f"{place} must be a path, bytes, an open file, a PIL image, an array, a data URL, a file URL or an encoded "
            f"image, not {_shown(image)}"
        )


def _url_picture(value: object, place: str, trusted: bool) -> Picture:
    if isinstance(value, Mapping):
        _check_fields(value, place, ("url", "detail"))
        if "url" not in value:
            raise PromptError(f"{place}.url is missing")
        detail, value, place = value.get("detail"), value["url"], f"{place}.url"
        if not (detail is None or isinstance(detail, str)):
            raise PromptError(f"{place.removesuffix('.url')}.detail must be a string, not {_shown(detail)}")
    if not isinstance(value, str):
        raise PromptError(f"{place} must be the URL of a picture, not {_shown(value)}")
    value = value.strip()
    scheme = value[: value.find(":") + 1][:_SHOWN].lower()
    advice = "send the picture itself as data:image/...;base64,..."
    if scheme == "data:":
        if not value.isascii():
            raise PromptError(f"{place}: a data URL has ASCII characters only")
        return scheme + value[len(scheme) :]  # in lower case, or else it would pass for a path
    if scheme in ("http:", "https:"):
        raise PromptError(f"{place}: ayaedge works offline and fetches nothing: {advice}")
    if scheme == "file:" and not trusted:
        raise PromptError(f"{place}: files are opened only for programs that embed ayaedge: {advice}")
    if scheme == "file:":
        return Path(_unicode_path(value, place))
    raise PromptError(f"{place} is {_shown(value)}, which is not a URL that ayaedge reads: {advice}")


def _unicode_path(url: str, place: str) -> str:
    path = file_url_path(_unicode(url, place))
    if path is None:
        raise PromptError(f"{place} is {_shown(url)}, not of the form file:///path/of/a/picture")
    return path


def _fields(value: object, place: str, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise PromptError(f"{place} must be {what}, not {_shown(value)}")
    return value


def _check_fields(fields: Mapping[Any, Any], place: str, known: Collection[str]) -> None:
    """Refuse what would be left out otherwise: fields that are not known, unless they are empty."""
    for name, content in fields.items():
        if name in known or content is None or content is False or _is_empty(content):
            continue
        if name in ("tool_calls", "function_call"):
            raise PromptError(f"{place}.{name}: {_NO_TOOLS}")
        raise PromptError(f"{place} has an unknown field {_shown(name)}{_nearest(name, known)}")


def _is_empty(value: object) -> bool:
    return isinstance(value, (str, list, tuple, Mapping)) and not value


def _unicode(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{place} is not valid Unicode: half of a surrogate pair at character {error.start}"
        ) from None
    return text


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
    "tools": ((), f'{_NO_TOOLS}; with tool_choice "none" they are passed over'),
    "functions": ((), f'{_NO_TOOLS}; with function_call "none" they are passed over'),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
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


def _whole(name: str, value: object) -> int:
    value = plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidOptionError(f"{name} must be a whole number, not {_shown(value)}")


def _real(name: str, value: object) -> float:
    value = plain(value)
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        raise InvalidOptionError(f"{name} is far too large") from None
    raise InvalidOptionError(f"{name} must be a number, not {_shown(value)}")


def _flag(name: str, value: object) -> bool:
    value = plain(value)
    if isinstance(value, bool):
        return value
    raise InvalidOptionError(f"{name} must be true or false, not {_shown(value)}")


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidOptionError(f"{name} must be a string, not {_shown(value)}")
    try:
        return _unicode(value, name)
    except PromptError as error:
        raise InvalidOptionError(str(error)) from None


def _strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise InvalidOptionError(f"{name} must be a list of strings, not {_shown(value)}")
    return tuple(_string(f"{name}[{number}]", item) for number, item in enumerate(value))


def _stop(name: str, value: object) -> tuple[str, ...]:
    stops = (_string(name, value),) if isinstance(value, str) else _strings(name, value)
    if "" in stops:
        raise InvalidOptionError(f"{name} holds an empty string, at which no answer could begin")
    return stops


_PASSED_ON: dict[str, Callable[[str, object], object]] = {
    "temperature": _real, "top_p": _real, "top_k": _whole, "seed": _whole, "stop": _stop,
    "grammar": _string, "choices": _strings,
    "tiles": _string, "max_tiles": _whole, "budget": _real, "overflow": _string,
}  # fmt: skip
_TRANSLATED = (
    "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "logprobs",
    "top_logprobs", "response_format",
)  # fmt: skip
_KNOWN = frozenset({*_PASSED_ON, *_TRANSLATED, *_NEUTRAL, *_BOOKKEEPING})
_STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})


def parse_options(arguments: Mapping[str, object]) -> CompletionOptions:
    """Everything of a request but its `messages`, which may be among the arguments and are passed over.

    The names are OpenAI's, and those of `AyaVision.ask` that OpenAI does not have. None stands for the default of
    `AyaVision.ask`: a temperature of 0, for one. Fields that only keep books are ignored. InvalidOptionError for what
    is unknown, of the wrong type, or cannot be had here; ranges are checked by `AyaVision.ask`.
    """
    if not isinstance(arguments, Mapping):
        raise InvalidOptionError(f"a request is a dictionary of options, not {_shown(arguments)}")
    for name in arguments:
        if name not in _KNOWN:
            raise InvalidOptionError(f"there is no option {_shown(name)}{_nearest(name, _KNOWN)}")
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
        stream=_flag("stream", given.get("stream", False)),
        include_usage=_include_usage(given.get("stream_options", {})),
        model=_string("model", given["model"]) if "model" in given else None,
    )


def _refuse_what_we_lack(given: Mapping[str, object]) -> None:
    for name, (neutral, reason) in _NEUTRAL.items():
        value = plain(given.get(name))
        if value is None or _is_empty(value) or (type(value) in (int, float, str, list) and value in neutral):
            continue
        if name in _CALLED_BY and isinstance(value, (list, tuple)):
            choice = given.get(_CALLED_BY[name])
            if isinstance(choice, str) and choice == "none":
                continue
        only = f"; the only value is {' or '.join(map(repr, neutral))}" if neutral else ""
        raise InvalidOptionError(f"{name} cannot be {_shown(value)}: {reason}{only}")


def _answer_limits(given: Mapping[str, object]) -> set[int]:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    limits = {_whole(name, given[name]) for name in names}
    if len(limits) > 1:
        raise InvalidOptionError("max_tokens and max_completion_tokens differ: give one of them")
    return limits


def _top_logprobs(given: Mapping[str, object]) -> int | None:
    wanted = _flag("logprobs", given.get("logprobs", False))
    if "top_logprobs" not in given:
        return 0 if wanted else None
    if not wanted:
        raise InvalidOptionError("top_logprobs needs logprobs to be true")
    return _whole("top_logprobs", given["top_logprobs"])


def _include_usage(options: object) -> bool:
    if not isinstance(options, Mapping):
        raise InvalidOptionError(f"stream_options must be a dictionary, not {_shown(options)}")
    for name in options:
        if name not in _STREAM_OPTIONS:
            raise InvalidOptionError(
                f"stream_options has no option {_shown(name)}{_nearest(name, _STREAM_OPTIONS)}"
            )
    wanted = options.get("include_usage")
    return wanted is not None and _flag("stream_options.include_usage", wanted)


def _nearest(name: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:_SHOWN], sorted(known), 1) if isinstance(name, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: object) -> str:
    """A short text or a number as it is, of anything else the type: it may be large, or too deep for `repr`."""
    if isinstance(value, str):
        return repr(str(value) if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    return type(value).__name__


def completion(answer: Answer, *, model: str) -> dict[str, Any]:
    """An answer as a `chat.completion`.

    Beside OpenAI's fields stand our own: `timings` in seconds, `tiles` of each picture, and in `usage` the tokens of
    pictures and the turns that were dropped to make room. An answer that was cancelled is unfinished and has the
    finish_reason `length`, as OpenAI has no name for it.
    """
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": _logprobs(answer.logprobs),
        "finish_reason": _finish_reason(answer),
    }
    return {
        **_head("chat.completion", model),
        "choices": [choice],
        "usage": _usage(answer),
        **_own_fields(answer),
    }


class ChunkMaker:
    """Makes the `chat.completion.chunk`s of one answer: `opening`, then `of` each piece, then `closing`."""

    def __init__(self, *, model: str, include_usage: bool = False):
        self._head = _head("chat.completion.chunk", model)
        self._include_usage = include_usage

    def opening(self) -> dict[str, Any]:
        """The first chunk, which says whose turn it is."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def of(self, piece: Piece) -> dict[str, Any]:
        """A chunk with the text of a piece, and the probabilities of its tokens if the piece has them."""
        return self._chunk({"content": str(piece)}, logprobs=_logprobs(piece.logprobs))

    def closing(self, answer: Answer) -> list[dict[str, Any]]:
        """The last chunks: why the answer ended and, if asked for, its usage; our own fields are in the last one."""
        last = [self._chunk({}, finish_reason=_finish_reason(answer))]
        if self._include_usage:
            last.append({**self._head, "choices": [], "usage": _usage(answer)})
        last[-1].update(_own_fields(answer))
        return last

    def _chunk(
        self,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self._include_usage else {})}


def chunks(
    pieces: Iterable[Piece], finished: Callable[[], Answer], *, model: str, include_usage: bool = False
) -> Iterator[dict[str, Any]]:
    """An answer that is being written as `chat.completion.chunk`s; `finished` is called when the pieces have ended."""
    maker = ChunkMaker(model=model, include_usage=include_usage)
    yield maker.opening()
    for piece in pieces:
        yield maker.of(piece)
    yield from maker.closing(finished())


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(16)}", "object": kind, "created": int(time.time()), "model": model,
    }  # fmt: skip


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.stop_reason == "stop" else "length"


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
        "dropped_turns": usage.dropped_turns,
    }


def _own_fields(answer: Answer) -> dict[str, Any]:
    return {"timings": asdict(answer.timings), "tiles": list(answer.usage.tiles)}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    content = [{**_logprob(token), "top_logprobs": [_logprob(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    logprob = max(_LEAST_LOGPROB, token.logprob)  # in this order, a NaN gives the least one too
    return {"token": token.text, "bytes": list(token.data), "logprob": logprob}
