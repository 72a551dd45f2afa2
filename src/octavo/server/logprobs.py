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


def prompt_logprobs(logprobs: Sequence[dict[int, Logprob] | None] | None, token_ids: Sequence[int], k: int) -> list[dict[str, Any] | None]:
    """``prompt_logprobs`` as vLLM words them: per prompt token, by token id, its own and the ``k`` most probable ones'."""

    def entry(logprob: Logprob) -> dict[str, Any]:
        return {"logprob": _finite(logprob.logprob), "rank": logprob.rank, "decoded_token": logprob.decoded_token}

    return [
        None if position is None else {str(i): entry(logprob) for i, logprob in ((own, position[own]), *_best(position, k))}
        for own, position in zip(token_ids, logprobs or (), strict=True)
    ]


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

    def extend(self, token_ids: Sequence[int], logprobs: Sequence[dict[int, Logprob] | None], *, echo: str | None = None) -> dict[str, Any]:
        """The lists for the next tokens; positions without log-probabilities have ``None``.

        ``echo``: they are the prompt's, and this is its text as the answer shows it. There, special tokens that the tokenizer added are
        not seen, those that were spelled out are.
        """
        tokens: list[str] = []
        chosen: list[float | None] = []
        top: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, candidates in zip(token_ids, logprobs, strict=True):
            spelling = self._tokenizer.token_bytes(token_id)
            tokens.append(spelling.decode(errors="replace"))
            offsets.append(self._offset)
            chosen.append(None if candidates is None else _finite(candidates[token_id].logprob))
            top.append(None if candidates is None else self._alternatives(token_id, candidates))
            if echo is None:
                seen = token_id not in self._hidden
            else:
                seen = token_id not in self._tokenizer.special_ids or echo.startswith(tokens[-1], self._offset)
            if seen:
                self._offset += len(self._decoder.decode(spelling))
        return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}

    def _alternatives(self, token_id: int, candidates: dict[int, Logprob]) -> dict[str, float]:
        found: dict[str, float] = {}
        if self._k:
            for _, logprob in (*_best(candidates, self._k), (token_id, candidates[token_id])):
                found.setdefault(logprob.decoded_token, _finite(logprob.logprob))
        return found
