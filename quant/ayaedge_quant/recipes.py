"""Recipes: which storage type each tensor of the decoder gets in a named format, and where a user wants another.

The rules are llama.cpp's (`llama_tensor_get_type` in src/llama-quant.cpp), for the tensors that Cohere's
decoders have, so that a file made here equals the one that llama.cpp's own quantizer makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ayaedge_quant.number_formats import GgmlType

DecoderFormat = Literal["q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]
DECODER_FORMATS: tuple[DecoderFormat, ...] = get_args(DecoderFormat)

EMBEDDINGS = "token_embd.weight"
"""The embeddings, which are tied: llama.cpp uses them as the output head as well."""

_NORM = "_norm.weight"
_BASE_TYPE: dict[DecoderFormat, GgmlType] = {
    "q4_k_m": GgmlType.Q4_K,
    "q5_k_m": GgmlType.Q5_K,
    "q6_k": GgmlType.Q6_K,
    "q8_0": GgmlType.Q8_0,
    "f16": GgmlType.F16,
    "f32": GgmlType.F32,
}

FILE_TYPE: dict[DecoderFormat, int] = {
    "f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip
"""llama.cpp's number of each format, for the key general.file_type."""

_FALLBACK = {GgmlType.Q4_K: GgmlType.Q5_0, GgmlType.Q5_K: GgmlType.Q5_1, GgmlType.Q6_K: GgmlType.Q8_0}
_LAYER = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")


@dataclass(frozen=True)
class Override:
    """Tensors whose name `pattern` is found in get the type `kind`."""

    pattern: re.Pattern[str]
    kind: GgmlType

    @classmethod
    def parse(cls, text: str) -> Override:
        """From `REGEX=TYPE`, for example `ffn_down=q6_k`; ValueError says what is wrong with it."""
        expression, found, name = text.rpartition("=")
        if not found or not expression:
            raise ValueError(f"a tensor type is written REGEX=TYPE, for example ffn_down=q6_k, not {text!r}")
        try:
            pattern = re.compile(expression)
        except re.error as error:
            raise ValueError(f"{expression!r} is not a regular expression: {error}") from None
        return cls(pattern, parse_type(name))

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.kind.name.lower()}"


@dataclass(frozen=True)
class Recipe:
    """A named format and what is wanted otherwise; as in llama.cpp the first override that matches counts."""

    format: DecoderFormat = "q4_k_m"
    overrides: tuple[Override, ...] = ()
    output_type: GgmlType | None = None
    """Type of the embeddings, which are the output head too; goes before `overrides`."""
    chosen: Mapping[str, GgmlType] = field(default_factory=dict)
    """Types of tensors that were measured, by name; a user's wishes go before them."""

    @classmethod
    def parse(
        cls, fmt: DecoderFormat, tensor_types: Sequence[str] = (), output_type: str | None = None
    ) -> Recipe:
        """From what a user writes: `REGEX=TYPE` each, and the name of a type. ValueError says what is wrong."""
        overrides = tuple(Override.parse(text) for text in tensor_types)
        return cls(fmt, overrides, parse_type(output_type) if output_type else None)

    def type_of(self, name: str, shape: tuple[int, ...], num_layers: int) -> GgmlType:
        """The type of the GGUF tensor `name` with `shape` (rows, columns) in a decoder of `num_layers`.

        Norms stay F32 whatever an override says. ValueError, naming the tensor, if a type that was asked for does not
        divide its rows; types of the named format fall back to one that does, as in llama.cpp.
        """
        wanted = None if _is_norm(name, shape) else self._wanted(name)
        if wanted is None:
            return _format_type(name, shape, num_layers, self.format)
        if shape[-1] % wanted.block_size:
            raise ValueError(
                f"{name} cannot be {wanted.name.lower()}: its rows of {shape[-1]} weights are not a multiple of "
                f"{wanted.block_size}"
            )
        return wanted

    def wants(self, name: str) -> bool:
        """Whether a user has asked for a type of the tensor `name`."""
        return replace(self, chosen={})._wanted(name) is not None

    @property
    def adjustments(self) -> tuple[str, ...]:
        """What is wanted otherwise than the format has it, as a user writes it."""
        output = () if self.output_type is None else (f"output={self.output_type.name.lower()}",)
        return (*map(str, self.overrides), *output)

    def check_used(self, names: Iterable[str]) -> None:
        """Raise ValueError if an override matches none of the tensors `names` (norms aside): most likely a typo."""
        names = [name for name in names if not name.endswith(_NORM)]
        for override in self.overrides:
            if not any(override.pattern.search(name) for name in names):
                raise ValueError(
                    f"no tensor matches {override.pattern.pattern!r}; names look like {EMBEDDINGS} and "
                    "blk.0.ffn_down.weight"
                )

    def _wanted(self, name: str) -> GgmlType | None:
        if name == EMBEDDINGS and self.output_type is not None:
            return self.output_type
        asked = next((o.kind for o in self.overrides if o.pattern.search(name)), None)
        return self.chosen.get(name) if asked is None else asked


def parse_type(name: str) -> GgmlType:
    """The type called `name` in either case; ValueError lists those there are."""
    try:
        return GgmlType[name.strip().upper()]
    except KeyError:
        known = ", ".join(kind.name.lower() for kind in GgmlType)
        raise ValueError(f"{name!r} is not a tensor type; there are {known}") from None


def as_recipe(recipe: DecoderFormat | Recipe) -> Recipe:
    """A format alone is a recipe without overrides."""
    return recipe if isinstance(recipe, Recipe) else Recipe(recipe)


def tensor_type(
    name: str, shape: tuple[int, ...], num_layers: int, recipe: DecoderFormat | Recipe
) -> GgmlType:
    """The type of a tensor under a format or a recipe; see `Recipe.type_of`."""
    return as_recipe(recipe).type_of(name, shape, num_layers)


def _format_type(name: str, shape: tuple[int, ...], num_layers: int, fmt: DecoderFormat) -> GgmlType:
    base = _BASE_TYPE[fmt]
    if _is_norm(name, shape):
        return GgmlType.F32
    if base in (GgmlType.F32, GgmlType.F16):
        return base
    columns = shape[-1]
    if name == EMBEDDINGS:  # the most sensitive tensor
        wanted = base if base is GgmlType.Q8_0 else GgmlType.Q6_K
        return wanted if columns % base.block_size == 0 else _that_fits(GgmlType.Q8_0, columns)
    layer = _LAYER.fullmatch(name)
    if layer and fmt in ("q4_k_m", "q5_k_m") and _gets_more_bits(int(layer[1]), num_layers):
        base = GgmlType.Q6_K
    return _that_fits(base, columns)


def _is_norm(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or name.endswith(_NORM)


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _that_fits(kind: GgmlType, columns: int) -> GgmlType:
    """`kind`, or what llama.cpp falls back to when rows of `columns` are not a whole number of blocks."""
    if columns % kind.block_size == 0:
        return kind
    smaller = _FALLBACK.get(kind, kind)
    return smaller if columns % smaller.block_size == 0 else GgmlType.F16
