"""Numbers of numpy as options: taken everywhere, and stored as Python's own."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ayaedge
from ayaedge import NO_CACHE, AyaVision, CacheOptions, DecoderOptions, InvalidOptionError, VisionOptions
from ayaedge.checks import plain
from ayaedge.decoder.sampling import SamplingOptions
from ayaedge.images.tile_budget import TileChoice
from ayaedge.openai.options import parse_options
from ayaedge.options import AnswerKeywords, AnswerOptions


class Index:
    """Stands for whole numbers of other libraries."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


WHOLE: dict[type, dict[str, int]] = {
    DecoderOptions: {
        "context_size": 64, "threads": 2, "threads_batch": 3, "batch_size": 32, "ubatch_size": 16, "gpu_layers": 0,
        "draft_tokens": 4,
    },
    VisionOptions: {"threads": 2},
    CacheOptions: {"disk_bytes": 100, "memory_bytes": 10},
    SamplingOptions: {"top_k": 3, "seed": 7},
    AnswerOptions: {"max_tokens": 5, "top_logprobs": 2},
    TileChoice: {"max_tiles": 6},
}  # fmt: skip
REAL: dict[type, dict[str, float]] = {
    SamplingOptions: {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125},
    TileChoice: {"budget": 2.5},
}
FLAGS: dict[type, tuple[str, ...]] = {
    DecoderOptions: ("flash_attention", "repack", "all_logits"),
    VisionOptions: ("verbose",),
}


def test_these_are_all_classes_of_options() -> None:
    names = [f"ayaedge.{module.name}" for module in pkgutil.iter_modules(ayaedge.__path__)]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    checked = {
        value for value in values if dataclasses.is_dataclass(value) and hasattr(value, "__post_init__")
    }
    assert checked == set(WHOLE)


@pytest.mark.parametrize("number", [np.int8, np.int32, np.int64, np.uint16, np.array, Index])
@pytest.mark.parametrize("kind", WHOLE)
def test_whole_numbers_of_other_libraries_are_stored_as_pythons_own(kind: Any, number: Any) -> None:
    expected = kind(**WHOLE[kind])
    stored = kind(**{name: number(value) for name, value in WHOLE[kind].items()})
    assert stored == expected
    for name, value in WHOLE[kind].items():
        assert type(getattr(stored, name)) is int, name
        assert getattr(stored, name) == value


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("kind", REAL)
def test_real_numbers_of_numpy_are_stored_as_pythons_own(kind: Any, number: Any) -> None:
    others = {"policy": "auto"} if kind is TileChoice else {}
    stored = kind(**others, **{name: number(value) for name, value in REAL[kind].items()})
    for name, value in REAL[kind].items():
        assert type(getattr(stored, name)) is float, name
        assert getattr(stored, name) == value


@pytest.mark.parametrize("kind", FLAGS)
def test_truth_values_of_numpy_are_stored_as_pythons_own(kind: Any) -> None:
    for name in FLAGS[kind]:
        assert getattr(kind(**{name: np.True_}), name) is True
        assert getattr(kind(**{name: np.False_}), name) is False


NO_TRUTH_VALUES = [np.zeros(3), "no", 1, 0.0]
"""Python takes each for true or false, or raises an error of numpy's."""


@pytest.mark.parametrize("value", NO_TRUTH_VALUES, ids=repr)
def test_what_is_no_truth_value_is_refused_by_every_option(
    value: Any, demo_model: AyaVision, tmp_path: Path
) -> None:
    """Taken for true, the word "no" would replace what is there."""
    tried = 0
    for kind in (getattr(ayaedge, name) for name in ayaedge.__all__):
        if not (dataclasses.is_dataclass(kind) and isinstance(kind, type)):
            continue
        wanted = [field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
        for field in dataclasses.fields(kind):
            if str(field.type) in ("bool", "bool | None") and not [one for one in wanted if one.init]:
                tried += 1
                with pytest.raises(InvalidOptionError, match=f"{field.name} must be"):
                    kind(**{field.name: value})
    assert tried >= 5
    calls: list[Callable[[], object]] = [
        lambda: demo_model.chat().save(tmp_path / "a.chat", state=value),
        lambda: list(demo_model.batch([], "x", overwrite=value)),
        lambda: list(demo_model.batch([], "x", ahead=value)),
        lambda: AyaVision.load(isolated=value),
    ]
    for call in calls:
        with pytest.raises(InvalidOptionError, match="must be a bool"):
            call()


WRONG = [
    True, np.True_, 5.0, np.float64(5.0), np.float32(5.5), "5", np.str_("5"), [5], np.array([5]), np.array(5.0), 5j,
    np.timedelta64(5), np.datetime64(5, "s"),
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_no_whole_number_is_refused_all_the_same(kind: Any, value: object) -> None:
    for name in WHOLE[kind]:
        with pytest.raises(InvalidOptionError, match=f"{name} must be a whole number"):
            kind(**{name: value})


def test_what_is_no_real_number_is_refused_all_the_same() -> None:
    for value in (True, np.True_, "0.5", np.array([0.5]), np.float32("nan"), np.inf, 1j, np.timedelta64(5)):
        with pytest.raises(InvalidOptionError, match="temperature must be 0 or more"):
            SamplingOptions(temperature=value)  # type: ignore[arg-type]


def test_what_is_no_number_stays_as_it_is() -> None:
    for value in ("a", None, [1], Index, 1j):
        assert plain(value) is value


def test_a_number_that_cannot_be_read_is_refused_and_raises_nothing_foreign() -> None:
    class Broken:
        def __index__(self) -> int:
            raise RuntimeError("on another device")

    with pytest.raises(InvalidOptionError, match="max_tokens must be a whole number"):
        AnswerOptions(max_tokens=Broken())  # type: ignore[arg-type]


NUMBERS = AnswerKeywords(
    max_tokens=np.int64(4), temperature=np.float32(0.5), top_p=np.float64(0.75), min_p=np.float32(0.25),
    top_k=np.int8(9), seed=np.uint32(7), top_logprobs=np.int16(2),
)  # type: ignore[typeddict-item]  # fmt: skip


def test_a_model_answers_with_numbers_of_numpy(tmp_path: Any) -> None:
    with AyaVision.load(context=np.int64(600), queue_size=np.int8(3), cache=NO_CACHE) as model:  # type: ignore[arg-type]
        answer = model.ask("What?", **NUMBERS)
        plainly = model.ask(
            "What?", max_tokens=4, temperature=0.5, top_p=0.75, min_p=0.25, top_k=9, seed=7, top_logprobs=2
        )
        assert answer.ids == plainly.ids
        json.dumps(answer.to_dict())
        reply = model.create_chat_completion([{"role": "user", "content": "What?"}], **{
            **NUMBERS, "logprobs": np.True_, "n": np.int64(1), "presence_penalty": np.float32(0),
        })  # fmt: skip
        assert json.loads(json.dumps(reply))["choices"][0]["message"]["content"] == answer.text


def test_a_request_in_dictionaries_keeps_pythons_own_numbers() -> None:
    parsed = parse_options({"max_tokens": np.int64(4), "temperature": np.float32(0.5), "seed": np.uint8(3)})
    assert parsed.options == {"max_tokens": 4, "temperature": 0.5, "seed": 3}
    assert [type(value) for value in parsed.options.values()] == [float, int, int]
