"""Figures of a server, in the text format that Prometheus reads: counts and seconds, nothing of what was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ayaedge.answers import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Adds up what requests amounted to; used on the event loop alone."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def count(self, status: str) -> None:
        """Count a request that ended with a status, or `gone` with its client."""
        self._requests[status] += 1

    def answered(self, answer: Answer) -> None:
        """Count a whole answer."""
        usage, timings = answer.usage, answer.timings
        self.count("200")
        self._tokens.update(
            prompt=usage.prompt_tokens, image=usage.image_tokens, cached=usage.cached_tokens,
            completion=usage.completion_tokens,
        )  # fmt: skip
        for name in ("vision", "prefill", "decode", "queued"):
            self._seconds[name] += getattr(timings, name)

    def text(self, **gauges: int) -> str:
        """All figures, and others of this moment."""
        counters = [
            ("requests", "status", "Requests by the status they ended with.", self._requests),
            ("tokens", "kind", "Tokens of answered requests.", self._tokens),
            ("seconds", "step", "Seconds of answered requests.", self._seconds),
        ]
        lines = [line for counter in counters for line in _counter(*counter)]
        for name, value in gauges.items():
            lines += [f"# TYPE ayaedge_{name} gauge", f"ayaedge_{name} {value}"]
        return "\n".join(lines) + "\n"


def _counter(name: str, label: str, words: str, values: Counter[str]) -> Iterator[str]:
    yield f"# HELP ayaedge_{name}_total {words}"
    yield f"# TYPE ayaedge_{name}_total counter"
    for key, value in sorted(values.items()):
        yield f'ayaedge_{name}_total{{{label}="{key}"}} {value:g}'
