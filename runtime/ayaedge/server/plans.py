"""What the images of a chat completion would cost, before it is asked: `POST /v1/plan`, a question of our own."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ayaedge.checks import require_flag
from ayaedge.images.load import document_pages, image_size, load_rgb
from ayaedge.images.pdf import PdfReader
from ayaedge.images.tile_budget import TileChoice
from ayaedge.planning.tile_options import chosen, prompt_tokens_by_tiles, tile_options
from ayaedge.server.asked import Asked, Writer
from ayaedge.server.chat_completions import ChatCompletions
from ayaedge.server.endpoint import Endpoint, Response, Service

_FLAGS = ("measure", "preview")
_SIDE = 800
"""Pixels of the longer side of a preview, at most."""


@dataclass(frozen=True)
class PlanAsked(Asked):
    """A chat completion that is not to be answered."""

    measure: bool = False
    """Whether to measure this machine first, unless that was done."""
    preview: bool = False
    """Whether to show the images, which a browser may not be able to, and to count the pages of documents."""


class Plans(ChatCompletions):
    """Reads what a plan is wanted for: a surface that never writes an answer."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path]) -> PlanAsked:
        """See `Surface`."""
        asked = super().asked({**body, "stream": False}, local_files)
        measure, preview = (body.get(name) is not None and require_flag(name, body[name]) for name in _FLAGS)
        return PlanAsked(asked.messages, asked.options, measure=measure, preview=preview)


class PlanEndpoint(Endpoint):
    """An ASGI application that says what images would cost at each limit on tiles, without decoding them."""

    def __init__(self, service: Service):
        super().__init__(Plans(), service)
        self._counts: Mapping[int, int] = {}

    async def _answer(self, asked: Asked, _writer: Writer, response: Response) -> None:
        assert isinstance(asked, PlanAsked)
        holder, given = self._service.holder, asked.options
        model = await holder.model()
        choice = TileChoice(given.get("tiles", "faithful"), given.get("max_tiles"), given.get("budget"))
        if not self._counts:
            self._counts = await asyncio.to_thread(
                prompt_tokens_by_tiles, model.count_tokens, model.bundle.manifest.tiling
            )
        if asked.measure or choice.policy == "auto":
            await holder.speeds()
        images = [image for message in asked.messages for image in message.images]
        sizes, previews = await asyncio.to_thread(_looked_at, images, asked.preview)
        manifest = model.bundle.manifest
        options = tile_options(sizes, choice, manifest, self._counts, holder.known_speeds)
        await response.whole(
            {
                "object": "plan",
                "model": model.bundle.name,
                "tile_size": manifest.tiling.tile_size,
                "chosen": asdict(chosen(options, choice)),
                "options": [asdict(option) for option in options],
                **({"previews": previews} if asked.preview else {}),
            }
        )


def _looked_at(images: Sequence[Any], preview: bool) -> tuple[list[tuple[int, int]], list[dict[str, Any]]]:
    """Sizes of images, and if wanted of each a small JPEG, and how many pages its file has if it is a document."""
    with PdfReader() as reader:
        sizes = [image_size(image, reader=reader) for image in images]
        previews = [
            {
                "url": _preview(load_rgb(image, fit=_small, reader=reader)),
                "pages": document_pages(image, reader),
            }
            for image in (images if preview else ())
        ]
    return sizes, previews


def _preview(image: Image.Image) -> str:
    file = BytesIO()
    image.resize(_small(image.size), reducing_gap=2.0).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _SIDE / max(size))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
