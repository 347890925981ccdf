"""How exact our kernels are beside stock llama.cpp: KL divergence to the exact decoder, and right answers.

`python benchmarks/kernel_accuracy.py [--kernel avx512-vnni ...] [--prompts 30] [--count 920]`; needs `[export]`.

The exact decoder is the demonstration's own file with every weight dequantized to float32, and a cache in float32.
Prompts are 200 tokens of the builtin calibration texts; the logits behind each count. Then each kernel answers the
held-out questions about scenes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np

from ayaedge import AyaVision, DecoderOptions, EmbeddingTable, Manifest, read_bundle
from ayaedge.bundle import demo_bundle
from ayaedge.decoder.acceleration import usable_kernels
from ayaedge.decoder.decoder import Decoder
from ayaedge.hardware.machine import processor
from ayaedge_export.calibration.builtin_text import PASSAGES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "train_tiny"))

import scenes
from evaluate import COUNT, SEED
from scoring import evaluate

LENGTH = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", nargs="+", default=list(usable_kernels()))
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--count", type=int, default=COUNT)
    chosen = parser.parse_args()
    print(f"{processor().name}, {chosen.prompts} prompts of {LENGTH} tokens, {chosen.count} questions\n")
    divergences = measure_divergences(["off", *chosen.kernel], chosen.prompts)
    samples = scenes.held_out(chosen.count, SEED)
    print("| | KL mean | KL most | same first token | right answers |\n|---|---|---|---|---|")
    for name, (found, same) in divergences.items():
        with AyaVision.load(decoder=DecoderOptions(acceleration=name, repack=False)) as model:
            report = evaluate(
                samples, lambda asked: [model.ask(one.question, images=[one.picture]).text for one in asked]
            )
        label = "llama.cpp" if name == "off" else name
        print(
            f"| {label} | {np.mean(found):.2e} | {np.max(found):.2e} | {same} of {len(found)} "
            f"| {report.overall.right} of {report.overall.total} |"
        )


def measure_divergences(names: list[str], count: int) -> dict[str, tuple[list[float], int]]:
    """For each kernel the KL divergences of its prompts' next tokens, and how often the likeliest one is the same."""
    bundle = read_bundle(demo_bundle())
    with TemporaryDirectory() as directory:
        exact_path = Path(directory, "exact.gguf")
        dequantize(bundle.decoder_path, exact_path)
        manifest = with_embeddings_of(exact_path, bundle.manifest)
        options = DecoderOptions(acceleration="off", cache_type="f32", context_size=LENGTH + 8)
        with Decoder(exact_path, manifest, options) as exact:
            prompts = read_prompts(exact, count)
            expected = [logits_behind(exact, prompt) for prompt in prompts]
    found = {}
    for name in names:
        options = DecoderOptions(acceleration=name, context_size=LENGTH + 8)
        with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
            logits = [logits_behind(decoder, prompt) for prompt in prompts]
        same = sum(int(a.argmax() == b.argmax()) for a, b in zip(logits, expected, strict=True))
        found[name] = [divergence(b, a) for a, b in zip(logits, expected, strict=True)], same
    return found


def with_embeddings_of(path: Path, manifest: Manifest) -> Manifest:
    """The manifest for this decoder, whose table of embeddings is in float32."""
    (table,) = (one for one in gguf.GGUFReader(path).tensors if one.name == "token_embd.weight")
    embeddings = EmbeddingTable("F32", int(table.data_offset), 4 * manifest.decoder.hidden_size)
    return replace(manifest, decoder=replace(manifest.decoder, embeddings=embeddings))


def read_prompts(decoder: Decoder, count: int) -> list[list[int]]:
    ids = decoder.vocabulary.tokenize(
        "\n".join(passage for passages in PASSAGES.values() for passage in passages)
    )
    starts = np.linspace(0, len(ids) - LENGTH, count).astype(int)
    return [list(ids[start : start + LENGTH]) for start in starts]


def logits_behind(decoder: Decoder, prompt: list[int]) -> np.ndarray:
    decoder.clear()
    decoder.decode_tokens(prompt)
    return decoder.last_logits().astype(np.float64)


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """KL divergence in nats of two rows of logits."""
    p, q = (row - row.max() for row in (expected, found))
    p, q = (row - np.log(np.exp(row).sum()) for row in (p, q))
    return float((np.exp(p) * (p - q)).sum())


def dequantize(source: Path, target: Path) -> None:
    """Write a GGUF file with the same header and every tensor in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            part = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, part)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
