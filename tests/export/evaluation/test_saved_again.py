"""A checkpoint as the installed transformers saves it; `make verify-transformers5` runs this with transformers 5."""

from __future__ import annotations

from pathlib import Path

import pytest

from ayaedge_export import export_checkpoint, verify_bundle
from ayaedge_export.evaluation.reference import Reference

pytestmark = pytest.mark.slow


def test_a_checkpoint_that_transformers_has_saved_passes_verification(
    reference: Reference, tmp_path: Path
) -> None:
    reference.model.save_pretrained(tmp_path / "checkpoint")
    reference.processor.save_pretrained(tmp_path / "checkpoint")
    bundle = export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", quant="f32", vision="fp32")
    report = verify_bundle(bundle, tmp_path / "checkpoint")
    assert report.passed, report
