"""Who may come in: how many requests are at work, how many bytes of theirs are held, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ayaedge.server.options import Limits
from ayaedge.server.refusals import RequestRefusedError

_NEWEST = 0.3
"""Weight of the newest request in what requests usually take."""
_LONGEST_WAIT = 60
"""Seconds after which clients are told to ask again, at most: OpenAI's clients ignore more."""


class Ticket:
    """One request's share of the memory for bodies."""

    def __init__(self, desk: Desk):
        self._desk, self.held = desk, 0

    def hold(self, count: int) -> None:
        """Count so many bytes more; 429 if all requests together hold too many."""
        self._desk.hold(count)
        self.held += count


class Desk:
    """Counts requests from their head to their end; used on the event loop alone."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.open = 0
        """Requests that are read, wait or are answered."""
        self.last = time.monotonic()
        """When there was one."""
        self._bytes, self._usual = 0, 1.0

    @contextmanager
    def admitted(self) -> Iterator[Ticket]:
        """Let a request in until the block ends; 429 if as many wait as may."""
        if self.open > self._limits.queue:
            raise self._busy(f"{self.open} requests are at work or wait already: ask again later")
        ticket, begun = Ticket(self), time.monotonic()
        self.open += 1
        try:
            yield ticket
        finally:
            self.open -= 1
            self._bytes -= ticket.held
            self.last = time.monotonic()
            self._usual += _NEWEST * (self.last - begun - self._usual)

    def hold(self, count: int) -> None:
        """Count bytes that a request holds."""
        if self._bytes + count > self._limits.total_bytes:
            raise self._busy("the requests that are at work or wait are too large together: ask again later")
        self._bytes += count

    def _busy(self, message: str) -> RequestRefusedError:
        wait = min(max(round(self._usual), 1), _LONGEST_WAIT)
        return RequestRefusedError(message, status=429, code="queue_full", wait=wait)
