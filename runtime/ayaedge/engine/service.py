"""An engine and the thread that works for it: everything that models and conversations share."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from ayaedge.answers import Answer
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.interface import AnyEngine, OnProgress
from ayaedge.engine.streams import AnswerRequest
from ayaedge.engine.worker import Item, Request, Result, Worker
from ayaedge.errors import AyaEdgeError
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import AnyImage, EncodedImage
from ayaedge.images.tile_budget import TileChoice
from ayaedge.options import AnswerOptions


class Service:
    """Takes requests from any thread. Ends by itself when nobody holds it any more, and at the interpreter's exit."""

    def __init__(self, engine: AnyEngine, queue_size: int) -> None:
        self.engine = engine
        self._worker = Worker(f"ayaedge {engine.bundle.name}", queue_size, engine.close, engine.abandon)
        weakref.finalize(self, self._worker.abandon).atexit = False

    def request(
        self,
        work: Callable[[AnyEngine, Request[Item, Result]], Result],
        listener: Callable[[Any], object] | None = None,
    ) -> Request[Item, Result]:
        """Queue work for the engine; ClosedError or BusyError if that is not possible."""
        # The request holds the service, so that a caller need not hold the model. A partial lets go of all when the
        # work is done; a closure would live as long as an error whose traceback names it.
        return self._worker.submit(Request(partial(_serve, self, work), listener))

    def call(self, work: Callable[[AnyEngine, Request[Any, Result]], Result]) -> Result:
        """Queue work and wait for its result; AyaEdgeError in a callback, which would wait for itself."""
        if self._worker.is_current_thread:
            raise AyaEdgeError("a callback runs on the model's own thread and cannot wait for it")
        return self.request(work).result()

    def adopt(self, request: Request[Any, Any]) -> None:
        """Note that the engine's thread will work for a request that is not queued itself."""
        self._worker.adopt(request)

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits while another is worked for."""
        return self._worker.is_wanted

    def close(self) -> None:
        """Cancel everything and free the engine; returns when that is done, in a callback at once."""
        self._worker.close()


def _serve(
    service: Service,
    work: Callable[[AnyEngine, Request[Item, Result]], Result],
    request: Request[Item, Result],
) -> Result:
    return work(service.engine, request)


def answering(
    dialogue: Dialogue, options: AnswerOptions, report: OnProgress, engine: AnyEngine, request: AnswerRequest
) -> Answer:
    """Work for a service: the answer to the last question of a dialogue."""
    return engine.answer(request, dialogue, options, report)


def encoding(
    image: AnyImage,
    choice: TileChoice,
    report: OnProgress,
    engine: AnyEngine,
    request: Request[None, EncodedImage],
) -> EncodedImage:
    """Work for a service: an image with its embeddings."""
    return engine.encode(image, choice, request.cancellation, report)


def measuring(engine: AnyEngine, _request: Request[None, Speeds]) -> Speeds:
    """Work for a service: how fast this machine is."""
    return engine.speeds()
