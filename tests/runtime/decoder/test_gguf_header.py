"""Figures of a decoder's file, against its own manifest and llama.cpp, and files that are none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ayaedge import Bundle, BundleError
from ayaedge.decoder.gguf_header import DecoderFigures, read_figures

Change = Callable[[gguf.GGUFWriter], None]


def write_file(path: Path, *, blocks: int = 4, skip: str = "", change: Change | None = None) -> Path:
    """A file with the keys of a small decoder and two tensors in each block, 8 and 16 bytes."""
    writer = gguf.GGUFWriter(path, "cohere2")
    numbers = {
        "block_count": blocks, "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.sliding_window": 16, "vocab_size": 10,
    }  # fmt: skip
    for key, value in numbers.items():
        if key != skip:
            writer.add_uint32(f"cohere2.{key}", value)
    if change:
        change(writer)
    writer.add_tensor("token_embd.weight", np.zeros(10, np.float32))
    for block in range(4):
        writer.add_tensor(f"blk.{block}.attn_q.weight", np.zeros(2, np.float32))
        writer.add_tensor(f"blk.{block}.ffn_up.weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_figures_are_those_of_the_file(tmp_path: Path) -> None:
    assert read_figures(write_file(tmp_path / "a.gguf")) == DecoderFigures(
        architecture="cohere2", layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, feed_forward=128,
        vocab_size=10, window=16, window_pattern=(True, True, True, False), layer_bytes=(24,) * 4, other_bytes=40,
        largest_bytes=16,
    )  # fmt: skip


def test_the_figures_agree_with_manifest_and_file(exact_bundle: Bundle) -> None:
    figures, decoder = read_figures(exact_bundle.decoder_path), exact_bundle.manifest.decoder
    assert (figures.architecture, figures.hidden, figures.vocab_size, figures.layers, figures.window) == (
        decoder.architecture, decoder.hidden_size, decoder.vocab_size, decoder.num_layers, decoder.sliding_window,
    )  # fmt: skip
    assert len(figures.layer_bytes) == len(figures.window_pattern) == figures.layers
    size = exact_bundle.decoder_path.stat().st_size
    assert 0.9 * size < figures.weight_bytes < size


def test_the_kv_cache_is_as_large_as_llama_cpps_state(exact_bundle: Bundle) -> None:
    from ayaedge.decoder.decoder import Decoder
    from ayaedge.decoder.options import DecoderOptions

    figures = read_figures(exact_bundle.decoder_path)
    with Decoder(
        exact_bundle.decoder_path, exact_bundle.manifest, DecoderOptions(context_size=512)
    ) as decoder:
        sizes = []
        for _ in range(2):
            decoder.decode_tokens([10] * 16)
            sizes.append(decoder.state().nbytes)
    per_token = (sizes[1] - sizes[0]) / 16
    assert figures.kv_bytes_per_token <= per_token < 1.05 * figures.kv_bytes_per_token


def test_the_cache_grows_with_context_and_format(tmp_path: Path) -> None:
    figures = read_figures(write_file(tmp_path / "a.gguf"))
    assert figures.kv_bytes_per_token == 2 * 4 * 2 * 16 * 2
    assert figures.kv_bytes(512) == 512 * figures.kv_bytes_per_token
    assert figures.kv_bytes(257) == figures.kv_bytes(512)  # llama.cpp rounds up
    assert figures.kv_bytes(512, 34 / 32) == 512 * figures.kv_bytes_per_token * 34 // 64


def test_flags_and_periods_of_sliding_blocks_are_both_understood(tmp_path: Path) -> None:
    key = "cohere2.attention.sliding_window_pattern"
    flags = write_file(
        tmp_path / "a", change=lambda writer: writer.add_array(key, [False, True, True, False])
    )
    assert read_figures(flags).window_pattern == (False, True, True, False)
    period = write_file(tmp_path / "b", change=lambda writer: writer.add_uint32(key, 2))
    assert read_figures(period).window_pattern == (True, False, True, False)


def test_a_decoder_without_a_window_slides_nowhere(tmp_path: Path) -> None:
    figures = read_figures(write_file(tmp_path / "a", skip="attention.sliding_window"))
    assert figures.window is None
    assert figures.window_pattern == (False,) * 4


def test_the_vocabulary_is_counted_where_no_key_tells_its_size(tmp_path: Path) -> None:
    path = write_file(
        tmp_path / "a", skip="vocab_size", change=lambda writer: writer.add_token_list([b"a", b"b", b"c"])
    )
    assert read_figures(path).vocab_size == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"skip": "embedding_length"}, "cohere2.embedding_length is missing"),
        ({"skip": "vocab_size"}, "tokenizer.ggml.tokens is missing"),
        ({"blocks": 3}, "blk.3.attn_q.weight belongs to none of 3 blocks"),
        ({"blocks": 5}, "block 4 has no weights"),
        ({"blocks": 4_000_000_000}, "block_count is 4000000000"),
        (
            {
                "skip": "feed_forward_length",
                "change": lambda w: w.add_string("cohere2.feed_forward_length", "9"),
            },
            "feed_forward_length has the wrong type",
        ),
        (
            {"change": lambda w: w.add_array("cohere2.attention.sliding_window_pattern", [True])},
            "must hold a flag for each of 4 blocks",
        ),
    ],
    ids=["missing", "no-vocabulary", "too-few", "too-many", "absurd", "type", "flags"],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_figures(write_file(tmp_path / "a.gguf", **options))  # type: ignore[arg-type]
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\0" * 1000, None])
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"a\.gguf (cannot be read: .{10,}|is missing)"):
        read_figures(path)


def test_a_truncated_header_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BundleError, match="cannot be read"):
        read_figures(path)


def test_a_vocabulary_of_real_size_takes_no_time(tmp_path: Path) -> None:
    tokens = [f"token{number}".encode() for number in range(256_000)]
    merges = [f"t{number} o{number}" for number in range(256_000)]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(tokens)
        writer.add_token_merges(merges)

    path = write_file(tmp_path / "a.gguf", change=fill)
    begin = time.process_time()
    assert read_figures(path).vocab_size == 10
    assert time.process_time() - begin < 5  # it takes 0.1 s
