"""``SamplingParams``: how a request's tokens are chosen, and when it ends. Names and meanings are vLLM's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from octavo.config import quoted

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_BAD_WORDS = 1024
MAX_LOGIT_BIAS = 100.0
MAX_PENALTY = 2.0
"""Of presence and frequency, either way."""
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0

LogitsProcessor = Callable[..., Any]
"""``(output_token_ids, logits) → logits``, or with the prompt's token ids in front: ``logits`` is a float32 array (vocab_size,)."""


class RequestOutputKind(Enum):
    """What each streamed ``RequestOutput`` holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """Only what is new since the last one."""
    FINAL_ONLY = 2
    """Nothing until the request has finished."""


def _check(condition: bool, field: str, value: object, hint: str) -> None:
    if not condition:
        raise ValueError(f"{field}={quoted(value)} is invalid: {hint}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Raises ``ValueError`` naming the field and the value when one is out of range.

    ``temperature=0`` is greedy. ``top_k=0`` (or -1), ``top_p=1`` and ``min_p=0`` keep every token. ``seed=None`` draws a
    fresh seed; with a seed, the same request gives the same tokens, alone or in a crowd. ``stop`` strings end
    a branch and are cut off its text unless ``include_stop_str_in_output``; ``stop_token_ids`` end it like the
    model's own end-of-sequence tokens do, unless ``ignore_eos`` (which concerns only the latter). ``min_tokens``
    keeps both from being chosen until that many tokens are out. ``max_tokens=None`` means up to the context length.
    ``best_of`` branches are generated, and the ``n`` of them with the highest cumulative log-probability returned, best first.
    ``max_tokens=0`` computes the prompt and generates nothing. ``logprobs=k``: the chosen token's log-probability and the k most
    probable ones of each position, as the model gave them; ``prompt_logprobs=k`` the same for the prompt's tokens (the first has none),
    from position ``prompt_logprobs_start`` on: what lies before it may come out of the prefix cache.

    ``presence_penalty`` and ``frequency_penalty`` concern the output's tokens, ``repetition_penalty`` the prompt's too.
    ``logit_bias`` maps token ids to what is added to their logits. ``bad_words`` are never spelled out, ``allowed_token_ids`` are the
    only tokens there are. ``logits_processors`` are called in order with the output's token ids and the logits, which they may change
    in place, and return logits. ``truncate_prompt_tokens=k`` keeps the prompt's last k tokens (-1: as many as ``max_tokens`` leaves).
    ``docs/sampling.md`` has every formula, and the order in which they come.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    skip_special_tokens: bool = True
    detokenize: bool = True
    truncate_prompt_tokens: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        for name in (
            "n", "best_of", "top_k", "min_tokens", "max_tokens", "seed", "logprobs", "prompt_logprobs", "prompt_logprobs_start",
            "truncate_prompt_tokens",
        ):  # fmt: skip
            value = getattr(self, name)
            optional = value is None and name not in ("n", "top_k", "min_tokens", "prompt_logprobs_start")
            _check(optional or _is_integer(value), name, value, "must be an integer")
        for name in ("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            value = getattr(self, name)
            _check(_is_finite(value), name, value, "must be a finite number")
        _check(1 <= self.n <= MAX_N, "n", self.n, f"must be between 1 and {MAX_N}")
        if self.best_of is not None:
            _check(self.n <= self.best_of <= MAX_N, "best_of", self.best_of, f"must be between n ({self.n}) and {MAX_N}")
            streams = self.best_of > self.n and self.output_kind is RequestOutputKind.DELTA
            _check(not streams, "best_of", self.best_of, f"which {self.n} are the best is known at the end, so they cannot be streamed")
        _check(0.0 <= self.temperature <= 100.0, "temperature", self.temperature, "must be between 0 and 100 (0 is greedy)")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "must be in (0, 1]")
        _check(-1 <= self.top_k < 2**31, "top_k", self.top_k, "must be -1 or 0 (all tokens) or a positive number of tokens")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "must be in [0, 1]")
        _check(0.0 < self.typical_p <= 1.0, "typical_p", self.typical_p, "must be in (0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(-MAX_PENALTY <= value <= MAX_PENALTY, name, value, f"must be between {-MAX_PENALTY:g} and {MAX_PENALTY:g}")
        _check(
            MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY,
            "repetition_penalty",
            self.repetition_penalty,
            f"must be between {MIN_REPETITION_PENALTY:g} and {MAX_REPETITION_PENALTY:g} (1 changes nothing)",
        )
        if self.seed is not None:
            _check(-(2**63) <= self.seed < 2**64, "seed", self.seed, "must fit in 64 bits")
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids", "logits_processors"):
            value = getattr(self, name)
            text = isinstance(value, str | bytes) and name != "stop"
            _check(value is None or (isinstance(value, Sequence) and not text), name, value, "must be a list")
        _check(isinstance(self.output_kind, RequestOutputKind), "output_kind", self.output_kind, "must be a RequestOutputKind")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        _check(all(isinstance(s, str) and s for s in stop), "stop", self.stop, "must be one or more non-empty strings")
        _check(len(stop) <= MAX_STOP_STRINGS, "stop", f"{len(stop)} strings", f"at most {MAX_STOP_STRINGS} are allowed")
        _check(not stop or self.detokenize, "stop", self.stop, "stop strings need detokenize=True")
        object.__setattr__(self, "stop", stop)
        for name in ("stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            ids = tuple(value or ())
            _check(all(_is_integer(i) and 0 <= i < 2**31 for i in ids), name, value, "must be token ids (non-negative integers)")
            object.__setattr__(self, name, ids if value is not None or name == "stop_token_ids" else None)
        _check(self.allowed_token_ids != (), "allowed_token_ids", self.allowed_token_ids, "must allow at least one token")
        words = tuple(self.bad_words or ())
        _check(all(isinstance(w, str) and w.strip() for w in words), "bad_words", self.bad_words, "must be strings that are not blank")
        _check(len(words) <= MAX_BAD_WORDS, "bad_words", f"{len(words)} strings", f"at most {MAX_BAD_WORDS} are allowed")
        object.__setattr__(self, "bad_words", words)
        self._check_bias()
        processors = tuple(self.logits_processors or ())
        _check(all(map(callable, processors)), "logits_processors", self.logits_processors, "must be functions")
        object.__setattr__(self, "logits_processors", processors)
        if self.truncate_prompt_tokens is not None:
            _check(
                self.truncate_prompt_tokens == -1 or self.truncate_prompt_tokens >= 1,
                "truncate_prompt_tokens", self.truncate_prompt_tokens, "must be at least 1, or -1 for as many as fit",
            )  # fmt: skip
        if self.max_tokens is not None:
            _check(self.max_tokens >= 0, "max_tokens", self.max_tokens, "must not be negative (0 computes the prompt alone)")
            _check(
                0 <= self.min_tokens <= self.max_tokens,
                "min_tokens",
                self.min_tokens,
                f"must be between 0 and max_tokens ({self.max_tokens})",
            )
        _check(self.min_tokens >= 0, "min_tokens", self.min_tokens, "must not be negative")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= MAX_LOGPROBS, name, value, f"must be between 0 and {MAX_LOGPROBS}")
        _check(self.prompt_logprobs_start >= 0, "prompt_logprobs_start", self.prompt_logprobs_start, "must not be negative")

    def _check_bias(self) -> None:
        _check(self.logit_bias is None or isinstance(self.logit_bias, Mapping), "logit_bias", self.logit_bias, "must be a map")
        bias: dict[int, float] = {}
        for token, value in (self.logit_bias or {}).items():
            name = f"logit_bias.{token}"
            _check(_is_integer(token) and 0 <= token < 2**31, name, value, "its key must be a token id (a non-negative integer)")
            _check(
                _is_finite(value) and -MAX_LOGIT_BIAS <= value <= MAX_LOGIT_BIAS,
                name, value, f"must be between {-MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}",
            )  # fmt: skip
            bias[token] = float(value)
        object.__setattr__(self, "logit_bias", bias)

    @property
    def penalizes(self) -> bool:
        """Whether anything depends on how often tokens have occurred."""
        return self.penalizes_prompt or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def penalizes_prompt(self) -> bool:
        return self.repetition_penalty != 1.0

    @property
    def num_branches(self) -> int:
        """How many are generated."""
        return self.best_of or self.n

    @property
    def ranks_branches(self) -> bool:
        """Whether more are generated than returned."""
        return self.num_branches > self.n

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def stop_ids(self) -> tuple[int, ...]:
        assert isinstance(self.stop_token_ids, tuple)
        return self.stop_token_ids
