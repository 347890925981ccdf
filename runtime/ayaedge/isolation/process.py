"""The process of an isolated model, as seen from here: calls in, what happens on the way, and how it ended.

Any number of threads may call at once; each follows its own call. One more thread starts the process and reads what
it says, so that its end is noticed at once; and Linux ends the process with this one, as it watches for the end of
the thread that started it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from numpy.typing import NDArray

from ayaedge.cancellation import Cancellation
from ayaedge.errors import AyaEdgeError, BackendError, ClosedError, InvalidOptionError
from ayaedge.hardware.children import FAULTS, Child
from ayaedge.isolation.child import serve
from ayaedge.isolation.forms import error_of, strictly
from ayaedge.isolation.records import level_wanted, take_record, take_warning
from ayaedge.isolation.wire import Arrays, Message, SharedMemory, Wire, WireError

logger = logging.getLogger(__name__)

OnEvent = Callable[[str, Any, Arrays], None]
Result = TypeVar("Result")
_Received = tuple[Message, Arrays]

_SLICE = 0.02
"""Seconds after which a call that waits looks whether it was cancelled."""
_GRACE = 10.0
"""Seconds that a process which was told to end may take for it."""
_MOST_WAITING = 1 << 19
"""Events of a call that may wait for its callbacks: more than any answer has."""
_MOST_SAID = 1 << 28
"""Bytes of JSON of one call: the longest answer with all its log-probabilities has less."""
_KILLED = (
    "the system does that where memory runs out: close other programs, lower context_size, or take a smaller "
    "bundle"
)
_CRASHED = "llama.cpp or ONNX Runtime crashed: the bundle may be damaged, or made to do that"


@dataclass(frozen=True)
class _Call:
    inbox: SimpleQueue[_Received | None]
    most: int
    """Bytes of arrays in one of its messages."""
    began: int
    """Bytes of JSON that had come before it."""


class ModelProcess:
    """A child that serves one model (`isolation.child`). BackendError where it cannot be started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._death: str | None = None
        self._hurried: float | None = None
        self._problem: BaseException | None = None
        self._shared = SharedMemory.create()
        self._socket: socket.socket | None = None
        self._child: Child | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ayaedge isolated", daemon=True)
        self._thread.start()
        try:
            self._started.wait()
        except BaseException:  # Ctrl-C
            self.close(at_once=True)
            raise
        if self._problem is not None:
            self.close(at_once=True)
            raise self._problem

    @property
    def pid(self) -> int:
        """Its number."""
        return self._running.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has died, or was ended."""
        return self._death is not None

    @property
    def _running(self) -> Child:
        assert self._child is not None
        return self._child

    def call(
        self,
        name: str,
        value: Any,
        arrays: Sequence[NDArray[Any]] = (),
        *,
        read: Callable[[Any, Arrays], Result],
        fail: Callable[[Any], BaseException] = error_of,
        flag: Cancellation | None = None,
        on_event: OnEvent | None = None,
        most: int = 0,
    ) -> Result:
        """What `read` makes of the result of a call, and of arrays of `most` bytes.

        `on_event` gets what happens on the way, on this thread; if it raises something the call is cancelled, and
        that is raised when it has ended. Raises what `fail` makes of the call's error, and
        BackendError if the process dies.
        """
        inbox: SimpleQueue[_Received | None] = SimpleQueue()
        with self._lock:
            if self._death is not None or self._hurried is not None:
                raise self._ended()
            self._number += 1
            number = self._number
            self._calls[number] = _Call(inbox, most, self._wire.received)
        try:
            with self._holding(arrays) as places:
                message = {"call": number, "do": name, "level": level_wanted(), "value": value}
                self._send(message, arrays, places)
                message, found = self._follow(number, inbox, flag, on_event)
            if "error" in message:
                raise strictly(fail, message["error"])
            return strictly(read, message.get("result"), found)
        except WireError as error:
            self._kill()
            raise BackendError(
                f"the process of the isolated model was ended, as it has sent {error}"
            ) from None
        finally:
            with self._lock:
                del self._calls[number]

    def hurry(self) -> None:
        """Let what goes on now take no longer than `_GRACE`: the model is being closed."""
        self._hurried = time.monotonic()

    def close(self, *, at_once: bool = False) -> None:
        """Let the process end, and end it if it does not; nothing is left of it then."""
        self.hurry()
        if at_once:
            self._kill()
        else:
            self._hang_up()
        self._thread.join(_GRACE)
        if self._thread.is_alive():
            self._kill()
            self._thread.join()
        if self._shared is not None:
            self._shared.close()

    def _follow(
        self,
        number: int,
        inbox: SimpleQueue[_Received | None],
        flag: Cancellation | None,
        on_event: OnEvent | None,
    ) -> _Received:
        told, problem = False, None
        while True:
            if not told and (problem is not None or (flag is not None and flag.is_set)):
                self._send({"cancel": number})
                told = True
            try:
                received = inbox.get(timeout=_SLICE)
            except Empty:
                self._end_late()
                continue
            if received is None:
                raise problem or self._ended()
            message, arrays = received
            if "event" not in message:
                break
            try:
                if problem is None:
                    self._take_event(message, arrays, on_event)
            except WireError:
                raise
            except BaseException as error:  # noqa: BLE001 - of a callback; raised when the process is ready again
                problem = error
        if problem is not None:
            raise problem
        return message, arrays

    def _holding(self, arrays: Sequence[NDArray[Any]]) -> AbstractContextManager[Sequence[int]]:
        return self._shared.holding(arrays) if self._shared and arrays else nullcontext(())

    def _take_event(self, message: Message, arrays: Arrays, on_event: OnEvent | None) -> None:
        name, value = message["event"], message.get("value")
        if name == "record":
            take_record(value)
        elif name == "warning":
            take_warning(value)
        elif on_event is not None:
            on_event(name, value, arrays)

    def _send(
        self, message: Message, arrays: Sequence[NDArray[Any]] = (), places: Sequence[int] = ()
    ) -> None:
        try:
            self._wire.send(message, arrays, places)
        except (OSError, ValueError):  # it has died: reading will tell
            pass
        except TypeError as error:
            raise InvalidOptionError(f"an isolated model cannot be given this: {error}") from None

    def _ended(self) -> AyaEdgeError:
        return ClosedError() if self._hurried is not None else BackendError(self._death or "")

    def _end_late(self) -> None:
        if self._hurried is not None and time.monotonic() > self._hurried + _GRACE:
            self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            self._child.process.kill()

    def _hang_up(self) -> None:
        """Close the way to the process: it ends when it has nothing more to do."""
        with suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_WR)
            elif self._child is not None and self._child.process.stdin is not None:
                self._child.process.stdin.close()

    # On the thread that reads:

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for the start
            self._problem = error
            if self._socket is not None:
                self._socket.close()
            return
        finally:
            self._started.set()
        death = self._listen()
        said = self._running.said()
        self._kill()
        self._wire.stop()
        if self._socket is not None:
            self._socket.close()
        self._running.close()
        with self._lock:
            self._death = _death_text(death, said)
            calls = list(self._calls.values())
        for call in calls:
            call.inbox.put(None)
        if self._hurried is None:
            logger.warning("%s", self._death)

    def _start(self) -> None:
        more: dict[str, Any] = {}
        theirs = None
        if (
            os.name != "nt"
        ):  # a signal would come of writing to a pipe that nobody reads, and end many a program
            self._socket, theirs = socket.socketpair()
            self._socket.settimeout(_SLICE)
            descriptors = [self._shared.descriptor] if self._shared else []
            more = {"stdin": theirs, "pass_fds": descriptors, "start_new_session": True}
        try:
            self._child = child = Child(serve, self._shared and self._shared.descriptor, **more)
        finally:
            if theirs is not None:
                theirs.close()
        self._wire = Wire(cast("BufferedIOBase", child.process.stdout), self._write, self._shared)
        with suppress(OSError):
            opening = memoryview(child.opening.encode())
            while opening:
                opening = opening[self._write(opening) :]
        with suppress(WireError):  # its end is noticed later
            self._wire.receive(lambda _: 0)
        if self._hurried is not None:
            self._kill()

    def _listen(self) -> str:
        """Hand over what the process says, until it has died: of what."""
        try:
            while (received := self._wire.receive(self._most)) is not None:
                self._hand_over(*received)
        except WireError as error:
            return f"it has sent {error}"
        return self._running.death()

    def _hand_over(self, message: Message, arrays: Arrays) -> None:
        call = self._call_of(message)
        if call is not None:
            if call.inbox.qsize() > _MOST_WAITING or self._wire.received - call.began > _MOST_SAID:
                raise WireError("more than anybody can read")
            call.inbox.put((message, arrays))
        elif message.get("event") in ("record", "warning"):
            with suppress(Exception):  # of a handler of the program's
                self._take_event(message, arrays, None)

    def _call_of(self, message: Message) -> _Call | None:
        number = message.get("call")
        with self._lock:
            return self._calls.get(number) if type(number) is int else None

    def _most(self, message: Message) -> int:
        call = self._call_of(message)
        return 0 if call is None else call.most

    def _write(self, data: memoryview) -> int:
        if self._socket is None:
            stdin = self._running.process.stdin
            assert stdin is not None
            stdin.write(data)
            stdin.flush()
            return len(data)
        while True:
            try:
                return self._socket.send(data, getattr(socket, "MSG_NOSIGNAL", 0))
            except TimeoutError:
                self._end_late()


def _death_text(death: str, said: str) -> str:
    reason = {"SIGKILL": f": {_KILLED}"}.get(death, f": {_CRASHED}" if death in FAULTS else "")
    words = f"; it said: {said}" if said else ""
    return f"the process of the isolated model has ended ({death}){reason}. Load the model again{words}"
