"""Languages of the data sets: what they are called, and which one a text is in."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import Any

import regex

from ayaedge.errors import MissingExtraError

CODES = {
    "arb_Arab": "ar", "ces_Latn": "cs", "deu_Latn": "de", "ell_Grek": "el", "eng_Latn": "en", "fra_Latn": "fr",
    "heb_Hebr": "he", "hin_Deva": "hi", "ind_Latn": "id", "ita_Latn": "it", "jpn_Jpan": "ja", "kor_Hang": "ko",
    "nld_Latn": "nl", "pes_Arab": "fa", "pol_Latn": "pl", "por_Latn": "pt", "ron_Latn": "ro", "rus_Cyrl": "ru",
    "spa_Latn": "es", "tur_Latn": "tr", "ukr_Cyrl": "uk", "vie_Latn": "vi", "zho_Hans": "zh",
}  # fmt: skip
"""The 23 languages of Aya Vision, as its benchmarks' folders call them, and their codes of two letters."""
LEAST_BYTES = 20
"""Letters of a text in UTF-8, below which nobody can say what language it is in: `rot`, `2675`."""
_FOLDER = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_LETTERS = regex.compile(r"[\p{L}\p{M}]+")


def is_folder(name: str) -> bool:
    """Whether a folder is called like a language: `deu_Latn`."""
    return _FOLDER.fullmatch(name) is not None


def code_of(language: str) -> str:
    """The code of a language; what is not known stays as it is."""
    return CODES.get(language, language)


def require_identifier() -> Any:
    """py3langid, a naive Bayes classifier over byte sequences, 4.5 MB and offline; MissingExtraError without it."""
    try:
        import py3langid.langid as langid
    except ImportError as error:
        raise MissingExtraError("telling the language of answers", "benchmark") from error
    return langid


def language_of(text: str, among: Collection[str]) -> str | None:
    """The code of the language that a text is most likely in, of some; None if it has too few letters."""
    letters = "".join(_LETTERS.findall(text))
    if len(letters.encode("utf-8", "replace")) < LEAST_BYTES:
        return None
    found: str = _identifier(frozenset(among)).classify(text)[0]
    return found


@cache
def _identifier(among: frozenset[str]) -> Any:
    langid = require_identifier()
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    known = among.intersection(identifier.labels)
    identifier.set_languages(known or None)
    return identifier
