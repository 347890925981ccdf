"""The OpenAPI document of a server. https://spec.openapis.org/oas/v3.1.0"""

from __future__ import annotations

from typing import Any

from ayaedge import __version__

_ERRORS = {
    "400": "not understood; `error.param` names the field",
    "401": "the API key is missing or wrong",
    "403": "this Host or Origin is not allowed",
    "408": "the body did not come in time",
    "413": "too large",
    "429": "too many requests wait; Retry-After says when to come again",
    "503": "the server stops, or has not memory enough",
    "504": "it took too long",
}
_TEXT = {"type": "string"}
_NUMBER = {"type": ["number", "null"]}
_WHOLE = {"type": ["integer", "null"]}
_PART: dict[str, Any] = {
    "oneOf": [
        {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _TEXT}},
        {
            "type": "object",
            "required": ["type", "image_url"],
            "properties": {
                "type": {"const": "image_url"},
                "image_url": {
                    "oneOf": [
                        _TEXT,
                        {"type": "object", "required": ["url"], "properties": {"url": _TEXT, "detail": _TEXT}},
                    ],
                    "description": "data:image/...;base64,...; no other URL is opened",
                },
            },
        },
    ]
}  # fmt: skip
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"oneOf": [_TEXT, {"type": "array", "minItems": 1, "items": _PART}, {"type": "null"}]},
    },
}
_CHAT: dict[str, Any] = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "model": {"type": ["string", "null"], "description": "any name; it comes back in the answer"},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
        },
        "max_tokens": _WHOLE,
        "max_completion_tokens": _WHOLE,
        "temperature": _NUMBER,
        "top_p": _NUMBER,
        "top_k": _WHOLE,
        "min_p": _NUMBER,
        "seed": _WHOLE,
        "stop": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}, {"type": "null"}]},
        "n": {"enum": [1, None]},
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": _WHOLE,
        "response_format": {"type": ["object", "null"], "description": "text, json_object or json_schema"},
        "tiles": {"enum": ["faithful", "native", "auto", None], "description": "how many tiles an image gets"},
        "max_tiles": _WHOLE,
        "budget": {"type": ["number", "null"], "description": "seconds to the first token, with tiles: auto"},
        "progress": {"type": ["boolean", "null"], "description": "a stream tells each step of the reading"},
        "overflow": {"enum": ["error", "drop_oldest", None]},
    },
}  # fmt: skip
_PLAN = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        **{name: _CHAT["properties"][name] for name in ("messages", "tiles", "max_tiles", "budget")},
        "measure": {
            "type": ["boolean", "null"],
            "description": "measure this machine first, if it was not yet",
        },
        "preview": {"type": ["boolean", "null"], "description": "small JPEGs, and pages of documents"},
    },
}
_SOURCE = {
    "type": "object",
    "required": ["type", "data"],
    "properties": {"type": {"const": "base64"}, "media_type": _TEXT, "data": _TEXT},
}
_BLOCK = {
    "oneOf": [
        _PART["oneOf"][0],
        {
            "type": "object",
            "required": ["type", "source"],
            "properties": {"type": {"const": "image"}, "source": _SOURCE},
        },
    ]
}
_MESSAGES = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["user", "assistant"]},
                    "content": {"oneOf": [_TEXT, {"type": "array", "minItems": 1, "items": _BLOCK}]},
                },
            },
        },
        "system": {"oneOf": [_TEXT, {"type": "array", "items": _PART["oneOf"][0]}, {"type": "null"}]},
        "stop_sequences": {"type": ["array", "null"], "items": _TEXT},
        "output_config": {"type": ["object", "null"], "description": "format: a json_schema"},
        **{
            name: _CHAT["properties"][name]
            for name in (
                "model", "stream", "max_tokens", "temperature", "top_k", "top_p", "tiles", "max_tiles", "budget",
            )
        },
    },
}  # fmt: skip
_RESPONSES = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"oneOf": [_TEXT, {"type": "array", "minItems": 1, "items": {"type": "object"}}]},
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": _WHOLE,
        "text": {"type": ["object", "null"], "description": "format: text, json_object or json_schema"},
        **{
            name: _CHAT["properties"][name]
            for name in ("model", "stream", "temperature", "top_p", "seed", "tiles", "max_tiles", "budget")
        },
    },
}
_OLLAMA = {
    "model": _CHAT["properties"]["model"],
    "stream": {"type": ["boolean", "null"], "description": "true unless given"},
    "format": {"oneOf": [{"enum": ["json", "", None]}, {"type": "object", "description": "a JSON schema"}]},
    "options": {
        "type": ["object", "null"],
        "properties": {
            "num_predict": _WHOLE,
            **{
                name: _CHAT["properties"][name]
                for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
            },
        },
    },
}
_IMAGES = {"type": ["array", "null"], "items": _TEXT, "description": "files in base64"}
_OLLAMA_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT, "images": _IMAGES},
}
_OLLAMA_CHAT = {
    "type": "object",
    "required": ["messages"],
    "properties": {"messages": {"type": "array", "minItems": 1, "items": _OLLAMA_MESSAGE}, **_OLLAMA},
}
_OLLAMA_GENERATE = {
    "type": "object",
    "required": ["prompt"],
    "properties": {"prompt": _TEXT, "system": {"type": ["string", "null"]}, "images": _IMAGES, **_OLLAMA},
}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": ("OpenAI's chat completion", _CHAT),
    "/v1/messages": ("Anthropic's message", _MESSAGES),
    "/v1/responses": ("OpenAI's response, without a memory", _RESPONSES),
    "/api/chat": ("Ollama's chat", _OLLAMA_CHAT),
    "/api/generate": ("Ollama's answer to one question", _OLLAMA_GENERATE),
    "/v1/plan": ("what the images of a chat completion would cost, at each limit on tiles", _PLAN),
    "/api/show": ("the model, as Ollama shows it", {"type": "object"}),
    "/v1/messages/count_tokens": ("how many tokens a message has", _MESSAGES),
}
"""What questions look like, by path."""
_READ = {
    "/health": "ready, busy, asleep, or loading with 503",
    "/v1/models": "the model",
    "/v1/models/{name}": "the model, if that is its name",
    "/api/tags": "the model, as Ollama lists it",
    "/api/version": "the server's version, as Ollama says it",
    "/metrics": "figures for Prometheus",
    "/openapi.json": "this document",
}


def document() -> dict[str, Any]:
    """The document, as JSON."""
    paths: dict[str, Any] = {path: {"post": _asked(*body)} for path, body in BODIES.items()}
    paths.update({path: {"get": _read(path, words)} for path, words in _READ.items()})
    return {
        "openapi": "3.1.0",
        "info": {"title": "ayaedge", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _asked(words: str, schema: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    answers = {"200": {"description": "the answer, whole or as a stream"}}
    errors = {status: {"description": text} for status, text in _ERRORS.items()}
    return {"summary": words, "requestBody": body, "responses": {**answers, **errors}}


def _read(path: str, words: str) -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    return {
        "summary": words,
        "parameters": [name] if "{" in path else [],
        "responses": {"200": {"description": words}},
    }
