"""What is refused at the door is quoted at a readable length, however long it is."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config import quoted
from octavo.decoding import BeamSearchParams, SamplingParams
from tests.engine.toy import toy_engine

IDS = list(range(50_000))


@pytest.mark.parametrize(
    ("prompt", "begins", "ends"),
    [
        (IDS, "prompt=[0, 1, 2, ", '… is invalid: must be a string or {"prompt_token_ids": [...]}'),
        ({"prompt": "long " * 9999}, "prompt={'prompt': 'long long ", '… is invalid: must be a string or {"prompt_token_ids": [...]}'),
        ({"prompt_token_ids": "1 " * 9999}, "prompt_token_ids='1 1 ", "… is invalid: must be a list of token ids"),
        ({"prompt_token_ids": [5, IDS]}, "prompt_token_ids[1]=[0, 1, 2, ", "… is invalid: must be a token id between 0 and 63"),
        ({"prompt_token_ids": [5, 64]}, "prompt_token_ids[1]=64 ", "is invalid: must be a token id between 0 and 63"),
    ],
)
def test_a_long_prompt_is_not_repeated_in_full(prompt: Any, begins: str, ends: str) -> None:
    with pytest.raises(ValueError, match=r"… is invalid: |=64 is invalid: ") as refusal:
        toy_engine().tokenize(prompt)
    message = str(refusal.value)
    assert message.startswith(begins)
    assert message.endswith(ends)
    assert len(message) < 250


@pytest.mark.parametrize("kind", [SamplingParams, BeamSearchParams])
def test_nor_is_a_long_parameter(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^max_tokens=\[0, 1, 2, .*… is invalid: ") as refusal:
        kind(max_tokens=IDS, **({"beam_width": 2} if kind is BeamSearchParams else {}))
    assert len(str(refusal.value)) < 250


def test_short_values_are_quoted_whole() -> None:
    assert quoted("x" * 98) == repr("x" * 98)
    assert quoted("x" * 99) == "'" + "x" * 98 + "…"
