from __future__ import annotations

import re

import pytest

from ayaedge_quant.number_formats import GgmlType
from ayaedge_quant.recipes import Recipe, as_recipe, parse_type, tensor_type

DOWN, VALUE, HEAD = "blk.0.ffn_down.weight", "blk.3.attn_v.weight", "token_embd.weight"
SHAPE = (512, 1024)


def test_a_format_alone_is_a_recipe_without_overrides() -> None:
    assert as_recipe("q5_k_m") == Recipe("q5_k_m")
    assert (
        tensor_type(VALUE, SHAPE, 32, "q8_0")
        is tensor_type(VALUE, SHAPE, 32, Recipe("q8_0"))
        is GgmlType.Q8_0
    )


def test_the_first_override_that_matches_counts() -> None:
    recipe = Recipe.parse("q4_k_m", [r"blk\.0\.=q8_0", "ffn_down=f16", "attn=Q5_K"])
    assert recipe.type_of(DOWN, SHAPE, 32) is GgmlType.Q8_0
    assert recipe.type_of("blk.1.ffn_down.weight", SHAPE, 32) is GgmlType.F16
    assert recipe.type_of(VALUE, SHAPE, 32) is GgmlType.Q5_K
    assert recipe.type_of("blk.9.ffn_up.weight", SHAPE, 32) is GgmlType.Q4_K


def test_an_expression_may_hold_an_equals_sign() -> None:
    (override,) = Recipe.parse("q4_k_m", ["(?=ffn)ffn_up=q6_k"]).overrides
    assert override.pattern.pattern == "(?=ffn)ffn_up"
    assert str(override) == "(?=ffn)ffn_up=q6_k"


def test_the_output_type_goes_before_overrides() -> None:
    recipe = Recipe.parse("q4_k_m", [".*=q4_k"], "q8_0")
    assert recipe.type_of(HEAD, SHAPE, 32) is GgmlType.Q8_0
    assert Recipe.parse("q4_k_m", ["token_embd=q5_k"]).type_of(HEAD, SHAPE, 32) is GgmlType.Q5_K


def test_norms_stay_as_they_are() -> None:
    recipe = Recipe.parse("q4_k_m", [".*=q8_0"])
    assert recipe.type_of("blk.0.attn_norm.weight", (1024,), 32) is GgmlType.F32
    assert recipe.type_of("blk.0.attn_q_norm.weight", (8, 128), 32) is GgmlType.F32


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ffn_down", "REGEX=TYPE"),
        ("=q6_k", "REGEX=TYPE"),
        ("ffn_(=q6_k", "'ffn_(' is not a regular expression"),
        ("ffn_down=q7_k", "'q7_k' is not a tensor type; there are f32, f16"),
    ],
)
def test_an_override_that_cannot_be_read_says_why(override: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Recipe.parse("q4_k_m", [override])


def test_a_type_that_does_not_divide_the_row_names_the_tensor() -> None:
    recipe = Recipe.parse("q8_0", ["ffn_down=q6_k"])
    with pytest.raises(ValueError, match=r"blk.0.ffn_down.weight cannot be q6_k: its rows of 96 .* 256"):
        recipe.type_of(DOWN, (512, 96), 4)


def test_an_override_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no tensor matches 'fn_dwon'"):
        Recipe.parse("q4_k_m", ["attn=q8_0", "fn_dwon=q8_0"]).check_used([DOWN, VALUE])
    with pytest.raises(ValueError, match="no tensor matches 'attn_norm'"):  # norms cannot be overridden
        Recipe.parse("q4_k_m", ["attn_norm=q8_0"]).check_used([DOWN, "blk.0.attn_norm.weight"])


def test_types_are_known_in_either_case() -> None:
    assert parse_type("q6_K") is parse_type(" Q6_K ") is GgmlType.Q6_K


def test_chosen_types_go_before_the_formats_and_behind_a_users() -> None:
    chosen = {DOWN: GgmlType.Q5_K, VALUE: GgmlType.IQ4_XS, HEAD: GgmlType.Q4_K}
    asked = Recipe.parse("q4_k_m", ["ffn_down=q8_0"], "q6_k")
    recipe = Recipe(asked.format, asked.overrides, asked.output_type, chosen)
    assert recipe.type_of(VALUE, SHAPE, 32) is GgmlType.IQ4_XS
    assert recipe.type_of(DOWN, SHAPE, 32) is GgmlType.Q8_0
    assert recipe.type_of(HEAD, SHAPE, 32) is GgmlType.Q6_K
    assert recipe.type_of("blk.9.ffn_up.weight", SHAPE, 32) is GgmlType.Q4_K
    assert Recipe("q4_k_m", chosen=chosen).type_of(HEAD, SHAPE, 32) is GgmlType.Q4_K
    assert recipe.adjustments == asked.adjustments


def test_only_a_user_wants_a_type() -> None:
    recipe = Recipe(
        "q4_k_m", Recipe.parse("q4_k_m", ["ffn_down=q8_0"]).overrides, chosen={VALUE: GgmlType.Q5_K}
    )
    assert recipe.wants(DOWN)
    assert not recipe.wants(VALUE)
    assert not recipe.wants(HEAD)
    assert Recipe("q4_k_m", output_type=GgmlType.Q8_0).wants(HEAD)
