"""``SamplingParams`` refuses what makes no sense, naming the field and the value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo.decoding import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 129), ("n", True), ("n", 1.5),
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "hot"),
        ("top_p", 0.0), ("top_p", 1.1), ("top_k", -2), ("top_k", 0.5), ("min_p", -0.1), ("min_p", 2),
        ("seed", 2**64), ("seed", "x"), ("stop", ""), ("stop", ["a", ""]), ("stop", ["x"] * 17), ("stop", [1]), ("stop", 5),
        ("output_kind", "delta"), ("stop_token_ids", 5),
        ("stop_token_ids", [-1]), ("stop_token_ids", ["a"]), ("max_tokens", -1), ("min_tokens", -1), ("min_tokens", 17),
        ("logprobs", 21), ("logprobs", -1), ("prompt_logprobs", 21), ("prompt_logprobs", -1), ("prompt_logprobs", True),
        ("prompt_logprobs_start", -1), ("prompt_logprobs_start", None),
        ("typical_p", 0.0), ("typical_p", 1.5), ("presence_penalty", 2.5), ("frequency_penalty", -2.5),
        ("frequency_penalty", "much"), ("repetition_penalty", 0.0), ("repetition_penalty", float("nan")), ("repetition_penalty", 101),
        ("logit_bias", [1]), ("logit_bias", {"1": 1.0}), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: 101}), ("logit_bias", {1: "x"}),
        ("bad_words", "word"), ("bad_words", [" "]), ("bad_words", [3]), ("bad_words", ["x"] * 1025), ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]), ("allowed_token_ids", 3), ("logits_processors", [3]), ("logits_processors", print),
        ("truncate_prompt_tokens", 0), ("truncate_prompt_tokens", -2), ("truncate_prompt_tokens", 1.5),
    ],
)  # fmt: skip
def test_invalid_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_stop_takes_one_string_or_several() -> None:
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()


def test_a_copy_with_another_field_is_valid_and_equal() -> None:
    """What was made of the fields is taken again."""
    params = SamplingParams(
        stop="a",
        stop_token_ids=[1],
        bad_words=["b"],
        allowed_token_ids=[2],
        logit_bias={3: 1},
        logits_processors=[lambda _, logits: logits],
    )
    other = replace(params, n=2)
    assert replace(other, n=1) == params
    assert hash(replace(other, n=1)) == hash(params)


def test_what_costs_something() -> None:
    assert not SamplingParams(logit_bias={1: 1}).penalizes
    assert SamplingParams(presence_penalty=0.1).penalizes
    assert SamplingParams(frequency_penalty=-0.1).penalizes
    assert not SamplingParams(frequency_penalty=-0.1).penalizes_prompt
    assert SamplingParams(repetition_penalty=1.1).penalizes_prompt
