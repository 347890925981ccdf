"""Measuring a bundle on this machine: which settings of the decoder are fastest, and how fast everything is.

The result is remembered in the cache directory, for this bundle, processor and versions of both libraries.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cache.options import CacheOptions, prepared_graphs
from ayaedge.cache.verified import verified
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kernel_trial import settle_acceleration
from ayaedge.decoder.options import DecoderOptions, repacks_by_default
from ayaedge.decoder.repacking import repacking_of
from ayaedge.errors import AyaEdgeError, BackendError
from ayaedge.hardware.devices import Device
from ayaedge.hardware.machine import memory, processor
from ayaedge.hardware.probes import Probe, Result, Verdicts, probe
from ayaedge.hardware.speeds import Speeds
from ayaedge.manifest import Manifest
from ayaedge.planning.device_check import check_devices
from ayaedge.planning.placement import Placement, other_places, resolve
from ayaedge.planning.profile import Profile, Settings
from ayaedge.vision.encoder import VisionEncoder, open_encoder
from ayaedge.vision.session import VisionOptions

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 200
"""Of the work that is tuned for: a question about an image with most tiles, and an answer of this length."""
_TEXT_TOKENS = 600
"""Template and question around the image."""
_PROMPT_SAMPLE, _ANSWER_SAMPLE = 256, 12
_QUICK_SAMPLE = 96
_GROWTH = 1.5e-4
"""Share by which a token takes longer for each token before it, where that is not measured."""
_ROUNDS = 2
_TILES = 3
_UBATCHES = (256, 512)
_PATIENCE = 900.0
"""Seconds after which a trial has failed: loading, or a prompt's sample, on the slowest disk or processor."""


@dataclass(frozen=True)
class Trial:
    """One choice of settings and what it took; no times if it ended the process that tried it."""

    settings: Settings
    prompt_token: float | None = None
    """Seconds."""
    answer_token: float | None = None
    work_seconds: float | None = None
    """For the work that is tuned for, without the vision tower."""
    death: str | None = None
    """How its process ended, `SIGSEGV` for one; None if it did not."""
    fault: str | None = None
    """Why it was not measured: the device computes wrongly, or does not work."""


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

    `options` sets everything that is not tuned. If it names no layers, devices are compared as well: the processor,
    unless `device` names another one, and each device with as many layers as it holds, with half of all, and with
    prompts alone. One that is not right here is left out. Settings that are compared take turns, because a machine's
    speed drifts, each in a process of its own, because some end it on some machines: these are not chosen. Those that
    take graphics memory have it alone, one after the other. Repacked weights are tried only where there is memory for
    them, and whether they work is remembered. Raises what loading raises, and BackendError if nothing works.
    """
    cache = cache or CacheOptions()
    bundle = verified(bundle, cache.root)
    placed = resolve(bundle, device, options)
    places = list(other_places(bundle, placed, replace(options, ubatch_size=max(_UBATCHES))))
    if places and placed.decoder.device == "auto":
        placed = replace(placed, decoder=replace(placed.decoder, gpu_layers=0, offload_prompts=None))
    placed = check_devices(bundle, placed, cache.root)
    workbench = _Workbench(bundle, options, placed.decoder, cache.root)
    trials: list[Trial] = []
    best = _defaults(placed.decoder) if places else _defaults()
    for changes in _changes(bundle, places):
        found = workbench.compare([best, *(replace(best, **change) for change in changes)])
        trials += found
        if on_trial:
            for trial in found:
                on_trial(trial)
        best = _fastest(found)
    encoder = open_encoder(bundle, placed.vision, prepared=prepared_graphs(cache))
    try:
        tile = measure_tile(encoder, bundle.manifest)
    finally:
        encoder.close()
    return Profile(workbench.speeds(best, tile), best, workbench.options(best).acceleration), trials


def _fastest(trials: Sequence[Trial]) -> Settings:
    """Of those that worked."""
    times = [(trial.work_seconds, trial) for trial in trials if trial.work_seconds is not None]
    if not times:
        deaths = ", ".join(sorted({trial.death or trial.fault or "" for trial in trials}))
        raise BackendError(f"llama.cpp ended every process that tried the decoder's settings here ({deaths})")
    return min(times, key=lambda pair: pair[0])[1].settings


def _defaults(placed: DecoderOptions | None = None) -> Settings:
    """What is tried first; in the place of `placed`, if places are compared."""
    machine = processor()
    settings = Settings(
        repack=repacks_by_default(), threads=machine.threads, threads_batch=machine.threads,
        ubatch_size=_UBATCHES[0],
    )  # fmt: skip
    if placed is None:
        return settings
    device = placed.device if placed.gpu_layers else "cpu"
    return replace(settings, device=device, gpu_layers=placed.gpu_layers or 0, offload_prompts=False)


def _changes(bundle: Bundle, places: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Of each kind, what to change about the best so far."""
    machine = processor()
    if memory().available > 2.5 * bundle.decoder_path.stat().st_size:
        yield [{"repack": not _defaults().repack}]
    counts = {count for count in (machine.cores, machine.threads - 1) if 1 < count < machine.threads}
    for name in ("threads_batch", "threads") if counts else ():
        yield [{name: count} for count in sorted(counts)]
    if places:
        yield [{**place, "repack": False} for place in places]
    yield [{"ubatch_size": size} for size in _UBATCHES[1:]]


class _Workbench:
    """Trials of settings for one bundle."""

    def __init__(
        self, bundle: Bundle, asked: DecoderOptions, placed: DecoderOptions, directory: Path | None
    ) -> None:
        self._bundle, self._directory = bundle, directory
        self._asked = asked
        self._placed = settle_acceleration(placed, directory)

    def options(self, settings: Settings) -> DecoderOptions:
        """Those of a decoder with these settings."""
        options = settings.apply(self._placed)
        if options.uses_gpu:  # nothing is accelerated there, and attention is its own
            options = replace(options, acceleration="off", flash_attention=self._asked.flash_attention)
        return options

    def compare(self, rivals: Sequence[Settings]) -> list[Trial]:
        """One trial of each, from the best of several rounds in which they take turns."""
        sample = max(_PROMPT_SAMPLE, *(settings.ubatch_size for settings in rivals))
        faults = {settings: self._fault(settings) for settings in rivals}
        works = [settings for settings in rivals if not faults[settings]]
        alone = any(self.options(settings).uses_gpu for settings in works)  # graphics memory is for one
        groups = [[settings] for settings in works] if alone else [works]
        found = dict(itertools.chain.from_iterable(self._take_turns(group, sample) for group in groups))
        return [found.get(settings) or Trial(settings, fault=faults[settings]) for settings in rivals]

    def speeds(self, best: Settings, tile: float) -> Speeds:
        """All of them, measured apart, as the trials are."""
        found = probe(measure_growth, *self._arguments(best), seconds=_PATIENCE)
        if found.death is not None:
            raise BackendError(
                f"llama.cpp ended the process that measured the decoder ({found.death}); {found.said}"
            )
        start, growth, answer = found.value
        return Speeds(tile, start, growth, answer, answer * _GROWTH)

    def _fault(self, settings: Settings) -> str | None:
        """Why these are not measured: their device is not right here."""
        options = self.options(settings)
        if settings.device is None or not options.uses_gpu:
            return None
        placed = Placement(options, VisionOptions(device="cpu"), None, None)
        try:
            check_devices(self._bundle, placed, self._directory)
        except AyaEdgeError as error:
            return str(error)
        return None

    def _take_turns(self, rivals: Sequence[Settings], sample: int) -> Iterator[tuple[Settings, Trial]]:
        with ExitStack() as stack:
            probes = [
                stack.enter_context(Probe(measure, *self._arguments(settings), sample)) for settings in rivals
            ]
            rounds = [[probe.ask(_PATIENCE) for probe in probes] for _ in range(1 + _ROUNDS)]
        for settings, seen in zip(rivals, zip(*rounds, strict=True), strict=True):
            if settings.repack:
                setting = repacking_of(self._bundle, self.options(settings))
                Verdicts(self._directory).remember(setting, seen[-1])
            yield settings, _trial(self._bundle.manifest, settings, seen)

    def _arguments(self, settings: Settings) -> tuple[str, dict[str, Any]]:
        """What a decoder with these settings is made of, for a probe."""
        return str(self._bundle.directory), dataclasses.asdict(self.options(settings))


def _trial(manifest: Manifest, settings: Settings, results: Sequence[Result]) -> Trial:
    """From what a probe of `measure` gave back."""
    last = results[-1]
    if last.death is not None:
        return Trial(settings, death=last.death)
    work = (manifest.tiling.max_tiles + 1) * manifest.image_prompt.tokens_per_tile + _TEXT_TOKENS
    prompt, answer = (min(times) for times in zip(*(result.value for result in results[1:]), strict=True))
    return Trial(settings, prompt, answer, work * prompt + ANSWER_TOKENS * answer)


def measure(directory: str, options: dict[str, Any], sample: int) -> Iterator[list[float]]:
    """Load a decoder, which gives nothing; then, as often as asked, seconds of a prompt's token and of an answer's."""
    with _decoder(directory, options) as decoder:
        count = min(sample, decoder.context_size // 2)
        yield []
        while True:
            decoder.clear()
            decoder.reserve(count + _ANSWER_SAMPLE)
            yield [_prompt_token(decoder, count), _answer_token(decoder)]


def _decoder(directory: str, options: dict[str, Any]) -> Decoder:
    bundle = read_bundle(directory)
    return Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(**options))


def measure_growth(directory: str, options: dict[str, Any]) -> list[float]:
    """Seconds of a prompt's first token, how these grow with each before it, and of an answer's token.

    From twice as much prompt as in a trial.
    """
    with _decoder(directory, options) as decoder:
        count = min(max(_PROMPT_SAMPLE, decoder.options.rows_at_once), decoder.context_size // 4)
        decoder.reserve(2 * count + _ANSWER_SAMPLE)
        decoder.decode_tokens(_tokens(decoder, 2))  # touches the weights
        decoder.clear()
        first, second = _prompt_token(decoder, count), _prompt_token(decoder, count)
        answer = _answer_token(decoder)
    growth = max(second - first, 0.0) / count
    return [max(first - growth * count / 2, first / 2), growth, answer]


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
