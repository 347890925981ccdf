"""What an agent may ask of a model: questions about images below folders that were named, and data out of them.

Knows arguments of JSON and what is answered to them; of MCP, which carries both, it knows nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.answers import Answer
from ayaedge.checks import brief, require_string
from ayaedge.errors import InvalidOptionError, PromptError
from ayaedge.images.pages import Page, split_selector
from ayaedge.images.sources import file_url_path, read_file
from ayaedge.images.tile_budget import TileKeywords
from ayaedge.openai.local_files import allowed_directories, allowed_file
from ayaedge.server.desk import Desk
from ayaedge.server.holder import Holder

ASK, EXTRACT = "ask_about_image", "extract_from_image"
EXTRACTING = "Extract what the image says, as JSON."
"""The question of an extraction unless another is asked."""
_SIGN_OF_LIFE = 1.0
"""Seconds after which who waits is told what is being done."""
_TEXT = {"type": "string"}

OnProgress = Callable[[str], Awaitable[None]]
"""Is told what is being done, about once a second."""


@dataclass(frozen=True)
class Tool:
    """What a tool is called, what it does, and its arguments as a JSON schema."""

    name: str
    words: str
    arguments: dict[str, Any]


def tools(folders: tuple[Path, ...]) -> tuple[Tool, ...]:
    """The tools, for images below these folders."""
    where = ", ".join(map(str, folders))
    image = {
        **_TEXT,
        "description": f"path of an image file below {where}, or relative to it; FILE#page=3 is a page of a PDF",
    }
    asked = {"image": image, "question": {**_TEXT, "description": "in any of 23 languages"}}
    schema = {"type": "object", "description": "JSON schema that the data shall follow"}
    return (
        Tool(
            ASK,
            f"Ask a question about an image file on this computer, below {where}. Nothing leaves the computer.",
            {"type": "object", "properties": asked, "required": ["image", "question"]},
        ),
        Tool(
            EXTRACT,
            f"Read an image file on this computer, below {where}, as JSON that follows a schema. Nothing leaves it.",
            {"type": "object", "properties": {**asked, "schema": schema}, "required": ["image", "schema"]},
        ),
    )  # fmt: skip


class Toolbox:
    """Answers calls of the tools; used on one event loop alone."""

    def __init__(
        self,
        holder: Holder,
        desk: Desk,
        folders: tuple[Path, ...],
        *,
        tiles: TileKeywords | None = None,
        max_tokens: int | None = None,
    ):
        """InvalidOptionError for a folder that is none."""
        for folder in folders:
            if not folder.is_dir():
                raise InvalidOptionError(
                    f"{folder} is not a folder: name those whose images may be asked about"
                )
        self._holder, self._desk, self._folders = holder, desk, allowed_directories(folders)
        self._options: dict[str, Any] = {**(tiles or {}), "max_tokens": max_tokens}
        self.tools = tools(self._folders)

    async def call(self, name: str, arguments: Mapping[str, Any], on_progress: OnProgress) -> tuple[str, Any]:
        """What a tool answers, as text and, of an extraction, as data; AyaEdgeError with what the agent did wrong."""
        if name not in (ASK, EXTRACT):
            raise InvalidOptionError(f"there is no tool {brief(name)}: there are {ASK} and {EXTRACT}")
        form = _form(arguments) if name == EXTRACT else None
        given = arguments.get("question")
        question = EXTRACTING if given is None and form is not None else require_string("question", given)
        with self._desk.admitted():
            images = await asyncio.to_thread(self._images, arguments.get("image"))
            answer = await self._answer(question, images, form, on_progress)
        return answer.text, None if form is None else answer.parse()

    def _images(self, given: object) -> list[Any]:
        """The file that an agent names, or the pages of it that it selects."""
        name, numbers = split_selector(require_string("image", given))
        data = read_file(self._path(name))
        return [Page(data, number) for number in numbers] or [data]

    def _path(self, given: str) -> Path:
        """The file that an agent names; PromptError unless it is below a folder with all links resolved."""
        head = given.lstrip()[:60].lower()
        if head.startswith("file:"):
            given = file_url_path(given.strip()) or ""
        elif "://" in head or head.startswith("data:"):
            raise PromptError(f"image is {brief(given)}, a URL: nothing is fetched; give the path of a file")
        found = [path for folder in self._folders if (path := _below(given, folder, self._folders))]
        if not given or not found:
            where = ", ".join(map(str, self._folders))
            raise PromptError(f"image is {brief(given)}, which is not below {where}")
        return next((path for path in found if path.exists()), found[0])

    async def _answer(
        self, question: str, images: list[Any], form: dict[str, Any] | None, on_progress: OnProgress
    ) -> Answer:
        last = "loading"

        def seen(step: str, done: int, of: int) -> None:
            nonlocal last
            last = f"{step}: {done} of {of}"

        async def answer() -> Answer:
            model = await self._holder.model()
            asked = model.aask(
                question, images=images, on_progress=seen, response_format=form, **self._options
            )
            return await asked

        asking = asyncio.ensure_future(answer())
        try:
            while not (await asyncio.wait({asking}, timeout=_SIGN_OF_LIFE))[0]:
                await on_progress(last)
            return asking.result()
        finally:
            asking.cancel()


def _below(given: str, folder: Path, folders: tuple[Path, ...]) -> Path | None:
    remote = given.replace("\\", "/").startswith("//")  # of another computer: not joined to anything
    try:
        return allowed_file(given if remote else folder / given, "image", folders)
    except PromptError:
        return None


def _form(arguments: Mapping[str, Any]) -> dict[str, Any]:
    schema = arguments.get("schema")
    if not isinstance(schema, dict):
        raise InvalidOptionError(f"schema must be an object, a JSON schema, not {brief(schema)}")
    return {"type": "json_schema", "json_schema": {"name": "data", "schema": schema}} if schema else {
        "type": "json_object"
    }  # fmt: skip
