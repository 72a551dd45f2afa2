"""Log-probabilities as the two endpoints word them: the chat endpoint's list of tokens, the completion endpoint's parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from octavo.engine.outputs import Logprob
from octavo.text import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say; the OpenAI API uses the same number."""


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST


def _best(candidates: dict[int, Logprob], k: int) -> list[tuple[int, Logprob]]:
    """The ``k`` most probable of a position; ``candidates`` may also hold the chosen one, of any rank."""
    return sorted((item for item in candidates.items() if item[1].rank <= k), key=lambda item: item[1].rank)[:k]


def chat_logprobs(tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[dict[int, Logprob]], k: int) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat answer, with ``k`` alternatives per token."""

    def entry(token_id: int, logprob: Logprob) -> dict[str, Any]:
        return {"token": logprob.decoded_token, "logprob": _finite(logprob.logprob), "bytes": list(tokenizer.token_bytes(token_id))}

    content = [
        {**entry(token_id, candidates[token_id]), "top_logprobs": [entry(i, logprob) for i, logprob in _best(candidates, k)]}
        for token_id, candidates in zip(token_ids, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """``choices[].logprobs`` of a completion, for one choice; remembers the text offset from one chunk to the next.

    An offset counts the characters in front of a token; a character spread over several tokens counts where it is complete.
    ``hidden`` are ids that leave no text (special tokens, when they are skipped).
    """

    def __init__(self, tokenizer: Tokenizer, k: int, *, start: int = 0, hidden: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._k = k
        self._offset = start
        self._hidden = frozenset(hidden)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def extend(self, token_ids: Sequence[int], logprobs: Sequence[dict[int, Logprob]]) -> dict[str, Any]:
        tokens: list[str] = []
        chosen: list[float] = []
        top: list[dict[str, float]] = []
        offsets: list[int] = []
        for token_id, candidates in zip(token_ids, logprobs, strict=True):
            own = candidates[token_id]
            tokens.append(own.decoded_token)
            chosen.append(_finite(own.logprob))
            alternatives: dict[str, float] = {}
            if self._k:
                for _, logprob in (*_best(candidates, self._k), (token_id, own)):
                    alternatives.setdefault(logprob.decoded_token, _finite(logprob.logprob))
            top.append(alternatives)
            offsets.append(self._offset)
            if token_id not in self._hidden:
                self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}
