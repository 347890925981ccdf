"""Importance in the block encoders, and llama.cpp's file of it in both directions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.decoder.gguf_writer import write_decoder
from ayaedge_export.plan import plan_export
from ayaedge_quant.imatrix import ColumnSums, ImportanceMatrix, SquareSums, read_imatrix, write_imatrix
from ayaedge_quant.number_formats import GgmlType, encode, library_path
from ayaedge_quant.recipes import DecoderFormat
from random_checkpoint import Shape, write_random_checkpoint
from stock_quantizer import stock_quantize, tensors_of

UNSEARCHED = {GgmlType.F32, GgmlType.F16, GgmlType.Q8_0}


def importance(columns: int, seed: int = 0) -> np.ndarray:
    """Mean squares with heavy tails, as activations have."""
    return np.exp(2 * np.random.default_rng(seed).standard_normal(columns)).astype(np.float32)


def weights(rows: int = 8, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", GgmlType)
def test_importance_changes_the_blocks_whose_scales_are_searched(kind: GgmlType) -> None:
    plain, weighted = encode(weights(), kind), encode(weights(), kind, importance(512))
    assert np.array_equal(plain, weighted) == (kind in UNSEARCHED)


@pytest.mark.parametrize("kind", sorted(set(GgmlType) - UNSEARCHED))
def test_importance_lowers_the_error_of_the_product(kind: GgmlType) -> None:
    h, w = importance(512), weights(64)

    def error(blocks: np.ndarray) -> float:
        restored = gguf.dequantize(blocks, gguf.GGMLQuantizationType(int(kind)))
        return float((h * np.square(restored - w)).sum())

    assert error(encode(w, kind, h)) < 0.95 * error(encode(w, kind))


@pytest.mark.parametrize(
    "wrong", [np.ones(511), np.ones((512, 1)), np.full(512, np.nan), np.full(512, -1.0)],
    ids=["too short", "a matrix", "not finite", "negative"],
)  # fmt: skip
def test_importance_that_cannot_be_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="importance"):
        encode(weights(), GgmlType.Q4_K, wrong.astype(np.float32))


@pytest.mark.parametrize("hidden", [256, 96], ids=["blocks of 256", "blocks of 32"])
@pytest.mark.parametrize("text_type", ["cohere2", "cohere"])
def test_every_tensor_equals_llama_cpps_quantizer_with_the_same_matrix(
    tiny: Path, tmp_path: Path, text_type: str, hidden: int
) -> None:
    text = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3}
    shape = Shape(text_type=text_type, text=text, dtype="float16")
    checkpoint = open_checkpoint(write_random_checkpoint(tmp_path / "c", tiny, shape))
    write_decoder(plan_export(checkpoint, quant="f32"), tmp_path / "f32.gguf")
    exact = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "f32.gguf").tensors}
    entries = {
        name: ColumnSums(importance(data.shape[1], seed), 3)
        for seed, (name, data) in enumerate(exact.items())
        if data.ndim == 2
    }
    assert "token_embd.weight" in entries
    write_imatrix(tmp_path / "m.gguf", ImportanceMatrix(entries))
    matrix = read_imatrix(tmp_path / "m.gguf")
    formats: tuple[DecoderFormat, ...] = ("q4_k_m", "q5_k_m", "q8_0")
    for fmt in formats:
        stock_quantize(tmp_path / "f32.gguf", tmp_path / "stock.gguf", fmt, matrix)
        for name, (kind, data) in tensors_of(tmp_path / "stock.gguf").items():
            rows = exact[name].reshape(-1, exact[name].shape[-1])
            ours = encode(rows, GgmlType[kind], matrix.importance(name))
            assert ours.tobytes() == data, (fmt, name)


def example() -> ImportanceMatrix:
    entries = {
        "blk.0.attn_q.weight": ColumnSums(importance(5, 1), 700),
        "token_embd.weight": ColumnSums(importance(7, 2), 1300),
    }
    return ImportanceMatrix(entries, ("news.txt", "größe"), 512)


def assert_equal(left: ImportanceMatrix, right: ImportanceMatrix) -> None:
    assert (left.datasets, left.chunk_size) == (right.datasets, right.chunk_size)
    assert left.entries.keys() == right.entries.keys()
    for name, entry in left.entries.items():
        assert entry.positions == right.entries[name].positions
        assert np.array_equal(entry.sums, right.entries[name].sums)


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "m.gguf", example())
    assert_equal(read_imatrix(tmp_path / "m.gguf"), example())


def write_as_llama_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """The calls of `IMatrixCollector::save_imatrix` in llama.cpp's tools/imatrix/imatrix.cpp, one by one."""
    ggml = ctypes.CDLL(str(library_path()))
    pointer, number = ctypes.c_void_p, ctypes.c_int64

    class Parameters(ctypes.Structure):
        _fields_ = [("size", ctypes.c_size_t), ("buffer", pointer), ("no_alloc", ctypes.c_bool)]

    for name in ("ggml_init", "gguf_init_empty", "ggml_new_tensor_2d", "ggml_get_data"):
        getattr(ggml, name).restype = pointer
    ggml.ggml_init.argtypes = [Parameters]
    ggml.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, number, number]
    for name in ("ggml_get_data", "ggml_free", "gguf_free"):
        getattr(ggml, name).argtypes = [pointer]
    ggml.ggml_set_name.argtypes = ggml.gguf_add_tensor.argtypes = None
    context, file = ggml.ggml_init(Parameters(1 << 20, None, False)), pointer(ggml.gguf_init_empty())
    ggml.gguf_set_val_str(file, b"general.type", b"imatrix")
    names = (ctypes.c_char_p * len(matrix.datasets))(*(name.encode() for name in matrix.datasets))
    ggml.gguf_set_arr_str(file, b"imatrix.datasets", names, ctypes.c_size_t(len(names)))
    ggml.gguf_set_val_u32(file, b"imatrix.chunk_count", ctypes.c_uint32(matrix.chunk_count))
    ggml.gguf_set_val_u32(file, b"imatrix.chunk_size", ctypes.c_uint32(matrix.chunk_size))
    for name, (sums, count) in sorted(matrix.entries.items()):
        for suffix, values in ((".in_sum2", sums), (".counts", np.array([count], np.float32))):
            tensor = ggml.ggml_new_tensor_2d(context, 0, len(values), 1)
            ggml.ggml_set_name(pointer(tensor), (name + suffix).encode())
            ctypes.memmove(ggml.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
            ggml.gguf_add_tensor(file, pointer(tensor))
    assert ggml.gguf_write_to_file(file, str(path).encode(), ctypes.c_bool(False))
    ggml.gguf_free(file)
    ggml.ggml_free(context)


def test_our_file_is_llama_imatrix_s_byte_for_byte(tmp_path: Path) -> None:
    write_as_llama_imatrix(tmp_path / "theirs.gguf", example())
    assert_equal(read_imatrix(tmp_path / "theirs.gguf"), example())
    write_imatrix(tmp_path / "ours.gguf", example())
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_a_linear_without_positions_is_left_out(tmp_path: Path) -> None:
    entries = {**example().entries, "blk.1.attn_q.weight": ColumnSums(np.zeros(5, np.float32), 0)}
    write_imatrix(tmp_path / "m.gguf", ImportanceMatrix(entries, example().datasets))
    assert_equal(read_imatrix(tmp_path / "m.gguf"), example())


def write_tensors(path: Path, tensors: dict[str, np.ndarray], *, keys: bool = True) -> None:
    writer = gguf.GGUFWriter(path, "x")
    writer.add_type("imatrix")
    if keys:
        writer.add_array("imatrix.datasets", ["a"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 512)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ONE, FOUR = np.ones(1, np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q.in_sum2": FOUR}, "only one of q.in_sum2 and q.counts"),
        ({"q.counts": ONE}, "only one of q.in_sum2 and q.counts"),
        ({"q.in_sum2": FOUR.astype(np.float16), "q.counts": ONE}, "q must be F32"),
        ({"q.in_sum2": np.ones((2, 4), np.float32), "q.counts": np.ones((2, 1), np.float32)}, "2 experts"),
        ({"q.in_sum2": -FOUR, "q.counts": ONE}, "not finite or negative"),
        ({"q.in_sum2": FOUR * np.nan, "q.counts": ONE}, "not finite or negative"),
        ({"q.in_sum2": FOUR, "q.counts": 0 * ONE}, "holds no data"),
        ({"other": FOUR}, "holds no data"),
    ],
)  # fmt: skip
def test_faulty_tensors_are_named(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    write_tensors(tmp_path / "m.gguf", tensors)
    with pytest.raises(ValueError, match=message):
        read_imatrix(tmp_path / "m.gguf")


def test_what_is_no_importance_matrix_is_refused_with_its_reason(tmp_path: Path, exact_decoder: Path) -> None:
    (tmp_path / "old.dat").write_bytes(b"\x02\0\0\0rest")
    with pytest.raises(ValueError, match=r"not a GGUF file.*llama-imatrix --in-file old\.dat"):
        read_imatrix(tmp_path / "old.dat")
    with pytest.raises(ValueError, match="model instead of 'imatrix'"):
        read_imatrix(exact_decoder)
    write_tensors(tmp_path / "keyless.gguf", {"q.in_sum2": FOUR, "q.counts": ONE}, keys=False)
    with pytest.raises(ValueError, match=r"lacks imatrix\.datasets, imatrix\.chunk_count"):
        read_imatrix(tmp_path / "keyless.gguf")
    write_imatrix(tmp_path / "whole.gguf", example())
    whole = (tmp_path / "whole.gguf").read_bytes()
    for length in range(4, len(whole) - 31, 37):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf"):
            read_imatrix(tmp_path / "cut.gguf")
    with pytest.raises(FileNotFoundError):
        read_imatrix(tmp_path / "absent.gguf")


@pytest.fixture(scope="module")
def exact_decoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "d.gguf"
    write_decoder(plan_export(open_checkpoint(tiny), quant="f16"), path)
    return path


def test_sums_are_weighted_means_however_the_input_is_parted() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((50, 6)).astype(np.float32), rng.random(50).astype(np.float32)
    sums = SquareSums()
    sums.add("q", x[:20], w[:20])
    for first in (0, 2, 4):
        sums.add("q", x[20:, first : first + 2], w[20:], first_column=first, columns=6)
    entry = sums.matrix(("a",)).entries["q"]
    assert entry.positions == 50
    expected = (w[:, None] * x.astype(np.float64) ** 2).sum(0) / w.sum()
    np.testing.assert_allclose(entry.mean_squares, expected, rtol=1e-5)


def test_an_input_that_is_not_finite_is_named() -> None:
    sums = SquareSums()
    sums.add("blk.0.attn_q.weight", np.array([[1.0, np.inf]], np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight are not finite"):
        sums.matrix()
