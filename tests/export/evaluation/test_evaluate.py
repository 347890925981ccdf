from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ayaedge import Bundle, BundleError, InvalidOptionError, Manifest, read_bundle
from ayaedge.errors import BackendError
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.evaluation import scorers
from ayaedge_export.evaluation.evaluate import (
    THROUGH,
    Evaluation,
    check_comparable,
    evaluate_bundle,
    open_reference,
)
from ayaedge_export.evaluation.report import draw_evaluation, evaluation_table, record_figures
from ayaedge_export.evaluation.sample_text import SENTENCES
from ayaedge_export.exporter import export_checkpoint

LANGUAGES = ("en", "hi", "zh")


@pytest.fixture(scope="module")
def small_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tiny, tmp_path_factory.mktemp("small") / "b", vision="int8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [json.dumps({"language": name, "text": SENTENCES[name]}) for name in LANGUAGES]
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def evaluation(small_bundle: Bundle, exact_bundle: Bundle, text: Path) -> Evaluation:
    return evaluate_bundle(small_bundle, exact_bundle, text=text)


def test_an_exact_bundle_equals_its_checkpoint(exact_bundle: Bundle, tiny: Path, text: Path) -> None:
    result = evaluate_bundle(exact_bundle, tiny, text=text)
    assert result.after_image is not None
    for part in (result.overall, result.after_image):
        assert part.mean_kl <= 1e-4  # the candidate's KV cache is f16, as users run it
        assert part.top1 >= 0.97


def test_both_ways_to_ask_a_checkpoint_agree(small_bundle: Bundle, tiny: Path, text: Path) -> None:
    layers, whole = (evaluate_bundle(small_bundle, tiny, text=text, through=through) for through in THROUGH)
    assert layers.overall.mean_kl == pytest.approx(whole.overall.mean_kl, rel=1e-2)
    assert layers.after_image is not None
    assert whole.after_image is not None
    assert layers.after_image.p99_kl == pytest.approx(whole.after_image.p99_kl, rel=2e-2)


def test_a_quantized_bundle_is_farther_from_the_checkpoint_than_an_exact_one(
    evaluation: Evaluation, exact_bundle: Bundle, text: Path
) -> None:
    exact = evaluate_bundle(exact_bundle, exact_bundle, text=text)
    for language in LANGUAGES:
        assert evaluation.languages[language].mean_kl > 5 * exact.languages[language].mean_kl
        assert evaluation.languages[language].p99_kl >= evaluation.languages[language].mean_kl
        assert evaluation.languages_after_image[language].positions > 20
    assert evaluation.overall.positions == sum(part.positions for part in evaluation.languages.values())


def test_images_can_be_left_out(small_bundle: Bundle, exact_bundle: Bundle, text: Path) -> None:
    result = evaluate_bundle(small_bundle, exact_bundle, text=text, images=False)
    assert result.after_image is None
    assert result.languages_after_image == {}


def test_few_positions_at_a_time_give_the_same_figures(
    small_bundle: Bundle, exact_bundle: Bundle, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate_bundle(small_bundle, exact_bundle, text=text, images=False)
    monkeypatch.setattr(scorers, "MOST_POSITIONS", 17)
    parts = evaluate_bundle(small_bundle, exact_bundle, text=text, images=False)
    assert parts.overall.positions == whole.overall.positions
    assert parts.overall.mean_kl == pytest.approx(whole.overall.mean_kl, rel=0.02)


def test_logits_in_memory_are_bounded_whatever_the_vocabulary() -> None:
    for vocabulary in (2048, 256_000, 10**8):
        positions = scorers.positions_at_once(vocabulary)
        assert positions == 1 or 4 * vocabulary * positions <= scorers.LOGIT_BYTES
    assert scorers.positions_at_once(256_000) == 65


class Interrupted(Exception):  # noqa: N818
    pass


def test_an_interrupted_evaluation_goes_on_where_it_was(
    small_bundle: Bundle, exact_bundle: Bundle, text: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    journal = tmp_path / "new" / "windows.jsonl"
    seen: list[str] = []

    def stop_at_the_second(done: int, of: int, key: str) -> None:
        seen.append(key)
        assert (done, of) == (len(seen), 2 * len(LANGUAGES))
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate_bundle(small_bundle, exact_bundle, text=text, journal=journal, advance=stop_at_the_second)
    assert len(journal.read_text("utf-8").splitlines()) == 3  # a header and two windows
    with journal.open("a") as stream:
        stream.write('{"key": "zh/0", "lang')  # what a killed process leaves
    rest: list[str] = []
    result = evaluate_bundle(
        small_bundle, exact_bundle, text=text, journal=journal, advance=lambda _, of, key: rest.append(key)
    )
    assert not set(seen) & set(rest)
    assert len(rest) == 2 * len(LANGUAGES) - 2
    assert result.overall.positions == evaluation.overall.positions
    assert result.overall.mean_kl == pytest.approx(evaluation.overall.mean_kl, rel=1e-6)
    again: list[str] = []
    same = evaluate_bundle(
        small_bundle, exact_bundle, text=text, journal=journal, advance=lambda _, of, key: again.append(key)
    )
    assert again == []
    assert same == result


def test_a_journal_of_another_evaluation_is_refused(
    small_bundle: Bundle, exact_bundle: Bundle, text: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "windows.jsonl"
    evaluate_bundle(small_bundle, exact_bundle, text=text, journal=journal, images=False)
    before = journal.read_bytes()
    with pytest.raises(InvalidOptionError, match="another evaluation"):
        evaluate_bundle(small_bundle, small_bundle, text=text, journal=journal, images=False)
    with pytest.raises(InvalidOptionError, match="another evaluation"):
        evaluate_bundle(small_bundle, exact_bundle, text=text, journal=journal, images=False, window=20)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: replace(m, decoder=replace(m.decoder, vocab_size=7)), "their vocabulary sizes differ"),
        (lambda m: replace(m, tiling=replace(m.tiling, tile_size=28)), "their tilings differ"),
        (lambda m: replace(m, tokens=replace(m.tokens, special={"<x>": 1})), "their special tokens differ"),
    ],
)
def test_models_of_different_tokens_or_tiles_cannot_be_compared(
    small_bundle: Bundle, tiny: Path, change: Callable[[Manifest], Manifest], says: str
) -> None:
    other = change(small_bundle.manifest)
    for against in (small_bundle, open_checkpoint(tiny)):
        with pytest.raises(BundleError, match=says):
            check_comparable(other, against)


def test_a_reference_is_a_bundle_or_a_checkpoint(tiny: Path, small_bundle: Bundle, tmp_path: Path) -> None:
    assert open_reference(tiny).name == tiny.resolve().name
    assert open_reference(small_bundle.directory) == small_bundle
    with pytest.raises(BundleError, match="no bundle at"):
        open_reference(tmp_path / "nothing")


def test_a_senseless_window_is_refused(small_bundle: Bundle) -> None:
    with pytest.raises(InvalidOptionError, match="between 2 and"):
        evaluate_bundle(small_bundle, small_bundle, window=1)


def test_a_checkpoint_that_does_not_fit_into_memory_is_refused_by_transformers_only() -> None:
    with pytest.raises(BackendError, match=r"takes 35 GB.*has 16 GB.*layer by layer"):
        scorers.check_memory(35 * 10**9, total=16 * 10**9)
    scorers.check_memory(10**9, total=16 * 10**9)


def test_figures_land_in_the_manifest_beside_others(
    small_bundle: Bundle, evaluation: Evaluation, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_bundle.directory, copy)
    record_figures(read_bundle(copy), evaluation)
    parity = read_bundle(copy).manifest.parity
    assert parity["eval, text: mean KL divergence (nats)"] == evaluation.overall.mean_kl
    assert set(small_bundle.manifest.parity) < set(parity)


def test_an_evaluation_is_json_a_table_and_a_chart(evaluation: Evaluation, tmp_path: Path) -> None:
    data = json.loads(json.dumps(evaluation.to_dict()))
    assert set(data["languages"]) == set(LANGUAGES)
    text = io.StringIO()
    Console(file=text, width=160).print(evaluation_table(evaluation))
    for part in (*LANGUAGES, "all", "after an image", "mean KL"):
        assert part in text.getvalue()
    draw_evaluation(tmp_path / "e.png", evaluation)
    with Image.open(tmp_path / "e.png") as image:
        assert image.width > 1200
        assert len(image.getcolors(1 << 16)) > 4
