"""Sampling defaults out of a model's metadata."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from octavo.decoding import sampling_defaults

GGUF = "general.sampling."
HF = "octavo.generation."


@pytest.mark.parametrize(
    ("metadata", "fields"),
    [
        ({}, {}),
        ({f"{GGUF}temp": 0.6, f"{GGUF}top_k": 20}, {"temperature": 0.6, "top_k": 20}),
        ({f"{GGUF}penalty_repeat": 1.05}, {"repetition_penalty": 1.05}),
        ({f"{GGUF}top_p": float(np.float32(0.95)), f"{GGUF}min_p": 0.0}, {"top_p": 0.95, "min_p": 0.0}),
        ({f"{HF}temperature": 1, f"{HF}top_k": 50.0, f"{HF}typical_p": 0.9}, {"temperature": 1, "top_k": 50, "typical_p": 0.9}),
        ({f"{HF}temperature": 0.1, f"{GGUF}temp": 0.9}, {"temperature": 0.1}),
        ({f"{GGUF}mirostat": 1, "general.name": "x"}, {}),
    ],
)  # fmt: skip
def test_what_is_read(metadata: dict[str, Any], fields: dict[str, Any]) -> None:
    found = sampling_defaults(metadata)
    assert found == fields
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in fields.items()}


@pytest.mark.parametrize(
    ("key", "value"),
    [("temp", -1.0), ("temp", "hot"), ("temp", float("nan")), ("top_p", 0.0), ("top_k", 2.5), ("penalty_repeat", 0.0), ("min_p", True)],
)
def test_what_cannot_be_is_left_out(caplog: pytest.LogCaptureFixture, key: str, value: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert sampling_defaults({f"{GGUF}{key}": value, f"{GGUF}top_k": 7} if key != "top_k" else {f"{GGUF}{key}": value}) in (
            {"top_k": 7},
            {},
        )
    assert f"{GGUF}{key} is not used as a default" in caplog.text
