"""What answers are worth: options that are taken, likeness, languages, shares and their intervals."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from ayaedge.benchmark import languages
from ayaedge.benchmark.choices import asked_text, chosen
from ayaedge.benchmark.intervals import wilson, wilson_of_mean
from ayaedge.benchmark.languages import CODES, language_of
from ayaedge.benchmark.outcomes import Divergence, Outcome, outcome_of, score
from ayaedge.benchmark.questions import Question
from ayaedge.benchmark.similarity import chrf, equal_beginning
from ayaedge.errors import MissingExtraError
from ayaedge_export.evaluation.sample_text import SENTENCES

EXAM = Question("en/0", "en", "color", "Which?", options=("red", "blue", "green"), right=1)
GERMAN = "Auf dem Bild ist ein roter Kreis zu sehen."
FRENCH = "On voit un cercle rouge sur l'image."


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ('{"choice": "B"}', 1), ('```json\n{"choice": "b"}\n```', 1), ('{"choice": "C. green"}', 2), ("B", 1),
        ("(A)", 0), ("B. blue", 1), ("b)", 1), ("I think so. <ANSWER> C </ANSWER>", 2), ('{"choice": "D"}', None),
        ('{"choice": 1}', None), ("A circle", None), ("blue", None), ("", None), ('{"choice": "', None),
        ("{not json}", None),
    ],
)  # fmt: skip
def test_a_letter_is_taken_where_it_is_clear(answer: str, number: int | None) -> None:
    assert chosen(answer, EXAM, "letters") == number


@pytest.mark.parametrize(
    ("answer", "number"), [("blue", 1), (" Blue. ", 1), ("green", 2), ("B", None), ("blue and green", None)]
)
def test_the_text_of_an_option_is_taken_where_it_stands_alone(answer: str, number: int | None) -> None:
    assert chosen(answer, EXAM, "texts") == number
    assert chosen(answer, replace(EXAM, options=("blue", "Blue", "x")), "texts") is None


def test_options_are_shown_with_their_letters_or_not_at_all() -> None:
    assert "Which?\n\nA. red\nB. blue\nC. green\n\n" in asked_text(EXAM, "letters")
    assert asked_text(EXAM, "texts") == "Which?"
    assert asked_text(Question("x", "en", "", "Why?"), "letters") == "Why?"


def test_wilsons_interval_has_the_values_of_the_literature() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_the_interval_of_a_mean_is_that_of_as_many_rows() -> None:
    assert wilson_of_mean([(0.5, 10)]) == wilson(0.5, 10)
    assert wilson_of_mean([(0.4, 10), (0.6, 10)]) == pytest.approx(wilson(0.5, 20))
    low, high = wilson_of_mean([(0.5, 10), (0.5, 1000)])
    assert high - low > 2 * (wilson(0.5, 1010)[1] - 0.5)


def test_likeness_falls_with_what_differs() -> None:
    assert equal_beginning("a red circle", "a red square") == 6
    assert equal_beginning("same", "same") == 4
    assert chrf(["a red circle"], ["a red circle"]) == 100
    assert 20 < chrf(["a red circle"], ["a red square"]) < 70
    assert chrf(["1234"], ["abcd"]) == 0


def test_the_language_of_a_sentence_is_known_and_that_of_a_word_is_not() -> None:
    codes = set(CODES.values())
    known = {code: text for code, text in SENTENCES.items() if code in codes}
    assert len(known) == 23
    assert [code for code, text in known.items() if language_of(text, codes) != code] == []
    assert language_of("rot", codes) is None
    assert language_of("2675, 4821, 3307, 1199", codes) is None


def test_a_language_is_sought_among_those_of_the_data_set() -> None:
    assert language_of(FRENCH, ["de", "en"]) in ("de", "en")
    assert language_of(FRENCH, ["de", "fr", "not-a-code"]) == "fr"


def test_a_question_that_failed_is_not_right_and_not_compared() -> None:
    answers = ['{"choice": "B"}', '{"choice": "A"}', "no", None]
    outcomes = [outcome_of(EXAM, answer, "letters", against="no") for answer in answers]
    found = score(outcomes).all
    assert (found["questions"], found["failed"]) == (4, 1)
    assert (found["right"], found["no_choice"]) == (0.25, 0.5)
    assert found["equal"] == pytest.approx(1 / 3)
    assert (found["right_low"], found["right_high"]) == wilson(0.25, 4)


def test_the_mean_of_languages_counts_each_the_same() -> None:
    outcomes = [Outcome("de", "x", "1", right=True)] + [Outcome("fr", "y", "1", right=False)] * 3
    found = score(outcomes)
    assert (found.all["right"], found.mean["right"]) == (0.25, 0.5)
    assert (found.languages["de"]["right"], found.tasks["y"]["right"]) == (1, 0)
    assert found.mean["questions"] == 4
    assert found.mean["right_low"] < 0.5 < found.mean["right_high"]


def test_agreement_with_another_model_says_where_it_ends() -> None:
    outcomes = [
        Outcome("de", "x", GERMAN, against=GERMAN, divergence=Divergence(30, 0.1, 1.0)),
        Outcome("de", "x", FRENCH, against=GERMAN, divergence=Divergence(10, 0.5, 0.6)),
        Outcome("fr", "x", FRENCH, against=FRENCH),
        Outcome("fr", "x", "rot", against="rouge"),
    ]
    found = score(outcomes).all
    assert found["equal"] == 0.5
    assert found["equal_beginning"] == pytest.approx((len(GERMAN) + 0 + len(FRENCH) + 2) / 4)
    assert found["equal_beginning_share"] == pytest.approx((1 + 0 + 1 + 0.4) / 4)
    assert found["language_kept"] == pytest.approx(2 / 3)  # what is too short does not count
    assert found["language_kept_against"] == 1
    assert 50 < found["chrf"] < 100
    assert (found["kl"], found["top1"]) == (pytest.approx(0.2), pytest.approx(0.9))


def test_an_answer_in_another_language_is_seen_where_only_one_is_asked() -> None:
    outcomes = [Outcome("de", "x", FRENCH, against=GERMAN), Outcome("de", "x", GERMAN, against=GERMAN)]
    found = score(outcomes).all
    assert (found["language_kept"], found["language_kept_against"]) == (0.5, 1)


def test_answers_that_the_limit_ended_are_told() -> None:
    outcomes = [Outcome("de", "x", "a", cut_off=True), Outcome("de", "x", "b"), Outcome("de", "x", None)]
    assert score(outcomes).all["cut_off"] == 0.5


def test_references_are_compared_where_there_are_any() -> None:
    outcomes = [
        Outcome("de", "x", "zwei rote Kreise", reference="rote"),
        Outcome("de", "x", "eins ", reference="eins"),
    ]
    found = score(outcomes).all
    assert (found["reference_equal"], found["reference_contained"]) == (0.5, 1)
    assert 0 < found["reference_chrf"] < 100
    assert "reference_chrf" not in score([Outcome("de", "x", "eins")]).all


def test_win_tie_and_loss_are_shares_of_what_was_judged() -> None:
    verdicts = ["win", "win", "loss", "tie", None]
    outcomes = [Outcome("de", "x", "a", verdict=one, judged=True) for one in verdicts]  # type: ignore[arg-type]
    found = score([*outcomes, Outcome("de", "x", None)]).all
    assert (found["win"], found["tie"], found["loss"]) == (0.5, 0.25, 0.25)
    assert (found["judged"], found["no_verdict"]) == (4, 1)
    assert (found["win_low"], found["win_high"]) == wilson(0.5, 4)


@pytest.mark.parametrize("name", ["sacrebleu", "py3langid.langid"])
def test_without_its_extra_a_comparison_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    languages._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"ayaedge\[benchmark\]"):
        score([Outcome("de", "x", GERMAN, against=GERMAN)])
