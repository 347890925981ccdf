"""The decoder to a stock GGUF file, in one pass: rows are read, encoded by ggml and written, slab by slab.

Nothing is permuted: both sides rotate adjacent pairs. Embeddings are tied, so llama.cpp uses `token_embd` as
the output head too. The keys follow llama.cpp's loaders of `cohere2` and `command-r`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import EmbeddingTable
from ayaedge_export.checkpoint import Checkpoint, text_tensors
from ayaedge_export.config import TextConfig
from ayaedge_export.tensors import TensorIndex
from ayaedge_export.tokenizer import PRE_TOKENIZER, Tokenizer
from ayaedge_quant.ggml import GgmlType, encode
from ayaedge_quant.imatrix import ImportanceMatrix
from ayaedge_quant.recipes import FILE_TYPE, DecoderFormat, Recipe, as_recipe, tensor_type

ARCHITECTURES = {"cohere2": "cohere2", "cohere": "command-r"}
"""llama.cpp's name of each decoder type."""

_SLAB_WEIGHTS = 1 << 22
"""Weights that are read and encoded at once: 16 MB as float32."""
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


def plan_tensors(text: TextConfig, recipe: DecoderFormat | Recipe) -> list[PlannedTensor]:
    """Every tensor of the file with its type, in the order in which it is written: the embeddings first."""
    plan = []
    for source, shape in text_tensors(text).items():
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
    checkpoint: Checkpoint,
    path: Path,
    recipe: DecoderFormat | Recipe,
    *,
    importance: ImportanceMatrix | None = None,
    threads: int | None = None,
    advance: Advance | None = None,
) -> EmbeddingTable:
    """Write the decoder of `checkpoint` to `path` as `recipe` says; returns where its embeddings lie.

    With `importance` the encoders weigh each column by its mean squared input. Peak memory is a few slabs of 16 MB
    for each thread. Raises ValueError, naming the tensor, for weights that are not finite or too large for their
    type, and OSError if the file cannot be written.
    """
    plan = plan_tensors(checkpoint.config.text, recipe)
    writer = gguf.GGUFWriter(path, ARCHITECTURES[checkpoint.config.text.model_type])
    try:
        _add_metadata(writer, checkpoint, as_recipe(recipe).format)
        if importance:
            _add_importance(writer, importance)
        for tensor in plan:
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes,
                raw_dtype=gguf.GGMLQuantizationType(int(tensor.kind)) if tensor.kind != GgmlType.F32 else None,
            )  # fmt: skip
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        out = writer.fout[0]
        out.write(bytes(-out.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
        embeddings = EmbeddingTable(plan[0].kind.name, out.tell(), plan[0].kind.row_bytes(plan[0].shape[1]))
        _write_tensors(out, plan, checkpoint.tensors, importance, threads or os.cpu_count() or 1, advance)
    finally:
        writer.close()
    return embeddings


def _write_tensors(
    out: BinaryIO,
    plan: list[PlannedTensor],
    tensors: TensorIndex,
    importance: ImportanceMatrix | None,
    threads: int,
    advance: Advance | None,
) -> None:
    """Encode slabs on `threads` threads and write them in order; at most two slabs a thread are in memory."""
    alignment = gguf.GGUF_DEFAULT_ALIGNMENT
    pending: deque[tuple[PlannedTensor, int, bool, Future[NDArray[np.uint8]]]] = deque()

    def write_oldest() -> None:
        tensor, source_bytes, last, future = pending.popleft()
        out.write(future.result().data)
        if last:
            out.write(bytes(-tensor.nbytes % alignment))
        if advance:
            advance(source_bytes, tensor.name)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for tensor in plan:
                entry = tensors.entries[tensor.source]
                columns = importance.importance(tensor.name) if importance else None
                for start, stop in _slabs(tensor.shape):
                    share = entry.nbytes * (stop - start) // entry.shape[0]
                    future = pool.submit(_encode_rows, tensors, tensor, start, stop, columns)
                    pending.append((tensor, share, stop == entry.shape[0], future))
                    if len(pending) > 2 * threads:
                        write_oldest()
            while pending:
                write_oldest()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _encode_rows(
    tensors: TensorIndex, tensor: PlannedTensor, start: int, stop: int, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    weights = tensors.read_rows(tensor.source, start, stop)
    try:
        return encode(weights.reshape(-1, tensor.shape[-1]), tensor.kind, importance)
    except ValueError as error:
        broken = int(np.count_nonzero(~np.isfinite(weights)))
        raise ValueError(
            f"tensor {tensor.source}, rows {start} to {stop}: {broken} values: {error}"
        ) from None


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of the first axis that hold about `_SLAB_WEIGHTS` weights; a vector is one slab."""
    rows = shape[0]
    step = rows if len(shape) == 1 else max(1, _SLAB_WEIGHTS // int(np.prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


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

    Added tokens are CONTROL, so that llama.cpp parses none of them in a user's text and prints none of them.
    """
    names, kinds = [], []
    for index, token in enumerate(tokenizer.token_list(rows)):
        if token is None:
            names.append(f"[PAD{index}]")
            kinds.append(gguf.TokenType.UNUSED)
        else:
            names.append(token)
            kinds.append(gguf.TokenType.CONTROL if token in tokenizer.added else gguf.TokenType.NORMAL)
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
