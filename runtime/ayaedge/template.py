"""A checkpoint's chat template, rendered in a sandbox; jinja2 is loaded with the first conversation."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from typing import Any

from ayaedge.errors import PromptError


class ChatTemplate:
    """A Jinja template with the settings and functions that checkpoints' templates expect."""

    def __init__(self, source: str):
        self._source = source

    def render(self, **variables: object) -> str:
        """The rendered text; PromptError if the template is faulty or refuses the conversation."""
        from jinja2 import TemplateError

        try:
            return str(self._compiled.render(**variables))
        except TemplateError as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    @cached_property
    def _compiled(self) -> Any:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self._source)


def _to_json(value: object, *, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
