"""An engine and the thread that works for it: everything that models and conversations share."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ayaedge.engine import Engine
from ayaedge.worker import Item, Request, Result, Worker


class Service:
    """Takes requests from any thread. Ends by itself when nobody holds it any more, and at the interpreter's exit."""

    def __init__(self, engine: Engine, queue_size: int) -> None:
        self.engine = engine
        self._worker = Worker(f"ayaedge {engine.bundle.name}", queue_size, engine.close)
        weakref.finalize(self, self._worker.close)

    def request(
        self,
        work: Callable[[Engine, Request[Item, Result]], Result],
        listener: Callable[[Any], object] | None = None,
    ) -> Request[Item, Result]:
        """Queue work for the engine; ClosedError or BusyError if that is not possible."""
        # the request holds the service, so that a caller need not hold the model
        return self._worker.submit(Request(lambda request: work(self.engine, request), listener))

    def close(self) -> None:
        """Cancel everything and free the engine; returns when that is done, in a callback at once."""
        self._worker.close()
