"""The reference: transformers' own Aya Vision, to measure bundles against. Needs the extra `trace`.

Every class is named here. A checkpoint may name others, and hold their code (`auto_map`, `custom_generate`): none of it
is loaded, asked about or run, and no pickle is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ayaedge.errors import MissingExtraError
from ayaedge.hardware.machine import usable_threads
from ayaedge.text.prompt import Message
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.files import CheckpointFiles
from ayaedge_export.checkpoint.tensors import TensorSource, canonical_name
from ayaedge_export.merge.merge import MergedCheckpoint
from ayaedge_export.offline import stay_offline


class Reference:
    """A checkpoint in transformers, computing in float32 on the CPU.

    transformers (since 4.52) leaves out the decoder's `logit_scale`; `logits` puts it back, or another one that a
    bundle was exported with.
    """

    def __init__(self, directory: Path, *, logit_scale: float | None = None):
        stay_offline()
        try:
            import transformers  # isort: skip  # first: where it is missing, PyTorch's seconds are spared
            import torch
        except ImportError as error:
            raise MissingExtraError("comparing with a checkpoint", "trace") from error
        self._torch = torch
        torch.set_num_threads(min(torch.get_num_threads(), usable_threads()))
        self.processor: Any = _processor(transformers, directory)
        config = transformers.AyaVisionConfig.from_pretrained(directory, local_files_only=True)
        self.model: Any = transformers.AyaVisionForConditionalGeneration.from_pretrained(
            directory, config=config, generation_config=_generation_config(transformers, directory, config),
            dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True,
            trust_remote_code=False,
        ).eval()  # fmt: skip
        self._logit_scale = float(config.text_config.logit_scale if logit_scale is None else logit_scale)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Reference:
        """An opened checkpoint, with its logit scale and, if it is merged, its merged decoder."""
        reference = cls(checkpoint.directory, logit_scale=checkpoint.config.text.logit_scale)
        if isinstance(checkpoint, MergedCheckpoint):
            reference._replace(checkpoint.config.text.tensors, checkpoint.tensors)
        return reference

    def _replace(self, names: Iterable[str], tensors: TensorSource) -> None:
        """Put tensors into the places of the checkpoint's own, one at a time."""
        parameters = {canonical_name(name): value for name, value in self.model.named_parameters()}
        with self._torch.no_grad():
            for name in names:
                parameters[name].copy_(self._torch.from_numpy(tensors.read(name)))

    def inputs(
        self, messages: Sequence[Message], images: Sequence[Image.Image], *, generate: bool = True
    ) -> tuple[list[int], NDArray[np.float32] | None]:
        """Prompt token ids, and tiles (n, 3, S, S) of all images together."""
        conversation = []
        for message in messages:
            content: list[dict[str, str]] = [{"type": "image"}] * message.images
            conversation.append(
                {"role": message.role, "content": [*content, {"type": "text", "text": message.text}]}
            )
        text = self.processor.apply_chat_template(
            conversation, add_generation_prompt=generate, tokenize=False
        )
        # the template has written BOS already
        batch = self.processor(
            text=[text], images=list(images) or None, add_special_tokens=False, return_tensors="np"
        )
        pixels = batch.get("pixel_values")
        return batch["input_ids"][0].tolist(), None if pixels is None else np.asarray(pixels, np.float32)

    def image_embeddings(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image embeddings (n, T, hidden) of tiles (n, 3, S, S)."""
        with self._torch.no_grad():
            features = self.model.get_image_features(self._torch.from_numpy(pixel_values))
        features = getattr(features, "pooler_output", features)  # transformers 5 wraps what 4 returns
        return cast("NDArray[np.float32]", features.reshape(len(features), -1, features.shape[-1]).numpy())

    def logits(
        self, ids: Sequence[int], pixel_values: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Scaled logits at every position, (len(ids), vocabulary)."""
        arguments = {"input_ids": self._torch.tensor([list(ids)])}
        if pixel_values is not None:
            arguments["pixel_values"] = self._torch.from_numpy(pixel_values)
        with self._torch.no_grad():
            logits = self.model(**arguments, use_cache=False).logits[0]
        return cast("NDArray[np.float32]", (logits * self._logit_scale).numpy())

    def logit_parts(
        self,
        ids: Sequence[int],
        ranges: Sequence[tuple[int, int]],
        pixel_values: NDArray[np.float32] | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """`logits` of ranges of positions, one after the other: all of them together may not fit into memory."""
        arguments = {"input_ids": self._torch.tensor([list(ids)])}
        if pixel_values is not None:
            arguments["pixel_values"] = self._torch.from_numpy(pixel_values)
        with self._torch.no_grad():
            hidden = self.model.model(**arguments, use_cache=False).last_hidden_state[0]
        for start, stop in ranges:
            with self._torch.no_grad():
                logits = self.model.lm_head(hidden[start:stop]) * self._logit_scale
            yield logits.numpy()

    def generate(
        self, ids: Sequence[int], pixel_values: NDArray[np.float32] | None, *, max_tokens: int
    ) -> list[int]:
        """The tokens of the greedy answer, the stop token included."""
        arguments = {"input_ids": self._torch.tensor([list(ids)])}
        if pixel_values is not None:
            arguments["pixel_values"] = self._torch.from_numpy(pixel_values)
        with self._torch.no_grad():
            output = self.model.generate(**arguments, do_sample=False, max_new_tokens=max_tokens)
        return cast("list[int]", output[0, len(ids) :].tolist())


def _processor(transformers: Any, directory: Path) -> Any:
    """The processor with its parts, the Pillow image processor: the one whose numbers do not depend on the machine."""
    settings = CheckpointFiles(directory).read_tokenizer_settings()
    plain = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "PreTrainedTokenizer")
    tokenizer = transformers.PreTrainedTokenizerFast if plain else transformers.CohereTokenizerFast
    parts = [
        kind.from_pretrained(directory, local_files_only=True)
        for kind in (transformers.GotOcr2ImageProcessor, tokenizer)
    ]
    options, _ = transformers.AyaVisionProcessor.get_processor_dict(directory, local_files_only=True)
    return transformers.AyaVisionProcessor.from_args_and_dict(parts, options)


def _generation_config(transformers: Any, directory: Path, config: Any) -> Any:
    """How the checkpoint generates; where none is given, transformers runs custom_generate/generate.py, unasked."""
    try:
        return transformers.GenerationConfig.from_pretrained(directory, local_files_only=True)
    except OSError:  # there is none
        return transformers.GenerationConfig.from_model_config(config)
