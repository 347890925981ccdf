"""OpenAI's chat-completion dictionaries to ayaedge's own types, and answers back to such dictionaries.

Knows dictionaries only: no model, no template, no network. Whatever it is given, it either understands all of it or
says what it does not: nothing of a conversation is left out without an error. It opens no files and decodes no
images; whoever sends messages can only ever name data that they send along, and files that the program allows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ayaedge.checks import brief, nearest, unicode_text
from ayaedge.errors import ImageError, PromptError
from ayaedge.images.encoded_image import AnyImage
from ayaedge.images.pages import Page, given_pages, split_selector
from ayaedge.images.sources import file_url_path
from ayaedge.openai.local_files import allowed_directories, allowed_file
from ayaedge.text.prompt import Role

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
NO_TOOLS = "Aya Vision was not trained to call tools"
_PART_KINDS = ("text", "image_url", "file", "image")
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_call_id", "cache_control"})
"""Understood, or of no meaning here; any other must be empty."""
_PART_FIELDS = frozenset({"type", "cache_control", "prompt_cache_breakpoint"})
"""Of every part, beside the field that is called as its type."""
_LONGEST_SCHEME = 60
_ADVICE = "send the image itself as data:image/...;base64,..."
_OFFLINE = f"ayaedge works offline and fetches nothing: {_ADVICE}"


@dataclass(frozen=True)
class ChatMessage:
    """One message, as ayaedge's own types."""

    role: Role
    text: str
    images: tuple[AnyImage, ...] = ()
    """Only a user's message has images; they stand before its text, wherever they stood among its parts."""


@dataclass(frozen=True)
class _Allowed:
    """What parts of messages may hold."""

    objects: bool
    """Of Python, for a program that writes messages itself."""
    directories: tuple[Path, ...]


def parse_messages(
    messages: object, *, trusted: bool, local_files: Path | Sequence[Path] = ()
) -> list[ChatMessage]:
    """The messages of a request; PromptError names the place of the first thing that is not understood.

    Images are data URLs. With `trusted`, for callers of this process, they are also parts of the form
    `{"type": "image", "image": ...}` that hold any `AnyImage`. Files are named, by path or `file://` URL, only below
    the directories `local_files`. `detail` is accepted and changes nothing: the options `tiles` and `max_tiles` decide
    how finely an image is seen. Text parts are joined without a separator, as the chat template of the reference does.
    Whether the roles follow each other sensibly is the template's matter.
    """
    allowed = _Allowed(trusted, allowed_directories(local_files))
    if not isinstance(messages, (list, tuple)):
        raise PromptError(f"messages must be a list of messages, not {brief(messages)}")
    if not messages:
        raise PromptError("messages is empty: a conversation has at least one message")
    return [_message(message, f"messages[{number}]", allowed) for number, message in enumerate(messages)]


def _message(message: object, place: str, allowed: _Allowed) -> ChatMessage:
    fields = _fields(message, place, "a message with role and content")
    _check_fields(fields, place, _MESSAGE_FIELDS)
    given = fields.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        what = f"not {brief(given)}" if "role" in fields else "and is missing"
        raise PromptError(f"{place}.role must be one of {', '.join(_ROLES)}, {what}")
    content, place = fields.get("content"), f"{place}.content"
    if content is None and role == "assistant":
        return ChatMessage(role, "")
    if isinstance(content, str):
        return ChatMessage(role, _unicode(content, place))
    if not isinstance(content, (list, tuple)):
        what = f"not {brief(content)}" if "content" in fields else "and is missing"
        raise PromptError(f"{place} must be a string or a list of parts, {what}")
    if not content:
        raise PromptError(f"{place} is an empty list: give at least one part")
    parts = [_part(part, f"{place}[{number}]", role, allowed) for number, part in enumerate(content)]
    return ChatMessage(
        role, "".join(text for text, _ in parts), tuple(image for _, images in parts for image in images)
    )


def _part(part: object, place: str, role: str, allowed: _Allowed) -> tuple[str, tuple[AnyImage, ...]]:
    """The text of one part, and its image, if any."""
    fields = _fields(part, place, "a part with a type")
    kind = fields.get("type")
    if kind not in _PART_KINDS:
        kinds = ", ".join(_PART_KINDS if allowed.objects else _PART_KINDS[:3])
        what = f"not {brief(kind)}" if "type" in fields else "and is missing"
        raise PromptError(f"{place}.type must be one of {kinds}, {what}")
    _check_fields(fields, place, {*_PART_FIELDS, kind})
    if kind not in fields:
        raise PromptError(f"{place}.{kind} is missing")
    value, inner = fields[kind], f"{place}.{kind}"
    if kind == "text":
        if not isinstance(value, str):
            raise PromptError(f"{inner} must be a string, not {brief(value)}")
        return _unicode(value, inner), ()
    if role != "user":
        raise PromptError(f"{place}: only a message of the user may have images, this one has role {role}")
    if kind == "file":
        value, inner, kind = _file_data(value, inner), f"{inner}.file_data", "image_url"
    read = _url_image if kind == "image_url" else _object_image
    try:
        return "", tuple(read(value, inner, allowed))
    except ImageError as error:  # of the pages that a name selects
        raise PromptError(f"{inner}: {error}") from None


def _file_data(value: object, place: str) -> object:
    """The data URL of a document that is sent along."""
    fields = _fields(value, place, "an object with file_data")
    _check_fields(fields, place, ("file_data", "filename"))
    if "file_data" not in fields:
        raise PromptError(f"{place}.file_data is missing: {_ADVICE}")
    return fields["file_data"]


def _object_image(image: Any, place: str, allowed: _Allowed) -> Sequence[AnyImage]:
    """Only what JSON could hold and files are looked at; whether anything else is an image is found out later."""
    if not allowed.objects:
        raise PromptError(f"{place}: such parts are for programs that embed ayaedge; send an image_url")
    if image is None or isinstance(image, (bool, int, float, list, tuple, Mapping)):
        raise PromptError(
            f"{place} must be a path, bytes, an open file, a PIL image, an array, a data URL, a file URL or an encoded "
            f"image, not {brief(image)}"
        )
    if isinstance(image, str):
        scheme = _scheme(image.lstrip())
        if scheme == "data:":
            return given_pages(image)
        if scheme == "file:":
            image = _unicode_path(image.strip(), place)
        elif "://" in image[:_LONGEST_SCHEME]:
            raise PromptError(f"{place} is {brief(image)}, a URL: {_OFFLINE}")
    if isinstance(image, (str, os.PathLike)):
        return _allowed_pages(image, place, allowed.directories)
    if isinstance(image, Page) and isinstance(image.file, (str, os.PathLike)):
        return [replace(image, file=one) for one in _object_image(image.file, place, allowed)]
    return [image]


def _allowed_pages(path: Any, place: str, directories: Sequence[Path]) -> list[AnyImage]:
    """A file that messages may show, or the pages of it that its name selects: it is the file itself that counts."""
    whole = allowed_file(path, place, directories)
    file, numbers = split_selector(os.fsdecode(path))
    if not numbers or whole.is_file():
        return [whole]
    found = allowed_file(file, place, directories)
    return [Page(found, number) for number in numbers]


def _scheme(url: str) -> str:
    return url[: url.find(":") + 1][:_LONGEST_SCHEME].lower()


def _url_image(value: object, place: str, allowed: _Allowed) -> Sequence[AnyImage]:
    if isinstance(value, Mapping):
        _check_fields(value, place, ("url", "detail"))
        if "url" not in value:
            raise PromptError(f"{place}.url is missing")
        detail, value, place = value.get("detail"), value["url"], f"{place}.url"
        if not (detail is None or isinstance(detail, str)):
            raise PromptError(f"{place.removesuffix('.url')}.detail must be a string, not {brief(detail)}")
    if not isinstance(value, str):
        raise PromptError(f"{place} must be the URL of an image, not {brief(value)}")
    value = value.strip()
    scheme = _scheme(value)
    if scheme == "data:":
        if not value.isascii():
            raise PromptError(f"{place}: a data URL has ASCII characters only")
        return given_pages(scheme + value[len(scheme) :])  # in lower case, or else it would pass for a path
    if scheme in ("http:", "https:"):
        raise PromptError(f"{place}: {_OFFLINE}")
    if scheme == "file:":
        return _allowed_pages(_unicode_path(value, place), place, allowed.directories)
    raise PromptError(f"{place} is {brief(value)}, which is not a URL that ayaedge reads: {_ADVICE}")


def _unicode_path(url: str, place: str) -> str:
    path = file_url_path(_unicode(url, place))
    if path is None:
        raise PromptError(f"{place} is {brief(url)}, not of the form file:///path/of/an/image")
    return path


def _fields(value: object, place: str, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise PromptError(f"{place} must be {what}, not {brief(value)}")
    return value


def _check_fields(fields: Mapping[Any, Any], place: str, known: Collection[str]) -> None:
    """Refuse what would be left out otherwise: fields that are not known, unless they are empty."""
    for name, content in fields.items():
        if name in known or content is None or content is False or is_empty(content):
            continue
        if name in ("tool_calls", "function_call"):
            raise PromptError(f"{place}.{name}: {NO_TOOLS}")
        raise PromptError(f"{place} has an unknown field {brief(name)}{nearest(name, known)}")


def is_empty(value: object) -> bool:
    """Whether a value of JSON holds nothing."""
    return isinstance(value, (str, list, tuple, Mapping)) and not value


def _unicode(text: str, place: str) -> str:
    if fault := unicode_text(place, text):
        raise PromptError(fault)
    return text
