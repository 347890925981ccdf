"""A bundle: the directory that the exporter writes and the runtime reads, and nothing else between them.

    aya-vision-8b-q4_k_m-int8/
      manifest.json      what the runtime needs to know, and every file with its size and SHA-256
      vision.onnx        tiles (n, 3, S, S) -> image embeddings (n, T, hidden); beside it vision.onnx.data if large
      decoder.gguf       the decoder, its tokenizer and its chat template

Reading one reports all faults at once. Whether the two halves fit together is checked where they are loaded
(`ayaedge.vision.encoder`, `ayaedge.decoder.decoder`), against the figures of the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ayaedge.errors import BundleError, list_faults
from ayaedge.files import read_text
from ayaedge.images.tiling import MOST_TILES, Tiling

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
VISION = "vision.onnx"
DECODER = "decoder.gguf"
FILES = (VISION, f"{VISION}.data", DECODER)
"""Everything that a bundle may hold beside its manifest."""
_CHUNK = 1 << 20
_LONGEST_NAME = 255
_LARGEST_TILE = 4096
_MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class FileInfo:
    """One file of the bundle, as it was written."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Source:
    """What the bundle was made from."""

    name: str
    """Name of the checkpoint's directory."""
    model_type: str
    """`cohere2` (8B) or `cohere` (32B)."""
    parameters: int
    license: str
    """As the checkpoint's model card states it; the released weights are CC-BY-NC 4.0."""


@dataclass(frozen=True)
class Formats:
    """Number formats of the two halves."""

    vision: str
    decoder: str
    adjustments: tuple[str, ...] = ()
    """What else decided about the decoder's weights: an importance matrix, types that a user asked for."""


@dataclass(frozen=True)
class ImagePrompt:
    """How a picture is written into the prompt."""

    placeholder: str
    """What the chat template writes where a picture belongs."""
    start: str
    end: str
    patch: str
    """The token that stands for one image embedding."""
    tile: str
    """Ordinary text before each tile, followed by `_` and the tile's number from 1."""
    thumbnail: str
    """Ordinary text before the thumbnail, or before the only tile."""
    tokens_per_tile: int


@dataclass(frozen=True)
class TextToken:
    """An added token that any text may hold, and how the reference finds it there."""

    text: str
    id: int
    normalized: bool = True
    """Found in composed text (NFC), not in the text as it is."""
    single_word: bool = False
    """Not found inside a word."""
    lstrip: bool = False
    """Takes the blanks in front of it."""
    rstrip: bool = False
    """Takes the blanks behind it."""


@dataclass(frozen=True)
class Tokens:
    """Ids that the runtime treats in a special way."""

    special: dict[str, int]
    """Added tokens that only the template and pictures may write: in other text they are spelled out."""
    named: dict[str, str]
    """What the tokenizer calls `bos_token`, `eos_token`, `pad_token`: templates use these names."""
    image_patch: int
    bos: int
    stop: tuple[int, ...]
    """An answer ends at any of these."""
    hidden: tuple[int, ...]
    """Never shown: what the tokenizer marks as special."""
    texts: tuple[TextToken, ...] = ()
    """All other added tokens, as those of a fine-tune; a user's text may hold them."""

    @property
    def added(self) -> dict[str, int]:
        """Every added token, by its text."""
        return self.special | {token.text: token.id for token in self.texts}


@dataclass(frozen=True)
class EmbeddingTable:
    """Where decoder.gguf holds the token embeddings."""

    type: str
    """ggml's name of the storage type."""
    offset: int
    """Of the first row, in bytes from the start of the file."""
    row_bytes: int


@dataclass(frozen=True)
class Decoder:
    """Figures of the decoder."""

    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    context_length: int
    """Most tokens of a prompt and its answer together."""
    embeddings: EmbeddingTable
    sliding_window: int | None = None
    logit_scale: float | None = None
    """What the logits are multiplied with; None in bundles that do not say."""


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime needs to know about a bundle."""

    source: Source
    formats: Formats
    tiling: Tiling
    image_prompt: ImagePrompt
    tokens: Tokens
    decoder: Decoder
    chat_template: str
    created_by: dict[str, str]
    """Versions of what wrote the bundle."""
    files: dict[str, FileInfo] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    """Figures of the last verification against the checkpoint, if there was one."""
    format_version: int = FORMAT_VERSION

    @property
    def vision_bytes(self) -> int:
        """Size of the vision graph with its weights."""
        return sum(info.size for name, info in self.files.items() if name.startswith(VISION))

    def to_json(self) -> str:
        """The text of manifest.json; equal manifests give equal text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle directory whose manifest has been read and whose files are there with the right sizes."""

    directory: Path
    manifest: Manifest

    @property
    def vision_path(self) -> Path:
        return self.directory / VISION

    @property
    def decoder_path(self) -> Path:
        return self.directory / DECODER

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.resolve().name

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(info.size for info in self.manifest.files.values())


def read_bundle(directory: str | Path) -> Bundle:
    """Read and check a bundle; BundleError lists every fault (version, manifest, missing files, sizes)."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    faults = [
        f"{name} is not listed in {MANIFEST}" for name in (VISION, DECODER) if name not in manifest.files
    ]
    for name, info in manifest.files.items():
        path = directory / name
        if Path(name).name != name or len(name) > _LONGEST_NAME:
            faults.append(f"{MANIFEST} names {name!r}, which is not a file of the bundle")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != info.size:
            faults.append(f"{name} has {path.stat().st_size} bytes instead of {info.size}: copy it again")
    if faults:
        raise BundleError(list_faults(f"the bundle {directory}", faults))
    return Bundle(directory, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json alone; BundleError if it is missing, of another version or incomplete."""
    path = directory / MANIFEST
    if not os.path.lexists(directory):  # never raises, as a name may be too long for the system
        raise BundleError(f"there is no bundle at {directory}")
    if directory.is_file():
        raise BundleError(f"{directory} is a file; give the directory that holds it: {directory.parent}")
    if not path.is_file():
        hint = ""
        if (directory / "config.json").is_file():
            hint = f"; it looks like a checkpoint: ayaedge export {directory}"
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}{hint}")
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        advice = "update ayaedge" if isinstance(version, int) and version > FORMAT_VERSION else "export again"
        raise BundleError(
            f"{path} has format version {version!r}, this ayaedge reads {FORMAT_VERSION}: {advice}"
        )
    faults: list[str] = []
    manifest = _build(Manifest, data, "", faults)
    faults = faults or check_values(manifest)
    if faults:
        raise BundleError(list_faults(str(path), faults))
    return manifest


def check_values(manifest: Manifest) -> list[str]:
    """What in a manifest of the right form cannot be true, a sentence each."""
    tiling, image, tokens, decoder = (
        manifest.tiling, manifest.image_prompt, manifest.tokens, manifest.decoder,
    )  # fmt: skip
    limits = {
        "tiling.tile_size": (tiling.tile_size, 1, _LARGEST_TILE),
        "tiling.max_tiles": (tiling.max_tiles, 1, MOST_TILES),
        "tiling.min_tiles": (tiling.min_tiles, 1, tiling.max_tiles),
        "tiling.resample": (tiling.resample, 0, 5),
        "image_prompt.tokens_per_tile": (image.tokens_per_tile, 1, _MOST_TOKENS),
        "decoder.vocab_size": (decoder.vocab_size, 1, _MOST_TOKENS),
        "decoder.context_length": (decoder.context_length, 2, _MOST_TOKENS),
        "tokens.image_patch": (tokens.image_patch, 0, decoder.vocab_size - 1),
        "tokens.bos": (tokens.bos, 0, decoder.vocab_size - 1),
    }
    faults = [
        f"{place} is {value}, it must lie between {low} and {high}"
        for place, (value, low, high) in limits.items()
        if not low <= value <= high
    ]
    numbers = {"mean": tiling.mean, "std": tiling.std, "rescale": (tiling.rescale,) * 3}
    for name, values in numbers.items():
        zero = name != "mean" and 0 in values
        if len(values) != 3 or not all(map(math.isfinite, values)) or zero:
            faults.append(f"tiling.{name} is {values}, which is no number for each of three channels")
    texts = tuple(token.id for token in tokens.texts)
    for name, ids in (("stop", tokens.stop), ("special", tuple(tokens.special.values())), ("texts", texts)):
        wrong = [token for token in ids if not 0 <= token < decoder.vocab_size]
        if wrong or (not ids and name != "texts"):
            faults.append(f"tokens.{name} must hold ids below {decoder.vocab_size}, it is {wrong or 'empty'}")
    for name in ("start", "end", "patch"):
        if getattr(image, name) not in tokens.special:
            faults.append(f"image_prompt.{name} is {getattr(image, name)!r}, which is no special token")
    scale = decoder.logit_scale
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        faults.append(f"decoder.logit_scale is {scale}, it must be a finite number above 0")
    if not image.placeholder or "" in tokens.added:
        faults.append("image_prompt.placeholder and added tokens must not be empty")
    return faults


def check_hashes(bundle: Bundle) -> list[str]:
    """The files whose content is not what was written, as one sentence each; empty if all are intact."""
    faults = []
    for name, info in bundle.manifest.files.items():
        try:
            if hash_file(bundle.directory / name) != info.sha256:
                faults.append(f"{name} is damaged: its SHA-256 differs from the manifest's")
        except OSError as error:
            faults.append(f"{name} cannot be read: {error}")
    return faults


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


_T = TypeVar("_T")


def _build(cls: type[_T], data: object, where: str, faults: list[str]) -> _T:
    """A dataclass from parsed JSON, checking every field's type; unknown keys are ignored."""
    if not isinstance(data, Mapping):
        faults.append(f"{where or 'the manifest'} must be an object")
        data = {}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        place = f"{where}.{item.name}".lstrip(".")
        if item.name in data:
            values[item.name] = _convert(hints[item.name], data[item.name], place, faults)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.append(f"{place} is missing")
            values[item.name] = None
    return cls(**values)


def _convert(hint: Any, value: object, place: str, faults: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, place, faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # only "or None" is used
        return None if value is None else _convert(arguments[0], value, place, faults)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, place, faults) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{place}.{key}", faults) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not (isinstance(hint, type) and isinstance(value, hint)) or isinstance(value, bool) != (hint is bool):
        faults.append(f"{place} has the wrong type: {value!r}")
    return value
