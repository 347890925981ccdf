"""A checkpoint that answers questions through transformers, in float32: what bundles are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow
from ayaedge.batch.runner import BatchOptions, Later, Waiting, Work, run_batch
from ayaedge.checks import brief
from ayaedge.errors import InvalidOptionError
from ayaedge.images.load import load_rgb
from ayaedge.openai.messages import parse_messages
from ayaedge.options import answer_options
from ayaedge.text.prompt import Message
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.evaluation.evaluate import files_digest
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.scorers import check_memory

MAX_TOKENS = 512
"""Of an answer without a limit."""


class CheckpointModel:
    """Answers requests in OpenAI's form, greedily; a context manager. Needs the extra `reference`.

    Raises BackendError where the machine's memory cannot hold the whole checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        check_memory(4 * checkpoint.parameters)
        self._identity = bytes.fromhex(files_digest(checkpoint))
        self._reference: Reference | None = Reference.of(checkpoint)

    def __enter__(self) -> CheckpointModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reference = None

    def batch(self, items: Iterable[BatchItem], *, journal: Path | None) -> Iterator[BatchRow]:
        """Rows as those of `AyaVision.batch`."""
        complete = self.create_chat_completion
        work = Work(
            self._identity, "", None, answer_options(), _no_question,
            lambda request: Later(partial(complete, request)),
        )  # fmt: skip
        return run_batch(items, work, journal, BatchOptions())

    def create_chat_completion(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The greedy answer; InvalidOptionError for options other than `max_tokens`."""
        assert self._reference is not None
        if others := set(request) - {"messages", "max_tokens"}:
            raise InvalidOptionError(f"a checkpoint is not asked with {brief(', '.join(sorted(others)))}")
        parsed = parse_messages(request["messages"], trusted=True)
        messages = [Message(one.role, one.text, len(one.images)) for one in parsed]
        images = [load_rgb(image) for one in parsed for image in one.images]  # type: ignore[arg-type]
        ids, pixels = self._reference.inputs(messages, images)
        most = request.get("max_tokens") or MAX_TOKENS
        found = self._reference.generate(ids, pixels, max_tokens=most)
        text: str = self._reference.processor.tokenizer.decode(found, skip_special_tokens=True)
        message = {"role": "assistant", "content": text}
        return {
            "choices": [{"message": message, "finish_reason": "length" if len(found) == most else "stop"}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(found)},
        }


def _no_question(_prompt: str, _image: Any) -> Waiting:
    raise AssertionError("a checkpoint is asked in OpenAI's form")
