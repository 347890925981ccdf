"""The model of a server: loaded at its start, and perhaps unloaded while nobody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from ayaedge.bundle import Bundle
from ayaedge.hardware.speeds import Speeds
from ayaedge.model import AyaVision
from ayaedge.server.desk import Desk

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "busy", "asleep"]
_LOOK = 4
"""How often, in the time after which a model sleeps, it is looked whether it may."""


class Holder:
    """Holds the model that requests share; used on the event loop alone."""

    def __init__(self, load: Callable[[], AyaVision], desk: Desk):
        self._load, self._desk = load, desk
        self._loading: asyncio.Future[AyaVision] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._bundle: Bundle | None = None
        self.known_speeds: Speeds | None = None
        """How fast this machine is, once that was measured."""

    @property
    def state(self) -> State:
        """What the model does."""
        if self._bundle is not None and (self._loading is None or _is_lost(self._loading)):
            return "asleep"
        if self._loading is None or not self._loading.done():
            return "loading"
        return "busy" if self._desk.open else "ready"

    async def bundle(self) -> Bundle:
        """The model's bundle, for which one that sleeps is not woken."""
        return self._bundle or (await self.model()).bundle

    async def model(self) -> AyaVision:
        """The model, as soon as it is loaded, and again if its process has ended; errors as `AyaVision.load`."""
        if self._loading is not None and _is_lost(self._loading):
            logger.warning("the process of the model has ended: the model is loaded again")
            await self.close()
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.ensure_future(self._loaded())
        return await asyncio.shield(self._loading)  # a client that goes away does not end it for the others

    async def speeds(self) -> Speeds:
        """How fast this machine is; measured after the requests that came before, if it was not yet."""
        if self.known_speeds is None:
            model = await self.model()
            self.known_speeds = await asyncio.to_thread(model.measure)
        return self.known_speeds

    async def close(self) -> None:
        """Free the model; nothing happens if there is none."""
        if self._loading is not None:
            self._closing = asyncio.ensure_future(_close(self._loading))
            self._loading = None
            await asyncio.shield(self._closing)

    async def sleep_when_idle(self, seconds: float) -> None:
        """Free the model whenever nobody has asked for so long; never returns."""
        while True:
            await asyncio.sleep(seconds / _LOOK)
            idle = time.monotonic() - self._desk.last
            if self.state == "ready" and idle >= seconds:
                await self.close()
                logger.info("the model sleeps after %.0f s without a request", idle)

    async def _loaded(self) -> AyaVision:
        if self._closing is not None:  # two would not fit into memory
            await self._closing
        model = await asyncio.to_thread(self._load)
        self._bundle = model.bundle
        return model


def _is_lost(loading: asyncio.Future[AyaVision]) -> bool:
    return loading.done() and loading.exception() is None and loading.result().is_lost


async def _close(loading: asyncio.Future[AyaVision]) -> None:
    with suppress(Exception):  # one that could not be loaded needs no closing
        await asyncio.to_thread((await loading).close)
