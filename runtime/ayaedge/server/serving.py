"""Running a server until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ayaedge.model import AyaVision
from ayaedge.server.app import make_app
from ayaedge.server.desk import Desk
from ayaedge.server.endpoint import Service
from ayaedge.server.holder import Holder
from ayaedge.server.options import Limits, ServerOptions

logger = logging.getLogger(__name__)


class Server:
    """A server that loads its model while it listens already."""

    def __init__(
        self, load: Callable[[], AyaVision], options: ServerOptions, *, sleep_after: float | None = None
    ):
        """OSError if the host or port cannot be had."""
        self._options, self._sleep_after = options, sleep_after
        desk = Desk(options.limits)
        self._holder = Holder(load, desk)
        service = Service(self._holder, desk, options.limits, options.local_files)
        self._socket = _listen(options)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                make_app(service, options), http=_protocol(options.limits), ws="none", lifespan="off", log_config=None,
                log_level="critical", access_log=False, proxy_headers=False, server_header=False, loop="asyncio",
                timeout_graceful_shutdown=max(1, round(options.grace)),
            )
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until `stop`, or a signal where this is the main thread; errors as `AyaVision.load`."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Take no more requests, give those that run their time to end, and let `run` return; for any thread."""
        self._uvicorn.should_exit = True

    async def _run(self) -> None:
        loading = asyncio.ensure_future(self._holder.model())
        loading.add_done_callback(self._loaded)
        sleeping = (
            None
            if self._sleep_after is None
            else asyncio.ensure_future(self._holder.sleep_when_idle(self._sleep_after))
        )
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            if sleeping is not None:
                sleeping.cancel()
            with suppress(Exception):
                await asyncio.shield(loading)
            await self._holder.close()
            self._socket.close()
        loading.result()

    def _loaded(self, loading: asyncio.Future[AyaVision]) -> None:
        if loading.cancelled() or loading.exception() is not None:
            self.stop()
        else:
            logger.info("%s is loaded", loading.result().bundle.name)


class _Uvicorn(uvicorn.Server):
    """Stops at SIGINT and SIGTERM, which then have done what they should and are not raised again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(options: ServerOptions) -> socket.socket:
    family, kind, number, _, address = socket.getaddrinfo(
        options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, number)
    try:
        if hasattr(socket, "SO_REUSEPORT"):  # Windows gives the word another meaning: two servers at one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _protocol(limits: Limits) -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """HTTP for clients who may be slow on purpose: a head that does not come in time ends the connection."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            cycle: Any = self.cycle
            if cycle is not None and not cycle.response_complete:
                self._unwatch()
            elif self._late is None:
                self._late = self.loop.call_later(limits.head_seconds, self.transport.abort)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Protocol
