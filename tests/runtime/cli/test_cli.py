from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import probed
from ayaedge import Bundle, InvalidOptionError
from ayaedge.bundle import demo_bundle
from ayaedge.cache import verified
from ayaedge.cli import console
from ayaedge.cli import export as cli_export
from ayaedge.decoder import kernel_trial
from ayaedge.decoder.acceleration import usable_kernels
from ayaedge.decoder.kernel_trial import VARIABLE
from ayaedge_export.plan import VISION_FORMATS
from ayaedge_quant.recipes import DECODER_FORMATS
from command_line import ayaedge
from random_checkpoint import Shape, write_random_checkpoint


def process(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ayaedge", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", check=False,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "rot é 图.png"
    Image.new("RGB", (100, 100), (214, 32, 38)).save(path)
    return path


def test_the_demonstration_model_answers_without_a_bundle(image: Path) -> None:
    result = process("ask", "--image", image, "What color is in the picture?")
    assert result.returncode == 0
    assert result.stdout.strip()
    assert result.stdout.count("\n") == 1
    assert "demonstration model" in result.stderr
    assert "ayaedge export CHECKPOINT" in result.stderr
    for noise in ("llama", "ggml", "onnxruntime", "Warning"):
        assert noise not in result.stderr


def test_a_named_bundle_answers_quietly(image: Path, exact_bundle: Bundle) -> None:
    result = process("ask", "-m", exact_bundle.directory, "--image", image, "What color is in the picture?")
    assert result.returncode == 0
    assert result.stderr == ""
    same = ayaedge(
        "ask", "What color is in the picture?", "--image", image, "--model", exact_bundle.directory
    )
    assert same.stdout == result.stdout


def test_an_image_may_be_the_url_of_a_file(image: Path) -> None:
    question = "What color is in the picture?"
    expected = ayaedge("ask", "--image", image, question)
    assert ayaedge("ask", "--image", image.as_uri(), question).stdout == expected.stdout != ""
    planned = [
        json.loads(ayaedge("plan", "--json", "--image", one).stdout) for one in (image, image.as_uri())
    ]
    assert planned[0]["images"] == planned[1]["images"]
    missing = ayaedge("ask", "--image", "file:///no/such.png", question)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no image at /no/such.png" in missing.stderr


def test_json_is_one_object_on_stdout(image: Path) -> None:
    result = ayaedge(
        "ask", "--image", image, "--image", image, "--json", "-n", "3", "--max-tiles", "1", "-s", "Be brief.",
        "--temperature", "0.5", "--top-p", "0.9", "--min-p", "0.1", "--top-k", "5", "--seed", "1", "What?",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert data["usage"]["tiles"] == [1, 1]
    assert data["usage"]["completion_tokens"] <= 3
    timings = {"vision", "prefill", "first_token", "decode", "predicted", "queued"}
    assert set(data["timings"]) == timings | {"acceleration", "acceleration_gain"}
    assert data["timings"]["acceleration"] in ("off", *usable_kernels()[-1:])
    plain = ayaedge(
        "ask", "--image", image, "--json", "-n", "3", "--max-tiles", "1", "--acceleration", "off", "What?"
    )
    assert json.loads(plain.stdout)["timings"]["acceleration"] == "off"
    assert json.loads(plain.stdout)["timings"]["acceleration_gain"] == 1


def test_verbose_shows_figures_and_messages_on_stderr(image: Path) -> None:
    result = process("ask", "-v", "--image", image, "What?")
    assert "prompt tokens" in result.stderr
    assert "llama" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "--image", "no.png", "x"], "no image at no.png"),
        (["ask", "-m", "nowhere", "x"], "no bundle at nowhere"),
        (["ask", "--temperature", "-1", "x"], "temperature must be 0 or more"),
        (["ask", "-c", "10", "a longer question than that"], "only 9 fit"),
        (["info", "nowhere"], "no bundle at nowhere"),
        (["verify", "nowhere"], "no bundle at nowhere"),
        (["export", "nowhere"], "no checkpoint directory at nowhere"),
        (["ask", "--image", "https://example.org/x.png", "x"], "offline"),
    ],
)
def test_a_mistake_is_one_error_on_stderr_and_exit_code_1(arguments: list[str], says: str) -> None:
    result = ayaedge(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert says in result.stderr
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr


def test_brackets_in_an_error_are_not_taken_for_markup() -> None:
    assert "[red]x[/red].png" in ayaedge("ask", "--image", "[red]x[/red].png", "x").stderr


def test_info_names_what_a_bundle_holds(exact_bundle: Bundle) -> None:
    result = ayaedge("info", exact_bundle.directory)
    assert result.returncode == 0
    for info in exact_bundle.manifest.files.values():
        assert info.sha256 in result.stdout
    data = json.loads(ayaedge("info", exact_bundle.directory, "--json").stdout)
    assert data["formats"] == {"vision": "fp32", "decoder": "f32", "adjustments": []}


@pytest.mark.skipif(not usable_kernels(), reason="there is no kernel for this processor")
def test_answers_and_a_bundles_facts_say_which_kernel_runs_and_what_it_gains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_trial, "try_kernel", probed.find_attention_fast)
    kernel = usable_kernels()[-1]
    said = f"{kernel}, 1.5 times as fast as llama.cpp's products of a prefill, 2.5 times as its attention"
    assert said in ayaedge("info", "-v", demo_bundle()).stdout
    assert "acceleration" not in ayaedge("info", demo_bundle()).stdout
    found = json.loads(ayaedge("info", "-v", "--json", demo_bundle()).stdout)["acceleration"]
    assert (found["kernel"], found["gain"], found["attention_gain"]) == (kernel, 1.5, 2.5)
    asked = ayaedge("ask", "-v", "-n", "1", "What?")
    assert f"({kernel}, 1.5 x llama.cpp's products), first token" in asked.stderr
    timings = json.loads(ayaedge("ask", "--json", "-n", "1", "What?").stdout)["timings"]
    assert (timings["acceleration"], timings["acceleration_gain"]) == (kernel, 1.5)
    monkeypatch.setenv(VARIABLE, "off")
    assert "acceleration  off" in ayaedge("info", "-v", demo_bundle()).stdout


def test_verify_accepts_an_intact_bundle_and_refuses_a_damaged_one(
    exact_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exact_bundle.directory, copy)
    assert ayaedge("verify", copy).returncode == 0
    assert json.loads(ayaedge("verify", copy, "--json").stdout)["passed"] is True
    data = bytearray((copy / "vision.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "vision.onnx").write_bytes(data)
    result = ayaedge("verify", copy)
    assert result.returncode == 1
    assert "vision.onnx is damaged" in result.stderr


def test_verify_against_a_checkpoint_reports_and_judges(
    exact_bundle: Bundle, tiny: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exact_bundle.directory, copy)
    result = ayaedge("verify", copy, "--against", tiny, "--trace", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert report["passed"]
    assert {"direct against traced"} <= {check["name"].split(", ")[-1] for check in report["checks"]}
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    manifest["formats"] = {"vision": "fp32", "decoder": "f32"}
    manifest["tiling"]["mean"] = [0.4, 0.4, 0.4]  # a bundle whose images are not the reference's
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = ayaedge("verify", copy, "--against", tiny)
    assert result.returncode == 1
    assert "missed" in result.stdout


def test_export_writes_a_bundle_named_after_its_formats(
    tiny: Path, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "my checkpoint"
    shutil.copytree(tiny, checkpoint)
    monkeypatch.chdir(tmp_path)
    result = ayaedge("export", checkpoint.name, "--quant", "q8_0", "--vision", "fp16")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    bundle = tmp_path / "my checkpoint-q8_0-fp16"
    assert ayaedge("ask", "-m", bundle, "--image", image, "What color is in the picture?").returncode == 0
    again = ayaedge("export", checkpoint, "-o", bundle)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert ayaedge("export", checkpoint, "-o", bundle, "--force").returncode == 0


def test_a_missing_extra_names_the_command_that_installs_it(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise ModuleNotFoundError(\"No module named 'onnx'\", name='onnx')")
    result = process("export", tiny, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert 'pip install "ayaedge[export]"' in result.stderr


def test_verify_without_transformers_names_the_extra(
    exact_bundle: Bundle, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "transformers.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'transformers'\", name='transformers')"
    )
    result = process("verify", exact_bundle.directory, "--against", tiny, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert 'pip install "ayaedge[trace]"' in result.stderr


def test_help_lists_every_command() -> None:
    result = ayaedge("--help")
    for command in ("ask", "export", "info", "verify"):
        assert command in result.stdout


def test_answers_are_utf8_whatever_the_terminals_encoding(image: Path) -> None:
    result = process(
        "ask", "--image", image, "画像の色は何ですか？", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    )
    assert result.returncode == 0
    assert np.any([ord(c) > 127 for c in result.stdout])


def test_the_options_offer_every_format_that_the_exporter_writes() -> None:
    assert get_args(cli_export.DecoderFormat) == DECODER_FORMATS
    assert get_args(cli_export.VisionFormat) == VISION_FORMATS


def test_an_answer_that_cannot_be_written_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no device that is always full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "ayaedge", "ask", "Hi", "-n", "2"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_leaves_early_is_no_accident() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ayaedge", "ask", "Hi", "--temperature", "50", "--seed", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_an_importance_matrix_goes_from_calibration_into_a_bundle(tiny: Path, tmp_path: Path) -> None:
    matrix, bundle = tmp_path / "matrix.gguf", tmp_path / "b"
    result = ayaedge("calibrate", tiny, "-o", matrix, "--max-tokens", "2500")
    assert result.returncode == 0, result.stderr
    result = ayaedge("export", tiny, "-o", bundle, "--imatrix", matrix, "--tensor-type", "ffn_up=q6_k")
    assert result.returncode == 0, result.stderr
    assert "adjusted by   ffn_up=q6_k, importance from builtin" in ayaedge("info", bundle).stdout
    assert ayaedge("verify", bundle).returncode == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--imatrix", "none.gguf"], "none.gguf"),
        (["--imatrix", "a", "--calibrate", "builtin"], "exclude each other"),
        (["--calibrate", "none.txt"], "none.txt"),
        (["--tensor-type", "ffn_up"], "REGEX=TYPE"),
        (["--tensor-type", "ffn_up=q9"], "q9"),
        (["--tensor-type", "nothing=q6_k"], "no tensor matches"),
        (["--tensor-type", "(=q6_k"], "not a regular expression"),
        (["--output-type", "q9"], "q9"),
        (["--threads", "-3"], "threads must be a whole number"),
        (
            ["--effort", "best", "--target-size", "4.6 cups"],
            "a size is written like 4.6GB or 850MB, not '4.6 cups'",
        ),
        (["--effort", "best", "--target-bpw", "nan"], "must be positive"),
        (["--target-bpw", "4.5"], "only the effort best can aim at a size"),
        (["--effort", "best", "--feedback-block", "100"], "multiples of 256, not 100"),
        (["--feedback-block", "512"], "only the effort best has columns"),
    ],
)
def test_options_of_an_export_that_cannot_be_followed_are_refused_first(
    tiny: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    result = ayaedge("export", tiny, "-o", tmp_path / "b", *options)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_is_said_when_a_large_bundle_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_LARGE", 0)
    copy = shutil.copytree(demo_bundle(), tmp_path / "b")
    said = ayaedge("ask", "-m", copy, "-n", "1", "Hello").stderr
    assert "decoder.gguf (0.0 GB) once, to see whether it is whole" in said


def test_an_effort_that_does_not_exist_is_a_wrong_use(tiny: Path, tmp_path: Path) -> None:
    result = ayaedge("export", tiny, "-o", tmp_path / "b", "--effort", "extreme")
    assert result.returncode == 2
    assert "'fast', 'calibrated', 'best'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_best_effort_gives_a_bundle_that_says_so(tiny: Path, tmp_path: Path) -> None:
    shape = Shape(text={"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1})
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, shape)
    text, bundle = tmp_path / "text.txt", tmp_path / "b"
    text.write_text("What color is the circle? The circle is red.\n\nThe square is blue.", "utf-8")
    result = ayaedge(
        "export", checkpoint, "-o", bundle, "--effort", "best", "--calibrate", text, "--target-size", "870kB",
        "--feedback-block", "0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "expected" in result.stderr
    assert "the builtin text is read as well" in result.stderr
    assert (bundle / "decoder.gguf").stat().st_size <= 870_000
    shown = ayaedge("info", bundle).stdout
    assert "error feedback from text.txt and builtin, types chosen by measurement" in shown
    figures = json.loads(ayaedge("info", bundle, "--json").stdout)["parity"]
    predicted = "best, predicted KL divergence of the chosen types (nats)"
    assert figures[predicted] > 0
    assert f"figure        {predicted}: {figures[predicted]:.3g}\n" in shown
    assert ayaedge("verify", bundle).returncode == 0


def test_a_size_that_is_too_small_names_the_least(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The circle is red.", "utf-8")
    result = ayaedge(
        "export",
        tiny,
        "-o",
        tmp_path / "b",
        "--effort",
        "best",
        "--calibrate",
        text,
        "--target-size",
        "100 kB",
    )
    assert result.returncode == 1
    assert "error: this decoder cannot be made so small: its least is 1." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4.6GB", 4_600_000_000),
        ("850MB", 850_000_000),
        (" 850 m ", 850_000_000),
        ("1.5kB", 1500),
        ("2t", 2 * 10**12),
        ("123456", 123456),
        ("12B", 12),
    ],
)
def test_sizes_are_written_with_decimal_units(written: str, size: int) -> None:
    assert cli_export.parse_size(written) == size


@pytest.mark.parametrize("written", ["", "GB", "-1GB", "4.6GiB", "4,6GB", "1e9", "4.6 GB GB", ".5GB", "nan"])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"written like 4\.6GB or 850MB"):
        cli_export.parse_size(written)


def test_plan_shows_types_and_the_disk_needed(tiny: Path) -> None:
    result = ayaedge("plan", "--export", tiny, "--tensor-type", "ffn_down=q8_0", "--output-type", "f16")
    assert result.returncode == 0, result.stderr
    for part in ("ffn_down", "Q8_0", "F16", "INT8", "disk needed"):
        assert part in result.stdout
    assert re.search(r"by effort: fast .*, calibrated .*, best ", result.stderr)
    data = json.loads(ayaedge("plan", "--export", tiny, "--json", "--vision", "fp16").stdout)
    assert set(data["decoder_seconds"]) == set(get_args(cli_export.Effort))
    assert 0 < data["decoder_seconds"]["fast"] < data["decoder_seconds"]["best"]
    assert {tensor["type"] for tensor in data["tensors"] if tensor["part"] == "vision"} == {"FP16"}
    wrong = ayaedge("plan", "--export", tiny, "--tensor-type", "ffn_dwon=q8_0")
    assert wrong.returncode == 1
    assert "no tensor matches 'ffn_dwon'" in wrong.stderr


def test_eval_reports_draws_records_and_goes_on(exact_bundle: Bundle, tmp_path: Path) -> None:
    copy, output, plot = tmp_path / "copy", tmp_path / "e.json", tmp_path / "e.png"
    shutil.copytree(exact_bundle.directory, copy)
    text = tmp_path / "t.jsonl"
    text.write_text('{"language": "en", "text": "What color is the circle? The circle is red."}\n', "utf-8")
    command = [
        "eval",
        copy,
        "--against",
        exact_bundle.directory,
        "--text",
        text,
        "-o",
        output,
        "--plot",
        plot,
    ]
    result = ayaedge(*command, "--record")
    assert result.returncode == 0, result.stderr
    assert "same top" in result.stdout
    assert json.loads(output.read_text("utf-8"))["languages"]["en"]["top1"] == 1.0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "eval, text: same likeliest token" in json.loads(ayaedge("info", copy, "--json").stdout)["parity"]
    assert (tmp_path / "e.windows.jsonl").exists()
    again = ayaedge(*command, "--json")
    assert json.loads(again.stdout) == json.loads(output.read_text("utf-8"))


def test_a_terminal_gets_no_control_characters_from_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "a\x1b]0;title\x07b\u009b2Jc\r\nd\te नमस्ते"
    for stream, shown in ((Screen(), "a\ufffd]0;title\ufffdb\ufffd2Jc\nd\te नमस्ते"), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stdout", stream)
        console.write(text)
        assert stream.getvalue() == shown
