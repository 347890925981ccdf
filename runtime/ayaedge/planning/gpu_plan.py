"""How much of a bundle a graphics processor holds: arithmetic, nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ayaedge.decoder.gguf_header import DecoderFigures

_LEAST_RESERVE = 256_000_000


_RESERVE = 0.05
"""Of the free memory: for the libraries' own work space, and because other programs draw windows."""


_VISION_WORK = 600_000_000
"""Bytes of activations that ONNX Runtime takes for one tile, beside the weights."""


_ACTIVATIONS = 4
"""Bytes of an activation."""


_MASK = 2
"""Bytes of an element of an attention mask."""


_PIECES = 1.1
"""By how much a compute buffer grows that is used in more than one piece."""


_FEW_PIECES = 1.05
"""The same where most of it are scores."""


_F16 = 2.0


@dataclass(frozen=True)
class GpuPlan:
    """What goes on a graphics processor."""

    layers: int
    """`n_gpu_layers`: the output layer is the first to go there, then the blocks from the last on."""
    of: int
    """`layers` when everything is there: all blocks and the output layer."""
    vision: bool
    bytes_used: int
    free_bytes: int
    """What there was before."""
    reason: str
    shared: bool = False
    """Whether it is main memory: what is used there is not free for the processor."""
    prompts: bool = False
    """Whether prompts are computed there for layers that are not."""


def plan_gpu(
    figures: DecoderFigures,
    *,
    free_bytes: int,
    context: int,
    cache_element_bytes: float = _F16,
    batch: int = 512,
    flash_attention: bool = True,
    vision_bytes: int | None,
    vision_first: bool = False,
    most: int | None = None,
    prompts: bool = False,
) -> GpuPlan:
    """As many layers as the free memory holds with their KV cache and work space; the vision tower if it fits beside.

    `context` and `batch` are in tokens; `vision_bytes` are the vision graph's weights, None if it stays on the
    processor anyway; `vision_first` sets its memory aside before layers are counted. No more than `most` layers; with
    `prompts` those of none are computed there if there is room for that.

    Layers come first where not everything fits. They pay with every token of every answer; the tower pays once for a
    image that was never seen before, since embeddings and decoder states are kept. For 8B its 1.8 GB are worth 11
    layers: about 1.4 GB less to read from main memory for each token.
    """
    room, of = free_bytes - reserve(free_bytes), figures.layers + 1
    needs = [
        gpu_bytes(
            figures, layers, context=context, cache_element_bytes=cache_element_bytes, batch=batch,
            flash_attention=flash_attention, prompts=prompts,
        )
        for layers in range((of if most is None else min(of, most)) + 1)
    ]  # fmt: skip
    tower = None if vision_bytes is None else vision_bytes + _VISION_WORK
    left = room - tower if tower and vision_first else room
    fitting = [count for count, need in enumerate(needs) if need <= max(left, 0)]
    if not fitting:
        prompts, needs[0], fitting = False, 0, [0]
    layers = fitting[-1]
    vision = tower is not None and needs[layers] + tower <= room
    used = needs[layers] + (tower if tower and vision else 0)
    reason = _reason(layers, of, vision, tower, free_bytes, prompts=prompts, wanted=layers == most)
    return GpuPlan(layers, of, vision, used, free_bytes, reason, prompts=prompts)


def gpu_bytes(
    figures: DecoderFigures,
    layers: int,
    *,
    context: int,
    cache_element_bytes: float = _F16,
    batch: int = 512,
    flash_attention: bool = True,
    prompts: bool = False,
) -> int:
    """Bytes of graphics memory that `layers` layers take with KV cache and work space; 0 for none without `prompts`.

    With fewer than all, llama.cpp computes prompts there too, and copies what the others need: one matrix after the
    other, and one layer's KV cache.
    """
    if layers == 0 and not prompts:
        return 0
    blocks = max(min(layers, figures.layers + 1) - 1, 0)
    weights = (figures.other_bytes if layers else 0) + sum(figures.layer_bytes[figures.layers - blocks :])
    cached = figures.kv_bytes(context, cache_element_bytes) * blocks // max(figures.layers, 1)
    work = work_bytes(figures, context=context, batch=batch, flash_attention=flash_attention)
    if blocks < figures.layers:
        layer = figures.kv_bytes(context, cache_element_bytes) // max(figures.layers, 1)
        work = _copying_bytes(figures, blocks, work, layer, context, batch, flash_attention=flash_attention)
    return weights + cached + work


def _copying_bytes(
    figures: DecoderFigures,
    blocks: int,
    work: int,
    layer: int,
    context: int,
    batch: int,
    *,
    flash_attention: bool,
) -> int:
    """Bytes of the compute buffer where some blocks are in main memory, and `layer` is the KV cache of one of those.

    Fitted as `work_bytes`: what is there at once is a matrix with the activations of its product, or a layer's KV
    cache with masks and scores; where blocks are on the device, their own work space, which falls into more pieces.
    """
    matrix = figures.largest_bytes or max(figures.layer_bytes)
    masks, mask = (1 if figures.window is None else 2), _MASK * batch * context
    hidden, inner = (_ACTIVATIONS * batch * width for width in (figures.hidden, figures.feed_forward))
    if flash_attention:
        product = matrix + inner + 5 * hidden + masks * mask
        attention = layer + mask + 5 * hidden
        own = int(_PIECES * work) if blocks else 0
    else:
        product = matrix + 3 * inner + 3 * hidden // 2 + 11 * mask
        attention = layer + 2 * figures.heads * mask + 6 * hidden + _keys(figures, batch) + 11 * mask // 2
        own = int(_FEW_PIECES * work) if blocks > 1 else 0
    return max(product, attention, own) + _ACTIVATIONS * figures.vocab_size


def work_bytes(
    figures: DecoderFigures, *, context: int, batch: int = 512, flash_attention: bool = True
) -> int:
    """Bytes of llama.cpp's compute buffer for batches of `batch` tokens, with one row of logits.

    Fitted to what llama.cpp reserves for Cohere's parallel blocks (8B: 140.0 MiB at 8192 tokens and batches of 512);
    without flash attention masks have 32 bits, and the scores of all heads are stored. A device whose buffers may not
    be as large as those (128 MiB, on some) takes less, and leaves attention to the processor.
    """
    masks = 1 if figures.window is None else 2
    hidden, inner = (_ACTIVATIONS * batch * width for width in (figures.hidden, figures.feed_forward))
    mask = _MASK * batch * context
    if flash_attention:
        work = 3 * inner + 5 * hidden + masks * mask
    else:
        scores, keys = 2 * figures.heads * mask, _keys(figures, batch)
        rows = max(4.25 * hidden + 5 * keys + 2 * masks * mask, 4.75 * hidden + 2.25 * keys)
        work = int(1.005 * scores + 3 * inner + rows)
    return work + _ACTIVATIONS * figures.vocab_size


def _keys(figures: DecoderFigures, batch: int) -> int:
    """Bytes of a layer's new keys, as 32-bit floats; its values are as many."""
    return _ACTIVATIONS * batch * figures.kv_heads * figures.head_dim


def reserve(free_bytes: int) -> int:
    """Bytes of graphics memory that a plan leaves free."""
    return max(_LEAST_RESERVE, int(_RESERVE * free_bytes))


def _reason(
    layers: int, of: int, vision: bool, tower: int | None, free_bytes: int, *, prompts: bool, wanted: bool
) -> str:
    free = f"{free_bytes / 1e9:.1f} GB of graphics memory"
    if layers == of:
        decoder = f"the whole decoder fits in {free}"
    elif layers and wanted:
        decoder = f"{layers} of {of} layers, which was measured to be fastest, fit in {free}"
    elif layers:
        decoder = f"{layers} of {of} layers fit in {free}"
    elif prompts:
        decoder = f"prompts are computed in {free}, answers by the processor"
    else:
        decoder = f"no layer fits in {free}"
    if tower is None:
        return f"{decoder}; the vision tower runs elsewhere"
    place = "fits beside it" if vision else "does not fit beside it"
    return f"{decoder}; the vision tower ({tower / 1e9:.1f} GB) {place}"
