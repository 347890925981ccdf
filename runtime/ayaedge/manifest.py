"""What a bundle says of itself: the fields of manifest.json, and the values that they may have."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field

from PIL import Image

MOST_TILES = 256
"""Largest limit on tiles that a checkpoint may have; the released ones have 12."""


@dataclass(frozen=True)
class Tiling:
    """How one checkpoint cuts images; every field comes from its processor configuration."""

    tile_size: int
    """Side of a square tile, in pixels."""
    min_tiles: int = 1
    """Fewest tiles of a grid, the thumbnail not counted."""
    max_tiles: int = 12
    """Most tiles of a grid, the thumbnail not counted."""
    resample: int = int(Image.Resampling.BICUBIC)
    """Pillow's number of the resampling filter."""
    rescale: float = 1 / 255
    """Factor applied to 8-bit values before the mean is subtracted."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


FORMAT_VERSION = 1


VISION = "vision.onnx"


DECODER = "decoder.gguf"


VISION_FORMATS = ("int8", "int8-block", "fp16", "fp32")


ON_PROCESSORS_ONLY = ("int8", "int8-block")
"""Formats of the tower for CPUs: other devices lack their operators, or compute the fused attention in them wrongly
(WebGPU's, with more than 16 rows)."""


LONGEST_NAME = 255


_LARGEST_TILE = 4096


_MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class FileInfo:
    """One file of the bundle, as it was written."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class MergedModel:
    """A language model whose weights went into a decoder."""

    name: str
    """Name of its directory."""
    license: str
    """As its model card states it."""
    files: dict[str, FileInfo]
    """Those of its weights; hubs list the same SHA-256."""


@dataclass(frozen=True)
class Merge:
    """How the decoder's weights came from those of the checkpoint and of language models."""

    method: str
    """`linear`, `slerp` or `task-arithmetic`."""
    weight: float
    """Of the checkpoint: 0 is the base, 1 the checkpoint alone."""
    base: MergedModel
    ancestor: MergedModel | None = None
    """With task arithmetic: what the checkpoint has learned since is added to the base."""

    @property
    def text(self) -> str:
        """For people."""
        since = f", what was learned since {self.ancestor.name}" if self.ancestor else ""
        return f"{self.base.name} ({self.method}, weight {self.weight:g}{since})"


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
    merge: Merge | None = None
    """What the decoder was merged with while it was exported."""


@dataclass(frozen=True)
class Formats:
    """Number formats of the two halves."""

    vision: str
    """Of the graph that processors run, and GPUs too where there is no other."""
    decoder: str
    adjustments: tuple[str, ...] = ()
    """What else decided about the decoder's weights: an importance matrix, types that a user asked for."""
    vision_for_gpus: tuple[str, ...] = ()
    """Of further graphs, each in `vision_file(format)`."""


@dataclass(frozen=True)
class ImagePrompt:
    """How an image is written into the prompt."""

    placeholder: str
    """What the chat template writes where an image belongs."""
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
    """Added tokens that only the template and images may write: in other text they are spelled out."""
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
class DecoderInfo:
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
    decoder: DecoderInfo
    chat_template: str
    created_by: dict[str, str]
    """Versions of what wrote the bundle."""
    files: dict[str, FileInfo] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    """Figures of the last verification against the checkpoint, if there was one."""
    format_version: int = FORMAT_VERSION

    @property
    def vision_bytes(self) -> int:
        """Size of the processors' vision graph with its weights."""
        return self.graph_bytes(VISION)

    def graph_bytes(self, graph: str) -> int:
        """Size of a vision graph, by the name of its file, with its weights."""
        return sum(info.size for name, info in self.files.items() if name.startswith(graph))

    @property
    def gpu_graphs(self) -> dict[str, str]:
        """Formats of the graphs that GPUs can run to the names of their files, the smaller numbers first."""
        formats = self.formats
        graphs = {formats.vision: VISION} | {form: vision_file(form) for form in formats.vision_for_gpus}
        return {form: graphs[form] for form in sorted(graphs) if form not in ON_PROCESSORS_ONLY}

    def to_json(self) -> str:
        """The text of manifest.json; equal manifests give equal text."""
        values = dataclasses.asdict(self)
        if not self.formats.vision_for_gpus:  # as it was before there could be several graphs
            del values["formats"]["vision_for_gpus"]
        if not self.source.merge:
            del values["source"]["merge"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def vision_file(form: str) -> str:
    """Name of the file of a vision graph for GPUs in this format."""
    return f"vision.{form}.onnx"


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
    further = manifest.formats.vision_for_gpus
    if not set(further) <= set(VISION_FORMATS) - {*ON_PROCESSORS_ONLY, manifest.formats.vision}:
        faults.append(
            f"formats.vision_for_gpus is {further}, which are no formats for GPUs, or not further ones"
        )
    merge = manifest.source.merge
    if merge and not 0 <= merge.weight <= 1:
        faults.append(f"source.merge.weight is {merge.weight}, it must lie between 0 and 1")
    scale = decoder.logit_scale
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        faults.append(f"decoder.logit_scale is {scale}, it must be a finite number above 0")
    if not image.placeholder or "" in tokens.added:
        faults.append("image_prompt.placeholder and added tokens must not be empty")
    return faults
