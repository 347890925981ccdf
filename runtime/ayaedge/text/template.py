"""A checkpoint's chat template, rendered in a sandbox; jinja2 is loaded with the first conversation.

The environment is the one that transformers gives templates (its chat_template_utils), so that what renders there
renders here; but work, memory and text are bounded, since a template may be anybody's (`template_meter`).
"""

from __future__ import annotations

import threading
from functools import cached_property, lru_cache
from itertools import islice
from types import CodeType
from typing import Any

from ayaedge.errors import PromptError
from ayaedge.text.template_meter import Meter

_LONGEST, _MOST_TOKENS = 1 << 20, 10_000
"""Characters of a template, and words and signs in it, which take 40 us each to compile."""


class ChatTemplate:
    """A Jinja template with the settings, functions and tags that checkpoints' templates expect."""

    def __init__(self, source: str):
        self._source = source
        self._lock = threading.Lock()

    def render(self, **variables: object) -> str:
        """The rendered text; PromptError if the template is faulty, refuses the conversation or takes too much."""
        try:
            with self._lock:  # the environment has one meter
                template = self._compiled
                template.environment.meter = Meter(variables)
                try:
                    return str(template.render(tools=None, documents=None, **variables))
                finally:
                    template.environment.meter = Meter({})  # the conversation is held no longer
        except RecursionError:
            raise PromptError("the chat template is nested too deeply, or calls itself without end") from None
        except Exception as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    @cached_property
    def _compiled(self) -> Any:
        from ayaedge.text.template_sandbox import MeteredEnvironment

        environment = MeteredEnvironment()
        code = _code(self._source)
        return environment.template_class.from_code(environment, code, environment.make_globals(None))


@lru_cache(8)
def _code(source: str) -> CodeType:
    """The template as Python's code, which takes longer than all the rest of it: each model that is loaded has one."""
    from ayaedge.text.template_sandbox import MeteredEnvironment

    environment = MeteredEnvironment()
    if len(source) > _LONGEST:
        raise PromptError(f"it has more than {_LONGEST:,} characters")
    words = (kind for _, kind, _ in environment.lex(source) if kind != "whitespace")
    if next(islice(words, _MOST_TOKENS, None), None) is not None:
        raise PromptError(f"it has more than {_MOST_TOKENS:,} words and signs")
    return environment.compile(source)
