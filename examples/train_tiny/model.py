"""The untrained checkpoint: tokenizer, chat template, processor and network of a 4.5 M parameter Aya Vision.

Everything has the form of the released Aya Vision checkpoints and a hundredth of their size. This module
knows nothing of scenes; the caller passes the texts the tokenizer is trained on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    CohereTokenizerFast,
    GenerationConfig,
    GotOcr2ImageProcessor,
    SiglipVisionConfig,
)

TILE_SIZE = 56
TOKENS_PER_TILE = 16
MAX_TILES = 12
EMBEDDING_ROWS = 2048
UNUSED_ROWS = 4
"""Rows of the embedding that no token uses, as released checkpoints have some."""

SYSTEM_PREAMBLE = "You answer questions about pictures."

_LOW_TOKENS = (
    "<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<EOP_TOKEN>",
)  # fmt: skip
_HIGH_TOKENS = (
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
    "<|START_ACTION|>", "<|END_ACTION|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>",
    "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>",
)  # fmt: skip
_SPECIAL_HIGH_TOKENS = {"<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"}

CHAT_TEMPLATE = (
    "{{- bos_token -}}\n"
    "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>" + SYSTEM_PREAMBLE + "<|END_OF_TURN_TOKEN|>\n"
    """{%- set openings = {
    'system': '<|SYSTEM_TOKEN|>',
    'user': '<|USER_TOKEN|>',
    'assistant': '<|CHATBOT_TOKEN|><|START_RESPONSE|>',
} -%}
{%- for turn in messages -%}
    {{- '<|START_OF_TURN_TOKEN|>' + openings[turn.role] -}}
    {%- if turn.content is string -%}
        {{- turn.content -}}
    {%- else -%}
        {%- for part in turn.content if part.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}
        {%- for part in turn.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
    {%- if turn.role == 'assistant' -%}{{- '<|END_RESPONSE|>' -}}{%- endif -%}
    {{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}
"""
)


def tile_tags(count: int) -> list[str]:
    """The text before each tile's image tokens: TILE_1 .. for the grid, TILE_GLOBAL for the last tile."""
    return [f"TILE_{index}" for index in range(1, count)] + ["TILE_GLOBAL"]


def build_tokenizer(texts: Iterable[str]) -> CohereTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, in the manner of Cohere's.

    Tile tags and `<image>` are ordinary text. "TILE" and "GLOBAL" become one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=EMBEDDING_ROWS - UNUSED_ROWS - len(_HIGH_TOKENS),
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _LOW_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tags = " ".join(tile_tags(MAX_TILES + 1)).split(" ")
    tokenizer.train_from_iterator([*texts, *(tags * 500)], trainer)
    for token in _HIGH_TOKENS:
        tokenizer.add_tokens([AddedToken(token, special=token in _SPECIAL_HIGH_TOKENS, normalized=False)])
    bos = "<BOS_TOKEN>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    result = CohereTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        bos_token=AddedToken(bos, special=True, normalized=False),
        eos_token=AddedToken("<|END_OF_TURN_TOKEN|>", special=True, normalized=False),
        pad_token=AddedToken("<PAD>", special=True, normalized=False),
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    expected = EMBEDDING_ROWS - UNUSED_ROWS
    if len(result) != expected:
        raise ValueError(f"the texts gave {len(result)} tokens, expected {expected}: pass more text")
    return result


def build_processor(tokenizer: CohereTokenizerFast) -> AyaVisionProcessor:
    """Tiling of the released checkpoints (up to 12 tiles and a thumbnail), at 56 pixels a tile."""
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE_SIZE, "width": TILE_SIZE},
        crop_to_patches=False,
        min_patches=1,
        max_patches=MAX_TILES,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return AyaVisionProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        img_size=TILE_SIZE,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: CohereTokenizerFast) -> AyaVisionForConditionalGeneration:
    """The network with random weights, float32; the same weights for the same `torch.manual_seed`.

    Attention is "eager": on CPU, with the masks of training, it is faster than the fused kernel.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (*_LOW_TOKENS, *_HIGH_TOKENS)}
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=TILE_SIZE,
        patch_size=7,
        vision_use_head=False,
    )
    text = Cohere2Config(
        vocab_size=EMBEDDING_ROWS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        sliding_window=64,
        sliding_window_pattern=4,
        rope_theta=50000.0,
        logit_scale=1.0,  # the forward pass that it is trained by has none
        pad_token_id=ids["<PAD>"],
        bos_token_id=ids["<BOS_TOKEN>"],
        eos_token_id=ids["<|END_OF_TURN_TOKEN|>"],
    )
    config = AyaVisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<|IMG_PATCH|>"],
        downsample_factor=2,
        alignment_intermediate_size=512,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    model = AyaVisionForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=96,
    )
    return model


def parameter_count(module: torch.nn.Module) -> int:
    """Number of weights, tied ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
