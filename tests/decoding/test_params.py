"""``SamplingParams`` refuses what makes no sense, naming the field and the value."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.decoding import SamplingParams, logit_edits


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
    ],
)  # fmt: skip
def test_invalid_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_stop_takes_one_string_or_several() -> None:
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()


def test_min_tokens_forbids_every_way_to_end() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=[7])
    assert [list(logit_edits(params, out, {3})) for out in (0, 1, 2)] == [[(3, float("-inf")), (7, float("-inf"))]] * 2 + [[]]
