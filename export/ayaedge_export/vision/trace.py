"""The second way to the vision graph: traced from the PyTorch modules with Optimum's exporter.

Slower and hungrier than `ayaedge_export.vision.graph`, and float32 only, but written by others: the oracle
that the direct graph is held against. Only tower and connector are ever built, never the decoder. Importing
this module needs the extra `trace`, and raises MissingExtraError without it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx

from ayaedge.errors import ExportError, MissingExtraError
from ayaedge.hardware.machine import memory, usable_threads
from ayaedge_export.checkpoint.config import VisionConfig
from ayaedge_export.checkpoint.spec import CONNECTOR, TOWER, UNUSED_TENSORS
from ayaedge_export.checkpoint.tensors import WeightSource
from ayaedge_export.offline import stay_offline
from ayaedge_export.vision.graph import (
    INPUT_NAME,
    OUTPUT_NAME,
    PRODUCER_NAME,
    PRODUCER_VERSION,
    check_divisible,
    declare_tiles,
    weight_count,
)

stay_offline()
try:
    import torch
    from optimum.exporters.onnx import OnnxConfig, export
    from optimum.utils import DummyVisionInputGenerator, NormalizedVisionConfig
    from transformers import AyaVisionConfig, Cohere2Config, SiglipVisionConfig, SiglipVisionModel
    from transformers.modeling_utils import no_init_weights
    from transformers.models.aya_vision.modeling_aya_vision import AyaVisionMultiModalProjector
except ImportError as error:
    raise MissingExtraError("tracing the vision tower", "trace") from error

TRACED_TILES = 2
"""Tiles in the traced run: more than one, so that no size of 1 is taken for a constant."""


_BYTES_PER_WEIGHT, _BYTES_BESIDE = 9, 500_000_000
"""Memory that tracing takes: measured 5.9 GB for the released tower's 604 M weights."""


def check_memory(config: VisionConfig) -> None:
    """Raise ExportError, with both figures, if less memory is available than tracing takes."""
    needed = _BYTES_PER_WEIGHT * weight_count(config) + _BYTES_BESIDE
    available = memory().available
    if needed > available:
        raise ExportError(
            f"tracing the vision tower takes about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are "
            "available: close other programs, or leave out trace (1.3 GB, and int8 or fp16 as well)"
        )


class VisionModule(torch.nn.Module):  # type: ignore[misc]
    """Tower and connector alone; at module level because Optimum may pickle it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        reference = reference_config(config)
        self.config = reference.vision_config
        with no_init_weights():
            self.vision_tower = SiglipVisionModel(reference.vision_config)
            self.multi_modal_projector = AyaVisionMultiModalProjector(reference)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tiles (n, 3, S, S) to image embeddings (n, T, output_size)."""
        tower = self.vision_tower.vision_model
        # the encoder's own output, which `post_layernorm` has not touched
        features = tower.encoder(inputs_embeds=tower.embeddings(pixel_values)).last_hidden_state
        return self.multi_modal_projector(features).flatten(1, 2)


class VisionOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """What Optimum must know of `VisionModule`: names, dynamic sizes, and how to make an input."""

    NORMALIZED_CONFIG_CLASS = NormalizedVisionConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyVisionInputGenerator,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Each input with its dynamic axes."""
        return {INPUT_NAME: {0: "tiles"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Each output with its dynamic axes."""
        return {OUTPUT_NAME: {0: "tiles"}}


def reference_config(config: VisionConfig) -> AyaVisionConfig:
    """The configuration in transformers' form; of the decoder it has the width only."""
    vision = SiglipVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        layer_norm_eps=config.layer_norm_eps,
        vision_use_head=False,
        attn_implementation="eager",
    )
    return AyaVisionConfig(
        vision_config=vision,
        text_config=Cohere2Config(hidden_size=config.output_size),
        downsample_factor=config.downsample_factor,
        adapter_layer_norm_eps=config.adapter_layer_norm_eps,
        alignment_intermediate_size=config.adapter_size,
    )


def load_vision_module(config: VisionConfig, weights: WeightSource) -> VisionModule:
    """Build tower and connector in float32 and fill them, a tensor at a time."""
    module = VisionModule(config)
    module.float().eval()
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in config.tensors:
            if name not in UNUSED_TENSORS:
                parameters.pop(name).copy_(torch.tensor(weights(name)))
    unfilled = set(parameters) - set(UNUSED_TENSORS)
    assert not unfilled, f"{TOWER} or {CONNECTOR} has parameters we do not know: {sorted(unfilled)}"
    return module


def trace_vision_graph(path: Path, config: VisionConfig, weights: WeightSource) -> None:
    """Write the traced float32 graph to `path`, with the inputs and outputs of `write_vision_graph`.

    Weights over protobuf's limit of 2 GB lie in `<path>.data`. Raises CheckpointError for a shape that pixel
    shuffle or attention cannot divide.
    """
    check_divisible(config)
    torch.set_num_threads(min(torch.get_num_threads(), usable_threads()))
    module = load_vision_module(config, weights)
    onnx_config = VisionOnnxConfig(module.config, task="feature-extraction")
    with warnings.catch_warnings():
        # sizes that Python computes do become constants, as they are: only the number of tiles is free
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        export(module, onnx_config, path, input_shapes={"batch_size": TRACED_TILES})
    del module
    _normalize(path, config)


def _normalize(path: Path, config: VisionConfig) -> None:
    """Give the file our producer, our declared shapes and our name for the data file."""
    model = onnx.load(path, load_external_data=False)
    inputs, outputs = declare_tiles(config)
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.append(inputs)
    model.graph.output.append(outputs)
    model.producer_name, model.producer_version = PRODUCER_NAME, f"{PRODUCER_VERSION} (traced)"
    optimum_data = Path(f"{path}_data")
    if optimum_data.exists():
        ours = optimum_data.rename(f"{path}.data")
        for tensor in _external_tensors(model):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = ours.name
    path.write_bytes(model.SerializeToString(deterministic=True))


def _external_tensors(model: onnx.ModelProto) -> list[Any]:
    """Tensors that lie in the data file: weights, and constants that became attributes of nodes."""
    attributes = (attribute.t for node in model.graph.node for attribute in node.attribute)
    external = onnx.TensorProto.EXTERNAL
    return [t for t in (*model.graph.initializer, *attributes) if t.data_location == external]
