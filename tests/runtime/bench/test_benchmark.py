"""The benchmark of the demonstration model, measured once, and what is made of its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from ayaedge import InvalidOptionError, read_bundle
from ayaedge.bench import benchmark, parts
from ayaedge.bench.benchmark import Measured, OtherDecode, OtherProgram, decoder_plan, measure_bundle
from ayaedge.bench.limits import Limits, Work
from ayaedge.bench.process_watch import Finished, Resident, run_watched
from ayaedge.bench.report import LLAMA, benchmark_table, draw_benchmark, list_figures, notes, to_dict
from ayaedge.bundle import demo_bundle
from ayaedge.cli import bench as cli_bench
from ayaedge.decoder.acceleration import usable_kernels
from ayaedge.errors import BackendError, BundleError

LIMITS = Limits(read_bandwidth=10e9, float32_peak=100e9, int8_peak=400e9)
BF16 = OtherProgram(
    "transformers bf16", 18_400_000_000, 20_000_000_000, tile_seconds=2.0, prefill=22.0, first_token_seconds=128.0,
    decode=(OtherDecode(512, 0.8), OtherDecode(2799, 0.7)), memory=Resident(18_400_000_000),
)  # fmt: skip
FP32 = OtherProgram("transformers fp32", 36_000_000_000, 20_000_000_000)
KERNEL = next(reversed(usable_kernels()), None)
"""The best of ours for this processor, if there is one."""
app = typer.Typer()
app.command()(cli_bench.bench)


@pytest.fixture(scope="module")
def steps() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def commands() -> list[Sequence[str]]:
    """Every process that the benchmark started."""
    return []


@pytest.fixture(scope="module")
def measured(steps: list[tuple[int, int, str]], commands: list[Sequence[str]]) -> Measured:
    def watched(command: Sequence[str], environment: Mapping[str, str]) -> Finished:
        commands.append(command)
        return run_watched(command, environment=environment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "run_watched", watched)
        if KERNEL:
            patch.setenv("AYAEDGE_ACCELERATION", KERNEL)
        return measure_bundle(
            demo_bundle(),
            threads=2,
            answer_tokens=4,
            tiles=2,
            rounds=1,
            on_step=lambda *step: steps.append(step),
        )


@pytest.fixture
def made_up(measured: Measured) -> Measured:
    """The same with figures that are known."""
    return replace(
        measured,
        limits=LIMITS,
        tile_work=Work(int8=400e9, float32=50e9),
        tile_seconds=3.0,
        tile_limit=1.5,
        prefill=tuple(replace(part, ours=20.0, raw=25.0, limit=80.0) for part in measured.prefill),
        decode=tuple(replace(part, ours=3.0, raw=3.0, limit=6.0) for part in measured.decode),
        first_token=replace(measured.first_token, cold=100.0, restored=5.0, warm=1.0, limit=50.0),
        memory=Resident(6_000_000_000, 1_500_000_000, 4_500_000_000),
    )


def shown(measured: Measured, *others: OtherProgram) -> str:
    stream = StringIO()
    Console(file=stream, width=200).print(benchmark_table(measured, others))
    return stream.getvalue()


def test_every_figure_was_measured(measured: Measured) -> None:
    figures = list_figures(measured)
    assert all(figure.value > 0 for figure in figures if "disk" not in figure.name)
    limited = [figure for figure in figures if figure.limit_share is not None]
    assert len(limited) == 6
    assert all(0 < (figure.limit_share or 0) < 1.5 for figure in limited)
    assert [part.kind for part in measured.prefill] == ["text", "image"]
    assert measured.acceleration == (KERNEL or "off")
    assert any(f"kernel {KERNEL}" in note for note in notes(measured)) is bool(KERNEL)
    assert measured.tile_work.int8 > measured.tile_work.float32 > 1e6
    assert (measured.first_token.tiles, measured.computer.threads) == (13, 2)
    assert measured.memory.total > measured.first_token.stored_bytes


@pytest.mark.parametrize("kind", ["text", "image"])
def test_prompts_beyond_the_first_memory_are_timed_beside_stock_llama_cpp(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AYAEDGE_ACCELERATION", KERNEL or "off")
    timed = parts.prefill(read_bundle(demo_bundle()), threads=1, prompts=[(kind, 1100)], rounds=1)
    assert timed["acceleration"] == (KERNEL or "off")
    (prompt,) = timed["prompts"]
    assert min(prompt["ours"], prompt["raw"]) > 0


def test_steps_are_told_as_they_begin(measured: Measured, steps: list[tuple[int, int, str]]) -> None:
    done, of = [step[0] for step in steps], {step[1] for step in steps}
    assert done == list(range(len(steps)))
    assert of == {len(steps)}


def test_the_cold_process_has_the_kernel_that_was_timed(
    measured: Measured, commands: list[Sequence[str]]
) -> None:
    (cold,) = [command for command in commands if "--no-cache" in command]
    assert cold[cold.index("--acceleration") + 1] == measured.acceleration == (KERNEL or "off")


def test_the_plan_is_that_of_an_image_as_far_as_the_context_holds() -> None:
    bundle = read_bundle(demo_bundle())
    assert decoder_plan(bundle, 8) == {
        "prompts": [("text", 512), ("image", 13 * 16)],
        "contexts": [500, 2040],
    }
    manifest = bundle.manifest
    large = replace(
        bundle,
        manifest=replace(
            manifest,
            decoder=replace(manifest.decoder, context_length=16384),
            image_prompt=replace(manifest.image_prompt, tokens_per_tile=169),
        ),
    )
    assert decoder_plan(large, 32) == {"prompts": [("text", 512), ("image", 2197)], "contexts": [500, 2200]}


def test_shares_are_those_of_the_limits(made_up: Measured) -> None:
    figures = {figure.name: figure for figure in list_figures(made_up, [BF16])}
    assert figures["vision, a tile"].limit_share == pytest.approx(0.5)
    assert figures["prefill, text, 512 tokens"].limit_share == pytest.approx(0.25)
    assert figures["decode behind 500 tokens"].limit_share == pytest.approx(0.5)
    assert figures["first token, restored"].cold_share == pytest.approx(0.05)
    (cold,) = (figure for name, figure in figures.items() if name.startswith("first token, cold ("))
    assert cold.limit_share == pytest.approx(0.5)


def test_other_programs_stand_beside_the_same_figure(made_up: Measured) -> None:
    figures = {figure.name: figure.beside for figure in list_figures(made_up, [BF16, FP32])}
    assert figures["vision, a tile"] == {BF16.name: 2000.0}
    assert figures["prefill, text, 512 tokens"] == {LLAMA: 25.0, BF16.name: 22.0}
    assert figures["prefill, image, 208 tokens"] == {LLAMA: 25.0}
    long = next(beside for name, beside in figures.items() if name.startswith("decode behind 2,"))
    assert long == {LLAMA: 3.0, BF16.name: 0.7}
    assert figures["memory"] == pytest.approx({BF16.name: 18.4})


def test_the_table_shows_values_shares_and_ratios(made_up: Measured) -> None:
    text = shown(made_up, BF16, FP32)
    for part in (
        "demo",
        "3,000.0 ms",
        "50%",
        "25.00 (0.80 ×)",
        "22.00 (0.91 ×)",
        "5.00 s (5.0% of cold)",
        "1.50 GB",
    ):
        assert part in text
    assert "fp32" not in text


def test_a_program_that_does_not_fit_is_told_with_its_bytes(made_up: Measured) -> None:
    lines = "\n".join(notes(made_up, [BF16, FP32]))
    assert "transformers fp32 was not measured: it needs 36.0 GB of memory and 20.0 GB are free." in lines
    assert "10.0 GB/s read, 100 GFLOP/s in float32, 400 GOP/s in int8" in lines


def test_json_holds_everything(made_up: Measured) -> None:
    data = json.loads(json.dumps(to_dict(made_up, [BF16, FP32])))
    assert data["measured"]["first_token"]["cold"] == 100.0
    assert [other["name"] for other in data["others"]] == [BF16.name, FP32.name]
    assert {"name", "value", "unit", "limit_share", "cold_share", "beside"} == set(data["figures"][0])


def test_the_chart_is_an_image(made_up: Measured, tmp_path: Path) -> None:
    draw_benchmark(tmp_path / "alone.png", made_up)
    draw_benchmark(tmp_path / "both.png", made_up, [BF16, FP32])
    with Image.open(tmp_path / "alone.png") as alone, Image.open(tmp_path / "both.png") as both:
        assert alone.format == "PNG"
        assert both.size[1] > alone.size[1]


def test_the_command_shows_a_table_and_draws(
    made_up: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_bench, "measure_bundle", lambda *_, **__: made_up)
    chart = tmp_path / "c.png"
    result = CliRunner().invoke(app, ["-m", str(demo_bundle()), "--chart", str(chart)])
    assert result.exit_code == 0, result.output
    assert "first token, warm" in result.stdout
    assert "Measured limits" in result.stdout
    assert chart.stat().st_size > 1000
    data = json.loads(CliRunner().invoke(app, ["-m", str(demo_bundle()), "--json"]).stdout)
    assert data["measured"]["bundle"] == "demo"


def test_a_bundle_of_true_shape_is_compared_with_transformers(
    made_up: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_bundle(demo_bundle()).manifest
    wide = replace(manifest.decoder, hidden_size=4096, vocab_size=256000, num_layers=4)
    assert cli_bench.find_shape(replace(manifest, decoder=wide)) == ("8b", 4)
    with pytest.raises(InvalidOptionError, match="256 wide"):
        cli_bench.find_shape(manifest)
    commands: list[list[str]] = []

    def run(command: list[str]) -> Finished:
        commands.append(command)
        decode = [asdict(part) for part in BF16.decode]
        output = {**asdict(BF16), "decode": decode, "precision": "bf16"}
        return Finished(json.dumps(output), 1.0, 2.0, Resident(18_400_000_000))

    monkeypatch.setattr(cli_bench, "run_watched", run)
    assert cli_bench.measure_transformers("transformers-bf16", "8b", 4, made_up, 2) == BF16
    told = " ".join(commands[0])
    for part in ("--shape 8b --layers 4 --precision bf16 --tiles 13 --prompt-tokens 2", "--threads 2"):
        assert part in told


def test_another_program_that_fails_loses_nothing_of_ours(
    made_up: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: list[str]) -> Finished:
        raise BackendError("a process of the benchmark ended with status -9: ")

    monkeypatch.setattr(cli_bench, "run_watched", run)
    failed = cli_bench.measure_transformers("transformers-fp32", "8b", 4, made_up, None)
    assert "transformers fp32 could not be measured: a process" in "\n".join(notes(made_up, [failed]))
    assert "fp32" not in shown(made_up, failed)


def test_a_bundle_of_another_shape_is_refused_before_anything_is_measured() -> None:
    result = CliRunner().invoke(app, ["-m", str(demo_bundle()), "--against", "transformers-bf16"])
    assert isinstance(result.exception, InvalidOptionError)


def test_a_named_bundle_excludes_one_of_random_weights() -> None:
    result = CliRunner().invoke(app, ["-m", str(demo_bundle()), "--synthetic", "8b", "--layers", "1"])
    assert "--synthetic, --layers would make another one" in str(result.exception)


def test_a_bundle_of_random_weights_that_is_there_is_used_again(
    made_up: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def measure(path: Path, **_: object) -> Measured:
        asked.append(path)
        return made_up

    monkeypatch.setattr(cli_bench, "measure_bundle", measure)
    target = tmp_path / "synthetic-aya-vision-32b-2-layers"
    target.mkdir()
    (target / "manifest.json").write_text("{}")
    result = CliRunner().invoke(app, ["--synthetic", "32b", "--layers", "2", "--keep", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert asked == [target]


def test_senseless_arguments_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="rounds must be a whole number"):
        measure_bundle(demo_bundle(), rounds=0)
    with pytest.raises(BundleError):
        measure_bundle(tmp_path)


def test_an_answer_that_fills_the_context_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="no room for a prompt"):
        measure_bundle(demo_bundle(), answer_tokens=9000)
