"""The trained checkpoint, from picture to answer: exactly as transformers, and right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scenes
from scenes import Sample, held_out

from ayaedge import AyaVision
from ayaedge.prompt import Message
from ayaedge_export.reference import Reference

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "examples" / "pictures"
CASES = json.loads((PICTURES / "pictures.json").read_text("utf-8"))
ANSWER_TOKENS = 96
SEED = 4242
"""Other questions than the ones whose accuracy the model card reports."""


def answer_ids(model: AyaVision, sample: Sample) -> list[int]:
    return list(model.ask(sample.question, images=[sample.picture], max_tokens=ANSWER_TOKENS).ids)


def test_greedy_answers_are_the_reference_token_for_token(
    exact_model: AyaVision, reference: Reference
) -> None:
    for sample in held_out(100, SEED):
        ids, pixels = reference.inputs([Message("user", sample.question, 1)], [sample.picture])
        expected = reference.generate(ids, pixels, max_tokens=ANSWER_TOKENS)
        assert answer_ids(exact_model, sample) == expected, sample


def share_of_right_answers(model: AyaVision, samples: list[Sample]) -> float:
    return float(np.mean([model.ask(s.question, images=[s.picture]).text == s.answer for s in samples]))


def test_four_bits_answer_as_well_as_full_precision(exact_model: AyaVision, demo_model: AyaVision) -> None:
    samples = held_out(15 * len(scenes.LANGUAGES), SEED)
    exact, shipped = (share_of_right_answers(model, samples) for model in (exact_model, demo_model))
    assert exact >= 0.95
    assert shipped >= exact - 0.01


def test_numbers_in_a_grid_need_its_tiles(demo_model: AyaVision) -> None:
    samples = [s for s in held_out(400, SEED) if s.task == "number" and s.grid == "3x2"]
    assert len(samples) >= 8
    assert share_of_right_answers(demo_model, samples) >= 0.9
    blurred = [demo_model.ask(s.question, images=[s.picture], max_tiles=1).text == s.answer for s in samples]
    assert np.mean(blurred) <= 0.1


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['picture']}-{case['language']}")
def test_the_example_pictures_get_the_listed_answers(demo_model: AyaVision, case: dict[str, str]) -> None:
    assert demo_model.ask(case["question"], images=[PICTURES / case["picture"]]).text == case["answer"]
