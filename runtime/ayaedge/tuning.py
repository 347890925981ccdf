"""Measuring a bundle on this machine: which settings of the decoder are fastest, and how fast everything is.

The result is remembered in the cache directory, for this bundle, processor and versions of both libraries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ayaedge.bundle import Bundle, Manifest
from ayaedge.costs import Speeds
from ayaedge.decoder import Decoder, DecoderOptions, repacks_by_default
from ayaedge.devices import Device
from ayaedge.errors import BackendError
from ayaedge.machine import memory, processor
from ayaedge.placement import place
from ayaedge.prepared import make_private
from ayaedge.states import CacheOptions
from ayaedge.vision import VisionEncoder, VisionOptions, open_encoder

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 200
"""Of the work that is tuned for: a question about a picture with most tiles, and an answer of this length."""
_TEXT_TOKENS = 600
"""Template and question around the picture."""
_PROMPT_SAMPLE, _ANSWER_SAMPLE = 256, 12
_QUICK_SAMPLE = 96
_GROWTH = 1.5e-4
"""Share by which a token takes longer for each token before it, where that is not measured."""
_ROUNDS = 2
_TILES = 3
_UBATCHES = (256, 512)


@dataclass(frozen=True)
class Settings:
    """What is tuned; the names are those of `DecoderOptions`."""

    repack: bool
    threads: int
    threads_batch: int
    ubatch_size: int


@dataclass(frozen=True)
class Trial:
    """One choice of settings and what it took."""

    settings: Settings
    prompt_token: float
    """Seconds."""
    answer_token: float
    work_seconds: float
    """For the work that is tuned for, without the vision tower."""


@dataclass(frozen=True)
class Profile:
    """What is known of a bundle on this machine."""

    speeds: Speeds
    settings: Settings | None = None
    """None after a quick measurement, which tries no others than the defaults."""

    def apply(self, options: DecoderOptions) -> DecoderOptions:
        """`options` with the tuned value wherever they leave one open."""
        if self.settings is None:
            return options
        tuned = dataclasses.asdict(self.settings)
        if options.threads is not None:  # given for both kinds of work
            tuned["threads_batch"] = options.threads
        left = {name: value for name, value in tuned.items() if getattr(options, name) is None}
        return dataclasses.replace(options, **left)


def profile_path(cache: Path, bundle: Bundle) -> Path:
    """Where the profile of a bundle on this machine lies."""
    import onnxruntime

    from ayaedge import llama

    hashes = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    versions = (llama.library().__version__, onnxruntime.__version__)
    facts = (hashes, processor().name, processor().threads, platform.machine(), versions)
    return cache / "machine" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.json"


def load_profile(path: Path) -> Profile | None:
    """A profile that was saved; None if there is none, or not a whole one."""
    try:
        values = json.loads(path.read_text("utf-8"))
        settings = values["settings"]
        profile = Profile(Speeds(**values["speeds"]), Settings(**settings) if settings else None)
        profile.apply(DecoderOptions())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return profile


def save_profile(path: Path, profile: Profile) -> None:
    """Write it; what goes wrong is logged and nothing else happens."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        make_private(path.parent.parent)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.write_text(json.dumps(dataclasses.asdict(profile)) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        logger.warning("what was measured could not be kept in %s: %s", path.parent, error)
        with suppress(OSError):
            temporary.unlink()


def measure_speeds(vision: VisionEncoder, decoder: Decoder, manifest: Manifest) -> Speeds:
    """A quick measurement with a model as it is loaded; the decoder forgets what it holds.

    Takes four tiles, a hundred tokens of prompt and a few of an answer.
    """
    decoder.clear()
    decoder.decode_tokens(_tokens(decoder, 2))  # touches the weights
    prompt = _prompt_token(decoder, min(_QUICK_SAMPLE, decoder.context_size // 2))
    answer = _answer_token(decoder)
    decoder.clear()
    tile = measure_tile(vision, manifest)
    return Speeds(tile, prompt, prompt * _GROWTH, answer, answer * _GROWTH)


def measure_tile(vision: VisionEncoder, manifest: Manifest) -> float:
    """Seconds that a tile takes after the first, the median of several."""
    size, seconds = manifest.tiling.tile_size, []
    vision.warm_up()
    for pixels in np.random.default_rng(0).uniform(-1, 1, (_TILES, 1, 3, size, size)).astype(np.float32):
        started = time.perf_counter()
        vision.run(pixels)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def tune(
    bundle: Bundle,
    options: DecoderOptions,
    *,
    device: Device = "auto",
    cache: CacheOptions | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> tuple[Profile, list[Trial]]:
    """Compare settings, one kind after the other, and keep each change that makes the work faster.

    `options` sets everything that is not tuned; devices are chosen as `AyaVision.load` would. Those that are compared
    take turns, because a machine's speed drifts; repacked weights are tried only where there is memory for them.
    Raises what loading raises.
    """
    options, vision = place(bundle, device, options, VisionOptions())
    trials: list[Trial] = []
    best = _defaults()
    for changes in _changes(bundle):
        rivals = [best, *(dataclasses.replace(best, **change) for change in changes)]
        found = _compare(bundle, options, rivals)
        trials += found
        if on_trial:
            for trial in found:
                on_trial(trial)
        best = min(found, key=lambda trial: trial.work_seconds).settings
    encoder = open_encoder(bundle, vision, prepared=(cache or CacheOptions()).prepared())
    try:
        tile = measure_tile(encoder, bundle.manifest)
    finally:
        encoder.close()
    return Profile(_all_speeds(bundle, options, best, tile), best), trials


def _defaults() -> Settings:
    machine = processor()
    return Settings(
        repack=repacks_by_default(), threads=machine.threads, threads_batch=machine.threads,
        ubatch_size=_UBATCHES[0],
    )  # fmt: skip


def _changes(bundle: Bundle) -> Iterator[list[dict[str, Any]]]:
    """Of each kind, what to change about the best so far."""
    machine = processor()
    if memory().available > 2.5 * bundle.decoder_path.stat().st_size:
        yield [{"repack": not _defaults().repack}]
    counts = {count for count in (machine.cores, machine.threads - 1) if 1 < count < machine.threads}
    for name in ("threads_batch", "threads") if counts else ():
        yield [{name: count} for count in sorted(counts)]
    yield [{"ubatch_size": size} for size in _UBATCHES[1:]]


def _compare(bundle: Bundle, options: DecoderOptions, rivals: Sequence[Settings]) -> list[Trial]:
    """One trial of each, from the best of several rounds in which they take turns."""
    manifest = bundle.manifest
    work = (manifest.tiling.max_tiles + 1) * manifest.image_prompt.tokens_per_tile + _TEXT_TOKENS
    prompts, answers = ([float("inf")] * len(rivals) for _ in range(2))
    with ExitStack() as stack:
        decoders = [
            stack.enter_context(Decoder(bundle.decoder_path, manifest, _with(options, settings)))
            for settings in rivals
        ]
        sample = max(_PROMPT_SAMPLE, *(settings.ubatch_size for settings in rivals))
        for _ in range(_ROUNDS):
            for number, decoder in enumerate(decoders):
                decoder.clear()
                count = min(sample, decoder.context_size // 2)
                decoder.reserve(count + _ANSWER_SAMPLE)
                prompts[number] = min(prompts[number], _prompt_token(decoder, count))
                answers[number] = min(answers[number], _answer_token(decoder))
    return [
        Trial(settings, prompt, answer, work * prompt + ANSWER_TOKENS * answer)
        for settings, prompt, answer in zip(rivals, prompts, answers, strict=True)
    ]


def _with(options: DecoderOptions, settings: Settings) -> DecoderOptions:
    return dataclasses.replace(options, **dataclasses.asdict(settings))


def _all_speeds(bundle: Bundle, options: DecoderOptions, best: Settings, tile: float) -> Speeds:
    """How the decoder's steps grow with what stands before them, from twice as much prompt as in a trial."""
    with Decoder(bundle.decoder_path, bundle.manifest, _with(options, best)) as decoder:
        count = min(max(_PROMPT_SAMPLE, best.ubatch_size), decoder.context_size // 4)
        decoder.reserve(2 * count + _ANSWER_SAMPLE)
        decoder.decode_tokens(_tokens(decoder, 2))  # touches the weights
        decoder.clear()
        first, second = _prompt_token(decoder, count), _prompt_token(decoder, count)
        answer = _answer_token(decoder)
    growth = max(second - first, 0.0) / count
    start = max(first - growth * count / 2, first / 2)
    return Speeds(tile, start, growth, answer, answer * _GROWTH)


def _prompt_token(decoder: Decoder, count: int) -> float:
    """Seconds per token of a prompt that is appended."""
    ids = _tokens(decoder, count)
    started = time.perf_counter()
    decoder.decode_tokens(ids)
    return (time.perf_counter() - started) / count


def _answer_token(decoder: Decoder) -> float:
    """Seconds of a token alone, the median of several."""
    seconds = []
    for token in _tokens(decoder, min(_ANSWER_SAMPLE, decoder.context_size - decoder.position)):
        started = time.perf_counter()
        decoder.decode_tokens([token])
        seconds.append(time.perf_counter() - started)
    if not seconds:
        raise BackendError(f"a context of {decoder.context_size} tokens is too small to measure")
    return statistics.median(seconds)


def _tokens(decoder: Decoder, count: int) -> list[int]:
    """Any tokens: what they say does not decide about the time."""
    return [int(token) for token in np.random.default_rng(count).integers(0, decoder.vocabulary.size, count)]
