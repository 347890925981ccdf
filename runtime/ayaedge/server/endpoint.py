"""What each request goes through, whichever surface it comes in: admitted, read, understood, answered.

A client that goes away, and a request that takes too long, end the model's work at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ayaedge.engine.streams import AsyncAnswerStream
from ayaedge.images.tile_budget import TileKeywords
from ayaedge.model import AyaVision
from ayaedge.server.asked import Asked, Surface, Writer
from ayaedge.server.bodies import ClientGoneError, object_of, read_body, until_gone
from ayaedge.server.desk import Desk, Ticket
from ayaedge.server.events import to_json
from ayaedge.server.holder import Holder
from ayaedge.server.metrics import Metrics
from ayaedge.server.options import Limits
from ayaedge.server.progress import Following, Progress
from ayaedge.server.refusals import RequestRefusedError, refusal_of
from ayaedge.text.text_stream import Piece

HEARTBEAT = 1.0
"""Seconds of silence after which a client gets a sign of life."""
_OK = 200


@dataclass(frozen=True)
class Service:
    """What all endpoints of a server share."""

    holder: Holder
    desk: Desk
    limits: Limits
    local_files: tuple[Path, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)


class Response:
    """The response of one request, as far as it has been sent."""

    def __init__(self, send: Send):
        self._send = send
        self.started = False

    async def whole(self, value: Any, status: int = _OK, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON, and nothing else."""
        data = to_json(value)
        await self.start("application/json", status, {"content-length": str(len(data)), **(headers or {})})
        await self.part(data, more=False)

    async def start(
        self, media_type: str, status: int = _OK, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the head, unless it has been sent."""
        if self.started:
            return
        self.started = True
        all_headers = {"content-type": media_type, "cache-control": "no-store", **(headers or {})}
        raw = [(name.encode(), value.encode()) for name, value in all_headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def part(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})


class Endpoint:
    """An ASGI application that answers the requests of one surface."""

    def __init__(self, surface: Surface, service: Service):
        self._surface, self._service = surface, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response, body = Response(send), {}
        writer: Writer | None = None
        try:
            with self._service.desk.admitted() as ticket:
                body = await self._body(scope, receive, ticket)
                asked = await asyncio.to_thread(self._asked, body)
                writer = self._surface.writer(asked, asked.model or "")  # until the model's name is known
                model = await self._while_there(receive, self._loaded(asked, writer, response))
                writer = self._surface.writer(asked, asked.model or model.bundle.name)
                await self._while_there(receive, self._answer(asked, writer, response))
        except ClientGoneError:
            self._service.metrics.count("gone")
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, the client is told
            refusal = refusal_of(error).named(self._surface.names(body))
            self._service.metrics.count(str(refusal.status))
            if response.started and writer is not None:
                await response.part(writer.failing(refusal), more=False)
            else:
                await response.whole(self._surface.fault(refusal, body), refusal.status, refusal.headers)

    async def _body(self, scope: Scope, receive: Receive, ticket: Ticket) -> dict[str, Any]:
        declared = Headers(scope=scope).get("content-length")
        data = await read_body(receive, declared, ticket, self._service.limits)
        return dict(await asyncio.to_thread(object_of, data))

    def _asked(self, body: Mapping[str, Any]) -> Asked:
        return self._surface.asked(body, self._service.local_files).within(self._service.limits)

    async def _while_there(self, receive: Receive, work: Awaitable[Any]) -> Any:
        """The result of work, which ends when the client goes away or has waited for too long."""
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(until_gone(receive))
        limit = self._service.limits.seconds
        try:
            await asyncio.wait({working, watching}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if watching.done():
                raise ClientGoneError
            raise RequestRefusedError(f"there was no whole answer within {limit:g} seconds", status=504)
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _loaded(self, asked: Asked, writer: Writer, response: Response) -> AyaVision:
        loading = asyncio.ensure_future(self._service.holder.model())
        try:
            while asked.stream and not (await asyncio.wait({loading}, timeout=HEARTBEAT))[0]:
                await response.start(writer.media_type)
                await response.part(writer.alive(Progress("loading")))
            return await loading
        finally:
            loading.cancel()

    async def _answer(self, asked: Asked, writer: Writer, response: Response) -> None:
        holder = self._service.holder
        model = await holder.model()
        seen = Following(holder.known_speeds, model.bundle.manifest.image_prompt.tokens_per_tile)
        ask = partial(model.astream_messages, asked.dictionaries(), on_progress=seen, **asked.options)
        pieces = await asyncio.to_thread(ask)  # a grammar may take its time
        try:
            if asked.stream:
                await _stream(pieces, writer, response, seen, follow=asked.follow)
            else:
                await response.whole(writer.whole(await pieces.whole()))
            self._service.metrics.answered(pieces.answer)
        finally:
            pieces.cancel()


class CountEndpoint(Endpoint):
    """An ASGI application that says how many tokens a request of a surface has, without answering it."""

    def _asked(self, body: Mapping[str, Any]) -> Asked:
        return replace(super()._asked(body), stream=False)

    async def _answer(self, asked: Asked, _writer: Writer, response: Response) -> None:
        model = await self._service.holder.model()
        tiles = {name: asked.options[name] for name in TileKeywords.__annotations__ if name in asked.options}
        count = await asyncio.to_thread(partial(model.count_tokens, asked.dictionaries(), **tiles))
        await response.whole({"input_tokens": count})


async def _stream(
    pieces: AsyncAnswerStream, writer: Writer, response: Response, seen: Following, *, follow: bool
) -> None:
    """Send an answer as it comes; until its first piece there is time for an error with a status of its own."""
    coming, opened = asyncio.ensure_future(_next(pieces)), False
    try:
        while True:
            while not await _arrived(coming, seen, follow):
                signs = (seen.take() if follow else []) or [seen.last]
                await response.start(writer.media_type)
                await response.part(b"".join(map(writer.alive, signs)))
            piece = coming.result()
            await response.start(writer.media_type)
            if not opened:
                opened = True
                await response.part(b"".join(map(writer.alive, seen.take() if follow else [])))
                await response.part(writer.opening())
            if piece is None:
                await response.part(writer.closing(pieces.answer), more=False)
                return
            coming = asyncio.ensure_future(_next(pieces))
            await response.part(writer.of(piece))
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await coming


async def _arrived(coming: asyncio.Future[Piece | None], seen: Following, follow: bool) -> bool:
    """Wait for a piece, for news of the reading if they are wanted, or until a sign of life is due."""
    news: asyncio.Future[Any] = asyncio.ensure_future(seen.news() if follow else asyncio.sleep(HEARTBEAT))
    try:
        await asyncio.wait({coming, news}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
    return coming.done()


async def _next(pieces: AsyncAnswerStream) -> Piece | None:
    return await anext(pieces, None)
