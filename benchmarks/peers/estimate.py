"""How long a run will take: from an earlier report's own times where there is one, else from typical ones on two cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Protocol

from benchmarks.peers.race import Rules
from benchmarks.peers.report import Report
from benchmarks.peers.rows import LLAMA_CPP, OCTAVO, OPENVINO, ROWS, TRANSFORMERS, VLLM

TYPICAL_S: Mapping[str, Mapping[str, float]] = {
    "requests": {OCTAVO: 9, LLAMA_CPP: 18, OPENVINO: 11, VLLM: 25, TRANSFORMERS: 50},
    "serving": {OCTAVO: 9, LLAMA_CPP: 29},
    "decode": {OCTAVO: 0.6, LLAMA_CPP: 1, OPENVINO: 1.1, VLLM: 2.3, TRANSFORMERS: 5.6},
    "prefill": {OCTAVO: 0.2, LLAMA_CPP: 1.4, OPENVINO: 0.2, VLLM: 0.3, TRANSFORMERS: 0.8},
    "samples": {OCTAVO: 0.8, LLAMA_CPP: 2.6, OPENVINO: 2.4, VLLM: 2.6, TRANSFORMERS: 11},
    "beams": {OCTAVO: 0.7, OPENVINO: 2.5, VLLM: 12, TRANSFORMERS: 8},
    "prefix": {OCTAVO: 1.2, LLAMA_CPP: 6, OPENVINO: 2.6, VLLM: 2},
    "context": {OCTAVO: 3, LLAMA_CPP: 9, OPENVINO: 4.5},
    "startup": {OCTAVO: 1, LLAMA_CPP: 0.7, OPENVINO: 1.1, VLLM: 18, TRANSFORMERS: 3.3},
}
"""Seconds of a repetition, on two quiet cores of Zen 5."""
CONTEXT_WARM_UP_S = {OCTAVO: 30.0, OPENVINO: 40.0}
"""The 64 prompts' prefill, once."""
QUIET_S = 1.1
"""A quiet machine is known to be quiet after this long."""


class Named(Protocol):
    @property
    def engine(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def key(self) -> str: ...
    def group(self, row: str) -> str: ...


def estimate_s(planned: Mapping[str, Sequence[Named]], rules: Rules, earlier: Report | None) -> float:
    """Seconds for the undisturbed repetitions of every row and variant, with their warm-ups and the starts of their processes."""
    sessions = {(v.key, v.group(row)): v.engine for row, variants in planned.items() if row != "startup" for v in variants}
    total = sum(TYPICAL_S["startup"].get(engine, 1.0) for engine in sessions.values())
    for row, variants in planned.items():
        for variant in variants:
            found = earlier.find(row, variant.engine, variant.weights) if earlier else None
            one = median(run["wall_s"] for run in found.runs) if found else TYPICAL_S[row].get(variant.engine, 10)
            total += rules.of(variant.engine, row) * (one + QUIET_S)
            if row == "context":
                total += CONTEXT_WARM_UP_S.get(variant.engine, 0.0)
            elif ROWS[row].warm_up is not None:
                total += one if ROWS[row].warm_up == row else TYPICAL_S["decode"].get(variant.engine, 2)
    return total
