"""How fast and how large the vision tower is at the true size of Aya Vision 8B, beside PyTorch and OpenVINO.

`python benchmarks/vision_speed.py [--rounds 7] [--threads 2] [--form int8 ...]`

Weights are drawn, with outliers in some channels. All forms take turns with a tile each, so that a machine whose speed
drifts is fair to them; the medians of the ratios to PyTorch bf16 in the same turn are given too. OpenVINO has a row if
it is installed (`pip install openvino`); PyTorch needs the extra `trace`. Loading and memory are measured in processes
of their own, the second of which finds the prepared graph that the first has kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.checkpoint.spec import vision_tensors
from ayaedge_export.synthetic.bundle import MODELS
from ayaedge_export.synthetic.random_weights import RandomTensors, RandomWeights
from ayaedge_export.vision.graph import write_vision_graph
from ayaedge_export.vision.int8 import write_block_vision_graph, write_int8_vision_graph

MODEL = MODELS["8b"]
FORMS = ("int8", "int8-block", "fp32")
_SIZE = MODEL.vision.image_size

Run = Callable[[NDArray[np.float32]], Any]

LOAD = """
import json, sys, time
from pathlib import Path
import numpy as np
from ayaedge import ort
from ayaedge.cache.prepared_graphs import PreparedGraphs
from ayaedge.vision.session import VisionOptions, open_session
from types import SimpleNamespace as Facts
path, cache, threads, tiles = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
size = sum(f.stat().st_size for f in Path(path).parent.glob("vision.onnx*"))
files = {"vision.onnx": Facts(size=size, sha256="")}
manifest = Facts(formats=Facts(vision="int8"), files=files, vision_bytes=size, gpu_graphs={})
ort.library()
started = time.perf_counter()
session = open_session(Path(path), manifest, VisionOptions(threads=threads), PreparedGraphs(Path(cache))).session
loaded = time.perf_counter() - started
pixels = np.random.default_rng(0).uniform(-1, 1, (1, *session.get_inputs()[0].shape[1:])).astype(np.float32)
for _ in range(tiles):
    session.run(None, {"pixel_values": pixels})
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
memory = {name: int(status[name].split()[0]) / 1e6 for name in ("VmRSS", "RssAnon")} if "RssAnon" in status else {}
print(json.dumps({"load": loaded, **memory}))
"""


def write_graphs(directory: Path, forms: list[str]) -> dict[str, Path]:
    """A graph of each form."""
    read = RandomTensors(RandomWeights(0), vision_tensors(MODEL.vision)).read
    writers = {
        "int8": write_int8_vision_graph,
        "int8-block": write_block_vision_graph,
        "fp32": write_vision_graph,
    }
    paths = {}
    for form in forms:
        paths[form] = directory / form / "vision.onnx"
        paths[form].parent.mkdir()
        writers[form](paths[form], MODEL.vision, read)
    return paths


def onnx_runner(path: Path, threads: int) -> Run:
    """The session that the runtime makes."""
    from ayaedge.vision.session import VisionOptions, make_session, session_options

    session = make_session(path, session_options(VisionOptions(threads=threads), {}))
    return lambda pixels: session.run(None, {"pixel_values": pixels})


def torch_runners(threads: int) -> dict[str, Run]:
    """Transformers' own modules, with one decoder layer that is not run."""
    import torch

    from ayaedge_export.synthetic.transformers_speed import build_model

    torch.set_num_threads(threads)

    def runner(precision: Any) -> Run:
        model = build_model(MODEL.vision, MODEL.cut(1).text, precision)

        def run(pixels: NDArray[np.float32]) -> None:
            with torch.inference_mode():
                model.get_image_features(torch.from_numpy(pixels).to(model.dtype))

        return run

    return {f"PyTorch {precision}": runner(precision) for precision in ("bf16", "fp32")}


def openvino_runner(path: Path, threads: int) -> Run:
    """The float graph, compiled for bf16."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    model = openvino.Core().read_model(path)
    model.reshape([1, 3, _SIZE, _SIZE])
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda pixels: compiled(pixels)


def time_in_turns(runners: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each tile, after one that does not count."""
    tiles = np.random.default_rng(0).uniform(-1, 1, (rounds + 1, 1, 3, _SIZE, _SIZE)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for tile in tiles:
        for name, run in runners.items():
            started = time.perf_counter()
            run(tile)
            seconds[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in seconds.items()}


def load(path: Path, cache: Path, threads: int) -> dict[str, float]:
    """Seconds of loading and memory after 13 tiles, in gigabytes, of a new process."""
    command = [sys.executable, "-c", LOAD, str(path), str(cache), str(threads), "13"]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", nargs="*", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        paths = write_graphs(Path(directory), arguments.form)
        runners = {f"ayaedge {form}": onnx_runner(path, arguments.threads) for form, path in paths.items()}
        if find_spec("openvino") and "fp32" in paths:
            runners["OpenVINO bf16"] = openvino_runner(paths["fp32"], arguments.threads)
        runners |= torch_runners(arguments.threads)
        seconds = time_in_turns(runners, arguments.rounds)
        base = {name: np.array(seconds[name]) for name in seconds if not name.startswith("ayaedge")}
        print("| | ms per tile |" + "".join(f" x {name} |" for name in base))
        print("|---|---|" + "---|" * len(base))
        for name, found in seconds.items():
            ratios = (f" {np.median(np.array(found) / other):.2f} |" for other in base.values())
            print(f"| {name} | {1000 * np.median(found):.0f} |" + "".join(ratios))
        runners.clear()
        cache = Path(directory, "cache")
        for form in set(paths) & {"int8"}:
            print(f"\n| {form} | load, s | resident, GB | of it anonymous, GB |\n|---|---|---|---|")
            for what in ("first start, graph kept", "second start", "third start"):
                found = load(paths[form], cache, arguments.threads)
                memory = " | ".join(f"{found[name]:.2f}" for name in ("VmRSS", "RssAnon") if name in found)
                print(f"| {what} | {found['load']:.2f} | {memory} |")


if __name__ == "__main__":
    main()
