"""What a question will cost: tiles within a time, memory, and whether it fits; against what then happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ayaedge import AyaVision, CacheOptions, DecoderOptions, InvalidOptionError
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.errors import AyaEdgeError
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.tile_budget import TileChoice, image_cost, tiles_within
from ayaedge.planning.costs import MemoryCost, QuestionCost
from ayaedge.planning.profile import Profile, load_profile, profile_path, save_profile
from ayaedge.planning.question_plan import plan_question

SPEEDS = Speeds(tile=1.4, prompt_token=0.03, prompt_growth=4e-6, answer_token=0.2, answer_growth=1e-5)
"""Of the 8B on two cores."""
PHOTO = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
DEMO = read_bundle(demo_bundle())


def choose(budget: float | None, *sizes: tuple[int, int], most: int | None = None) -> TileChoice:
    return tiles_within(
        TileChoice("auto", most, budget), sizes, DEMO.manifest.tiling, lambda: SPEEDS,
        tokens_of=lambda tiles: 172 * tiles + 2, around=550,
    )  # fmt: skip


def seconds(choice: TileChoice, *sizes: tuple[int, int]) -> float:
    tiles = [image_cost(size, DEMO.manifest, choice).tiles for size in sizes]
    return sum(tiles) * SPEEDS.tile + SPEEDS.prefill(0, 550 + sum(172 * count + 2 for count in tiles) + 64)


def test_earlier_names_give_the_same_and_name_the_new_ones(demo_model: AyaVision) -> None:
    chat = demo_model.chat()
    usage = chat.ask("Hi", images=[PHOTO], max_tiles=1, max_tokens=1).usage
    for owner in (usage, chat.turns[0], plan_question(DEMO, [(640, 480)])):
        name = type(owner).__name__
        with pytest.warns(DeprecationWarning, match=rf"^{name}\.pictures is now {name}\.images$") as warned:
            assert owner.pictures is owner.images
        assert warned[0].filename == __file__
        assert len(owner.images) == 1


def test_speeds_add_up_whatever_the_parts() -> None:
    whole = SPEEDS.prefill(0, 3000)
    assert whole == pytest.approx(SPEEDS.prefill(0, 1000) + SPEEDS.prefill(1000, 2000))
    assert SPEEDS.answer(2000, 10) > SPEEDS.answer(0, 10)


@pytest.mark.parametrize("sizes", [[(640, 480)], [(640, 480), (300, 900)]])
def test_auto_takes_the_largest_grid_that_its_time_allows(sizes: list[tuple[int, int]]) -> None:
    chosen = [choose(budget, *sizes) for budget in (1, 20, 40, 60, 80, 900)]
    limits = [choice.max_tiles or 0 for choice in chosen]
    assert limits == sorted(limits)
    assert limits[0] == 1
    assert limits[-1] == DEMO.manifest.tiling.max_tiles
    for choice, budget in zip(chosen[1:], (20, 40, 60, 80, 900), strict=True):
        assert seconds(choice, *sizes) <= budget or choice.max_tiles == 1
        if (choice.max_tiles or 0) < DEMO.manifest.tiling.max_tiles:
            larger = TileChoice("auto", (choice.max_tiles or 0) + 1, budget)
            assert seconds(larger, *sizes) > budget


def test_a_limit_on_tiles_counts_for_auto_too() -> None:
    assert choose(1000, (640, 480), most=3).max_tiles == 3


def test_only_auto_measures() -> None:
    def never() -> Speeds:
        raise AssertionError

    for choice in (TileChoice(), TileChoice("native", 4)):
        found = tiles_within(choice, [(9, 9)], DEMO.manifest.tiling, never, tokens_of=int, around=0)
        assert found is choice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "all"}, "faithful, native, auto"), ({"max_tiles": 0}, "max_tiles"),
        ({"policy": "auto", "budget": 0}, "budget"), ({"budget": 3.0}, 'needs tiles="auto"'),
    ],
)  # fmt: skip
def test_senseless_choices_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        TileChoice(**options)  # type: ignore[arg-type]


def test_what_cannot_run_says_what_to_change() -> None:
    memory = MemoryCost(decoder=5_000_000_000, kv_cache=1_000_000_000, work=100_000_000, vision=700_000_000)

    def cost(prompt: int, available: int) -> QuestionCost:
        return QuestionCost((), prompt, 4096, memory, available, None, None, None, None)

    assert cost(4095, 8_000_000_000).faults == []
    (fault,) = cost(4096, 8_000_000_000).faults
    assert "lower max_tiles" in fault
    (fault,) = cost(100, 6_000_000_000).faults
    assert "6.9 GB of memory are needed" in fault
    assert "the KV cache takes 1.0 GB" in fault


def test_a_plan_is_what_happens(tmp_path: Path) -> None:
    cache = CacheOptions(directory=tmp_path)
    plan = plan_question(DEMO, [(640, 480)], "What is it?", cache=cache)
    assert plan.first_token_seconds is None
    with pytest.raises(AyaEdgeError, match="before this machine was measured"):
        plan_question(DEMO, [(640, 480)], choice=TileChoice("auto"), cache=cache)
    with AyaVision.load(cache=cache) as model:
        usage = model.ask("What is it?", images=[PHOTO], max_tokens=1).usage
        assert usage.prompt_tokens == plan.prompt_tokens
        assert usage.images == plan.images
        model.measure()
    assert plan_question(DEMO, [(640, 480)], "What is it?", cache=cache).first_token_seconds is not None


def test_planned_memory_is_near_what_a_process_takes() -> None:
    code = (
        "import sys, psutil, numpy as np; from ayaedge import AyaVision, NO_CACHE\n"
        "with AyaVision.load(cache=NO_CACHE) as model:\n"
        "    model.ask('?', images=[np.zeros((480, 640, 3), np.uint8)], max_tokens=2)\n"
        "    print(psutil.Process().memory_info().rss)"
    )
    taken = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert 0.6 * taken < plan_question(DEMO, [(640, 480)]).memory.total < 1.6 * taken
    assert taken < psutil.virtual_memory().total


def test_auto_measures_once_and_reports_what_it_expected(tmp_path: Path) -> None:
    cache = CacheOptions(directory=tmp_path)
    with AyaVision.load(cache=cache) as model:
        first = model.ask("What is it?", images=[PHOTO], tiles="auto", budget=1e-6, max_tokens=1)
        assert first.usage.tiles == (1,)
        assert first.timings.predicted is not None
        generous = model.ask("What is it?", images=[PHOTO], tiles="auto", budget=1000.0, max_tokens=1)
        assert generous.usage.images == model.ask("?", images=[PHOTO], max_tokens=1).usage.images
    with AyaVision.load(cache=cache) as model:  # remembered
        assert model.ask("Hi", max_tokens=1).timings.predicted is not None


def test_an_answer_does_not_change_when_the_machine_was_measured_between(tmp_path: Path) -> None:
    with AyaVision.load(cache=CacheOptions(directory=tmp_path)) as model:
        before = model.ask("What shape is it?", images=[PHOTO], max_tokens=8).ids
        model.measure()
        assert model.ask("What shape is it?", images=[PHOTO], max_tokens=8).ids == before


def test_native_tiles_are_reported(tmp_path: Path) -> None:
    side = DEMO.manifest.tiling.tile_size
    small = np.zeros((side, 2 * side, 3), np.uint8)
    with AyaVision.load(cache=CacheOptions(directory=tmp_path)) as model:
        native = model.ask("?", images=[small], tiles="native", max_tokens=1).usage.images[0]
        faithful = model.ask("?", images=[small], max_tokens=1).usage.images[0]
    assert (native.columns, native.rows, native.tiles) == (2, 1, 3)
    assert faithful.tiles >= native.tiles
    assert str(native).startswith(f"{2 * side} x {side} pixels, grid 2 x 1, 3 tiles")


def test_the_command_line_plans_and_refuses(tmp_path: Path) -> None:
    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ayaedge", "plan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    image = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
    done = plan("--image", str(image), "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0
    assert data["fits"]
    assert data["images"][0]["tiles"] == 7
    refused = plan("--image", str(image), "-c", "100")
    assert refused.returncode == 1
    assert "raise context_size (on the command line: -c N, --max-tiles N)" in refused.stderr
    mixed = plan("--export", str(tmp_path), "--image", str(image))
    assert mixed.returncode == 1
    assert "without -m and --image" in mixed.stderr


def test_a_profile_is_read_back_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = profile_path(tmp_path, DEMO)
    assert load_profile(path) is None
    save_profile(path, Profile(SPEEDS))
    assert load_profile(path) == Profile(SPEEDS)
    for text in ("", "[]", "{}", '{"speeds": {"tile": 1}, "settings": null}'):
        path.write_text(text)
        assert load_profile(path) is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_longer_prompts_and_wider_numbers_take_more_memory() -> None:
    def cache(question: str, **options: Any) -> int:
        return plan_question(DEMO, [], question, decoder=DecoderOptions(**options)).memory.kv_cache

    assert (
        cache("word " * 900)
        > cache("word")
        > cache("word", cache_type="q8_0")
        > cache("word", cache_type="q4_0")
    )
    assert cache("word", cache_type="f32") == 2 * cache("word")
    assert cache("word", context_size=256) < cache("word")


def test_measuring_takes_its_turn(tmp_path: Path) -> None:
    cache = CacheOptions(directory=tmp_path)
    with AyaVision.load(cache=cache) as model:
        expected = model.ask("What is it?", images=[PHOTO], max_tokens=6).ids
        stream = model.stream("What is it?", images=[PHOTO], max_tokens=6)
        next(stream)
        model.measure()  # behind the answer that was begun before
        assert stream.done()
        assert stream.answer.ids == expected
        waiting = threading.Thread(target=model.measure)
        busy = model.stream("What is it?", images=[PHOTO], max_tokens=6)
        next(busy)
        waiting.start()
        list(busy)
        waiting.join()
        assert busy.answer.ids == expected
        assert model.ask("What is it?", images=[PHOTO], max_tokens=6).ids == expected
    with pytest.raises(AyaEdgeError, match="closed"):
        model.measure()


def test_no_cache_writes_nothing_at_all(tmp_path: Path) -> None:
    environment = {**os.environ, "AYAEDGE_CACHE_DIR": str(tmp_path / "cache")}
    image = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
    command = [
        sys.executable,
        "-m",
        "ayaedge",
        "ask",
        "--image",
        str(image),
        "--no-cache",
        "--tiles",
        "auto",
        "?",
    ]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_measured_with_other_options_is_not_remembered(tmp_path: Path) -> None:
    cache = CacheOptions(directory=tmp_path)
    with AyaVision.load(cache=cache, decoder=DecoderOptions(threads=1)) as model:
        model.measure()
    assert load_profile(profile_path(tmp_path / "ayaedge", DEMO)) is None


def test_a_few_tokens_of_a_prompt_take_as_long_as_one_of_an_answer() -> None:
    assert SPEEDS.prefill(2798, 5) == SPEEDS.answer(2798, 1) == pytest.approx(0.228, abs=1e-3)
    assert SPEEDS.prefill(2798, 0) == 0
    assert SPEEDS.prefill(0, 100) == pytest.approx(100 * 0.03 + 100 * 50 * 4e-6)
