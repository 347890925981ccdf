"""The decoder to a stock GGUF file, in one pass: rows are read, encoded by ggml and written, slab by slab.

Nothing is permuted: both sides rotate adjacent pairs. Embeddings are tied, so llama.cpp uses `token_embd` as
the output head too. The keys follow llama.cpp's loaders of `cohere2` and `command-r`.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from ayaedge.hardware.machine import usable_threads
from ayaedge.manifest import EmbeddingTable, TextToken
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.checkpoint.tensors import TensorSource, slabs
from ayaedge_export.checkpoint.tokenizer import PRE_TOKENIZER, Tokenizer
from ayaedge_export.resume.journal import Journal, Piece
from ayaedge_quant.imatrix import ImportanceMatrix
from ayaedge_quant.number_formats import GgmlType, encode
from ayaedge_quant.recipes import FILE_TYPE, DecoderFormat, Recipe, tensor_type

if TYPE_CHECKING:
    from ayaedge_export.plan import ExportPlan

ARCHITECTURES = {"cohere2": "cohere2", "cohere": "command-r"}
"""llama.cpp's name of each decoder type."""

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Advance = Callable[[int, str], None]
"""Called with bytes of the checkpoint that were dealt with, and what they belonged to."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file to be written."""

    source: str
    """Its name in the checkpoint."""
    name: str
    """Its name in the GGUF file."""
    shape: tuple[int, ...]
    kind: GgmlType

    @property
    def nbytes(self) -> int:
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * self.kind.row_bytes(self.shape[-1])


class BlockSource(Protocol):
    """Gives whole tensors in the order of the plan, where each depends on those before it."""

    def resume(self, plan: Sequence[PlannedTensor], finished: int) -> int:
        """How many of the first `finished` tensors of `plan`, which are written, need not come again."""
        ...

    def blocks(
        self, left: Sequence[PlannedTensor]
    ) -> Iterator[tuple[PlannedTensor, Iterator[NDArray[np.uint8]]]]:
        """Each tensor of the rest of the plan with its rows in its type, in one part or several."""
        ...


EncodeRows = Callable[[PlannedTensor, int, int], NDArray[np.uint8]]
"""Gives rows of a tensor, from one up to another, in its type: bytes (rows, row_bytes). Called on many threads."""


def plan_tensors(text: TextConfig, recipe: DecoderFormat | Recipe) -> list[PlannedTensor]:
    """Every tensor of the file with its type, in the order in which it is written: the embeddings first."""
    plan = []
    for source, shape in text.tensors.items():
        name = gguf_name(source)
        plan.append(PlannedTensor(source, name, shape, tensor_type(name, shape, text.num_layers, recipe)))
    return plan


def gguf_name(source: str) -> str:
    """llama.cpp's name of a decoder tensor that the hub calls `source`."""
    path = source.removeprefix("language_model.model.").removesuffix(".weight")
    if path == "embed_tokens":
        return "token_embd.weight"
    if path == "norm":
        return "output_norm.weight"
    _, layer, part = path.split(".", 2)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def write_decoder(
    plan: ExportPlan,
    path: Path,
    *,
    importance: ImportanceMatrix | None = None,
    threads: int | None = None,
    advance: Advance | None = None,
    journal: Journal | None = None,
    encode_rows: EncodeRows | None = None,
    source: BlockSource | None = None,
) -> EmbeddingTable:
    """Write the decoder to `path` as planned; returns where its embeddings lie.

    With `importance` the encoders weigh each column by its mean squared input; `encode_rows` takes their place, and
    no tensor is read. `source` takes the place of both, and of the threads. Otherwise peak memory is a few slabs of
    16 MB for each thread. Header and tensors are noted in `journal` when they are finished; those that it has already
    are not written again. Raises ValueError, naming the tensor, for weights that are not finite or too large for their
    type, and OSError if the file cannot be written.
    """
    tensors = plan.checkpoint.tensors
    encode_rows = encode_rows or (
        lambda tensor, start, stop: _encode_rows(tensors, tensor, start, stop, importance)
    )
    header = _header(plan, path.with_name(f"{path.name}.header"), importance)
    first = plan.tensors[0]
    finished = _finished_pieces(plan, path.name, journal, source)
    with path.open("r+b" if finished else "wb") as out:
        pieces = PieceWriter(out, path.name, journal)
        if finished:
            pieces.skip(finished)
        else:
            pieces.write(header)
            pieces.finish("header")
        written = max(len(finished) - 1, 0)
        for tensor in plan.tensors[:written]:
            if advance:
                advance(tensors.entries[tensor.source].nbytes, tensor.name)
        left = plan.tensors[written:]
        if source:
            _write_source(pieces, source.blocks(left), tensors, advance)
        else:
            _write_tensors(pieces, left, tensors, encode_rows, threads or usable_threads(), advance)
    return EmbeddingTable(first.kind.name, len(header), first.kind.row_bytes(first.shape[1]))


def _finished_pieces(
    plan: ExportPlan, name: str, journal: Journal | None, source: BlockSource | None
) -> list[Piece]:
    """The header and tensors of the file that need not be written again."""
    finished = journal.of(name) if journal else []
    if not journal or not source or not finished:
        return finished
    kept = source.resume(plan.tensors, len(finished) - 1)
    journal.keep(name, 1 + kept)
    return finished[: 1 + kept]


class PieceWriter:
    """Writes a file piece by piece, and notes the finished ones in a journal."""

    def __init__(self, out: BinaryIO, name: str, journal: Journal | None) -> None:
        self._out, self._name, self._journal = out, name, journal
        self._size = self._crc32 = 0

    def skip(self, finished: Sequence[Piece]) -> None:
        """Go on behind pieces that are there; what lies behind them is cut off."""
        self._out.seek(sum(piece.nbytes for piece in finished))
        self._out.truncate()

    def write(self, data: bytes | memoryview) -> None:
        """Append to the current piece."""
        self._out.write(data)
        self._size += memoryview(data).nbytes
        self._crc32 = zlib.crc32(data, self._crc32)

    def finish(self, name: str) -> None:
        """End the current piece."""
        self._out.flush()
        if self._journal:
            self._journal.add(self._name, name, self._size, self._crc32)
        self._size = self._crc32 = 0


def header_bytes(plan: ExportPlan) -> int:
    """What lies in front of the first tensor, whatever types the tensors have, without an importance matrix."""
    with TemporaryDirectory() as scratch:
        return len(_header(plan, Path(scratch) / "header", None))


class MetadataWriter(gguf.GGUFWriter):  # type: ignore[misc]
    """Packs lists at once, where gguf makes three calls for each of a vocabulary's 256,000 tokens."""

    def _pack_val(self, val: Any, vtype: gguf.GGUFValueType, *rest: Any, **named: Any) -> bytes:
        packed = None
        if vtype == gguf.GGUFValueType.ARRAY and not rest and named == {"add_vtype": True, "sub_type": None}:
            packed = _packed_list(val)
        return packed or bytes(super()._pack_val(val, vtype, *rest, **named))


def _packed_list(values: Any) -> bytes | None:
    """A list of text or of whole numbers as gguf writes it, little-endian; None if it is neither."""
    kinds = set(map(type, values)) if isinstance(values, list) else set()
    if kinds == {str}:
        kind = gguf.GGUFValueType.STRING
        encoded = [text.encode() for text in values]
        data = b"".join(part for text in encoded for part in (struct.pack("<Q", len(text)), text))
    elif kinds in ({int}, {gguf.TokenType}):
        kind = gguf.GGUFValueType.INT32
        data = struct.pack(f"<{len(values)}i", *values)
    else:
        return None
    return struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, kind, len(values)) + data


def _header(plan: ExportPlan, scratch: Path, importance: ImportanceMatrix | None) -> bytes:
    """Everything in front of the first tensor, padding included; written to the file `scratch` on the way."""
    writer = MetadataWriter(scratch, ARCHITECTURES[plan.checkpoint.config.text.model_type])
    try:
        _add_metadata(writer, plan.checkpoint, plan.recipe.format)
        if importance:
            _add_importance(writer, importance)
        for tensor in plan.tensors:
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes,
                raw_dtype=gguf.GGMLQuantizationType(int(tensor.kind)) if tensor.kind != GgmlType.F32 else None,
            )  # fmt: skip
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = scratch.read_bytes()
    finally:
        writer.close()
        scratch.unlink(missing_ok=True)
    return header + bytes(-len(header) % gguf.GGUF_DEFAULT_ALIGNMENT)


def _write_source(
    pieces: PieceWriter,
    blocks: Iterator[tuple[PlannedTensor, Iterator[NDArray[np.uint8]]]],
    tensors: TensorSource,
    advance: Advance | None,
) -> None:
    """Write tensors as they come."""
    for tensor, parts in blocks:
        for part in parts:
            pieces.write(np.ascontiguousarray(part).data)
        _finish(pieces, tensor)
        if advance:
            advance(tensors.entries[tensor.source].nbytes, tensor.name)


def _finish(pieces: PieceWriter, tensor: PlannedTensor) -> None:
    pieces.write(bytes(-tensor.nbytes % gguf.GGUF_DEFAULT_ALIGNMENT))
    pieces.finish(tensor.name)


def _write_tensors(
    pieces: PieceWriter,
    plan: Sequence[PlannedTensor],
    tensors: TensorSource,
    encode_rows: EncodeRows,
    threads: int,
    advance: Advance | None,
) -> None:
    """Encode slabs on `threads` threads and write them in order; at most two slabs a thread are in memory."""
    pending: deque[tuple[PlannedTensor, int, bool, Future[NDArray[np.uint8]]]] = deque()

    def write_oldest() -> None:
        tensor, source_bytes, last, future = pending.popleft()
        pieces.write(future.result().data)
        if last:
            _finish(pieces, tensor)
        if advance:
            advance(source_bytes, tensor.name)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for tensor in plan:
                entry = tensors.entries[tensor.source]
                for start, stop in slabs(tensor.shape):
                    share = entry.nbytes * (stop - start) // entry.shape[0]
                    future = pool.submit(encode_rows, tensor, start, stop)
                    pending.append((tensor, share, stop == entry.shape[0], future))
                    if len(pending) > 2 * threads:
                        write_oldest()
            while pending:
                write_oldest()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _encode_rows(
    tensors: TensorSource, tensor: PlannedTensor, start: int, stop: int, importance: ImportanceMatrix | None
) -> NDArray[np.uint8]:
    weights = tensors.read_rows(tensor.source, start, stop)
    columns = importance.importance(tensor.name) if importance else None
    try:
        return encode(weights.reshape(-1, tensor.shape[-1]), tensor.kind, columns)
    except ValueError as error:
        broken = int(np.count_nonzero(~np.isfinite(weights)))
        raise ValueError(
            f"tensor {tensor.source}, rows {start} to {stop}: {broken} values: {error}"
        ) from None


def _add_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, fmt: DecoderFormat) -> None:
    text = checkpoint.config.text
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(checkpoint.name)
    writer.add_license(checkpoint.license)
    writer.add_file_type(FILE_TYPE[fmt])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(text.context_length)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_heads)
    writer.add_head_count_kv(text.num_kv_heads)
    writer.add_layer_norm_eps(text.layer_norm_eps)
    writer.add_rope_freq_base(text.rope_theta)  # llama.cpp silently assumes 10000 without it
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_logit_scale(text.logit_scale)
    writer.add_vocab_size(text.vocab_size)
    if text.sliding_window is not None:
        writer.add_sliding_window(text.sliding_window)
        writer.add_array(f"{writer.arch}.attention.sliding_window_pattern", list(text.layer_is_sliding))
    add_tokenizer(writer, checkpoint.tokenizer, text.vocab_size)
    writer.add_chat_template(checkpoint.chat_template)


def _add_importance(writer: gguf.GGUFWriter, importance: ImportanceMatrix) -> None:
    """Where the importance came from, under the keys of llama.cpp's quantizer."""
    if importance.datasets:
        writer.add_string("quantize.imatrix.dataset", importance.datasets[0])
    writer.add_uint32("quantize.imatrix.entries_count", len(importance.entries))
    writer.add_uint32("quantize.imatrix.chunks_count", importance.chunk_count)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """The vocabulary, padded to the rows of the embeddings.

    Added tokens are CONTROL, so that llama.cpp parses none of them in a user's text and prints none of them; but those
    that any text may hold are USER_DEFINED, unless they have flags that it does not know (`text.added_tokens` does).
    """
    anywhere = {token.text for token in tokenizer.texts if token == TextToken(token.text, token.id)}
    taken = tokenizer.vocab.keys() | tokenizer.added.keys()
    names, kinds = [], []
    for index, token in enumerate(tokenizer.token_list(rows)):
        if token is None:
            names.append(_padding(index, taken))
            kinds.append(gguf.TokenType.UNUSED)
        else:
            names.append(token)
            kinds.append(
                gguf.TokenType.USER_DEFINED
                if token in anywhere and index not in tokenizer.hidden
                else gguf.TokenType.CONTROL
                if token in tokenizer.added
                else gguf.TokenType.NORMAL
            )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(tokenizer.merges))
    writer.add_bos_token_id(tokenizer.added[tokenizer.bos])
    writer.add_eos_token_id(tokenizer.added[tokenizer.eos])
    pad = tokenizer.named.get("pad_token", "")
    if pad in tokenizer.added:
        writer.add_pad_token_id(tokenizer.added[pad])
    writer.add_add_bos_token(tokenizer.adds_bos)


def _padding(index: int, taken: Container[str]) -> str:
    """A name for a row without a token that no token has: llama.cpp cannot load a name twice."""
    name = f"[PAD{index}]"
    while name in taken:
        name = f"[{name}]"
    return name
