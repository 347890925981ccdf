"""Answers through transformers, the reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scenes import Sample
from transformers import AutoProcessor, AyaVisionForConditionalGeneration


class TransformersAnswerer:
    """Greedy answers of a checkpoint directory through transformers, in float32."""

    def __init__(self, checkpoint: Path, *, system: str | None = None, batch_size: int = 24) -> None:
        self._processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        self._system = system
        model = AyaVisionForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        self._model = model.eval()
        self._batch_size = batch_size

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        answers = [""] * len(samples)
        # pictures of like size have like prompts, so batches need little padding
        order = sorted(range(len(samples)), key=lambda i: (samples[i].grid, samples[i].picture.size))
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            for index, answer in zip(chosen, self._answer([samples[i] for i in chosen]), strict=True):
                answers[index] = answer
        return answers

    def _answer(self, samples: Sequence[Sample]) -> list[str]:
        texts = [
            self._processor.apply_chat_template(
                messages_for(sample, self._system), add_generation_prompt=True
            )
            for sample in samples
        ]
        inputs = self._processor(
            images=[sample.picture for sample in samples],
            text=texts,
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        decoded: list[str] = self._processor.batch_decode(new, skip_special_tokens=True)
        return decoded


def messages_for(sample: Sample, system: str | None = None) -> list[dict[str, Any]]:
    """The turns of a sample: the picture stands in the first user turn."""
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    image = [{"type": "image"}]
    for question, answer in sample.history:
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        image = []
    messages.append({"role": "user", "content": [*image, {"type": "text", "text": sample.question}]})
    return messages
