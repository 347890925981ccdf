"""What `ayaedge serve` bears, as a table: a crowd, slow and half-open clients, a kill, and what HTTP costs.

`python benchmarks/server.py [--seconds 300] [--clients 200] [--threads N]`

The demonstration bundle, a server in a process of its own, clients over loopback in this one. States go to a directory
of their own, which is removed. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ayaedge import AyaVision, DecoderOptions, VisionOptions
from ayaedge_export import export_checkpoint

PICTURES = Path(__file__).parents[1] / "examples" / "pictures"
CHECKPOINT = PICTURES.parent / "tiny-aya-vision"
QUESTIONS = [
    (PICTURES / "six-cells.png", "What number is at the bottom left?"),
    (PICTURES / "six-cells.png", "What shape is at the top right?"),
    (PICTURES / "one-heart.png", "What shape is this?"),
    (PICTURES / "one-number.png", "What number is this?"),
    (PICTURES / "row.png", "What shape is on the left?"),
]
CHAT = "/v1/chat/completions"
MOST_TOKENS = 40
LEAVING = 0.1
"""Share of requests whose client goes away at a random moment."""
SLOW = 100
TRIALS = 30


@dataclass
class Reply:
    """What a client got, and when its first and last bytes of an answer came, in seconds."""

    status: int = 0
    headers: str = ""
    body: bytes = field(default=b"", repr=False)
    first: float = 0.0
    whole: float = 0.0

    @property
    def text(self) -> str:
        """The answer of a chat completion, streamed or not."""
        if "text/event-stream" not in self.headers:
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        events = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: {")]
        choices = [choice for one in events for choice in json.loads(one)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    async def post(self, path: str, body: Any, leave_after: float | None = None) -> Reply | None:
        """Ask; None for a client that went away before the end."""
        work = self._post(path, json.dumps(body).encode())
        try:
            return await (work if leave_after is None else asyncio.wait_for(work, leave_after))
        except TimeoutError:
            return None

    async def _post(self, path: str, data: bytes) -> Reply:
        reply, began = Reply(), time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nconnection: close\r\n"
            writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            reply.headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            reply.status = int(reply.headers.split()[1])
            chunked = "transfer-encoding: chunked" in reply.headers
            while part := (await _chunk(reader) if chunked else await reader.read(1 << 16)):
                if (
                    not reply.first
                    and (b'"content":"' in part or not chunked)
                    and b'"content":""' not in part
                ):
                    reply.first = time.perf_counter() - began
                reply.body += part
        finally:
            writer.close()
        reply.whole = time.perf_counter() - began
        return reply

    @property
    def memory(self) -> int:
        """Bytes that the process has in memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int(await reader.readline(), 16)
    return (await reader.readexactly(size + 2))[:-2]


@contextmanager
def serving(threads: int, *flags: str) -> Iterator[Server]:
    """A server that has loaded its model; a kill is no error."""
    command = [sys.executable, "-m", "ayaedge", "serve", "--port", "0", "-t", str(threads), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r":(\d+)/v1", process.stderr.readline())
        assert found is not None
        try:
            while "is loaded" not in (line := process.stderr.readline()):
                if not line:
                    sys.exit(f"{' '.join(command)} ended")
            yield Server(process, int(found[1]))
        finally:
            process.terminate()


def question(image: Path, text: str, **options: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": MOST_TOKENS, **options}


class Crowd:
    """Clients that all ask at once, for a time."""

    def __init__(self, server: Server, right: list[str]):
        self.server, self.right, self.counts = server, right, Counter[str]()

    async def run(self, clients: int, seconds: float) -> None:
        """Let so many clients ask until the time is over."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(random.Random(number), end) for number in range(clients)))

    async def _client(self, chance: random.Random, end: float) -> None:
        while time.monotonic() < end:
            number = chance.randrange(len(QUESTIONS))
            body = question(*QUESTIONS[number], stream=chance.random() < 0.5)
            leave = chance.random() if chance.random() < LEAVING else None
            try:
                reply = await self.server.post(CHAT, body, leave)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.counts[f"broken: {type(error).__name__}"] += 1
                continue
            self.counts[self._what(reply, self.right[number])] += 1
            if reply is not None and reply.status == 429:
                wait = re.search(r"retry-after: (\d+)", reply.headers)
                await asyncio.sleep(min(int(wait[1]) if wait else 1, max(end - time.monotonic(), 0)))

    def _what(self, reply: Reply | None, right: str) -> str:
        if reply is None:
            return "left"
        if reply.status == 429:
            return "429" if "retry-after" in reply.headers else "429 without a time"
        return str(reply.status) if reply.status != 200 else "right" if reply.text == right else "wrong"


async def first_tokens(server: Server, count: int = TRIALS) -> list[float]:
    """Seconds to the first text of a question about a known image, one after the other."""
    replies = [await server.post(CHAT, question(*QUESTIONS[0], stream=True)) for _ in range(count)]
    return [reply.first for reply in replies if reply is not None]


async def crowded(server: Server, clients: int, seconds: float) -> bool:
    """The first rows."""
    right = []
    for image, text in QUESTIONS:
        reply = await server.post(CHAT, question(image, text))
        assert reply is not None
        right.append(reply.text)
    await Crowd(server, right).run(clients, min(10.0, seconds / 4))  # what a crowd needs once
    before, memory = median(await first_tokens(server)), server.memory
    crowd = Crowd(server, right)
    await crowd.run(clients, seconds)
    counts, grown = crowd.counts, server.memory / memory
    after = median(await first_tokens(server))
    what = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    fine = set(counts) <= {"right", "429", "left"} and counts["right"] > 0
    row(f"{clients} clients for {seconds:.0f} s, {LEAVING:.0%} leave", what, fine)
    row("memory afterwards", f"{grown:.2f} x of {memory / 1e6:.0f} MB", grown <= 1.1)
    row(
        "first token before and after",
        f"{before * 1e3:.1f} and {after * 1e3:.1f} ms",
        after <= 1.25 * before + 0.005,
    )
    return True


async def slowed(server: Server) -> None:
    """Heads and bodies that never end, while others ask."""
    alone = median(await first_tokens(server))
    writers = []
    for number in range(SLOW):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
        writer.write((head + ("content-length: 99\r\n\r\n{" if number % 8 == 0 else "x: ")).encode())
        writers.append(writer)
    await asyncio.sleep(0.5)
    beside = median(await first_tokens(server))
    for writer in writers:
        writer.close()
    words = f"first token {alone * 1e3:.1f} ms alone, {beside * 1e3:.1f} ms beside them"
    row(f"{SLOW} slow heads and half-open bodies", words, beside <= 1.25 * alone + 0.005)


def known_after_a_kill(threads: int, bundle: Path) -> None:
    """A question, kill -9, and another about the same image."""
    with serving(threads, "-m", str(bundle)) as server:
        asyncio.run(server.post(CHAT, question(*QUESTIONS[0])))
        server.process.kill()
    with serving(threads, "-m", str(bundle)) as server:
        reply = asyncio.run(server.post(CHAT, question(*QUESTIONS[1])))
    assert reply is not None
    usage = json.loads(reply.body)["usage"]
    known, images = (usage["prompt_tokens_details"][name] for name in ("cached_tokens", "image_tokens"))
    row("kill -9 and restart", f"{known} of {usage['prompt_tokens']} tokens from the disk", known >= images)


def wide_bundle(place: Path) -> Path:
    """The demonstration model with a window that is longer than its prompts, as the released model's is.

    What lies behind its own short window is forgotten, so that no state of an image could be kept.
    """
    checkpoint = Path(shutil.copytree(CHECKPOINT, place / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    config["text_config"]["sliding_window"] = 512
    (checkpoint / "config.json").write_text(json.dumps(config))
    return export_checkpoint(checkpoint, place / "bundle").directory


def over_the_python_api(server: Server, threads: int) -> None:
    """The same question here and there, in turns."""
    options = {"decoder": DecoderOptions(threads=threads), "vision": VisionOptions(threads=threads)}
    image, text = QUESTIONS[0]
    here: list[float] = []
    there: list[float] = []
    with AyaVision.load(**options) as model:  # type: ignore[arg-type]
        for _ in range(TRIALS):
            began = time.perf_counter()
            with model.stream(text, images=[image], max_tokens=MOST_TOKENS) as stream:
                next(iter(stream))
                here.append(time.perf_counter() - began)
                list(stream)
            there += asyncio.run(first_tokens(server, 1))
    more = (median(there) - median(here)) * 1e3
    words = f"{median(here) * 1e3:.1f} ms in Python, {median(there) * 1e3:.1f} ms served: {more:.1f} more"
    row("first token over the Python API", words, more <= 10)


async def surfaces(server: Server) -> None:
    """One question in five forms."""
    image, text = QUESTIONS[0]
    data, told = base64.b64encode(image.read_bytes()).decode(), {"type": "text", "text": text}
    source = {"type": "base64", "media_type": "image/png", "data": data}
    shown = {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}
    asked = {
        CHAT: question(image, text),
        "/v1/messages": {
            "max_tokens": MOST_TOKENS,
            "messages": [{"role": "user", "content": [{"type": "image", "source": source}, told]}],
        },
        "/v1/responses": {"input": [{"role": "user", "content": [shown, {"type": "input_text", "text": text}]}]},
        "/api/chat": {"stream": False, "messages": [{"role": "user", "content": text, "images": [data]}]},
        "/api/generate": {"stream": False, "prompt": text, "images": [data]},
    }  # fmt: skip
    found = []
    for path, body in asked.items():
        reply = await server.post(path, body)
        assert reply is not None
        found.append(_answer(json.loads(reply.body)))
    words = ", ".join(sorted({f"{text!r} in {count} tokens" for text, count in found}))
    row("five surfaces", words, len(set(found)) == 1)


def _answer(body: dict[str, Any]) -> tuple[str, int]:
    """The text and the tokens of an answer, in any of the five forms."""
    if "choices" in body:
        return body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]
    if "output" in body:
        return body["output"][0]["content"][0]["text"], body["usage"]["output_tokens"]
    if "content" in body:
        return body["content"][0]["text"], body["usage"]["output_tokens"]
    return body["message"]["content"] if "message" in body else body["response"], body["eval_count"]


missed: list[str] = []


def row(what: str, found: str, fine: bool) -> None:
    """Print a row at once."""
    print(f"| {what} | {found} | {'yes' if fine else 'NO'} |", flush=True)
    if not fine:
        missed.append(what)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as states:
        os.environ["AYAEDGE_CACHE_DIR"] = states
        print("| what | found | within the bar |\n|---|---|---|")
        with serving(given.threads) as server:
            asyncio.run(surfaces(server))
            asyncio.run(crowded(server, given.clients, given.seconds))
            asyncio.run(slowed(server))
            over_the_python_api(server, given.threads)
        known_after_a_kill(given.threads, wide_bundle(Path(states)))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
