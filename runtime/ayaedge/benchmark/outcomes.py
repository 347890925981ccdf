"""What came of each question, and figures of many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal

from ayaedge.benchmark.choices import Style, chosen
from ayaedge.benchmark.intervals import wilson, wilson_of_mean
from ayaedge.benchmark.languages import CODES, code_of, language_of
from ayaedge.benchmark.questions import Question
from ayaedge.benchmark.similarity import chrf, equal_beginning

Verdict = Literal["win", "tie", "loss"]
"""Of a judge, for the model that is measured."""
Figures = dict[str, float]
"""By name; a figure that cannot be had is not there."""


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from the other one's, over the tokens of that one's answer."""

    positions: int
    kl: float
    """Mean KL divergence, nats."""
    top1: float
    """Share of positions with the same likeliest token."""


@dataclass(frozen=True)
class Outcome:
    """What a model answered to a question, and what that is compared with."""

    language: str
    task: str
    answer: str | None
    """None if it failed."""
    right: bool | None = None
    """Of multiple choice; None for other questions."""
    clear: bool = True
    """Whether the answer takes an option at all."""
    reference: str | None = None
    against: str | None = None
    """The answer of the model that it is compared with."""
    divergence: Divergence | None = None
    verdict: Verdict | None = None
    judged: bool = False
    """Whether a judge was asked, or did not have to be."""
    cut_off: bool = False
    """Whether the limit on tokens ended it."""


@dataclass(frozen=True)
class Scores:
    """Figures of a model: over all questions, of each language and task, and their mean over languages."""

    all: Figures
    mean: Figures
    """Each language counts the same, however many questions it has."""
    languages: dict[str, Figures]
    tasks: dict[str, Figures]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def outcome_of(
    question: Question,
    answer: str | None,
    style: Style,
    *,
    cut_off: bool = False,
    against: str | None = None,
    divergence: Divergence | None = None,
    verdicts: Mapping[str, Verdict | None] | None = None,
) -> Outcome:
    """What an answer to a question is worth; `verdicts` are None if nothing is judged."""
    said = None if answer is None or not question.options else chosen(answer, question, style)
    return Outcome(
        question.language, question.task, answer, right=said == question.right if question.options else None,
        clear=said is not None, reference=question.reference, against=against, divergence=divergence,
        verdict=(verdicts or {}).get(question.key), judged=verdicts is not None and question.key in verdicts,
        cut_off=cut_off,
    )  # fmt: skip


def score(outcomes: Collection[Outcome]) -> Scores:
    """All figures of some outcomes; MissingExtraError where answers are compared without the extra."""
    codes = sorted({*CODES.values(), *(code_of(one.language) for one in outcomes)})
    languages = _grouped(outcomes, lambda one: one.language, codes)
    tasks = _grouped(outcomes, lambda one: one.task, codes)
    return Scores(_figures(outcomes, codes), _mean(languages), languages, tasks)


def _grouped(
    outcomes: Iterable[Outcome], key: Callable[[Outcome], str], codes: Sequence[str]
) -> dict[str, Figures]:
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(key(one), []).append(one)
    return {name: _figures(group, codes) for name, group in sorted(groups.items())}


def _figures(outcomes: Collection[Outcome], codes: Sequence[str]) -> Figures:
    answered = [one for one in outcomes if one.answer is not None]
    counts = {"questions": float(len(outcomes)), "failed": float(len(outcomes) - len(answered))}
    if answered:
        counts["cut_off"] = _share(one.cut_off for one in answered)
    return {
        **counts, **_choices(outcomes), **_against_references(answered), **_agreement(answered, codes),
        **_divergences(answered), **_verdicts(outcomes),
    }  # fmt: skip


def _choices(outcomes: Iterable[Outcome]) -> Figures:
    """A question that failed is not answered rightly."""
    asked = [one for one in outcomes if one.right is not None]
    if not asked:
        return {}
    right = _share(one.right is True for one in asked)
    low, high = wilson(right, len(asked))
    return {
        "right": right, "right_low": low, "right_high": high,
        "no_choice": _share(not one.clear for one in asked),
    }  # fmt: skip


def _against_references(answered: Iterable[Outcome]) -> Figures:
    pairs = [(one.answer or "", one.reference) for one in answered if one.reference is not None]
    if not pairs:
        return {}
    return {
        "reference_chrf": chrf(*zip(*pairs, strict=True)),
        "reference_equal": _share(answer.strip() == reference.strip() for answer, reference in pairs),
        "reference_contained": _share(reference.strip() in answer for answer, reference in pairs),
    }


def _agreement(answered: Iterable[Outcome], codes: Sequence[str]) -> Figures:
    pairs = [(one, one.answer or "", one.against) for one in answered if one.against is not None]
    if not pairs:
        return {}
    lengths = [(equal_beginning(ours, theirs), len(theirs)) for _, ours, theirs in pairs]
    found: Figures = {
        "equal": _share(ours == theirs for _, ours, theirs in pairs),
        "equal_beginning": fmean(same for same, _ in lengths),
        "equal_beginning_share": fmean(same / of if of else 1.0 for same, of in lengths),
        "chrf": chrf([ours for _, ours, _ in pairs], [theirs for *_, theirs in pairs]),
    }
    for name, texts in {
        "language_kept": [(one.language, ours) for one, ours, _ in pairs],
        "language_kept_against": [(one.language, theirs) for one, _, theirs in pairs],
    }.items():
        kept = _kept(texts, codes)
        if kept:
            found[name] = _share(kept)
    return found


def _kept(texts: Iterable[tuple[str, str]], codes: Sequence[str]) -> list[bool]:
    """Of answers that are long enough, whether each is in the language of its question."""
    pairs = [(language, language_of(text, codes)) for language, text in texts]
    return [code_of(language) == found for language, found in pairs if found is not None]


def _divergences(outcomes: Iterable[Outcome]) -> Figures:
    parts = [one.divergence for one in outcomes if one.divergence is not None]
    positions = sum(part.positions for part in parts)
    if not positions:
        return {}
    return {
        "kl": sum(part.kl * part.positions for part in parts) / positions,
        "top1": sum(part.top1 * part.positions for part in parts) / positions,
    }


def _verdicts(outcomes: Iterable[Outcome]) -> Figures:
    asked = [one for one in outcomes if one.judged]
    said = [one.verdict for one in asked if one.verdict is not None]
    if not asked:
        return {}
    found: Figures = {"judged": float(len(said)), "no_verdict": float(len(asked) - len(said))}
    if said:
        found |= {name: said.count(name) / len(said) for name in ("win", "tie", "loss")}
        found["win_low"], found["win_high"] = wilson(found["win"], len(said))
    return found


_COUNTS = ("questions", "failed", "judged", "no_verdict")


def _mean(languages: Mapping[str, Figures]) -> Figures:
    """Counts are added up; bounds are those of the mean of shares."""
    names = dict.fromkeys(name for figures in languages.values() for name in figures)
    found: Figures = {}
    for name in names:
        values = [figures[name] for figures in languages.values() if name in figures]
        found[name] = sum(values) if name in _COUNTS else fmean(values)
    for name, of in (("right", "questions"), ("win", "judged")):
        groups = [(one[name], one[of]) for one in languages.values() if one.get(of) and name in one]
        if groups:
            found[f"{name}_low"], found[f"{name}_high"] = wilson_of_mean(groups)
    return found


def _share(hits: Iterable[bool]) -> float:
    return fmean(map(float, hits))
