"""The workload, the same for every engine: token ids and lengths from fixed seeds, greedy, end-of-sequence ignored.

Standard library only, so that any engine's environment can import it. The ids and the lengths are a contract: figures taken
at different times are compared with one another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

VOCAB_LO, VOCAB_HI = 100, 49_000
"""Plain tokens of SmolLM2 (its special ones lie below 17)."""

WARM_UP = 10_000
"""Repetitions from here on are for warming up; none of their prompts comes back."""


@dataclass(frozen=True)
class Lengths:
    input_len: int
    output_len: int
    num_prompts: int = 1


DECODE = Lengths(32, 128)
PREFILL = Lengths(512, 1)
SERVING = Lengths(128, 128, 64)


def rand_prompt(n: int, seed: int) -> list[int]:
    r = random.Random(seed)
    return [r.randrange(VOCAB_LO, VOCAB_HI) for _ in range(n)]


def decode(rep: int) -> list[int]:
    return rand_prompt(DECODE.input_len, 1000 + rep)


def prefill(rep: int) -> list[int]:
    return rand_prompt(PREFILL.input_len, 2000 + rep)


def serving(rep: int, num_prompts: int = SERVING.num_prompts) -> list[list[int]]:
    return [rand_prompt(SERVING.input_len, 10_000 + 1000 * rep + i) for i in range(num_prompts)]
