"""Ollama's chat and generate, as lines of JSON. https://github.com/ollama/ollama/blob/main/docs/api.md"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ayaedge.answers import Answer
from ayaedge.bundle import Bundle
from ayaedge.checks import brief, require_flag, require_string, require_strings
from ayaedge.errors import InvalidOptionError, PromptError
from ayaedge.server.asked import Asked, understood
from ayaedge.server.events import NDJSON, to_json
from ayaedge.server.progress import Progress
from ayaedge.server.refusals import RequestRefusedError
from ayaedge.text.text_stream import Piece

_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
"""Options that Ollama and ayaedge call the same."""
_OWN = ("model", "tools", "tiles", "max_tiles", "budget", "overflow", "grammar", "choices")
_NAMES = {
    **{name: f"options.{name}" for name in _SAME},
    "max_tokens": "options.num_predict",
    "response_format": "format",
}
_LACKING = {"think": "Aya Vision does not reason before it answers", "raw": "prompts are made by the bundle's template",
            "suffix": "Aya Vision fills no gaps", "context": "send the conversation to /api/chat",
            "template": "prompts are made by the bundle's template"}  # fmt: skip
_NANOSECONDS = 1_000_000_000


class OllamaChat:
    """`POST /api/chat`: a surface."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path]) -> Asked:
        """See `Surface`."""
        messages = body.get("messages")
        if isinstance(messages, list):
            messages = [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
        return understood(messages, _options(body), local_files)

    def writer(self, _asked: Asked, model: str) -> OllamaWriter:
        """See `Surface`."""
        return OllamaWriter(model, chat=True)

    def names(self, _body: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Surface`."""
        return _NAMES

    def fault(self, refusal: RequestRefusedError, _body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Surface`."""
        return {"error": str(refusal)}


class OllamaGenerate(OllamaChat):
    """`POST /api/generate`: a surface; one question."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path]) -> Asked:
        """See `Surface`."""
        prompt = require_string("prompt", body.get("prompt"))
        if not prompt:
            raise PromptError("prompt is empty: the model is loaded when the server starts")
        question = _message({"role": "user", "content": prompt, "images": body.get("images")}, "")
        system = require_string("system", body.get("system") or "")
        return understood([question], _options(body), local_files).told(system)

    def writer(self, _asked: Asked, model: str) -> OllamaWriter:
        """See `Surface`."""
        return OllamaWriter(model, chat=False)


class OllamaWriter:
    """Writes an answer, whole or as lines: a `Writer`."""

    media_type = NDJSON

    def __init__(self, model: str, *, chat: bool):
        self._model, self._chat = model, chat

    def whole(self, answer: Answer) -> dict[str, Any]:
        """See `Writer`."""
        return {**self._part(answer.text), **_end(answer)}

    def opening(self) -> bytes:
        """See `Writer`. The first piece is the beginning."""
        return b""

    def of(self, piece: Piece) -> bytes:
        """See `Writer`."""
        return to_json({**self._part(str(piece)), "done": False}) + b"\n"

    def closing(self, answer: Answer) -> bytes:
        """See `Writer`."""
        return to_json({**self._part(""), **_end(answer)}) + b"\n"

    def alive(self, _progress: Progress) -> bytes:
        """See `Writer`. Lines have no comments: a piece without text is one that every client takes."""
        return to_json({**self._part(""), "done": False}) + b"\n"

    def failing(self, refusal: RequestRefusedError) -> bytes:
        """See `Writer`."""
        return to_json({"error": str(refusal)}) + b"\n"

    def _part(self, text: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        return {"model": self._model, "created_at": _time(datetime.now(UTC)), **said}


def _end(answer: Answer) -> dict[str, Any]:
    usage, timings = answer.usage, answer.timings
    read = timings.vision + timings.prefill
    return {
        "done": True,
        "done_reason": "stop" if answer.stop_reason == "stop" else "length",
        "total_duration": round((timings.queued + timings.first_token + timings.decode) * _NANOSECONDS),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": round(read * _NANOSECONDS),
        "eval_count": usage.completion_tokens,
        "eval_duration": round(timings.decode * _NANOSECONDS),
        "timings": asdict(timings),
        "tiles": list(usage.tiles),
    }


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's options that a body asks for; what it leaves out has Ollama's own default, to stream."""
    for name, reason in _LACKING.items():
        if body.get(name):
            raise InvalidOptionError(f"{name} cannot be {brief(body[name])}: {reason}")
    given = body.get("options")
    if not (given is None or isinstance(given, dict)):
        raise InvalidOptionError(f"options must be an object, not {brief(given)}")
    options = {name: given[name] for name in _SAME if given and name in given}
    limit = (given or {}).get("num_predict")
    if not (isinstance(limit, int) and limit < 0):  # as many as there is room for
        options["max_tokens"] = limit
    stream = body.get("stream")
    options["stream"] = True if stream is None else require_flag("stream", stream)
    options["response_format"] = _form(body.get("format"))
    return {**{name: body[name] for name in _OWN if name in body}, **options}


def _form(form: object) -> dict[str, Any] | None:
    if form is None or form == "":
        return None
    if form == "json":
        return {"type": "json_object"}
    if not isinstance(form, dict):
        raise InvalidOptionError(f"format must be json or a schema, not {brief(form)}")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}


def _message(message: object, place: str) -> object:
    """A message in OpenAI's form; what is wrong but for images is left for its reader to say."""
    if not isinstance(message, dict):
        return message
    known = {name: message[name] for name in ("role", "content", "tool_calls") if name in message}
    images = message.get("images")
    if not images:
        return known
    parts = [
        {"type": "image_url", "image_url": f"data:image/any;base64,{image}"}
        for image in require_strings(f"{place}.images".removeprefix("."), images)
    ]
    return {**known, "content": [*parts, {"type": "text", "text": message.get("content")}]}


def describe(bundle: Bundle) -> dict[str, Any]:
    """What Ollama says of a model that it has."""
    manifest = bundle.manifest
    changed = datetime.fromtimestamp(bundle.directory.stat().st_mtime, UTC)
    family = manifest.decoder.architecture
    return {
        "name": bundle.name,
        "model": bundle.name,
        "modified_at": _time(changed),
        "size": bundle.size,
        "digest": manifest.files[bundle.decoder_path.name].sha256,
        "details": {
            "parent_model": manifest.source.name,
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": f"{manifest.source.parameters / 1e9:.1f}B",
            "quantization_level": manifest.formats.decoder.upper(),
        },
    }


def show(bundle: Bundle) -> dict[str, Any]:
    """All that Ollama shows of a model."""
    manifest, family = bundle.manifest, bundle.manifest.decoder.architecture
    facts = describe(bundle)
    return {
        "modified_at": facts["modified_at"],
        "details": facts["details"],
        "license": manifest.source.license,
        "modelfile": "",
        "parameters": "",
        "template": "",
        "capabilities": ["completion", "vision"],
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": manifest.source.parameters,
            f"{family}.context_length": manifest.decoder.context_length,
            f"{family}.embedding_length": manifest.decoder.hidden_size,
            f"{family}.block_count": manifest.decoder.num_layers,
        },
    }


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
