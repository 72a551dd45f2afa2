"""What one streamed answer amounted to: tokens, times, how it ended. For ``octavo generate`` and ``octavo chat``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.engine.outputs import RequestOutput


@dataclass
class Answer:
    """Counts the deltas of one request. Times are seconds of ``time.monotonic()``."""

    asked_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float = 0.0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    def take(self, output: RequestOutput) -> str:
        """The text that ``output`` brought."""
        now_s = time.monotonic()
        completion = output.outputs[0]
        self.num_prompt_tokens = len(output.prompt_token_ids)
        self.num_cached_tokens = output.num_cached_tokens
        self.error = output.error or self.error
        self.finish_reason = completion.finish_reason
        if completion.token_ids:
            self.first_s = self.first_s or now_s
            self.last_s = now_s
            self.num_tokens += len(completion.token_ids)
        return completion.text

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return 0.0 if self.first_s is None else self.last_s - self.first_s

    def summary(self, interrupted: bool) -> str:
        """``42 tokens, 187.5 tok/s, TTFT 31 ms (350 prompt tokens, 320 of them cached)``; the rate is of the tokens after the first."""
        assert self.first_s is not None
        parts = [f"{self.num_tokens} token{'s' if self.num_tokens != 1 else ''}"]
        if self.num_tokens > 1 and self.decode_s > 0:
            parts.append(f"{(self.num_tokens - 1) / self.decode_s:.1f} tok/s")
        cached = f", {self.num_cached_tokens} of them cached" if self.num_cached_tokens else ""
        parts.append(f"TTFT {1e3 * (self.first_s - self.asked_s):.0f} ms ({self.num_prompt_tokens} prompt tokens{cached})")
        if interrupted:
            parts.append("interrupted")
        elif self.finish_reason == "length":
            parts.append("cut off by the length limit")
        return ", ".join(parts)


def say_dimly(message: str) -> None:
    """One dim line on stderr."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        message = f"\033[2m{message}\033[0m"
    print(message, file=sys.stderr, flush=True)
