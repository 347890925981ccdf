"""Multiple choice: how options are asked, and which of them an answer takes.

In the form in which the paper of Kaleidoscope asks models with open weights (arXiv:2504.07072): options with letters,
the answer a letter in JSON. The words are our own, so figures are for comparing models here.
"""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Literal

from ayaedge.benchmark.questions import Question
from ayaedge.untrusted.json_text import parse_json

Style = Literal["letters", "texts"]
"""`letters` shows the options, and the answer is one's letter; `texts` asks the question alone, and the answer is right
that says what the option says."""

SYSTEM = (
    "You answer multiple-choice questions. Reply with JSON and nothing else, in the form "
    '{"choice": "A"}, where the letter is that of the right option.'
)
_JSON = re.compile(r"\{[^{}]*\}")
_TAG = re.compile(r"<ANSWER>\s*([^\s<>]+)\s*</ANSWER>", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])(?:[.):]\s*.*)?", re.DOTALL)


def asked_text(question: Question, style: Style) -> str:
    """What is asked: the question, with its options where there are any and letters are wanted."""
    if not question.options or style == "texts":
        return question.text
    options = "\n".join(
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, question.options, strict=False)
    )
    return f"{question.text}\n\n{options}\n\nReply with the letter of the right option in JSON."


def chosen(answer: str, question: Question, style: Style) -> int | None:
    """The option that an answer takes, or None if it takes none clearly."""
    if style == "texts":
        said = _plain(answer)
        found = [number for number, option in enumerate(question.options) if _plain(option) == said]
        return found[0] if len(found) == 1 else None
    letter = _letter_of(answer.strip())
    number = ascii_uppercase.find(letter) if letter else -1
    return number if 0 <= number < len(question.options) else None


def _letter_of(answer: str) -> str | None:
    """The letter in JSON, between <ANSWER> tags, or alone; with or without the option's text behind it."""
    given: str | None = answer
    if tags := _TAG.findall(answer):
        given = tags[-1]
    elif found := _JSON.search(answer):
        given = _choice_in(found[0])
    letter = _LETTER.fullmatch(given.strip()) if given else None
    return letter[1].upper() if letter else None


def _choice_in(text: str) -> str | None:
    try:
        value = parse_json(text.encode())
    except ValueError:
        return None
    choice = value.get("choice") if isinstance(value, dict) else None
    return choice if isinstance(choice, str) else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".。").casefold()
