"""``Workload``: what is asked, as a few numbers and a seed; the same numbers give the same requests.

The lengths of a workload depend on its seed alone, the prompts on the seed and the repetition too, so that repetitions can be compared
and none is answered from a prefix cache that an earlier one has filled. Out of a file each repetition takes other conversations.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from octavo.bench.dataset import Exchange, read_exchanges
from octavo.bench.lengths import TRACES
from octavo.bench.vocabulary import Prompt, Vocabulary

Kind = Literal["fixed", "sharegpt", "alpaca", "shared-prefix", "file"]
DEFAULT_LEN = 128


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """``num_prompt_tokens`` is what was meant; a server that counts otherwise is believed."""

    prompt: Prompt
    num_prompt_tokens: int
    output_len: int
    n: int = 1


@dataclass(frozen=True)
class Workload:
    """``input_len`` and ``output_len`` in tokens: of every request, or (``None``) as ``kind`` has them.

    ``shared-prefix``: each prompt is one of ``num_prefixes`` prefixes of ``prefix_len`` tokens, in turn, and ``input_len`` of its own.
    ``n``: answers to each prompt.
    """

    kind: Kind = "fixed"
    num_prompts: int = 64
    input_len: int | None = None
    output_len: int | None = None
    num_prefixes: int = 1
    prefix_len: int = 512
    n: int = 1
    dataset: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"workload={self.kind!r} is invalid: choose one of {', '.join(get_args(Kind))}")
        for name in ("num_prompts", "input_len", "output_len", "num_prefixes", "prefix_len", "n"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is invalid: it must be at least 1")
        if self.input_len is not None and self.kind in ("sharegpt", "alpaca", "file"):
            raise ValueError(f"input_len={self.input_len} is invalid: the workload {self.kind} has lengths of its own")
        if (self.dataset is None) == (self.kind == "file"):
            raise ValueError(f"dataset={self.dataset!r} is invalid: the workload file, and no other, reads one")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """``64 × (128 in, 128 out)``."""
        if self.kind in ("sharegpt", "alpaca", "file"):
            lengths = f"{Path(self.dataset).name if self.dataset else self.kind} lengths"
            lengths += f", {self.output_len} out" if self.output_len else ""
        else:
            own = f"{self.input_len or DEFAULT_LEN} in"
            shared = f"{self.prefix_len} shared by {self.num_prefixes} groups + " if self.kind == "shared-prefix" else ""
            lengths = f"{shared}{own}, {self.output_len or DEFAULT_LEN} out"
        return f"{self.num_prompts} × ({lengths}{f', n = {self.n}' if self.n > 1 else ''})"

    def requests(
        self, vocabulary: Vocabulary, rep: int, encode: Callable[[str], list[int]] | None = None, *, as_text: bool = False
    ) -> list[BenchRequest]:
        """The requests of one repetition. ``encode`` measures the texts of a dataset; ``as_text`` sends them as they are all the same."""
        draw = random.Random(f"{self.seed}/{rep}")
        if self.kind == "file":
            return self._from_file(rep, encode, as_text)
        prefixes = [vocabulary.draw(draw, self.prefix_len) for _ in range(self.num_prefixes)] if self.kind == "shared-prefix" else [[]]
        requests = []
        for i, (input_len, output_len) in enumerate(self._lengths()):
            prefix = prefixes[i % len(prefixes)]
            prompt = vocabulary.join([*prefix, *vocabulary.draw(draw, input_len)])
            requests.append(BenchRequest(prompt, len(prefix) + input_len, output_len, self.n))
        return requests

    def _lengths(self) -> list[tuple[int, int]]:
        trace = TRACES.get(self.kind)
        if trace is None:
            return [(self.input_len or DEFAULT_LEN, self.output_len or DEFAULT_LEN)] * self.num_prompts
        draw = random.Random(f"lengths/{self.seed}")
        pairs = [(trace.input.draw(draw), trace.output.draw(draw)) for _ in range(self.num_prompts)]
        return [(input_len, self.output_len or output_len) for input_len, output_len in pairs]

    def _from_file(self, rep: int, encode: Callable[[str], list[int]] | None, as_text: bool) -> list[BenchRequest]:
        """A seeded choice out of the file; all of it if it has no more."""
        assert self.dataset is not None
        exchanges = read_exchanges(Path(self.dataset))
        chosen = random.Random(f"{self.seed}/{rep}").sample(exchanges, min(self.num_prompts, len(exchanges)))
        return [self._of_exchange(exchange, encode, as_text) for exchange in chosen]

    def _of_exchange(self, exchange: Exchange, encode: Callable[[str], list[int]] | None, as_text: bool) -> BenchRequest:
        output_len = self.output_len or exchange.output_len
        if encode is None:
            if output_len is None:
                raise ValueError("output_len is missing: without a tokenizer nobody can say how long the dataset's answers are")
            return BenchRequest(exchange.prompt, 0, output_len, self.n)
        ids = encode(exchange.prompt)
        prompt: Prompt = exchange.prompt if as_text else ids
        return BenchRequest(prompt, len(ids), output_len or max(1, len(encode(exchange.answer))), self.n)


def fit(workload: Workload, requests: list[BenchRequest], max_model_len: int) -> list[BenchRequest]:
    """The requests that the model's context has room for.

    Raises ``ValueError`` if none has, or if lengths that were asked for by number do not fit.
    """
    fitting = [request for request in requests if request.num_prompt_tokens + request.output_len <= max_model_len]
    if not fitting or (len(fitting) < len(requests) and workload.kind in ("fixed", "shared-prefix")):
        worst = max(requests, key=lambda request: request.num_prompt_tokens + request.output_len)
        raise ValueError(
            f"{worst.num_prompt_tokens} tokens in and {worst.output_len} out are {worst.num_prompt_tokens + worst.output_len}: "
            f"this model takes at most {max_model_len}"
        )
    return fitting
