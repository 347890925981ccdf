"""Collecting an importance matrix: which columns of which linear of the decoder matter, on text and on images.

Two ways, with the same sequences and the same weights: from a checkpoint, layer by layer in numpy, and from a
finished bundle, through llama.cpp. Both watch the tied output head too, which `llama-imatrix` does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ayaedge.bundle import MANIFEST, Bundle, read_bundle
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import BackendError, CheckpointError, InvalidOptionError, list_faults
from ayaedge.manifest import EmbeddingTable, Formats
from ayaedge.vision.encoder import VisionEncoder
from ayaedge_export.calibration.observed_decoder import ObservedDecoder
from ayaedge_export.calibration.sequences import (
    IMAGE_WEIGHT,
    SEQUENCE_TOKENS,
    CalibrationSequence,
    FloatArray,
    calibration_sequences,
    checkpoint_vocabulary,
    embed,
)
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.decoder.forward import decoder_forward
from ayaedge_export.decoder.gguf_writer import gguf_name
from ayaedge_export.effort import MAX_TOKENS, Effort, ExportRun, PreparedDecoder
from ayaedge_export.manifest import describe
from ayaedge_export.matmul_threads import bounded_matmul
from ayaedge_export.resume.eta import Eta
from ayaedge_quant.imatrix import ImportanceMatrix, SquareSums, read_imatrix, write_imatrix

logger = logging.getLogger("ayaedge.calibration")

OnStep = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all."""

_IMPORTANCE = "../importance.gguf"
"""Next to the bundle's files, to which it does not belong."""
_PROBES = 64
"""Positions computed at once in llama.cpp, where every one of them has logits: 64 MB for 256,000 tokens."""


@dataclass(frozen=True)
class MeasuredImportance:
    """The effort `calibrated`: an importance matrix for `text`, kept until the bundle is complete."""

    effort: ClassVar[Effort] = "calibrated"
    state_bytes: ClassVar[int] = 0
    text: CalibrationText

    @property
    def adjustments(self) -> tuple[str, ...]:
        """Where the importance matrix is from."""
        return (f"importance from {self.text.name}",)

    def facts(self) -> dict[str, object]:
        """See `DecoderEffort.facts`."""
        return {"importance": self.text.digest(), "effort": None}

    def prepare(self, run: ExportRun) -> PreparedDecoder:
        """Measure the matrix, unless the journal has it."""
        path = run.journal.directory / _IMPORTANCE
        if not run.journal.of(_IMPORTANCE):
            eta = Eta(run.plan.checkpoint.config.text.num_layers)

            def calibrated(done: int, of: int) -> None:
                run.advance(0, eta.label(f"calibrating {done}/{of}", done))

            write_imatrix(path, collect(run.plan.checkpoint, self.text, on_step=calibrated))
            run.journal.add_file(_IMPORTANCE)
        return PreparedDecoder(run.plan, self.adjustments, read_imatrix(path))


def calibrate(
    source: Checkpoint | Bundle | str | Path,
    text: CalibrationText = BUILTIN,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
    on_step: OnStep | None = None,
) -> ImportanceMatrix:
    """Return the importance matrix of a checkpoint or a bundle, or of a directory that holds either.

    See `collect` and `collect_from_bundle`, whose errors it raises.
    """
    if isinstance(source, (str, Path)):
        source = read_bundle(source) if (Path(source) / MANIFEST).is_file() else open_checkpoint(source)
    if isinstance(source, Bundle):
        return collect_from_bundle(
            source, text, image_weight=image_weight, max_tokens=max_tokens, on_step=on_step
        )
    return collect(source, text, image_weight=image_weight, max_tokens=max_tokens, on_step=on_step)


def collect(
    checkpoint: Checkpoint,
    text: CalibrationText = BUILTIN,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
    on_step: OnStep | None = None,
) -> ImportanceMatrix:
    """Mean squared inputs of every linear of a checkpoint's decoder, computed in float32, layer by layer.

    Every language counts the same, whatever its number of tokens; `image_weight` 0 leaves images out. Peak memory
    is one matrix and about 5 arrays of (positions, hidden) in float32: 1 GB for the 8B and the builtin text.
    Raises CheckpointError if activations are not finite, InvalidOptionError for values that make no sense.
    """
    config = checkpoint.config
    manifest = describe(checkpoint, EmbeddingTable("F32", 0, 0), Formats("fp32", "f32"))
    with checkpoint_vocabulary(checkpoint) as vocabulary:
        sequences = calibration_sequences(
            manifest, vocabulary.tokenize, text, image_weight=image_weight, max_tokens=max_tokens
        )
    position_weights = np.concatenate([sequence.weights for sequence in sequences])
    widths = _widths(config.text)
    sums, layers = SquareSums(), iter(range(1, config.text.num_layers + 1))

    def observe(name: str, column: int, x: FloatArray) -> None:
        tensor = gguf_name(f"{name}.weight")
        sums.add(tensor, x, position_weights, first_column=column, columns=widths[tensor])

    def layer_done(_: int) -> None:
        if on_step:
            on_step(next(layers), config.text.num_layers)

    with bounded_matmul(config.text.hidden_size):
        embedded = embed(checkpoint, sequences, manifest.tokens.image_patch)
        decoder_forward(config.text, checkpoint.tensors, embedded, observe, advance=layer_done)
    try:
        return sums.matrix((text.name,), chunk_size=SEQUENCE_TOKENS)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint {checkpoint.directory}: {error}") from None


def collect_from_bundle(
    bundle: Bundle,
    text: CalibrationText = BUILTIN,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
    options: DecoderOptions | None = None,
    on_step: OnStep | None = None,
) -> ImportanceMatrix:
    """What `collect` gives, from a bundle through llama.cpp: faster, and as exact as the bundle's formats are.

    Of `options`, threads, cache type and layers on a GPU are heeded. Raises BackendError if this build of llama.cpp
    cannot be watched, InvalidOptionError for values that make no sense.
    """
    given = options or DecoderOptions()
    if given.gpu_layers:
        raise InvalidOptionError("calibration reads llama.cpp's main memory: leave gpu_layers at 0")
    sums = SquareSums()
    current: list[FloatArray] = []

    def observe(name: str, x: FloatArray) -> None:
        start = decoder.position
        sums.add(name, x, current[0][start : start + len(x)])

    settings = DecoderOptions(
        threads=given.threads, cache_type=given.cache_type, batch_size=_PROBES, all_logits=True
    )
    with ObservedDecoder(bundle, observe, settings) as decoder:
        sequences = calibration_sequences(
            bundle.manifest,
            decoder.vocabulary.tokenize,
            text,
            image_weight=image_weight,
            max_tokens=max_tokens,
        )
        images = _encode_images(bundle, sequences)
        for number, (sequence, image) in enumerate(zip(sequences, images, strict=True), 1):
            rows = decoder.embed(sequence.ids)
            if image is not None:
                rows[np.asarray(sequence.ids) == bundle.manifest.tokens.image_patch] = image
            current[:] = [sequence.weights]
            decoder.clear()
            decoder.decode_embeddings(rows)
            if on_step:
                on_step(number, len(sequences))
    matrix = sums.matrix((text.name,), chunk_size=SEQUENCE_TOKENS)
    _check_all_seen(matrix, bundle.manifest.decoder.num_layers)
    return matrix


def load_importance(path: str | Path, checkpoint: Checkpoint) -> ImportanceMatrix:
    """Read an importance matrix for a checkpoint's decoder; InvalidOptionError lists all that does not fit.

    Linears that it lacks (llama-imatrix leaves out the tied head) are named in the log; they are encoded without.
    """
    try:
        matrix = read_imatrix(path)
    except OSError as error:
        raise InvalidOptionError(f"the importance matrix {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidOptionError(str(error)) from None
    widths = _widths(checkpoint.config.text)
    faults = [
        f"it has {name}, which this decoder does not have" for name in matrix.entries if name not in widths
    ]
    faults += [
        f"{name} has {len(entry.sums)} columns instead of {widths[name]}"
        for name, entry in matrix.entries.items()
        if len(entry.sums) != widths.get(name, len(entry.sums))
    ]
    if faults:
        raise InvalidOptionError(list_faults(f"{path} is the importance matrix of another model", faults))
    if missing := sorted(set(widths) - set(matrix.entries)):
        logger.warning("%s has nothing on %s; encoding them without", path, ", ".join(missing))
    return matrix


def _check_all_seen(matrix: ImportanceMatrix, num_layers: int) -> None:
    linears = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    expected = {f"blk.{layer}.{linear}.weight" for layer in range(num_layers) for linear in linears}
    if unseen := (expected | {"token_embd.weight"}) - set(matrix.entries):
        raise BackendError(f"llama.cpp did not show the inputs of {', '.join(sorted(unseen))}")


def _encode_images(bundle: Bundle, sequences: Sequence[CalibrationSequence]) -> list[FloatArray | None]:
    """The image embeddings (image tokens, hidden) of each sequence that has an image."""
    encoder = VisionEncoder(bundle.vision_path, bundle.manifest)
    try:
        return [
            None
            if sequence.tiles is None
            else encoder.encode(sequence.tiles).reshape(-1, bundle.manifest.decoder.hidden_size)
            for sequence in sequences
        ]
    finally:
        encoder.close()


def _widths(text: TextConfig) -> Mapping[str, int]:
    """Columns of every linear, by its name in the GGUF file."""
    return {
        gguf_name(name): shape[1] for name, shape in text.tensors.items() if not name.endswith("norm.weight")
    }
