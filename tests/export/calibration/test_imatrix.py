"""Collecting importance: what counts how much, and both ways to the same figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from scenes import held_out

from ayaedge.bundle import Bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.manifest import EmbeddingTable
from ayaedge.text.prompt import Prompt
from ayaedge_export.best.passages import calibration_passages
from ayaedge_export.calibration.builtin_text import PASSAGES
from ayaedge_export.calibration.imatrix import collect, collect_from_bundle, load_importance
from ayaedge_export.calibration.observed_decoder import ObservedDecoder, known_matmul_number
from ayaedge_export.calibration.sequences import (
    CalibrationSequence,
    calibration_sequences,
    checkpoint_vocabulary,
)
from ayaedge_export.calibration.text import BUILTIN, CalibrationText, read_calibration_text
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.evaluation.sample_text import SENTENCES
from ayaedge_export.evaluation.verify import prompt_logits
from ayaedge_export.exporter import export_checkpoint
from ayaedge_quant.imatrix import ColumnSums, ImportanceMatrix, write_imatrix
from ayaedge_quant.kernels import kl_divergence
from random_checkpoint import Shape, write_random_checkpoint
from stock_quantizer import stock_quantize

AGREEMENT = 1e-3
"""Largest relative difference of a mean square between both ways; float32 in another order makes 4e-6."""
ONE_THREAD = DecoderOptions(cache_type="f32", threads=1)
THREE = BUILTIN.only("en", "ja", "ar")
FEW = 600


def sequences_of(
    bundle: Bundle, text: CalibrationText, *, image_weight: float = 0.2, max_tokens: int = 4096
) -> list[CalibrationSequence]:
    def tokenize(plain: str) -> list[int]:
        return list(plain.encode())

    return calibration_sequences(
        bundle.manifest, tokenize, text, image_weight=image_weight, max_tokens=max_tokens
    )


def assert_agree(left: ImportanceMatrix, right: ImportanceMatrix) -> None:
    assert left.entries.keys() == right.entries.keys()
    for name, entry in left.entries.items():
        other = right.entries[name]
        assert entry.positions == other.positions
        np.testing.assert_allclose(entry.mean_squares, other.mean_squares, rtol=AGREEMENT, err_msg=name)


def test_a_checkpoint_and_its_exact_bundle_give_the_same_matrix(tiny: Path, exact_bundle: Bundle) -> None:
    ours = collect(open_checkpoint(tiny), THREE, max_tokens=FEW)
    through_llama = collect_from_bundle(exact_bundle, THREE, max_tokens=FEW, options=ONE_THREAD)
    assert_agree(ours, through_llama)
    assert "token_embd.weight" in ours.entries
    assert ours.datasets == ("builtin[en,ja,ar]",)


def test_both_ways_agree_for_the_other_decoder_family(tiny: Path, tmp_path: Path) -> None:
    shape = Shape(text_type="cohere", text={"num_hidden_layers": 3}, seed=3)
    path = write_random_checkpoint(tmp_path / "c", tiny, shape)
    bundle = export_checkpoint(path, tmp_path / "b", quant="f32", vision="fp32")
    ours = collect(open_checkpoint(path), THREE, max_tokens=FEW)
    assert_agree(ours, collect_from_bundle(bundle, THREE, max_tokens=FEW, options=ONE_THREAD))


def test_collecting_twice_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    for number in "12":
        write_imatrix(tmp_path / number, collect(checkpoint, THREE, max_tokens=FEW))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_matrix_has_the_width_of_every_linear_and_fits_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    steps: list[tuple[int, int]] = []
    matrix = collect(checkpoint, THREE, max_tokens=FEW, on_step=lambda *step: steps.append(step))
    text = checkpoint.config.text
    assert len(matrix.entries) == 7 * text.num_layers + 1
    assert steps == [(layer + 1, text.num_layers) for layer in range(text.num_layers)]
    write_imatrix(tmp_path / "m.gguf", matrix)
    assert load_importance(tmp_path / "m.gguf", checkpoint).entries.keys() == matrix.entries.keys()


def test_every_language_weighs_the_same_and_images_little(exact_bundle: Bundle) -> None:
    text = CalibrationText("t", {"en": ("short",), "hi": PASSAGES["hi"], "zh": PASSAGES["zh"]})
    images, others = [], []
    for sequence in sequences_of(exact_bundle, text):
        (others if sequence.tiles is None else images).append(sequence)
    bos = exact_bundle.manifest.tokens.bos
    assert all(sequence.ids[0] == bos for sequence in others)
    by_length = sorted(float(s.weights.sum()) for s in others if len(s.ids) < 10)
    of_language = by_length[0]
    assert float(sum(s.weights.sum() for s in others)) == pytest.approx(3 * of_language, rel=1e-5)
    patch = exact_bundle.manifest.tokens.image_patch
    spoken = 0.0
    for sequence in images:
        assert sequence.tiles is not None
        at_image = np.asarray(sequence.ids) == patch
        assert at_image.sum() == len(sequence.tiles) * exact_bundle.manifest.image_prompt.tokens_per_tile
        assert np.all(sequence.weights[at_image] == np.float32(0.2))
        spoken += float(sequence.weights[sequence.weights != np.float32(0.2)].sum())
    assert len(images) == 2
    assert spoken == pytest.approx(of_language, rel=1e-5)


def test_no_more_positions_than_asked_and_none_of_images_at_weight_zero(exact_bundle: Bundle) -> None:
    for most in (1500, 2000, 8192):
        sequences = sequences_of(exact_bundle, BUILTIN, max_tokens=most)
        assert 0.5 * min(most, 6000) < sum(len(s.ids) for s in sequences) <= most
        assert all(len(s.ids) <= 512 for s in sequences if s.tiles is None)
    assert all(s.tiles is None for s in sequences_of(exact_bundle, BUILTIN, image_weight=0))


def test_image_positions_change_the_matrix_by_their_weight(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    name = "blk.0.attn_q.weight"

    def importance(weight: float) -> np.ndarray:
        found = collect(checkpoint, THREE, max_tokens=FEW, image_weight=weight).importance(name)
        assert found is not None
        return found

    none, little, much = importance(0.0), importance(0.2), importance(1.0)
    assert np.linalg.norm(little - none) < np.linalg.norm(much - none)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_outside_its_range_is_refused(exact_bundle: Bundle, weight: float) -> None:
    with pytest.raises(InvalidOptionError, match="between 0 and 1"):
        sequences_of(exact_bundle, THREE, image_weight=weight)


def test_too_few_positions_for_the_languages_are_refused(exact_bundle: Bundle) -> None:
    with pytest.raises(InvalidOptionError, match="1000 positions are too few for 23 languages"):
        sequences_of(exact_bundle, BUILTIN, max_tokens=1000)


def test_an_error_while_watching_comes_out_of_the_decode_call(exact_bundle: Bundle) -> None:
    def fail(name: str, x: object) -> None:
        raise RuntimeError(f"seen {name}")

    options = DecoderOptions(all_logits=True, threads=1, context_size=64, batch_size=16)
    with (
        ObservedDecoder(exact_bundle, fail, options) as decoder,
        pytest.raises(RuntimeError, match=r"seen blk\.0\.attn_"),
    ):
        decoder.decode_tokens([400, 401])


def test_the_layout_of_llama_cpps_tensors_is_the_known_one() -> None:
    assert known_matmul_number() > 0


def test_the_checkpoint_s_tokenizer_is_the_bundle_s(tiny: Path, exact_bundle: Bundle) -> None:
    with (
        checkpoint_vocabulary(open_checkpoint(tiny)) as ours,
        Decoder(exact_bundle.decoder_path, exact_bundle.manifest, DecoderOptions(context_size=64)) as decoder,
    ):
        assert ours.size == decoder.vocabulary.size
        for sentence in SENTENCES.values():
            assert ours.tokenize(sentence) == decoder.vocabulary.tokenize(sentence)


def test_an_imatrix_of_another_model_is_refused_with_all_faults(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    path = tmp_path / "m.gguf"
    entries = {"blk.0.attn_q.weight": ColumnSums(np.ones(7, np.float32), 1)}
    write_imatrix(path, ImportanceMatrix({**entries, "blk.99.attn_q.weight": entries["blk.0.attn_q.weight"]}))
    with pytest.raises(
        InvalidOptionError, match=r"(?s)2 faults.*blk\.99.*does not have.*7 columns instead of 256"
    ):
        load_importance(path, checkpoint)
    with pytest.raises(InvalidOptionError, match=r"absent\.gguf cannot be read"):
        load_importance(tmp_path / "absent.gguf", checkpoint)


def test_linears_without_data_are_named_in_the_log(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(tiny)
    matrix = collect(checkpoint, THREE, max_tokens=FEW)
    stock = {name: entry for name, entry in matrix.entries.items() if name.startswith("blk.")}
    write_imatrix(tmp_path / "m.gguf", ImportanceMatrix(stock, ("llama-imatrix",)))
    load_importance(tmp_path / "m.gguf", checkpoint)
    assert "nothing on token_embd.weight" in caplog.text


def test_the_builtin_text_has_eight_passages_in_each_language_and_none_of_the_test_text() -> None:
    assert PASSAGES.keys() == SENTENCES.keys()
    for language, passages in PASSAGES.items():
        assert len(set(passages)) == 8, language
        assert SENTENCES[language] not in passages
        assert all(passage == passage.strip() and len(passage) > 12 for passage in passages)
    assert read_calibration_text("builtin") is BUILTIN


def test_a_plain_file_holds_passages_between_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n\n \nthree\r\n\n", "utf-8")
    text = read_calibration_text(path)
    assert (text.name, text.passages) == ("text.txt", {"?": ("one\ntwo", "three")})


def test_json_lines_name_their_language(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    lines = [{"language": "de", "text": "eins"}, {"text": "?"}, {"language": "de", "text": "zwei\u2028drei"}]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", "utf-8")
    assert read_calibration_text(path).passages == {"de": ("eins", "zwei\u2028drei"), "?": ("?",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfd", "not UTF-8"),
        ("a.txt", b"\n \n", "no text"),
        ("a.jsonl", b'{"text": "a"}\n{"language": "de"}', "line 2: not an object"),
        ("a.jsonl", b"plain", "line 1: not an object"),
        ("a.jsonl", b'[1]', "line 1: not an object"),
        ("a.jsonl", b'{"text": 5}', "line 1: not an object"),
        ("a.txt", None, "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidOptionError, match=message):
        read_calibration_text(tmp_path / name)


COMPARED = ("en", "fr", "ja", "ar", "hi", "ru", "vi")
KL_NOISE = 1.05
"""Matrices from other draws of the same text change the mean KL divergence by up to 4 %."""


def domain_text(seed: int, samples: int) -> CalibrationText:
    """Questions and answers of the kind that the trained checkpoint knows."""
    passages: dict[str, list[str]] = {}
    for sample in held_out(23 * samples, seed):
        passages.setdefault(sample.language, []).append(f"{sample.question} {sample.answer}")
    return CalibrationText("domain", {language: tuple(texts) for language, texts in passages.items()})


@dataclass(frozen=True)
class Damage:
    """What 4-bit quantization does to each language."""

    error: Mapping[str, float]
    """Squared error of every linear's product over its squared size, mean over the linears."""
    kl: Mapping[str, float]
    """Mean KL divergence of the next token on text that was not calibrated on, nats."""

    def of_others(self, figures: Mapping[str, float]) -> float:
        return float(np.mean([value for language, value in figures.items() if language != "en"]))


@dataclass(frozen=True)
class Surgeon:
    """Quantizes an exact bundle's decoder with a matrix and measures the damage."""

    bundle: Bundle
    directory: Path
    of_language: Mapping[str, ImportanceMatrix]
    text: Mapping[str, tuple[str, ...]]

    def operate(self, matrix: ImportanceMatrix | None) -> Damage:
        path = self.directory / "q.gguf"
        stock_quantize(self.bundle.decoder_path, path, "q4_k_m", matrix)
        exact = {t.name: t.data for t in gguf.GGUFReader(self.bundle.decoder_path).tensors}
        changes = {
            t.name: np.square(exact[t.name] - gguf.dequantize(t.data, t.tensor_type))
            for t in gguf.GGUFReader(path).tensors
            if exact[t.name].ndim == 2
        }
        error = {
            language: float(
                np.mean(
                    [_share(seen.importance(name), change, exact[name]) for name, change in changes.items()]
                )
            )
            for language, seen in self.of_language.items()
        }
        before, after = self.logits(self.bundle.decoder_path), self.logits(path)
        kl = {
            language: float(kl_divergence(before[language], after[language]).kl.mean())
            for language in COMPARED
        }
        return Damage(error, kl)

    def logits(self, path: Path) -> dict[str, np.ndarray]:
        embeddings = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
        place = EmbeddingTable(
            embeddings.tensor_type.name, int(embeddings.data_offset), embeddings.data[0].nbytes
        )
        manifest = replace(
            self.bundle.manifest, decoder=replace(self.bundle.manifest.decoder, embeddings=place)
        )
        options = DecoderOptions(cache_type="f32", all_logits=True, context_size=512, threads=1)
        with Decoder(path, manifest, options) as decoder:
            ids = {
                language: decoder.vocabulary.tokenize("\n".join(self.text[language]))[:250]
                for language in COMPARED
            }
            return {
                language: prompt_logits(decoder, Prompt((manifest.tokens.bos, *text), ()), None, -1)
                for language, text in ids.items()
            }


def _share(h: np.ndarray | None, change: np.ndarray, weights: np.ndarray) -> float:
    assert h is not None
    return float((h * change).sum() / (h * np.square(weights)).sum())


def test_calibration_on_all_languages_serves_the_others_better_than_english_alone(
    tiny: Path, exact_bundle: Bundle, tmp_path: Path
) -> None:
    checkpoint, text = open_checkpoint(tiny), domain_text(seed=31, samples=12)

    def matrix(*languages: str) -> ImportanceMatrix:
        return collect(checkpoint, text.only(*languages), image_weight=0, max_tokens=160 * len(languages))

    unseen = domain_text(seed=57, samples=12)
    of_language = {language: matrix(language) for language in COMPARED}
    surgeon = Surgeon(exact_bundle, tmp_path, of_language, unseen.passages)
    plain, english = surgeon.operate(None), surgeon.operate(of_language["en"])
    ours = surgeon.operate(matrix(*text.passages))

    assert ours.of_others(ours.error) < english.of_others(english.error) < plain.of_others(plain.error)
    assert english.error["en"] < ours.error["en"] < plain.error["en"]
    # measured: 7 % below both, every language below English-only; not asserted as a gain, for it is near the noise
    assert ours.of_others(ours.kl) <= KL_NOISE * min(plain.of_others(plain.kl), english.of_others(english.kl))


def test_a_short_text_is_read_together_with_the_builtin_one(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(tiny)
    short = CalibrationText("mine", {"en": ("The circle is red.",), "?": ("Où est le carré ?",)})
    found = calibration_passages(checkpoint, short, max_tokens=3000, sensitivity_tokens=500, probe_tokens=460)
    assert "the builtin text is read as well" in caplog.text
    assert found.text.name == "mine and builtin"
    assert found.text.passages["en"] == ("The circle is red.", *BUILTIN.passages["en"])
    assert found.text.passages["?"] == ("Où est le carré ?",)
    assert set(found.text.passages) == {"?", *BUILTIN.passages}
    assert 2000 < sum(found.rounding.lengths) <= 3000
    assert 24 * 64 >= sum(found.sensitivity.lengths) > 1000  # some of each language, whatever was asked for


def test_a_long_text_is_read_alone_and_its_probes_are_as_long_in_all(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(tiny)
    for text in (BUILTIN.only("en", "ja"), BUILTIN):
        found = calibration_passages(
            checkpoint, text, max_tokens=1600, sensitivity_tokens=1500, probe_tokens=460
        )
        assert found.text is text
        assert 450 <= sum(found.probes.lengths) <= 460
    assert "builtin text is read" not in caplog.text


def test_many_languages_have_enough_positions_and_probes(tiny: Path) -> None:
    words = " ".join(BUILTIN.passages["en"])
    many = CalibrationText("many", {str(number): (words,) for number in range(70)})
    found = calibration_passages(
        open_checkpoint(tiny), many, max_tokens=200, sensitivity_tokens=100, probe_tokens=70
    )
    assert sum(found.sensitivity.lengths) <= 70 * 64
    assert found.probes.lengths == [4] * 70


def test_a_long_passage_is_no_longer_a_question_than_others(exact_bundle: Bundle) -> None:
    """A file without empty lines is one passage."""
    lines = CalibrationText("lines", {"?": ("\n".join(PASSAGES["en"] * 20),)})
    images = [part for part in sequences_of(exact_bundle, lines, max_tokens=4096) if part.tiles is not None]
    usual = [part for part in sequences_of(exact_bundle, THREE, max_tokens=4096) if part.tiles is not None]
    assert len(images) == len(usual) > 0
    assert all(len(part.ids) < len(other.ids) + 200 for part, other in zip(images, usual, strict=True))
