from __future__ import annotations

import base64
import inspect
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params
from PIL import Image

from ayaedge import AyaVision
from ayaedge.answers import Answer, StopReason, Timings, Usage
from ayaedge.errors import AyaEdgeError, InvalidOptionError, PromptError
from ayaedge.images.encoded_image import EncodedImage
from ayaedge.images.load import load_image
from ayaedge.images.tile_budget import ImageCost
from ayaedge.openai import local_files
from ayaedge.openai.completions import ChunkMaker, chunks, completion
from ayaedge.openai.messages import ChatMessage, file_url_path, parse_messages
from ayaedge.openai.options import CompletionOptions, parse_options
from ayaedge.options import AnswerKeywords
from ayaedge.text.text_stream import Piece, TokenLogprob

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP: Any = json.loads("[" * 900 + "]" * 900)
OPENAI_OPTIONS = sorted(
    set(inspect.get_annotations(completion_create_params.CompletionCreateParamsBase)) | {"stream"}
)
OWN_OPTIONS = ["top_k", "grammar", "choices", "tiles", "max_tiles", "budget", "overflow"]


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()


def image(url: object, **fields: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


EVERYWHERE = Path(Path.cwd().anchor)


def text(content: object) -> dict[str, object]:
    return {"type": "text", "text": content}


def assert_same_image(image: Any) -> None:
    np.testing.assert_array_equal(load_image(image), PIXELS)


def parse_one(content: object, *, role: str = "user", trusted: bool = True) -> ChatMessage:
    (message,) = parse_messages(
        [{"role": role, "content": content}], trusted=trusted, local_files=EVERYWHERE if trusted else ()
    )
    return message


def an_answer(
    stop_reason: StopReason = "stop", logprobs: tuple[TokenLogprob, ...] = (), content: str = "你好"
) -> Answer:
    return Answer(
        content,
        Usage(100, 80, 60, 3, (5, 1), (), dropped_turns=2),
        Timings(vision=0.5, prefill=0.25, first_token=0.8, decode=1.5, predicted=None, queued=0.125),
        stop_reason,
        (1, 2, 3),
        logprobs,
    )


LOGPROBS = (
    TokenLogprob(
        7, "你".encode(), -0.5, (TokenLogprob(7, "你".encode(), -0.5), TokenLogprob(8, b" ", -math.inf))
    ),
    TokenLogprob(9, "好".encode()[:2], -math.inf),
)


def test_texts_and_roles_come_out_as_they_went_in() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Zwei\n\nZeilen ", "name": "Ada"},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": "מה"},
        {"role": "tool", "content": "42", "tool_call_id": "call_1"},
        {"role": "user", "content": ""},
    ]
    assert parse_messages(messages, trusted=False) == [
        ChatMessage("system", "Be brief."),
        ChatMessage("system", "Be kind."),
        ChatMessage("user", " Zwei\n\nZeilen "),
        ChatMessage("assistant", ""),
        ChatMessage("assistant", ""),
        ChatMessage("assistant", "מה"),
        ChatMessage("tool", "42"),
        ChatMessage("user", ""),
    ]


def test_text_parts_are_joined_without_a_separator_and_images_keep_their_order() -> None:
    parts = [text("a"), image(DATA_URL), text(" b"), image("data:,2", detail="low"), text("")]
    assert parse_one(parts, trusted=False) == ChatMessage("user", "a b", (DATA_URL, "data:,2"))


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
def test_every_role_may_have_text_parts_but_only_the_user_images(role: str) -> None:
    assert parse_one([text("x"), text("y")], role=role).text == "xy"
    for part in image(DATA_URL), {"type": "image", "image": b"x"}:
        with pytest.raises(PromptError, match=r"^messages\[0\]\.content\[1\]: only a message of the user"):
            parse_one([text("x"), part], role=role)


def test_a_url_may_stand_directly_in_its_part() -> None:
    assert parse_one([{"type": "image_url", "image_url": DATA_URL}], trusted=False).images == (DATA_URL,)


def test_a_data_url_is_one_whatever_the_case_of_its_scheme() -> None:
    (taken,) = parse_one([image("DATA" + DATA_URL[4:])], trusted=False).images
    assert_same_image(taken)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("url", ["http://localhost/a.png", "HTTPS://example.org/é.png"])
def test_nothing_is_fetched(url: str, trusted: bool) -> None:
    with pytest.raises(PromptError, match=r"content\[0\]\.image_url\.url: .*fetches nothing: send the image"):
        parse_one([image(url)], trusted=trusted)


@pytest.mark.parametrize(
    "part",
    [
        image("file:///etc/passwd"),
        image("FILE:///etc/passwd"),
        image(" file:///etc/passwd"),
        image("/etc/passwd"),
        image("passwd"),
        image("\\\\server\\share"),
        image(""),
        image("C:/x.png"),
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "image": DATA_URL},
    ],
)
def test_a_stranger_names_no_files(part: dict[str, object]) -> None:
    with pytest.raises(PromptError, match=r"messages\[0\]\.content\[0\]\.image"):
        parse_one([part], trusted=False)


@pytest.mark.parametrize("name", ["图片 é.png", "100% real?.png", "a#b+c.png", "तस्वीर.png"])
def test_file_urls_open_files_in_any_script(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    try:
        path.write_bytes(png())
    except OSError:
        pytest.skip("this system has no such file names")
    urls = [path.as_uri(), path.as_uri().replace("file:///", "FILE://localhost/")]
    if "%" not in name:
        urls.append(f"file://{path}")  # as those write it who encode nothing
    for url in urls:
        (taken,) = parse_one([image(url)]).images
        assert_same_image(taken)


@pytest.mark.parametrize(
    ("url", "posix", "windows"),
    [
        ("file:///a/b.png", "/a/b.png", "/a/b.png"),
        ("file:/a/b.png", "/a/b.png", "/a/b.png"),
        ("file:///C:/a%20b.png", "/C:/a b.png", "C:/a b.png"),
        ("file:///C%3A/a.png", "/C:/a.png", "C:/a.png"),
        ("file:///c|/a.png", "/c|/a.png", "c:/a.png"),
        ("file://C:/a.png", None, "C:/a.png"),
        (r"file://C:\a\b.png", None, "C:/a/b.png"),
        (r"file:///C:\a\b.png", "/C:\\a\\b.png", "C:/a/b.png"),
        ("file://server/share/a.png", None, "//server/share/a.png"),
        ("file:////server/share/a.png", "//server/share/a.png", "//server/share/a.png"),
        ("file:a.png", None, None),
        ("file:", None, None),
        ("file://", None, None),
        ("file://a.png", None, None),
        ("file:///%E5%9B%BE.png", "/图.png", "/图.png"),
        ("file:///%FF.png", "/\udcff.png", "/\udcff.png"),
    ],
)
def test_file_urls_name_paths(url: str, posix: str | None, windows: str | None) -> None:
    assert file_url_path(url, windows=False) == posix
    assert file_url_path(url, windows=True) == windows


def test_a_file_url_that_is_no_absolute_path_is_refused() -> None:
    with pytest.raises(PromptError, match=r"'file:a\.png', not of the form file:///path"):
        parse_one([image("file:a.png")])


def test_this_process_may_hand_over_images_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for image in [path, str(path), png(), bytearray(png()), Image.fromarray(PIXELS), PIXELS, DATA_URL]:
        (parsed,) = parse_one([{"type": "image", "image": image}]).images
        named = isinstance(image, (str, Path)) and image != DATA_URL
        assert parsed == path.resolve() if named else parsed is image
        assert_same_image(parsed)


def named(url: str, form: str) -> list[dict[str, object]]:
    return [image(url)] if form == "image_url" else [{"type": "image", "image": url}]


@pytest.mark.parametrize("form", ["image_url", "image"])
def test_files_are_shown_only_below_directories_that_the_program_allows(tmp_path: Path, form: str) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "allowed too"
    for directory in allowed, other:
        directory.mkdir()
        (directory / "a.png").write_bytes(png())
    inside, outside = allowed / "a.png", other / "a.png"

    def parsed(url: str, *directories: Path) -> Any:
        messages = [{"role": "user", "content": named(url, form)}]
        (message,) = parse_messages(messages, trusted=True, local_files=directories)
        return message.images[0]

    assert_same_image(parsed(inside.as_uri(), allowed))
    assert_same_image(parsed(outside.as_uri(), allowed, other))
    with pytest.raises(PromptError, match=r"local_files names the directories .* none was given"):
        parsed(inside.as_uri())
    crossing = f"{allowed.as_uri()}/../allowed%20too/a.png"
    for url in outside.as_uri(), crossing, f"{allowed.as_uri()}/../nothing.png", tmp_path.as_uri():
        with pytest.raises(PromptError, match="outside of the directories"):
            parsed(url, allowed)
    if os.name == "posix":
        (allowed / "link.png").symlink_to(outside)
        (allowed / "circle").symlink_to(allowed / "circle")
        for name in "link.png", "circle/a.png":
            with pytest.raises(PromptError, match=r"outside of|which is no path"):
                parsed((allowed / name).as_uri(), allowed)
        with pytest.raises(InvalidOptionError, match=r"one is no path: .*Too many levels of symbolic links"):
            parsed(inside.as_uri(), allowed / "circle")
        (other / "back.png").symlink_to(inside)
        assert_same_image(parsed((other / "back.png").as_uri(), allowed))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image", "image": "/etc/passwd"}, "none was given"),
        ({"type": "image", "image": Path("a.png")}, "none was given"),
        ({"type": "image", "image": " file:///etc/passwd"}, "none was given"),
        ({"type": "image", "image": "a\0b"}, "none was given"),
        ({"type": "image", "image": "https://example.org/a.png"}, "fetches nothing"),
        ({"type": "image", "image": "FTP://example.org/a.png"}, "fetches nothing"),
    ],
)
def test_a_program_that_allows_no_files_shows_none(part: dict[str, object], says: str) -> None:
    with pytest.raises(PromptError, match=rf"messages\[0\]\.content\[0\]\.image.*{says}"):
        parse_messages([{"role": "user", "content": [part]}], trusted=True)


@pytest.mark.parametrize(
    "url",
    [
        r"\\host\share\a.png",
        "//host/share/a.png",
        r"\/host/share/a.png",
        r"\\?\UNC\host\share\a.png",
        Path("//host/share/a.png"),
        "file:////host/share/a.png",
        r"file:\\host\share\a.png" if os.name == "nt" else "file:////host/a.png",
        "file:///%2Fhost/share/a.png",
    ],
)
def test_a_file_of_another_computer_is_never_asked_for(url: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "resolve", lambda path, **_: pytest.fail(f"asked for {path}"))
    allowed = Path("/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_files, "allowed_directories", lambda _: (allowed,))
        with pytest.raises(PromptError, match="a file of another computer"):
            local_files.allowed_file(
                file_url_path(url) if isinstance(url, str) and url.startswith("file:") else url,
                "x",
                (allowed,),
            )


@pytest.mark.parametrize("given", [True, "/", b"/", ["/"], 1, {"/": 1}, [True]])
def test_what_json_can_say_allows_no_files(given: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"local_files names .* each as a Path"):
        parse_messages([{"role": "user", "content": "x"}], trusted=True, local_files=given)


def test_a_request_opens_no_files_for_itself(demo_model: AyaVision, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    request: Any = {
        "messages": [{"role": "user", "content": named((tmp_path / "a.png").as_uri(), "image_url")}]
    }
    with pytest.raises(PromptError, match="none was given"):
        demo_model.create_chat_completion(**request)
    with pytest.raises(PromptError, match="none was given"):
        demo_model.count_tokens(**request)
    with pytest.raises(InvalidOptionError, match="each as a Path"):
        demo_model.create_chat_completion(**request, local_files=json.loads("true"))
    assert demo_model.count_tokens(**request, local_files=tmp_path) > 10


def test_an_image_that_was_encoded_before_is_handed_on() -> None:
    cost = ImageCost(7, 5, 1, 1, 1, 10)
    encoded = EncodedImage(cost, np.zeros((1, 4, 4, 3), np.uint8), b"")
    assert parse_one([{"type": "image", "image": encoded}, text("x")]) == ChatMessage("user", "x", (encoded,))


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        (None, "messages must be a list"),
        ("hello", "messages must be a list of messages, not 'hello'"),
        ({"role": "user", "content": "x"}, "messages must be a list of messages, not dict"),
        ([], "messages is empty"),
        (["hello"], "messages[0] must be"),
        ([{"role": "user", "content": "x"}, None], "messages[1] must be"),
        ([{}], "messages[0].role must be one of system, developer, user, assistant, tool, and is missing"),
        ([{"role": "User", "content": "x"}], "messages[0].role must be one of"),
        ([{"role": "function", "content": "x"}], "messages[0].role must be one of"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role must be one of"),
        ([{"role": None, "content": "x"}], "messages[0].role must be one of"),
        ([{"role": "user"}], "messages[0].content must be a string or a list of parts, and is missing"),
        ([{"role": "user", "content": None}], "messages[0].content must be a string or a list of parts, not None"),
        ([{"role": "tool", "content": 3}], "messages[0].content must be a string or a list of parts, not 3"),
        ([{"role": "user", "content": {"type": "text", "text": "x"}}], "messages[0].content must be"),
        ([{"role": "user", "content": []}], "messages[0].content is an empty list"),
        ([{"role": "user", "content": "\ud83d"}], "messages[0].content is not valid Unicode"),
        ([{"role": "user", "content": "x", "images": ["aGk="]}], "messages[0] has an unknown field 'images'"),
        ([{"role": "user", "content": "x", 3: 4}], "messages[0] has an unknown field 3"),
        ([{"role": "user", "contents": "x"}], "did you mean content?"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls: Aya Vision was not trained"),
        ([{"role": "assistant", "function_call": {"name": "f"}}], "messages[0].function_call: Aya Vision was"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_messages_is_said_with_its_place(messages: object, place: str) -> None:
    for trusted in True, False:
        with pytest.raises(PromptError) as error:
            parse_messages(messages, trusted=trusted)
        assert place in str(error.value)


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("x", "[1] must be a part with a type, not 'x'"),
        (None, "[1] must be"),
        ({}, "[1].type must be one of text, image_url, file, image, and is missing"),
        ({"type": None}, "[1].type must be"),
        ({"type": ["text"]}, "[1].type must be"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "[1].type must be"),
        (
            {"type": "refusal", "refusal": ""},
            "[1].type must be one of text, image_url, file, image, not 'refusal'",
        ),
        ({"type": "file", "file": {"file_id": "x"}}, "[1].file has an unknown field 'file_id'"),
        ({**text("x"), "image_url": DATA_URL}, "[1] has an unknown field 'image_url'"),
        (image("data:", file_id="x"), "[1].image_url has an unknown field 'file_id'"),
        ({"type": "text"}, "[1].text is missing"),
        (text(None), "[1].text must be a string, not None"),
        (text(["x"]), "[1].text must be a string, not list"),
        (text("ab\udc00"), "[1].text is not valid Unicode: half of a surrogate pair at character 2"),
        ({"type": "image_url"}, "[1].image_url is missing"),
        ({"type": "image_url", "image_url": {}}, "[1].image_url.url is missing"),
        ({"type": "image_url", "image_url": None}, "[1].image_url must be the URL of an image, not None"),
        (image(7), "[1].image_url.url must be the URL of an image, not 7"),
        (image(b"data:"), "[1].image_url.url must be the URL of an image, not bytes"),
        (image("data:image/png;base64,é"), "[1].image_url.url: a data URL has ASCII characters only"),
        (image("blob:x" * 1000), "..."),
        (image("file:///\ud800"), "[1].image_url.url is not valid Unicode"),
        (image(DATA_URL, detail=3), "[1].image_url.detail must be a string, not 3"),
        ({"type": "image"}, "[1].image is missing"),
        ({"type": "image", "image": None}, "[1].image must be a path"),
        ({"type": "image", "image": [PIXELS]}, "[1].image must be a path"),
        ({"type": "image", "image": {"url": "x"}}, "[1].image must be a path"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_with_its_place(part: object, place: str) -> None:
    with pytest.raises(PromptError) as error:
        parse_one([text("x"), part])
    assert str(error.value).startswith("messages[0].content[1]")
    assert place in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "messages",
    [
        DEEP,
        [{"role": DEEP}],
        [{"role": "user", "content": DEEP}],
        [{"role": "user", "content": "x", "tools": DEEP}],
        [{"role": "user", "content": [{"type": DEEP}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": DEEP}]}],
        [{"role": "user", "content": [{"type": "image", "image": DEEP}]}],
    ],
)
def test_lists_as_deep_as_json_allows_are_an_error_like_others(messages: object) -> None:
    with pytest.raises(PromptError):
        parse_messages(messages, trusted=True)


@pytest.mark.parametrize("name", [*OPENAI_OPTIONS, *OWN_OPTIONS])
def test_options_as_deep_as_json_allows_are_passed_over_or_an_error_like_others(name: str) -> None:
    try:
        options = parse_options({name: DEEP}).options
    except InvalidOptionError:
        return
    assert list(options) in ([], ["response_format"])


def test_an_answer_that_comes_back_is_understood() -> None:
    message = completion(an_answer(), model="aya")["choices"][0]["message"]
    assert parse_messages([message], trusted=False) == [ChatMessage("assistant", "你好")]
    dumped = (
        ChatCompletion.model_validate(completion(an_answer(), model="aya")).choices[0].message.model_dump()
    )
    assert parse_messages([dumped], trusted=False) == [ChatMessage("assistant", "你好")]


def test_no_options_are_the_defaults() -> None:
    assert parse_options({}) == CompletionOptions({}, stream=False, include_usage=False, model=None)
    everything = dict.fromkeys([*OPENAI_OPTIONS, *OWN_OPTIONS])
    assert parse_options(everything) == parse_options({})


def test_every_option_that_openai_has_is_known() -> None:
    assert len(OPENAI_OPTIONS) > 30
    for name in OPENAI_OPTIONS:
        parse_options({name: None})


def test_options_get_their_names_in_ayaedge() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    request: dict[str, object] = {
        "model": "aya-vision-8b", "messages": [], "stream": True, "stream_options": {"include_usage": True},
        "max_completion_tokens": 5, "temperature": 1, "top_p": 0.9, "seed": 3, "stop": "\n", "logprobs": True,
        "top_logprobs": 2, "response_format": schema, "n": 1, "user": "u", "metadata": {"a": "b"}, "store": False,
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "auto",
        "top_k": 4, "min_p": 0.1, "grammar": 'root ::= "a"', "choices": ["a", "b"], "tiles": "auto", "max_tiles": 6,
        "budget": 10, "overflow": "drop_oldest",
    }  # fmt: skip
    parsed = parse_options(request)
    assert set(parsed.options) == set(get_type_hints(AnswerKeywords))
    assert parsed == CompletionOptions(
        {
            "max_tokens": 5, "temperature": 1.0, "top_p": 0.9, "seed": 3, "stop": ("\n",), "top_logprobs": 2,
            "response_format": schema, "top_k": 4, "min_p": 0.1, "grammar": 'root ::= "a"', "choices": ("a", "b"),
            "tiles": "auto", "max_tiles": 6, "budget": 10.0, "overflow": "drop_oldest",
        },
        stream=True, include_usage=True, model="aya-vision-8b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
        ({"temperature": None}, {}),
        ({"stop": []}, {"stop": ()}),
        ({"stop": [str(number) for number in range(9)]}, {"stop": tuple("012345678")}),
        ({"logprobs": True}, {"top_logprobs": 0}),
        ({"logprobs": False}, {}),
        ({"logprobs": True, "top_logprobs": None}, {"top_logprobs": 0}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        ({"response_format": ChatMessage}, {"response_format": ChatMessage}),
        ({"tools": (), "logit_bias": {}, "modalities": ["text"], "verbosity": "medium"}, {}),
        ({"stream_options": {"include_usage": None, "include_obfuscation": False}}, {}),
        ({"max_tokens": -1, "tiles": "none"}, {"max_tokens": -1, "tiles": "none"}),
        ({"tools": [{"type": "function"}], "tool_choice": "none", "parallel_tool_calls": True}, {}),
        ({"functions": ({"name": "f"},), "function_call": "none"}, {}),
        ({"tools": [], "tool_choice": None}, {}),
        ({"tools": None, "tool_choice": "auto", "parallel_tool_calls": False}, {}),
        ({"functions": [], "function_call": "none"}, {}),
    ],
)  # fmt: skip
def test_options_are_translated(given: dict[str, object], options: dict[str, object]) -> None:
    assert parse_options(given) == CompletionOptions(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens and max_completion_tokens differ"),
        ({"max_completion_tokens": 5.0}, "max_completion_tokens must be a whole number, not 5.0"),
        ({"max_tokens": True}, "max_tokens must be a whole number, not True"),
        ({"max_tokens": DEEP, "max_completion_tokens": DEEP}, "max_tokens must be a whole number, not list"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": 10**400}, "temperature is far too large"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"stop": ""}, "stop holds an empty string"),
        ({"stop": ["a", ""]}, "stop holds an empty string"),
        ({"stop": ["a", None]}, "stop[1] must be a string, not None"),
        ({"stop": 3}, "stop must be a list of strings, not 3"),
        ({"stop": "\ud800"}, "stop is not valid Unicode"),
        ({"choices": "ab"}, "choices must be a list of strings, not 'ab'"),
        ({"choices": ["a", "\udc00"]}, "choices[1] is not valid Unicode"),
        ({"grammar": {}}, "grammar must be a string, not dict"),
        ({"tiles": 4}, "tiles must be a string, not 4"),
        ({"logprobs": 5}, "logprobs must be true or false, not 5"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs to be true"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs needs logprobs to be true"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs must be a whole number"),
        ({"stream": "yes"}, "stream must be true or false, not 'yes'"),
        ({"stream_options": []}, "stream_options must be a dictionary, not list"),
        ({"stream_options": {"usage": True}}, "stream_options has no option 'usage'"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage must be true or false"),
        ({"model": 3}, "model must be a string"),
        ({"n": 2}, "n cannot be 2: one answer is written per request; the only value is 1"),
        ({"n": True}, "n cannot be True"),
        ({"frequency_penalty": 0.5}, "frequency_penalty cannot be 0.5: ayaedge has no such penalty"),
        ({"presence_penalty": DEEP}, "presence_penalty cannot be list"),
        ({"logit_bias": {"50256": -100}}, "logit_bias cannot be dict: ayaedge biases no tokens"),
        ({"tools": [{"type": "function"}]}, "Aya Vision was not trained to call tools"),
        ({"functions": [{"name": "f"}]}, "Aya Vision was not trained to call tools"),
        ({"tools": [{}], "tool_choice": "auto"}, 'with tool_choice "none" they are passed over'),
        ({"tools": [{}], "tool_choice": None}, "Aya Vision was not trained to call tools"),
        ({"tools": [{}], "function_call": "none"}, "Aya Vision was not trained to call tools"),
        ({"tools": "all", "tool_choice": "none"}, "tools cannot be 'all'"),
        ({"functions": [{}], "tool_choice": "none"}, 'with function_call "none" they are passed over'),
        ({"tools": [{}], "tool_choice": {"type": "none"}}, "Aya Vision was not trained to call tools"),
        ({"tool_choice": "required"}, "Aya Vision was not trained to call tools; the only value is 'none' or 'auto'"),
        ({"modalities": ["text", "audio"]}, "Aya Vision answers in text"),
        ({"temprature": 1}, "there is no option 'temprature'; did you mean temperature?"),
        ({"max_output_tokens": None}, "there is no option 'max_output_tokens'; did you mean"),
        ({"zzz": 1}, "there is no option 'zzz'"),
        ({"z" * 9999: 1}, "there is no option 'zzz"),
        ({3: 1}, "there is no option 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_option_is_said(given: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError) as error:
        parse_options(given)
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_a_request_that_is_no_dictionary_is_refused() -> None:
    requests: list[Any] = [[], "x", None, 3]
    for request in requests:
        with pytest.raises(InvalidOptionError, match="a dictionary"):
            parse_options(request)


@pytest.mark.parametrize("logprobs", [(), LOGPROBS])
@pytest.mark.parametrize(
    ("stop_reason", "finish"), [("stop", "stop"), ("length", "length"), ("cancelled", "length")]
)
def test_openais_client_accepts_a_completion(
    stop_reason: StopReason, finish: str, logprobs: tuple[TokenLogprob, ...]
) -> None:
    result = completion(an_answer(stop_reason, logprobs), model="aya-vision-8b")
    parsed = ChatCompletion.model_validate(json.loads(json.dumps(result, allow_nan=False)), strict=True)
    assert parsed.id.startswith("chatcmpl-")
    assert parsed.model == "aya-vision-8b"
    assert [choice.finish_reason for choice in parsed.choices] == [finish]
    assert parsed.choices[0].message.content == "你好"
    assert (parsed.choices[0].logprobs is None) == (not logprobs)
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (
        100,
        3,
        103,
    )
    assert parsed.usage.prompt_tokens_details is not None
    assert parsed.usage.prompt_tokens_details.cached_tokens == 60


def test_a_completion_has_our_own_figures_beside_openais() -> None:
    result = completion(an_answer(), model="aya")
    assert result["usage"]["prompt_tokens_details"] == {"cached_tokens": 60, "image_tokens": 80}
    assert result["usage"]["dropped_turns"] == 2
    assert result["tiles"] == [5, 1]
    assert result["timings"] == {
        "vision": 0.5, "prefill": 0.25, "first_token": 0.8, "decode": 1.5, "predicted": None, "queued": 0.125,
        "acceleration": "off", "acceleration_gain": 1.0,
    }  # fmt: skip


def test_two_completions_have_two_ids() -> None:
    assert completion(an_answer(), model="aya")["id"] != completion(an_answer(), model="aya")["id"]


def test_probabilities_have_openais_form_and_no_infinity() -> None:
    result = completion(an_answer(logprobs=LOGPROBS), model="aya")["choices"][0]["logprobs"]
    first = {"token": "你", "bytes": [228, 189, 160], "logprob": -0.5}
    blank = {"token": " ", "bytes": [32], "logprob": -9999.0}
    assert result == {
        "content": [
            {**first, "top_logprobs": [first, blank]},
            {"token": "\ufffd", "bytes": [229, 165], "logprob": -9999.0, "top_logprobs": []},
        ],
        "refusal": None,
    }


@pytest.mark.parametrize("include_usage", [True, False])
def test_openais_client_accepts_the_chunks(include_usage: bool) -> None:
    pieces = [Piece("你", (7,), LOGPROBS[:1]), Piece("好", (9,), LOGPROBS[1:]), Piece("")]
    made = list(chunks(pieces, lambda: an_answer("length"), model="aya", include_usage=include_usage))
    parsed = [
        ChatCompletionChunk.model_validate(json.loads(json.dumps(chunk, allow_nan=False)), strict=True)
        for chunk in made
    ]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in parsed}) == 1
    written = parsed[:-1] if include_usage else parsed
    choices = [chunk.choices[0] for chunk in written]
    assert [choice.delta.role for choice in choices] == ["assistant", None, None, None, None]
    assert [choice.delta.content for choice in choices] == ["", "你", "好", "", None]
    assert [choice.finish_reason for choice in choices] == [None, None, None, None, "length"]
    assert [choice.logprobs is not None for choice in choices] == [False, True, True, False, False]
    assert all(chunk.usage is None for chunk in written)
    assert type(made[1]["choices"][0]["delta"]["content"]) is str
    assert made[-1]["tiles"] == [5, 1]
    assert all("timings" not in chunk for chunk in made[:-1])
    if include_usage:
        assert all("usage" in chunk for chunk in made)
        assert parsed[-1].choices == []
        assert parsed[-1].usage is not None
        assert parsed[-1].usage.total_tokens == 103
    else:
        assert all("usage" not in chunk for chunk in made)


def test_chunks_come_as_the_pieces_do_and_the_answer_is_asked_for_last() -> None:
    came: list[str] = []

    def pieces() -> Any:
        came.append("piece")
        yield Piece("a")

    def finished() -> Answer:
        came.append("answer")
        return an_answer()

    stream = chunks(pieces(), finished, model="aya", include_usage=False)
    seen = []
    for _ in stream:
        seen.append(list(came))
    assert seen == [[], ["piece"], ["piece", "answer"]]


def test_an_error_while_an_answer_is_written_passes_through() -> None:
    def pieces() -> Any:
        yield Piece("a")
        raise PromptError("too much")

    stream = chunks(pieces(), an_answer, model="aya", include_usage=True)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(PromptError, match="too much"):
        next(stream)


def test_a_maker_makes_the_same_chunks() -> None:
    maker = ChunkMaker(model="aya", include_usage=True)
    made = [maker.opening(), maker.of(Piece("a")), *maker.closing(an_answer())]
    whole = chunks([Piece("a")], an_answer, model="aya", include_usage=True)

    def without_head(chunk: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in chunk.items() if name not in ("id", "created")}

    assert [*map(without_head, made)] == [*map(without_head, whole)]


CHARACTERS = st.text(st.characters(), max_size=8)  # lone surrogates too, as JSON can hold them
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | CHARACTERS
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CHARACTERS, inner, max_size=3), max_leaves=6
)  # fmt: skip
SCHEMES = st.sampled_from(["data:", "DATA:image/png;base64,", "file:", "File://", "http://", ""])
URLS = st.tuples(SCHEMES, CHARACTERS).map("".join)
PARTS = st.dictionaries(
    st.sampled_from(["type", "text", "image_url", "image", "detail"]),
    st.sampled_from(["text", "image_url", "image", "input_audio"])
    | URLS
    | st.fixed_dictionaries({"url": URLS | JSON_VALUES}, optional={"detail": JSON_VALUES})
    | JSON_VALUES,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]) | JSON_VALUES},
        optional={"content": CHARACTERS | st.lists(PARTS | JSON_VALUES, max_size=3), "name": JSON_VALUES},
    )
    | JSON_VALUES,
    max_size=3,
)
QUICK = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(MESSAGES | JSON_VALUES, st.booleans())
def test_any_json_is_a_conversation_or_a_clear_error(messages: object, trusted: bool) -> None:
    try:
        parsed = parse_messages(messages, trusted=trusted)
    except AyaEdgeError as error:
        str(error).encode()
        assert str(error).startswith("messages")
        return
    for message in parsed:
        message.text.encode()
        assert message.role in ("system", "user", "assistant", "tool")
        assert message.role == "user" or not message.images
        if not trusted:
            assert all(isinstance(image, str) and image.startswith("data:") for image in message.images)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from([*OPENAI_OPTIONS, *OWN_OPTIONS])
        | CHARACTERS,
        JSON_VALUES | st.lists(CHARACTERS, max_size=3) | st.sampled_from([0, 1, True, "none", {"include_usage": True}]),
        max_size=3,
    )
    | JSON_VALUES
)  # fmt: skip
def test_any_json_is_a_set_of_options_or_a_clear_error(arguments: Any) -> None:
    try:
        parsed = parse_options(arguments)
    except AyaEdgeError as error:
        str(error).encode()
        assert isinstance(error, InvalidOptionError)
        return
    assert set(parsed.options) <= set(AnswerKeywords.__annotations__)
    assert isinstance(parsed.stream, bool)
    assert isinstance(parsed.include_usage, bool)


@QUICK
@given(CHARACTERS, st.booleans())
def test_any_url_of_a_file_is_a_path_or_none(url: str, windows: bool) -> None:
    path = file_url_path(f"file:{url}", windows=windows)
    assert path is None or path.startswith("/") or (windows and path[1:3] == ":/")
