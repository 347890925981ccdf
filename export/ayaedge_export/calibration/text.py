"""Text to calibrate a decoder on: the builtin passages, or a file of the user's.

Knows passages and their languages only; which of them are used, and how much each counts, is decided in
`ayaedge_export.calibration.imatrix`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ayaedge.errors import InvalidOptionError
from ayaedge.files import read_text
from ayaedge.untrusted.json_text import parse_json
from ayaedge_export.calibration.builtin_text import PASSAGES

UNKNOWN = "?"
"""The language of passages that come without one."""


@dataclass(frozen=True)
class CalibrationText:
    """Passages by language."""

    name: str
    """Goes into the importance matrix as the name of its data set."""
    passages: Mapping[str, tuple[str, ...]]

    def only(self, *languages: str) -> CalibrationText:
        """The passages of some languages."""
        chosen = {language: self.passages[language] for language in languages}
        return CalibrationText(f"{self.name}[{','.join(languages)}]", chosen)

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        return hashlib.sha256(repr((self.name, sorted(self.passages.items()))).encode()).hexdigest()


BUILTIN = CalibrationText("builtin", PASSAGES)


def read_calibration_text(source: str | Path) -> CalibrationText:
    """`builtin`, or a file of UTF-8 text; InvalidOptionError says what is wrong with it.

    A name that ends in .jsonl holds an object {"language": ..., "text": ...} in each line. Any other file holds
    passages with empty lines between them, which all count as one language.
    """
    if str(source) == BUILTIN.name:
        return BUILTIN
    path = Path(source)
    try:
        content = read_text(path)
    except UnicodeDecodeError as error:
        raise InvalidOptionError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InvalidOptionError(f"the calibration text {path} cannot be read: {error.strerror}") from None
    found = _json_lines(path, content) if path.suffix == ".jsonl" else _paragraphs(content)
    passages: dict[str, list[str]] = {}
    for language, text in found:
        passages.setdefault(language, []).append(text)
    if not passages:
        raise InvalidOptionError(f"there is no text in {path}")
    return CalibrationText(path.name, {language: tuple(texts) for language, texts in passages.items()})


def _paragraphs(content: str) -> Iterator[tuple[str, str]]:
    paragraph: list[str] = []
    for line in [*content.splitlines(), ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield UNKNOWN, "\n".join(paragraph)
            paragraph = []


def _json_lines(path: Path, content: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line.encode())
            language, text = entry.get("language", UNKNOWN), entry["text"]
        except (ValueError, KeyError, TypeError, AttributeError):
            language = text = None
        if not (isinstance(language, str) and isinstance(text, str)):
            raise InvalidOptionError(f'{path}, line {number}: not an object {{"language": ..., "text": ...}}')
        if text.strip():
            yield language, text
