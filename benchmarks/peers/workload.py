"""The workload, the same for every engine: token ids and lengths from fixed seeds; greedy, end-of-sequence ignored.

Standard library only, so that any engine's environment can import it. The ids and the lengths are a contract: figures taken
at different times are compared with one another. ``OCTAVO_PEERS_SMOKE=1`` makes everything tiny, to see that all engines work.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

VOCAB_LO, VOCAB_HI = 100, 49_000
"""Plain tokens of SmolLM2 (its special ones lie below 17)."""

EOS = 2

WARM_UP = 10_000
"""Repetitions from here on are for warming up; none of their prompts comes back."""


@dataclass(frozen=True)
class Lengths:
    input_len: int
    output_len: int
    num_prompts: int = 1


SMOKE = os.environ.get("OCTAVO_PEERS_SMOKE") == "1"
DECODE = Lengths(32, 8 if SMOKE else 128)
PREFILL = Lengths(64 if SMOKE else 512, 1)
SERVING = Lengths(16, 8, 4) if SMOKE else Lengths(128, 128, 64)
CONTEXT = Lengths(64, 8, 4) if SMOKE else Lengths(1024, 32, 64)
SAMPLES = Lengths(64, 8) if SMOKE else Lengths(512, 64)
NUM_SAMPLES = 8
BEAMS = SAMPLES
BEAM_WIDTH = 4
SHARED_LEN = 64 if SMOKE else 512
PREFIX = Lengths(SHARED_LEN + 16, 4, 4) if SMOKE else Lengths(SHARED_LEN + 16, 32, 32)


def rand_prompt(n: int, seed: int) -> list[int]:
    r = random.Random(seed)
    return [r.randrange(VOCAB_LO, VOCAB_HI) for _ in range(n)]


def decode(rep: int) -> list[int]:
    return rand_prompt(DECODE.input_len, 1000 + rep)


def prefill(rep: int) -> list[int]:
    return rand_prompt(PREFILL.input_len, 2000 + rep)


def serving(rep: int, num_prompts: int = SERVING.num_prompts) -> list[list[int]]:
    return [rand_prompt(SERVING.input_len, 10_000 + 1000 * rep + i) for i in range(num_prompts)]


def context() -> list[list[int]]:
    """The same in every repetition: their keys and values are computed once, and only decoding is measured."""
    return [rand_prompt(CONTEXT.input_len, 5_000_000 + i) for i in range(CONTEXT.num_prompts)]


def samples(rep: int) -> list[int]:
    return rand_prompt(SAMPLES.input_len, 90_000 + rep)


def beams(rep: int) -> list[int]:
    """None that ``samples`` has: a process that measures both has that one's keys and values."""
    return rand_prompt(BEAMS.input_len, 90_500 + rep)


def prefix(rep: int) -> list[list[int]]:
    """Prompts that share their first ``SHARED_LEN`` tokens."""
    shared = rand_prompt(SHARED_LEN, 50_000 + rep)
    own = PREFIX.input_len - SHARED_LEN
    return [shared + rand_prompt(own, 60_000 + 1000 * rep + i) for i in range(PREFIX.num_prompts)]
