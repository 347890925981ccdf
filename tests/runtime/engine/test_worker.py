from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ayaedge.cancellation import Cancellation
from ayaedge.engine.worker import Request, Worker
from ayaedge.errors import AyaEdgeError, BusyError, CancelledError, ClosedError, OutOfMemoryError

pytestmark = pytest.mark.usefixtures("all_processors")


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test", 3, lambda: None)
    yield worker
    worker.close()


def blocking() -> tuple[Request[str, str], threading.Event, threading.Event]:
    """A request that works until it is cancelled or released, and when it has begun."""
    begun, release = threading.Event(), threading.Event()

    def work(request: Request[str, str]) -> str:
        begun.set()
        while not release.wait(0.001):
            request.cancellation.check()
        return "done"

    return Request(work), begun, release


def test_requests_are_done_in_order(worker: Worker) -> None:
    order: list[int] = []
    first, begun, release = blocking()
    worker.submit(first)
    begun.wait()
    numbered: list[Callable[[Any], None]] = [lambda _, n=n: order.append(n) for n in range(3)]  # type: ignore[misc]
    requests = [worker.submit(Request[str, None](work)) for work in numbered]
    release.set()
    for request in requests:
        request.result(5)
    assert order == [0, 1, 2]


def test_a_full_queue_is_busy_and_takes_requests_again_later(worker: Worker) -> None:
    first, begun, release = blocking()
    worker.submit(first)
    begun.wait()
    waiting = [worker.submit(blocking()[0]) for _ in range(3)]
    with pytest.raises(BusyError, match="3 requests wait already"):
        worker.submit(blocking()[0])
    waiting[1].cancel()
    with pytest.raises(CancelledError):
        waiting[1].result(5)  # at once, not when its turn comes
    last = worker.submit(Request[str, str](lambda _: "last"))
    for request in (first, waiting[0], waiting[2]):
        request.cancel()
    assert last.result(5) == "last"
    release.set()


def test_a_running_request_can_be_cancelled(worker: Worker) -> None:
    request, begun, _ = blocking()
    worker.submit(request)
    begun.wait()
    request.cancel()
    with pytest.raises(CancelledError):
        request.result(5)
    assert worker.submit(Request[str, int](lambda _: 7)).result(5) == 7


def test_cancelling_what_is_over_changes_nothing(worker: Worker) -> None:
    request = worker.submit(Request[str, int](lambda _: 7))
    assert request.result(5) == 7
    request.cancel()
    assert request.result() == 7


def test_a_wait_may_be_limited(worker: Worker) -> None:
    request, _, release = blocking()
    worker.submit(request)
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        request.result(0.01)
    release.set()
    assert request.result(5) == "done"


def test_items_come_in_order_and_then_the_end(worker: Worker) -> None:
    def work(request: Request[str, str]) -> str:
        for item in "abc":
            request.give(item)
        return "end"

    request = worker.submit(Request(work))
    assert [request.next_item() for _ in range(4)] == ["a", "b", "c", None]
    assert request.result() == "end"


def test_an_error_comes_behind_the_items_before_it(worker: Worker) -> None:
    def work(request: Request[str, str]) -> str:
        request.give("a")
        raise KeyError("x")

    request = worker.submit(Request(work))
    assert request.next_item() == "a"
    with pytest.raises(KeyError):
        request.next_item()
    assert worker.submit(Request[str, int](lambda _: 7)).result(5) == 7


def test_running_out_of_memory_is_our_error(worker: Worker) -> None:
    def work(_: object) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError):
        worker.submit(Request[str, None](work)).result(5)


def test_callbacks_come_once_also_when_it_is_over_already(worker: Worker) -> None:
    calls: list[str] = []
    request, begun, release = blocking()
    worker.submit(request)
    begun.wait()
    request.when_over(lambda: calls.append("before"))

    def faulty() -> None:
        raise ValueError("a listener's own fault")

    def worse() -> None:
        raise SystemExit(3)

    request.when_over(faulty)
    request.when_over(worse)
    request.when_over(lambda: calls.append("second"))
    release.set()
    request.result(5)
    worker.submit(Request[str, None](lambda _: None)).result(5)
    request.when_over(lambda: calls.append("after"))
    assert calls == ["before", "second", "after"]


def test_waiting_on_the_workers_own_thread_is_an_error_and_submitting_is_not(worker: Worker) -> None:
    inner: list[Request[str, int]] = []

    def work(_: object) -> str:
        inner.append(worker.submit(Request[str, int](lambda _: 7)))
        with pytest.raises(AyaEdgeError, match="use submit"):
            inner[0].result(5)
        return "ok"

    assert worker.submit(Request[str, str](work)).result(5) == "ok"
    assert inner[0].result(5) == 7


def test_closing_ends_what_runs_and_what_waits_and_frees_once() -> None:
    freed: list[threading.Thread] = []
    worker = Worker("test", 9, lambda: freed.append(threading.current_thread()))
    running, begun, _ = blocking()
    worker.submit(running)
    begun.wait()
    waiting = worker.submit(blocking()[0])
    worker.close()
    worker.close()
    for request in (running, waiting):
        with pytest.raises(ClosedError):
            request.result(5)
    with pytest.raises(ClosedError):
        worker.submit(blocking()[0])
    assert len(freed) == 1
    assert freed[0] is not threading.current_thread()


def test_a_callback_may_close() -> None:
    freed = threading.Event()
    worker = Worker("test", 9, freed.set)
    waiting: list[Request[str, str]] = []

    def work(request: Request[str, str]) -> str:
        waiting.append(worker.submit(blocking()[0]))
        worker.close()
        assert not freed.is_set()  # not under the feet of the running request
        request.cancellation.check()
        return "never"

    request = worker.submit(Request(work))
    with pytest.raises(ClosedError):
        request.result(5)
    assert freed.wait(5)
    with pytest.raises(ClosedError):
        waiting[0].result(5)


def test_a_request_lets_go_of_its_work_when_it_is_done(worker: Worker) -> None:
    class Large:
        pass

    held = Large()
    alive = weakref.ref(held)

    def work(_: object, held: Large = held) -> None: ...

    request = worker.submit(Request[str, None](work))
    request.result(5)
    worker.submit(Request[str, None](lambda _: None)).result(5)
    del held, work
    gc.collect()
    assert alive() is None
    assert request.over


def test_a_flag_is_a_c_string() -> None:
    flag = Cancellation()
    assert flag.buffer.value == b""
    flag.check()
    flag.set()
    assert flag.buffer.value == b"\x01"
    with pytest.raises(CancelledError):
        flag.check()


def test_many_threads_may_submit_and_cancel(worker: Worker) -> None:
    worker._limit = 1000
    results: list[int | None] = []

    def ask(number: int) -> None:
        for i in range(50):
            request = worker.submit(Request[str, int](lambda _, n=number: n))  # type: ignore[misc]
            if (number + i) % 3 == 0:
                request.cancel()
            try:
                results.append(request.result(10))
            except CancelledError:
                results.append(None)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 16 * 50


@pytest.mark.parametrize("state", ["idle", "running", "waiting"])
def test_the_interpreter_ends_in_any_state(state: str) -> None:
    code = f"""
import threading, time
from ayaedge.engine.worker import Request, Worker
worker = Worker("test", 9, lambda: print("freed"))
begun = threading.Event()
def work(request):
    begun.set()
    while True:
        time.sleep(0.001)
        request.cancellation.check()
import weakref, atexit
atexit.register(worker.close)
for _ in range({["idle", "running", "waiting"].index(state)}):
    worker.submit(Request(work))
if {state != "idle"}: begun.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == ("freed\n", "")


def test_asyncio_hears_of_items_from_the_workers_thread(worker: Worker) -> None:
    async def follow() -> list[str]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        go = threading.Event()

        def work(request: Request[str, None]) -> None:
            go.wait(5)
            for item in "ab":
                request.give(item)
                time.sleep(0.01)

        request = Request(work)
        found = []
        with request.watched(lambda: loop.call_soon_threadsafe(news.set)):
            worker.submit(request)
            go.set()
            while not request.over or not request.waiting:
                await asyncio.wait_for(news.wait(), 5)
                news.clear()
                while (item := request.take()) is not None:
                    found.append(item)
                if request.over:
                    break
        return found

    assert asyncio.run(follow()) == ["a", "b"]


def test_garbage_collection_may_find_a_worker_anywhere() -> None:
    """A finalizer must not wait: whoever collects may hold a lock that the worker's request needs."""
    worker = Worker("test", 3, lambda: None)
    lock, request = threading.Lock(), blocking()[0]
    needs = Request[str, None](lambda _: lock.acquire(timeout=5) and lock.release())
    with lock:
        worker.submit(needs)
        worker.submit(request)
        started = time.monotonic()
        worker.abandon()
        assert time.monotonic() - started < 4  # the request gives up after 5
    with pytest.raises(ClosedError):
        request.result(10)
    worker.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_ends_although_a_lock_was_held() -> None:
    code = """
import os, threading, warnings
warnings.simplefilter("ignore")
from ayaedge.engine.worker import Worker
worker = Worker("test", 3, lambda: None)
with worker._changed:
    child = os.fork()
if child == 0:
    worker.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    code = code.replace("with worker._changed:\n    child", "worker._changed.acquire()\nchild").replace(
        "print(", "worker._changed.release()\nprint("
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "7\n"


def test_two_readers_share_the_items(worker: Worker) -> None:
    def work(request: Request[int, None]) -> None:
        for number in range(1, 2001):
            request.give(number)

    request, found = Request(work), []

    def read() -> None:
        while (item := request.next_item()) is not None:
            found.append(item)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    worker.submit(request)
    for thread in threads:
        thread.join(10)
    assert sorted(found) == list(range(1, 2001))
