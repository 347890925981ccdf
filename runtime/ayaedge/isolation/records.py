"""What the model's process logs and warns of, as if it had happened here."""

from __future__ import annotations

import builtins
import logging
import warnings
from collections.abc import Callable
from typing import Any

from ayaedge.isolation.wire import WireError

_OURS = "ayaedge"
_WHERE = "the process of an isolated model"
_LONGEST = 20_000


class Records(logging.Handler):
    """Hands records of ayaedge's loggers to `send`, with the event's name."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[:_LONGEST]  # with the traceback, if there is one
            readable = text.encode("utf-8", "backslashreplace").decode()
            self._send("record", [record.name, record.levelno, readable])
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)

    def warn(self, message: Any, category: type[Warning], *_where: Any) -> None:
        """Take the place of `warnings.showwarning`."""
        kind = next(one.__name__ for one in category.__mro__ if one.__module__ == "builtins")
        self._send("warning", [kind, str(message)[:_LONGEST]])


def level_wanted() -> int:
    """The lowest level at which any of ayaedge's loggers wants to hear something."""
    loggers = logging.Logger.manager.loggerDict
    own = [
        int(getattr(one, "level", 0)) for name, one in list(loggers.items()) if name.startswith(f"{_OURS}.")
    ]
    return min([logging.getLogger(_OURS).getEffectiveLevel(), *filter(None, own)])


def take_record(value: Any) -> None:
    """Log a record again, if its logger wants it; one of a name that no module has here is ayaedge's."""
    if not isinstance(value, list) or list(map(type, value)) != [str, int, str]:
        raise WireError("a record that is none")
    name, level, text = value
    known = name if name.startswith(f"{_OURS}.") and name in logging.Logger.manager.loggerDict else _OURS
    logger = logging.getLogger(known)
    if logger.isEnabledFor(level):
        logger.handle(logger.makeRecord(known, level, _WHERE, 0, "%s", (text,), None))


def take_warning(value: Any) -> None:
    """Warn again, as the program's filters will have it."""
    if not isinstance(value, list) or list(map(type, value)) != [str, str]:
        raise WireError("a warning that is none")
    kind = getattr(builtins, value[0], None)
    category = kind if isinstance(kind, type) and issubclass(kind, Warning) else UserWarning
    warnings.warn_explicit(value[1], category, _WHERE, 1, _OURS)
