"""Measuring a bundle on this machine: loading, vision, prefill, decoding, time to the first token, and memory.

Every figure comes with the share of the machine's own measured limits that it reaches. Each part runs in a process of
its own with an empty cache directory, so that nothing measured here is known already and no part sees another's memory.
Nothing is printed: tables and charts are made in `ayaedge.bench.report`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ayaedge.bench.limits import Limits, Work, answer_work, measure_limits, prompt_work
from ayaedge.bench.process_watch import Finished, Resident, run_watched
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cache.options import cache_directory
from ayaedge.checks import check_options, plain, whole_number
from ayaedge.decoder.gguf_header import DecoderFigures, read_figures
from ayaedge.decoder.options import DEFAULT_CONTEXT
from ayaedge.errors import InvalidOptionError
from ayaedge.files import can_read, make_private
from ayaedge.hardware.machine import memory, processor

OnStep = Callable[[int, int, str], None]
"""Called with the number of steps that are done, of how many, and what comes next."""

_QUESTIONS = ("What is written here?", "How many people are there?", "Where is it?")
_NOISE = (1200, 1600, 3)
"""Height, width, colours of the image that is used where none is given: a photograph's ratio, and no equal tiles."""
_TEXT_TOKENS = 512
_CONTEXTS = (500, 2200)
_STEPS = (
    "the machine's limits", "first load", "operations of a tile", "vision", "prefill", "decode",
    "first token, nothing kept", "first token, everything kept", "first token after a restart", "second question",
)  # fmt: skip
_READ = 1 << 24


@dataclass(frozen=True)
class Computer:
    """Where it was measured."""

    processor: str
    architecture: str
    threads: int
    """That both halves used."""
    memory_bytes: int


@dataclass(frozen=True)
class Prefill:
    """A prompt's tokens, from an empty context."""

    kind: Literal["text", "image"]
    tokens: int
    ours: float
    """Tokens per second."""
    raw: float
    """Of stock llama.cpp, without kernels of ours, with as many tokens; measured in turns."""
    limit: float
    """What the machine's limits allow."""


@dataclass(frozen=True)
class Decode:
    """An answer's tokens."""

    context: int
    """Tokens before them."""
    ours: float
    """Tokens per second: sampled, decoded and turned into text."""
    raw: float
    """Of llama.cpp's own function with any tokens on the same context, measured in turns."""
    limit: float


@dataclass(frozen=True)
class FirstToken:
    """Seconds to the first token of a question about an image."""

    cold: float
    """From the start of a process that keeps nothing and knows nothing; the files are in the system's memory."""
    filling: float
    """The same where states are kept for later."""
    restored: float
    """From the start of a new process to another question about that image."""
    warm: float
    """From another question about it, in the same process, to its first token."""
    limit: float
    """What the machine's limits allow for the cold one."""
    prompt_tokens: int
    image_tokens: int
    tiles: int
    stored_bytes: int
    """Of all states that the first question left in files."""


@dataclass(frozen=True)
class Measured:
    """A bundle on this machine."""

    bundle: str
    computer: Computer
    limits: Limits
    tile_work: Work
    tile_seconds: float
    tile_limit: float
    first_load_seconds: float
    """Both halves, while the vision graph is prepared for this machine."""
    load_seconds: float
    """Both halves, from then on."""
    vision_load_seconds: float
    decoder_load_seconds: float
    acceleration: str
    """The kernel of ours that the prefill ran with, or `off`."""
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]
    first_token: FirstToken
    memory: Resident
    """Peak of a process that answers about an image."""
    vision_memory: Resident
    """Peak of a process with the vision tower alone."""
    decoder_memory: Resident
    """Peak of a process with the decoder alone."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class OtherDecode:
    """Tokens of an answer by another program."""

    context: int
    tokens_per_second: float


@dataclass(frozen=True)
class OtherProgram:
    """The same model in another program on this machine; None for what was not measured."""

    name: str
    needed_bytes: int
    """Of memory; nothing was measured if there was less."""
    available_bytes: int
    fault: str | None = None
    """Why its process failed, if it did."""
    tile_seconds: float | None = None
    prefill: float | None = None
    """Tokens per second, as many tokens of text as of ours."""
    first_token_seconds: float | None = None
    """With the model loaded, and nothing known of the image."""
    decode: tuple[OtherDecode, ...] = ()
    """At a short context and at that of a question about an image."""
    memory: Resident | None = None

    @property
    def was_measured(self) -> bool:
        return self.tile_seconds is not None


def measure_bundle(
    path: str | Path,
    *,
    threads: int | None = None,
    image: Path | None = None,
    answer_tokens: int = 32,
    tiles: int = 5,
    rounds: int = 2,
    on_step: OnStep | None = None,
) -> Measured:
    """Measure a bundle; a 4-bit 8B takes about a quarter of an hour on two cores.

    `image` is an image, by default noise that becomes the most tiles of a 4:3 photograph. `answer_tokens` is how many
    are timed at each context, `tiles` and `rounds` how often a tile and everything else of the decoder is timed.
    Raises BundleError, InvalidOptionError, and BackendError if one of the processes fails.
    """
    check_options(
        whole_number("threads", threads, least=1, optional=True),
        whole_number("answer_tokens", answer_tokens, least=1),
        whole_number("tiles", tiles, least=1),
        whole_number("rounds", rounds, least=1),
    )
    bundle = read_bundle(path)
    threads, answer_tokens, tiles, rounds = map(plain, (threads, answer_tokens, tiles, rounds))
    decoder_plan(bundle, answer_tokens)  # says what is too much before anything is measured
    steps = _Steps(on_step)
    steps.next()
    limits = measure_limits()
    with _workplace() as (directory, environment):
        shown = image or _write_noise(directory)
        child = _Child(bundle, threads, shown, environment)
        return _measure(bundle, limits, child, steps, answer_tokens=answer_tokens, tiles=tiles, rounds=rounds)


def _measure(
    bundle: Bundle,
    limits: Limits,
    child: _Child,
    steps: _Steps,
    *,
    answer_tokens: int,
    tiles: int,
    rounds: int,
) -> Measured:
    """Each part in its process, one after the other."""
    figures = read_figures(bundle.decoder_path)
    _read_files(bundle)
    steps.next()
    first_load = child.part("load").result["seconds"]
    steps.next()
    tile_work = Work(**child.part("count", threads=False).result)
    steps.next()
    vision = child.part("vision", tiles=tiles)
    steps.next()
    plan = decoder_plan(bundle, answer_tokens)
    prefill = child.part("prefill", prompts=plan["prompts"], rounds=rounds).result
    steps.next()
    decoder = child.part("decoder", contexts=plan["contexts"], answer_tokens=answer_tokens, rounds=rounds)
    kernel = prefill["acceleration"]
    first_token, whole, load = _first_tokens(child, steps, limits, figures, tile_work, kernel)
    cores = child.threads or processor().threads
    return Measured(
        bundle=bundle.name,
        computer=Computer(processor().name, processor().architecture, cores, memory().total),
        limits=limits,
        tile_work=tile_work,
        tile_seconds=vision.result["tile"],
        tile_limit=tile_work.least_seconds(limits),
        first_load_seconds=first_load,
        load_seconds=load,
        vision_load_seconds=vision.result["load"],
        decoder_load_seconds=decoder.result["load"],
        acceleration=kernel,
        prefill=tuple(_prefill(facts, figures, limits) for facts in prefill["prompts"]),
        decode=tuple(_decode(facts, figures, limits) for facts in decoder.result["answers"]),
        first_token=first_token,
        memory=whole,
        vision_memory=vision.peak,
        decoder_memory=decoder.peak,
    )


def decoder_plan(bundle: Bundle, answer_tokens: int) -> dict[str, Any]:
    """How many tokens the decoder is timed with: those of a question about an image, as far as the context holds."""
    manifest = bundle.manifest
    room = min(manifest.decoder.context_length, DEFAULT_CONTEXT) - answer_tokens
    if room < 2:
        raise InvalidOptionError(
            f"{answer_tokens} tokens of an answer leave no room for a prompt: lower answer_tokens"
        )
    rows = (manifest.tiling.max_tiles + 1) * manifest.image_prompt.tokens_per_tile
    return {
        "prompts": [("text", min(_TEXT_TOKENS, room)), ("image", min(rows, room))],
        "contexts": sorted({min(context, room) for context in _CONTEXTS}),
    }


def _first_tokens(
    child: _Child, steps: _Steps, limits: Limits, figures: DecoderFigures, tile_work: Work, kernel: str
) -> tuple[FirstToken, Resident, float]:
    """The times, the peak of the cold process, and the seconds that loading takes by now.

    The kernel is named in the cold process, since without a cache nothing is known of it and none would be used.
    """
    steps.next()
    cold = child.ask(_QUESTIONS[0], "--no-cache", "--acceleration", kernel)
    steps.next()
    filling = child.ask(_QUESTIONS[0])
    stored = child.stored_bytes()
    steps.next()
    restored = child.ask(_QUESTIONS[1])
    steps.next()
    warm = child.part("warm", image=str(child.image), questions=[_QUESTIONS[0], _QUESTIONS[2]]).result
    usage = json.loads(cold.output)["usage"]
    least = tile_work.times(sum(usage["tiles"])).least_seconds(limits)
    least += prompt_work(figures, usage["prompt_tokens"]).least_seconds(limits)
    times = FirstToken(
        cold=cold.first_output, filling=filling.first_output, restored=restored.first_output,
        warm=warm["first_token"], limit=least, prompt_tokens=usage["prompt_tokens"],
        image_tokens=usage["image_tokens"], tiles=sum(usage["tiles"]), stored_bytes=stored,
    )  # fmt: skip
    return times, cold.peak, warm["load"]


def _prefill(facts: Mapping[str, Any], figures: DecoderFigures, limits: Limits) -> Prefill:
    limit = facts["tokens"] / prompt_work(figures, facts["tokens"]).least_seconds(limits)
    return Prefill(facts["kind"], facts["tokens"], facts["ours"], facts["raw"], limit)


def _decode(facts: Mapping[str, Any], figures: DecoderFigures, limits: Limits) -> Decode:
    middle = facts["context"] + facts["tokens"] // 2
    limit = 1 / answer_work(figures, middle).least_seconds(limits)
    return Decode(facts["context"], facts["ours"], facts["raw"], limit)


@dataclass(frozen=True)
class _PartResult:
    result: dict[str, Any]
    peak: Resident


@dataclass(frozen=True)
class _Child:
    """Starts processes that all measure the same."""

    bundle: Bundle
    threads: int | None
    image: Path
    environment: Mapping[str, str]

    def part(self, name: str, *, threads: bool = True, **options: Any) -> _PartResult:
        """One of `ayaedge.bench.parts`."""
        given = {"threads": self.threads, **options} if threads else options
        finished = self._run("ayaedge.bench.parts", name, str(self.bundle.directory), json.dumps(given))
        return _PartResult(json.loads(finished.output), finished.peak)

    def ask(self, question: str, *more: str) -> Finished:
        """A whole `ayaedge ask` of one token, which writes its line as soon as it has that."""
        limit = () if self.threads is None else ("-t", str(self.threads))
        where = ("-m", str(self.bundle.directory), "--image", str(self.image))
        return self._run("ayaedge", "ask", *where, "-n", "1", "--json", *limit, *more, question)

    def stored_bytes(self) -> int:
        """Of the states in files."""
        states = Path(self.environment["AYAEDGE_CACHE_DIR"]).glob("*/*.state")
        return sum(path.stat().st_size for path in states)

    def _run(self, module: str, *arguments: str) -> Finished:
        return run_watched([sys.executable, "-m", module, *arguments], environment=self.environment)


class _Steps:
    """Counts what is done, for a progress bar."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step, self._done = on_step, -1

    def next(self) -> None:
        """The next step begins."""
        self._done += 1
        if self._on_step:
            self._on_step(self._done, len(_STEPS), _STEPS[self._done])


@contextmanager
def _workplace() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A directory, and an environment with a cache of its own in which only the machine's tuning is known."""
    with tempfile.TemporaryDirectory(prefix="ayaedge-bench-") as name:
        cache, known = Path(name, "cache"), cache_directory()
        make_private(cache / "ayaedge")
        if known is not None and can_read(known / "machine"):
            shutil.copytree(known / "machine", cache / "ayaedge" / "machine")
        yield Path(name), {**os.environ, "AYAEDGE_CACHE_DIR": str(cache)}


def _write_noise(directory: Path) -> Path:
    path = directory / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, _NOISE, np.uint8)).save(path)
    return path


def _read_files(bundle: Bundle) -> None:
    """Bring the bundle into the system's memory, so that no figure depends on the disk."""
    for name in bundle.manifest.files:
        with (bundle.directory / name).open("rb") as stream:
            while stream.read(_READ):
                pass
