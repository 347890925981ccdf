"""Checkpoints of the true size of Aya Vision, with drawn weights: for measuring exports without the real ones.

`python benchmarks/full_size.py 8b|32b TARGET [--layers N] [--dtype bf16|fp16] [--seed N] [--reference DIR]`

Configuration, chat template and tokenizer are the released checkpoint's, as are names, shapes and sharding. 8B takes
17.3 GB, 32B 67 GB; `--layers` gives a smaller one of the same widths. The same seed gives the same bytes.

How weights are drawn is said in `ayaedge_export.synthetic.random_weights`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ayaedge.errors import list_faults
from ayaedge.hardware.machine import usable_threads
from ayaedge_export.checkpoint.config import parse_config
from ayaedge_export.checkpoint.spec import text_tensors, vision_tensors
from ayaedge_export.synthetic.random_weights import RandomWeights

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
"""Where the released configurations and tokenizers are looked for: beside the repository."""
RELEASES = {"8b": "aya-vision-8b", "32b": "aya-vision-32b"}
SHARD_BYTES = 5_000_000_000
"""Most bytes of a shard, as transformers writes them."""
REQUIRED = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
OPTIONAL = (
    "special_tokens_map.json", "chat_template.json", "chat_template.jinja", "generation_config.json", "README.md",
)  # fmt: skip

Dtype = Literal["bf16", "fp16"]
_STORED: dict[Dtype, tuple[str, str]] = {"bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}
"""Names in safetensors headers and in config.json."""

_TASK_WEIGHTS = 1 << 23
"""Weights that one task draws: 16 MB of the file."""


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    name: str
    tensors: dict[str, tuple[int, ...]]


def write_full_size_checkpoint(
    target: Path,
    released: Path,
    *,
    dtype: Dtype | None = None,
    layers: int | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
) -> Path:
    """Write a checkpoint of the shape that `released`/config.json states into the new directory `target`.

    `dtype` None is the released one; `layers` cuts the decoder. Needs about 150 MB of memory. Raises
    FileNotFoundError if files of the release are missing, FileExistsError if `target` exists.
    """
    missing = [name for name in REQUIRED if not (released / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{released} lacks {', '.join(missing)}: give the directory with the released checkpoint's "
            "configuration and tokenizer (--reference)"
        )
    config = json.loads((released / "config.json").read_text("utf-8"))
    dtype = dtype or ("bf16" if config.get("torch_dtype") == "bfloat16" else "fp16")
    adapt_config(config, dtype, layers)
    target.mkdir(parents=True)
    for name in (*REQUIRED, *OPTIONAL):
        if (released / name).is_file():
            shutil.copyfile(released / name, target / name)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    shards = plan_shards(checkpoint_tensors(config), shard_bytes)
    _write_index(target, shards)
    random_weights = RandomWeights(seed)
    with ThreadPoolExecutor(threads or usable_threads()) as pool:
        for shard in shards:
            with (target / shard.name).open("wb") as out:
                out.write(_header(shard, dtype))
                _write_tensors(out, shard, random_weights, dtype, pool)
    return target


def adapt_config(config: dict[str, Any], dtype: Dtype, layers: int | None) -> None:
    """Write the number format, and the number of layers if one is given, into a config.json."""
    text = config["text_config"]
    for part in (config, text, config["vision_config"]):
        part["torch_dtype"] = _STORED[dtype][1]
    if layers is not None:
        text["num_hidden_layers"] = layers
        if "layer_types" in text:
            text["layer_types"] = text["layer_types"][:layers]


def checkpoint_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the order of the hub's files: tower, connector, decoder."""
    faults: list[str] = []
    parsed = parse_config(config, faults)
    if faults:
        raise ValueError(list_faults("config.json", faults))
    return {**vision_tensors(parsed.vision), **text_tensors(parsed.text)}


def plan_shards(tensors: Mapping[str, tuple[int, ...]], shard_bytes: int) -> list[Shard]:
    """Tensors in order, into files of at most `shard_bytes`; a tensor that is larger gets one of its own."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        if groups[-1] and filled + size > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    names = (f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1))
    return [Shard(name, group) for name, group in zip(names, groups, strict=True)]


def draw_words(
    random_weights: RandomWeights, dtype: Dtype, name: str, shape: tuple[int, ...], start: int, stop: int
) -> NDArray[np.uint16]:
    """Rows `start` to `stop` of a tensor, or a whole vector, as the 16-bit words that are stored."""
    if len(shape) == 1:
        return _words(random_weights.vector(name, shape[0]), dtype)
    out = np.empty((stop - start, math.prod(shape[1:])), np.uint16)
    for first, weights in random_weights.pieces(name, shape, start, stop):
        out[first : first + len(weights)] = _words(weights, dtype)
    return out


def _words(values: NDArray[np.float32], dtype: Dtype) -> NDArray[np.uint16]:
    if dtype == "fp16":
        return values.astype(np.float16).view(np.uint16)
    return np.ascontiguousarray(values.view(np.uint16)[..., 1::2])  # bfloat16: the upper half of a float32


def _write_tensors(
    out: BinaryIO, shard: Shard, random_weights: RandomWeights, dtype: Dtype, pool: ThreadPoolExecutor
) -> None:
    """Draw on the pool's threads and write in order; a few tasks of 16 MB are in memory."""
    pending: deque[Future[NDArray[np.uint16]]] = deque()
    for name, shape in shard.tensors.items():
        for start, stop in _tasks(shape):
            pending.append(pool.submit(draw_words, random_weights, dtype, name, shape, start, stop))
            if len(pending) > 4:
                out.write(pending.popleft().result().data)
    while pending:
        out.write(pending.popleft().result().data)


def _tasks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    rows = shape[0]
    step = rows if len(shape) == 1 else max(1, _TASK_WEIGHTS // math.prod(shape[1:]))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _header(shard: Shard, dtype: Dtype) -> bytes:
    """A safetensors header: its length in 8 bytes, then JSON, padded to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shard.tensors.items():
        end = offset + 2 * math.prod(shape)
        entries[name] = {"dtype": _STORED[dtype][0], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_index(target: Path, shards: list[Shard]) -> None:
    if len(shards) == 1:
        return
    size = sum(2 * math.prod(shape) for shard in shards for shape in shard.tensors.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: shard.name for shard in shards for name in shard.tensors},
    }
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=RELEASES)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", type=int, help="layers of the decoder, instead of all")
    parser.add_argument("--dtype", choices=list(_STORED), help="as released unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="directory with config.json, tokenizer.json, ...")
    arguments = parser.parse_args()
    released = arguments.reference or REFERENCE / RELEASES[arguments.model]
    started = time.perf_counter()
    try:
        target = write_full_size_checkpoint(
            arguments.target, released, dtype=arguments.dtype, layers=arguments.layers, seed=arguments.seed
        )
    except (FileNotFoundError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
