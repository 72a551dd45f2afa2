"""What prompts are made of: random token ids, or English words, which need no tokenizer.

A random id costs an engine what any token costs and is never found in a cache. The words are so common that almost every tokenizer
has each of them, with the space before it, as one token; where a tokenizer is at hand the prompt is cut to the exact length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

COMMON_IDS = range(1000, 30_000)
"""Plain tokens in every vocabulary that is in use, for servers whose vocabulary is not known here."""

WORDS = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when we there
can an your which their said if do will each about how up out them then she many some so these would other into has more her two
like him see time could no make than first been its who now people my made over did down only way find use may water long little
very after words called just where most know get through back much before go good new write our used me man too any day same right
look think also around another came come work three word must because does part even place well such here take why things help put
years different away again off went old number great tell men say small every found still between name should home big give air
line set own under read last never us left end along while might next sound below saw something thought both few those always
looked show large often together asked house world going want school important until form food keep children feet land side
without boy once animals life enough took sometimes four head above kind began almost live page got earth need far hand high year
mother light parts country father let night following picture being study second eyes soon times story boys since white days ever
paper hard near sentence better best across during today others however sure means knew try told young miles sun ways thing whole
hear example heard several change answer room sea against top turned learn point city play toward five using himself usually
""".split()  # noqa: SIM905 - a list of 300 literals is worse to read

Unit = int | str
Prompt = str | list[int]


class Vocabulary(Protocol):
    def draw(self, rng: random.Random, num_tokens: int) -> list[Unit]:
        """The stuff of ``num_tokens`` tokens."""

    def join(self, units: Sequence[Unit]) -> Prompt:
        """A prompt of it."""


class TokenIds:
    """Random ids out of ``ids``."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def draw(self, rng: random.Random, num_tokens: int) -> list[Unit]:
        return [rng.choice(self._ids) for _ in range(num_tokens)]

    def join(self, units: Sequence[Unit]) -> Prompt:
        return [int(unit) for unit in units]


class EnglishWords:
    """About one token a word."""

    def draw(self, rng: random.Random, num_tokens: int) -> list[Unit]:
        return [rng.choice(WORDS) for _ in range(num_tokens)]

    def join(self, units: Sequence[Unit]) -> Prompt:
        return " ".join(map(str, units))


class EncodedWords:
    """English words as ``encode`` cuts them into tokens, to the exact length."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode

    def draw(self, rng: random.Random, num_tokens: int) -> list[Unit]:
        ids: list[Unit] = []
        while len(ids) < num_tokens:
            ids += self._encode(" " + " ".join(rng.choice(WORDS) for _ in range(num_tokens)))
        return ids[:num_tokens]

    def join(self, units: Sequence[Unit]) -> Prompt:
        return [int(unit) for unit in units]
