"""A decoder merged with a base that was trained on text alone: what each weight is good for."""

from __future__ import annotations

from pathlib import Path

import merge
import pytest
import text_only


@pytest.mark.slow
def test_a_sweep_finds_a_weight_that_knows_text_better_and_pictures_as_well(
    tiny: Path, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    base = tmp_path / "text-only"
    text_only.write_text_only_base(tiny, base, steps=40)
    bundles = merge.merged_bundles(base, (0.3, 0.8, 1.0), tmp_path)
    low, middle, own = merge.score(bundles, 1, tmp_path)
    record_property("seen", merge.table((low, middle, own)))
    assert low.text < middle.text < own.text - 1  # nats
    assert low.pictures < middle.pictures
    assert middle.pictures >= own.pictures - 0.05
    assert own.pictures > 0.9
