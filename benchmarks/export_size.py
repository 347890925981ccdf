"""What an export at true size costs in memory, time and disk, beside llama.cpp's own quantizer.

`python benchmarks/export_size.py 8b|32b [--layers N] [--part PART ...] [--threads 2] [--work DIR] [--json FILE]`

Makes the checkpoint with `full_size.py` in DIR (build/full-size unless given; kept for the next run), runs each part
in a process of its own and prints a table:

    decoder    the decoder to q4_k_m, streamed
    vision     the vision graph as fp16 and as int8, built from the weights
    trace      the fp32 vision graph, traced from PyTorch (extra: trace)
    export     a whole export, int8 + q4_k_m
    calibrated, best   the same with more effort, only when named: hours with all layers. With --layers 3 each third of
               the layers is one, and the seconds of a layer are those of the whole model
    encode     ggml's own encoders alone on slabs in memory, as many weights of each type as the decoder has
    stock      an f16 GGUF file, written by our exporter, and `llama_model_quantize` of it

Peak memory is measured from outside: every 50 ms /proc/PID/status is read, and the largest sum of RssAnon and RssShmem
counts. That is everything that the process has allocated; not counted are pages of files that it maps (the
checkpoint's and its program code), which the system can take away at any time. On other systems than Linux the
column stays empty. Disk is the most that lay in the output's directory, temporary files included, beyond what stays.
Wall time is that of the work, without starting Python and importing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from full_size import REFERENCE, RELEASES, write_full_size_checkpoint

from ayaedge_export.best.prediction import predict_seconds
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.decoder.gguf_writer import PlannedTensor, plan_tensors, write_decoder
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.plan import plan_export
from ayaedge_export.synthetic.random_weights import RandomWeights
from ayaedge_export.vision.graph import write_vision_graph
from ayaedge_export.vision.int8 import write_int8_vision_graph
from ayaedge_quant.number_formats import GgmlType, stock_encode
from ayaedge_quant.recipes import FILE_TYPE

WORK = Path(__file__).parents[1] / "build" / "full-size"
FORMAT = "q4_k_m"
_SAMPLE_EVERY = 0.05
_SLAB_WEIGHTS = 1 << 22
_UNITS = {"kB": 1024}


@dataclass(frozen=True)
class Measured:
    """One process's costs."""

    what: str
    seconds: float
    peak_bytes: int | None
    """Resident memory without pages of mapped files."""
    extra_disk_bytes: int
    """The most that lay on the disk beyond the finished file."""
    finished_bytes: int


def decoder(checkpoint: Path, out: Path, threads: int) -> None:
    """The decoder in the default format."""
    write_decoder(
        plan_export(open_checkpoint(checkpoint), quant=FORMAT), out / "decoder.gguf", threads=threads
    )


def vision_fp16(checkpoint: Path, out: Path, threads: int) -> None:  # noqa: ARG001
    """The vision graph in half precision."""
    opened = open_checkpoint(checkpoint)
    write_vision_graph(out / "vision.onnx", opened.config.vision, opened.tensors.read, precision="fp16")


def vision_int8(checkpoint: Path, out: Path, threads: int) -> None:  # noqa: ARG001
    """The vision graph in 8-bit integers."""
    opened = open_checkpoint(checkpoint)
    write_int8_vision_graph(out / "vision.onnx", opened.config.vision, opened.tensors.read)


def trace(checkpoint: Path, out: Path, threads: int) -> None:  # noqa: ARG001
    """The traced vision graph."""
    from ayaedge_export.vision.trace import trace_vision_graph

    opened = open_checkpoint(checkpoint)
    trace_vision_graph(out / "vision.onnx", opened.config.vision, opened.tensors.read)


def export(checkpoint: Path, out: Path, threads: int) -> None:
    """A whole export."""
    export_checkpoint(checkpoint, out / "bundle", vision="int8", threads=threads)


def calibrated(checkpoint: Path, out: Path, threads: int) -> None:
    """A whole export with an importance matrix."""
    export_checkpoint(checkpoint, out / "bundle", vision="int8", effort="calibrated", threads=threads)


def best(checkpoint: Path, out: Path, threads: int) -> None:
    """A whole export with error feedback and chosen types; when each step was done goes to stderr."""
    started, last = time.perf_counter(), ""

    def advance(_count: int, what: str) -> None:
        nonlocal last
        if what.startswith(("sensitivity", "rounded")) and what != last:
            print(f"{time.perf_counter() - started:.0f} s: {what}", file=sys.stderr, flush=True)
            last = what

    predicted = predict_seconds(open_checkpoint(checkpoint), "best")
    print(f"predicted for the decoder's weights: {predicted:.0f} s", file=sys.stderr, flush=True)
    export_checkpoint(
        checkpoint, out / "bundle", vision="int8", effort="best", threads=threads, advance=advance
    )


def encode(checkpoint: Path, out: Path, threads: int) -> None:  # noqa: ARG001
    """Run ggml's encoders on slabs in memory: all weights of the decoder, none read and none written."""
    slabs: dict[tuple[GgmlType, int], int] = {}
    for tensor in plan_tensors(open_checkpoint(checkpoint).config.text, FORMAT):
        if len(tensor.shape) == 2:
            key = (tensor.kind, tensor.shape[1])
            slabs[key] = slabs.get(key, 0) + int(np.prod(tensor.shape))
    random_weights = RandomWeights(0)
    with ThreadPoolExecutor(threads) as pool:
        for (kind, columns), weights in slabs.items():
            rows = max(1, _SLAB_WEIGHTS // columns)
            slab = random_weights.rows("slab.weight", (rows, columns), 0, rows)
            times = round(weights / slab.size)
            list(pool.map(lambda _, slab=slab, kind=kind: stock_encode(slab, kind).size, range(times)))


def stock_f16(checkpoint: Path, out: Path, threads: int) -> None:
    """The f16 file that llama.cpp's quantizer starts from."""
    write_decoder(plan_export(open_checkpoint(checkpoint), quant="f16"), out / "f16.gguf", threads=threads)


def stock_quantize(checkpoint: Path, out: Path, threads: int) -> None:
    """llama.cpp's quantizer on that file, which `main` keeps beside the checkpoint."""
    from ayaedge import llama

    library = llama.library()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPE[FORMAT], threads
    source = f16_path(checkpoint)
    status = library.llama_model_quantize(
        str(source).encode(), str(out / "stock.gguf").encode(), ctypes.byref(parameters)
    )
    if status != 0:
        sys.exit(f"llama_model_quantize failed: {llama.recent_errors()}")


STEPS: dict[str, Callable[[Path, Path, int], None]] = {
    "decoder": decoder,
    "vision fp16": vision_fp16,
    "vision int8": vision_int8,
    "trace": trace,
    "export": export,
    "calibrated": calibrated,
    "best": best,
    "encode": encode,
    "stock: f16 file": stock_f16,
    "stock: llama_model_quantize": stock_quantize,
}
PARTS = {
    "decoder": ["decoder"],
    "vision": ["vision fp16", "vision int8"],
    "trace": ["trace"],
    "export": ["export"],
    "calibrated": ["calibrated"],
    "best": ["best"],
    "encode": ["encode"],
    "stock": ["stock: f16 file", "stock: llama_model_quantize"],
}
LONG = ("calibrated", "best")


def f16_path(checkpoint: Path) -> Path:
    """Where the f16 file lies while llama.cpp's quantizer reads it."""
    return checkpoint.with_name(f"{checkpoint.name}-f16.gguf")


def measure(step: str, checkpoint: Path, threads: int) -> Measured:
    """Run a step in a process of its own and watch it."""
    work = Path(tempfile.mkdtemp(prefix="out-", dir=checkpoint.parent))
    out, temporary = work / "out", work / "tmp"
    out.mkdir()
    temporary.mkdir()
    command = [sys.executable, __file__, "--child", step, str(checkpoint), str(out), str(threads)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    try:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            peak, most = watch(process, work)
            output = process.stdout.read() if process.stdout else ""
        if process.returncode != 0:
            sys.exit(f"{step} failed with status {process.returncode}")
        finished = tree_bytes(out)
        if step == "stock: f16 file":
            (out / "f16.gguf").replace(f16_path(checkpoint))
        extra = max(0, most - finished)
        if step == "stock: llama_model_quantize":
            extra += f16_path(checkpoint).stat().st_size
        return Measured(step, float(output), peak, extra, finished)
    finally:
        shutil.rmtree(work)


def watch(process: subprocess.Popen[str], work: Path) -> tuple[int | None, int]:
    """Largest allocated memory of a process and largest size of a directory (bytes) until the process ends."""
    peak, most, samples = None, 0, 0
    while process.poll() is None:
        allocated = allocated_bytes(process.pid)
        if allocated is not None:
            peak = max(peak or 0, allocated)
        if samples % 10 == 0:  # sizes change slowly, and walking a directory takes longer
            most = max(most, tree_bytes(work))
        samples += 1
        time.sleep(_SAMPLE_EVERY)
    return peak, max(most, tree_bytes(work))


def allocated_bytes(pid: int) -> int | None:
    """RssAnon + RssShmem of a process: its resident memory without pages of mapped files. None where unknown."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    if "RssAnon" not in values:
        return None
    return sum(int(values[name].split()[0]) * _UNITS["kB"] for name in ("RssAnon", "RssShmem"))


def tree_bytes(directory: Path) -> int:
    """Bytes of all files in a directory tree; files that vanish meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except OSError:
                continue
    return total


def run_child(step: str, checkpoint: str, out: str, threads: str) -> None:
    started = time.perf_counter()
    STEPS[step](Path(checkpoint), Path(out), int(threads))
    print(time.perf_counter() - started)


def prepare(model: str, layers: int | None, work: Path) -> Path:
    """The checkpoint, made if it is not there yet."""
    name = RELEASES[model] + (f"-{layers}-layers" if layers else "")
    checkpoint, partial = work / name, work / f"{name}.partial"
    if not checkpoint.exists():
        shutil.rmtree(partial, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        write_full_size_checkpoint(partial, REFERENCE / RELEASES[model], layers=layers).rename(checkpoint)
    return checkpoint


def table_row(r: Measured) -> str:
    peak = "" if r.peak_bytes is None else f"{r.peak_bytes / 1e9:.2f}"
    return f"| {r.what} | {r.seconds:.1f} | {peak} | {r.extra_disk_bytes / 1e9:.2f} | {r.finished_bytes / 1e9:.2f} |"


def print_table(results: list[Measured], checkpoint: Path, threads: int) -> None:
    opened = open_checkpoint(checkpoint)
    planned: list[PlannedTensor] = plan_tensors(opened.config.text, FORMAT)
    print(
        f"{checkpoint.name}: {opened.parameters / 1e9:.2f} B parameters, decoder as {FORMAT} "
        f"{sum(t.nbytes for t in planned) / 1e9:.3f} GB; {platform.machine()}, {threads} threads\n"
    )
    print("| | seconds | peak memory, GB | disk beyond the result, GB | result, GB |\n|---|---|---|---|---|")
    for r in results:
        print(table_row(r))
    seconds = {r.what: r.seconds for r in results}
    ours = seconds.get("export", seconds.get("decoder"))
    name = "export" if "export" in seconds else "decoder"
    if ours and "encode" in seconds:
        print(f"\n{name} / ggml's encoders alone: {ours / seconds['encode']:.2f}")
    if ours and "stock: llama_model_quantize" in seconds:
        stock = seconds["stock: f16 file"] + seconds["stock: llama_model_quantize"]
        print(f"\n{name} / (f16 file + llama_model_quantize): {ours / stock:.2f}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=RELEASES)
    parser.add_argument("--layers", type=int, help="layers of the decoder, instead of all")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", default=[part for part in PARTS if part not in LONG]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=WORK, help="directory for checkpoints and results")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    checkpoint = prepare(arguments.model, arguments.layers, arguments.work)
    results = []
    try:
        for step in [step for part in arguments.part for step in PARTS[part]]:
            results.append(measure(step, checkpoint, arguments.threads))
            print(table_row(results[-1]), file=sys.stderr)  # a later part may be interrupted
    finally:
        f16_path(checkpoint).unlink(missing_ok=True)
    print_table(results, checkpoint, arguments.threads)
    if arguments.json:
        arguments.json.write_text(
            json.dumps([asdict(result) for result in results], indent=2) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
