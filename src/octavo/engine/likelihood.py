"""The probability of a text: P(x) = Π P(xᵢ | x₍<ᵢ₎), what is asked of the engine for it and what is made of the answers.

A text is scored from its first token on where the tokenizer puts a beginning-of-sequence token in front, else from its second, which is
the first that anything precedes. A continuation is scored after its context; both are encoded as one text, as EleutherAI's lm-eval does,
because that is what a model sees. A text longer than the window is read through windows that overlap: each begins ``stride`` tokens
after the last one, and counts only the tokens that no window before it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from octavo.config import quoted
from octavo.decoding import RequestOutputKind, SamplingParams
from octavo.engine.outputs import RequestOutput
from octavo.text import Tokenizer

DEFAULT_WINDOW = 2048
"""Tokens; a model with a shorter context has that."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt whose tokens from position ``start`` on are to be scored."""

    token_ids: list[int]
    start: int

    @property
    def params(self) -> SamplingParams:
        """What comes before ``start`` may be taken from the prefix cache."""
        return SamplingParams(
            max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=self.start, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """``logprob``: natural log of the probability of all scored tokens together, the sum of ``token_logprobs``.

    ``is_greedy``: each of them was the most probable at its place.
    """

    logprob: float
    is_greedy: bool
    token_ids: list[int]
    token_logprobs: list[float]

    @classmethod
    def of(cls, prompt: ScoredPrompt, output: RequestOutput) -> LogLikelihood:
        """Raises ``RuntimeError`` for a request that failed."""
        if output.error is not None:
            raise RuntimeError(f"the text could not be scored: {output.error}")
        ids = prompt.token_ids[prompt.start :]
        positions = (output.prompt_logprobs or [])[prompt.start :]
        own = [position[token] for token, position in zip(ids, positions, strict=True) if position is not None]
        if len(own) < len(ids):
            raise RuntimeError(f"only {len(own)} of {len(ids)} tokens could be scored: the text did not fit into the KV cache")
        logprobs = [entry.logprob for entry in own]
        return cls(math.fsum(logprobs), all(entry.rank == 1 for entry in own), ids, logprobs)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of one text. ``num_tokens`` are scored; ``num_bytes`` is how many bytes of UTF-8 these tokens stand for."""

    log_likelihood: float
    num_tokens: int
    num_bytes: int
    num_windows: int
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of a token; NaN where there is none."""
        return math.exp(-self.log_likelihood / self.num_tokens) if self.num_tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers; NaN for no bytes."""
        return -self.log_likelihood / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def scored_prompts(tokenizer: Tokenizer, texts: Sequence[Any]) -> list[ScoredPrompt]:
    """``texts``: strings, pairs (context, continuation) of strings, or ``{"prompt_token_ids": [...]}``.

    Raises ``ValueError`` naming the one that is none of these.
    """
    found = []
    for i, text in enumerate(texts):
        if isinstance(text, str):
            found.append(_whole(tokenizer, text))
        elif isinstance(text, Mapping) and "prompt_token_ids" in text:
            found.append(ScoredPrompt(list(text["prompt_token_ids"]), 1))
        elif isinstance(text, Sequence) and len(text) == 2 and all(isinstance(part, str) for part in text):
            found.append(_continuation(tokenizer, *text))
        else:
            raise ValueError(
                f'texts[{i}]={quoted(text)} is invalid: must be a string, a pair (context, continuation) or {{"prompt_token_ids": [...]}}'
            )
    return found


def _whole(tokenizer: Tokenizer, text: str) -> ScoredPrompt:
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(text, add_special_tokens=False)]
    return ScoredPrompt(ids, max(1, len(tokenizer.prefix_ids)))


def _continuation(tokenizer: Tokenizer, context: str, continuation: str) -> ScoredPrompt:
    """White space between the two belongs to the continuation, as tokens begin with it. An empty context is the beginning of a text."""
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    prefix = list(tokenizer.prefix_ids)
    if not context:
        if not prefix:
            begins = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if begins is None:
                raise ValueError("texts: a context is empty, and the tokenizer has no token that a text begins with")
            prefix = [begins]
        return ScoredPrompt([*prefix, *tokenizer.encode(continuation, add_special_tokens=False)], len(prefix))
    before, whole = tokenizer.encode_batch([context, context + continuation], add_special_tokens=False)
    return ScoredPrompt([*prefix, *whole], len(prefix) + len(before))


def text_windows(tokenizer: Tokenizer, text: str, window: int, stride: int) -> tuple[list[ScoredPrompt], int]:
    """The windows of ``text``, and the bytes that their scored tokens stand for. Each window begins as the tokenizer begins a text."""
    prefix = list(tokenizer.prefix_ids)
    ids = tokenizer.encode(text, add_special_tokens=False)
    room = window - len(prefix)
    first = 0 if prefix else 1
    ends = [*range(min(room, len(ids)), len(ids), stride), len(ids)]
    found = [ScoredPrompt([*prefix, *ids[: ends[0]]], len(prefix) + first)] if len(ids) > first else []
    for last, end in pairwise(ends):
        begin = end - room
        found.append(ScoredPrompt([*prefix, *ids[begin:end]], len(prefix) + last - begin))
    unscored = ids[:first]
    return found, len(text.encode()) - len(tokenizer.decode(unscored, skip_special_tokens=False).encode()) if ids else 0
