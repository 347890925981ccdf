"""A checkpoint's chat template, rendered in a sandbox; jinja2 is loaded with the first conversation.

The environment is the one that transformers gives templates (its chat_template_utils), so that what renders there
renders here.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from typing import Any

from ayaedge.errors import PromptError


class ChatTemplate:
    """A Jinja template with the settings, functions and tags that checkpoints' templates expect."""

    def __init__(self, source: str):
        self._source = source

    def render(self, **variables: object) -> str:
        """The rendered text; PromptError if the template is faulty or refuses the conversation."""
        try:
            return str(self._compiled.render(tools=None, documents=None, **variables))
        except Exception as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks what the assistant writes, for training; here it changes nothing."""

            tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self._source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
