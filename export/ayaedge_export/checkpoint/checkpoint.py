"""A Hugging Face checkpoint of Aya Vision: everything that an export needs, checked before any work.

Reads configuration files and the headers of the weights; a tensor's values are read when an exporter asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.errors import CheckpointError, PromptError, list_faults
from ayaedge.manifest import MOST_TILES, ImagePrompt, Tiling
from ayaedge.text.template import ChatTemplate
from ayaedge_export.checkpoint.config import ModelConfig, parse_config
from ayaedge_export.checkpoint.fields import Fields
from ayaedge_export.checkpoint.files import CheckpointFiles, checkpoint_name
from ayaedge_export.checkpoint.handed_over import (
    adapter_faults,
    check_directory,
    quantized_by,
    quantized_fault,
)
from ayaedge_export.checkpoint.spec import EMBEDDINGS_TENSOR, HEAD_TENSOR, Shapes
from ayaedge_export.checkpoint.tensors import TensorIndex, TensorSource, slabs
from ayaedge_export.checkpoint.tokenizer import Tokenizer, keep_markers, parse_tokenizer

_UNUSED = re.compile(r"vision_tower\.vision_model\.head\.|\.position_ids$|\.rotary_emb\.inv_freq$")
"""Tensors that some versions write and the model does not use."""


@dataclass(frozen=True)
class Weights:
    """What is used of the weights that lie in one directory."""

    directory: Path
    tensors: TensorSource
    names: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(self.tensors.entries[name].nbytes for name in self.names)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint."""

    directory: Path
    config: ModelConfig
    tokenizer: Tokenizer
    tiling: Tiling
    image_prompt: ImagePrompt
    chat_template: str
    stop_ids: tuple[int, ...]
    license: str
    tensors: TensorSource

    @property
    def name(self) -> str:
        """What the model is called: its directory's name, unless that is a hash or a number of steps."""
        return checkpoint_name(self.directory)

    @property
    def parameters(self) -> int:
        """Number of weights that the model has."""
        return sum(entry.size for name, entry in self.tensors.entries.items() if name != HEAD_TENSOR)

    @property
    def sources(self) -> tuple[Weights, ...]:
        """Where its weights are read from."""
        names = (*self.config.text.tensors, *self.config.vision.tensors)
        return (Weights(self.directory, self.tensors, names),)


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Open and check a checkpoint directory; CheckpointError lists everything that is wrong with it."""
    directory = Path(directory)
    check_directory(directory)
    files = CheckpointFiles(directory)
    faults = files.faults
    model = files.read("config.json")
    if faults:  # without it there is nothing to hold the other files against
        raise CheckpointError(list_faults(f"the checkpoint {directory}", faults))
    faults += adapter_faults(directory)
    settings = files.read_tokenizer_settings()
    before = len(faults)
    config = parse_config(model, faults, tokenizer_max_length=settings.get("model_max_length"))
    sizes_known = len(faults) == before  # without them every tensor would look misshapen
    tokenizer = parse_tokenizer(files.read("tokenizer.json"), settings, faults)
    processor = files.read("processor_config.json", optional=True)
    tiling = _parse_tiling(files.read_image_processor(processor), config, faults)
    image_prompt = _parse_image_prompt(processor, config, faults)
    template = files.read_template(processor, settings)
    stop_ids: tuple[int, ...] = ()
    if tokenizer:
        _check_tokens(tokenizer, image_prompt, config, faults)
        stop_ids = _stop_ids(files.read("generation_config.json", optional=True), model, tokenizer, faults)
        tokenizer = keep_markers(tokenizer, template, image_prompt, stop_ids, faults)
        _check_template(template, tokenizer, image_prompt, faults)
    tensors, weight_faults = _open_tensors(directory, config if sizes_known else None)
    if quantized := quantized_by(directory, model):  # which explains whatever is wrong with the weights
        faults.insert(0, quantized_fault(quantized, whole=not weight_faults))
    else:
        faults += weight_faults
    if faults or tokenizer is None or tensors is None:
        raise CheckpointError(list_faults(f"the checkpoint {directory}", faults))
    return Checkpoint(
        directory, config, tokenizer, tiling, image_prompt, template, stop_ids, files.read_license(), tensors
    )


def _open_tensors(directory: Path, config: ModelConfig | None) -> tuple[TensorIndex | None, list[str]]:
    """The weights, and what is wrong with them, also by the sizes of `config` if they are known."""
    try:
        tensors = TensorIndex(directory)
    except CheckpointError as error:
        return None, [str(error)]
    if config is None:
        return tensors, []
    return tensors, tensor_faults(tensors, {**config.text.tensors, **config.vision.tensors}, tied=config.tied)


def tensor_faults(
    tensors: TensorIndex, wanted: Shapes, *, tied: bool, beside: tuple[str, ...] = ()
) -> list[str]:
    """Every tensor that is missing, misshapen or unknown, a sentence each; names may begin as in `beside` as well."""
    found = {name: entry for name, entry in tensors.entries.items() if not name.startswith(beside)}
    faults = [
        f"tensor {name} {_shape(shape)} is missing" for name, shape in wanted.items() if name not in found
    ]
    for name, entry in found.items():
        shape = wanted.get(name, wanted[EMBEDDINGS_TENSOR] if name == HEAD_TENSOR else None)
        if shape is None and not _UNUSED.search(name):
            faults.append(
                f"tensor {entry.stored_name} {_shape(entry.shape)} is not part of this architecture"
            )
        elif shape is not None and entry.shape != shape:
            faults.append(
                f"tensor {entry.stored_name} has shape {_shape(entry.shape)} instead of {_shape(shape)}"
            )
    return faults or _head_faults(tensors, tied=tied)


def _head_faults(tensors: TensorIndex, *, tied: bool) -> list[str]:
    """A fault unless the output head is the embeddings, of which it may be a copy."""
    head = tensors.entries.get(HEAD_TENSOR)
    if head and not tensors.equal(HEAD_TENSOR, EMBEDDINGS_TENSOR):
        told = f"{head.stored_name} differs from the embeddings; llama.cpp's Cohere graphs require them tied"
        if tied:
            told += (
                " (so does config.json: transformers would leave this tensor out; remove it if that is meant)"
            )
        return [told]
    if not head and not tied:
        told = (
            "the output head is not tied to the embeddings (tie_word_embeddings), but there is no lm_head.weight; set "
            "it to true in config.json if the model was trained with a tied head"
        )
        return [told]
    return []


def check_finite(
    checkpoint: Checkpoint, threads: int, advance: Callable[[int, str], None] | None = None
) -> None:
    """Read every weight that the model uses; CheckpointError names all tensors with NaN or infinite values.

    `advance` is called with bytes that were read, and their tensor.
    """
    for weights in checkpoint.sources:
        faults = list(_not_finite(weights, threads, advance))
        if faults:
            raise CheckpointError(
                list_faults(f"the checkpoint {weights.directory} is damaged; download it again", faults)
            )


def _not_finite(weights: Weights, threads: int, advance: Callable[[int, str], None] | None) -> Iterable[str]:
    """A sentence on each tensor with values that are not finite."""
    tensors, names = weights.tensors, weights.names
    counts = dict.fromkeys(names, 0)
    jobs = [(name, *rows) for name in names for rows in slabs(tensors.entries[name].shape)]
    with ThreadPoolExecutor(threads) as pool:
        for (name, start, stop), count in zip(
            jobs, pool.map(lambda job: tensors.count_not_finite(*job), jobs), strict=True
        ):
            counts[name] += count
            if advance:
                entry = tensors.entries[name]
                advance(entry.nbytes * (stop - start) // entry.shape[0], f"checking {name}")
    for name, count in counts.items():
        entry = tensors.entries[name]
        if count:
            yield (
                f"tensor {entry.stored_name} in {entry.file.name}: {count:,} of {entry.size:,} values are NaN or "
                "infinite"
            )


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _parse_tiling(image: dict[str, Any], config: ModelConfig, faults: list[str]) -> Tiling:
    fields = Fields(image, "the image processor", faults)
    expected = config.vision.image_size
    size = fields.section("size")
    if image and (size.get("height"), size.get("width")) != (expected, expected):
        faults.append(
            f"the image processor makes tiles of {size.get('width')} x {size.get('height')}, "
            f"the vision tower takes {expected}"
        )
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        fields.expect(step, True)
    most = fields.integer("max_patches", 12, high=MOST_TILES)
    return Tiling(
        tile_size=expected,
        min_tiles=fields.integer("min_patches", 1, high=most),
        max_tiles=most,
        resample=fields.integer("resample", Tiling.resample, low=0, high=5),
        rescale=fields.number("rescale_factor", Tiling.rescale),
        mean=fields.channels("image_mean", Tiling.mean),
        std=fields.channels("image_std", Tiling.std),
    )


def _parse_image_prompt(processor: dict[str, Any], config: ModelConfig, faults: list[str]) -> ImagePrompt:
    """The processor's markers; defaults are those of its class."""
    fields = Fields(processor, "processor_config.json", faults)
    wanted = config.vision.tokens_per_tile
    side = fields.integer("img_size", 364)
    written = (side // fields.integer("patch_size", 28, high=side)) ** 2
    if processor and written != wanted:
        faults.append(
            f"the processor writes {written} image tokens for a tile, the vision tower makes {wanted}"
        )
    return ImagePrompt(
        placeholder=fields.text("image_token", "<image>"),
        start=fields.text("start_of_img_token", "<|START_OF_IMG|>"),
        end=fields.text("end_of_img_token", "<|END_OF_IMG|>"),
        patch=fields.text("img_patch_token", "<|IMG_PATCH|>"),
        tile=fields.text("tile_token", "TILE"),
        thumbnail=fields.text("tile_global_token", "TILE_GLOBAL"),
        tokens_per_tile=wanted,
    )


def _check_tokens(tokenizer: Tokenizer, image: ImagePrompt, config: ModelConfig, faults: list[str]) -> None:
    for token in (image.patch, image.start, image.end):
        if token not in tokenizer.added:
            faults.append(f"the tokenizer has no image token {token}: is this a text-only tokenizer?")
    patch_id = tokenizer.added.get(image.patch, config.image_token_id)
    if patch_id != config.image_token_id:
        faults.append(
            f"{image.patch} has id {patch_id} in the tokenizer and {config.image_token_id} in config.json"
        )
    if tokenizer.size > config.text.vocab_size:
        faults.append(
            f"the tokenizer has {tokenizer.size} tokens, the embeddings only {config.text.vocab_size} rows"
        )


def _stop_ids(
    generation: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer, faults: list[str]
) -> tuple[int, ...]:
    """The ids at which an answer ends: as the first file states that states any."""
    text = config.get("text_config")
    text = text if isinstance(text, dict) else {}
    for place in (generation, config, text):
        stated = place.get("eos_token_id")
        if stated is None:
            continue
        ids = stated if isinstance(stated, list) else [stated]
        if not ids or not all(isinstance(i, int) and 0 <= i < tokenizer.size for i in ids):
            faults.append(f"eos_token_id is {stated!r}, which is no token of the tokenizer")
            return ()
        return tuple(sorted(ids))
    return (tokenizer.added[tokenizer.eos],)


def _check_template(template: str, tokenizer: Tokenizer, image: ImagePrompt, faults: list[str]) -> None:
    """A fault unless the template renders a question about an image, with the place of the image."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    try:
        rendered = ChatTemplate(template).render(
            messages=turns, add_generation_prompt=True, **tokenizer.named
        )
    except PromptError as error:
        faults.append(str(error))
        return
    if template and image.placeholder not in rendered:
        faults.append(f"the chat template writes no {image.placeholder} for an image")
