"""``octavo generate``: one prompt, its answer streamed to the terminal."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import ModelOption, engine_options, sampling_options
from octavo.cli.run import EXIT_FAULT, EXIT_INTERRUPTED, say
from octavo.config import DEFAULT_MODEL, EngineConfig

if TYPE_CHECKING:
    from octavo.engine.outputs import RequestOutput


@engine_options(without=frozenset({"max_num_seqs", "served_model_name"}))
@sampling_options
def generate(
    engine: dict[str, Any],
    sampling: dict[str, Any],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Ask as in a chat, or let the model continue the text.", show_default="chat, if the model has a template"
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of the chat.", show_default="the template's own")] = None,
    stats: Annotated[bool, typer.Option("--stats/--no-stats", help="Say at the end, on stderr, how fast it was.")] = True,
) -> None:
    """Answer a prompt here, in the terminal, as the words come.

    \b
    Examples:
      octavo generate "What is gravity?"
      octavo generate --raw "The capital of France is" --max-tokens 8 --temperature 0
      cat letter.txt | octavo generate - --system "Summarise in one sentence."
      octavo generate "Tell me a short story about a cat." --temperature 1.0 --top-p 0.9 --seed 7
      octavo generate --model model.gguf "Hello!"
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise ValueError("the prompt is empty" + (": nothing came on standard input" if prompt == "-" else ""))
    if system is not None and chat is False:
        raise ValueError("--system belongs to a chat: leave out --raw")

    from octavo.cli.progress import fetch, working
    from octavo.decoding.params import RequestOutputKind, SamplingParams

    EngineConfig(model=model, **engine)  # a setting that is invalid is refused before a model is fetched
    params = SamplingParams(**{**sampling, "stop": sampling["stop"] or None}, output_kind=RequestOutputKind.DELTA)
    path = fetch(model)
    with working(f"Loading {path.name} …"):
        from octavo.llm import LLM

        llm = LLM(model, **engine, max_num_seqs=1)
    with llm:
        as_chat = chat if chat is not None else llm.chat_template is not None
        if system is not None and not as_chat:
            raise ValueError("--system belongs to a chat, and this model has no chat template")
        messages = [{"role": "system", "content": system}] if system is not None else []
        asked = llm.engine.chat_prompt([*messages, {"role": "user", "content": text}]) if as_chat else text
        answer = Answer()
        interrupted = False
        try:
            for output in llm.stream(asked, params):
                answer.take(output)
        except KeyboardInterrupt:
            interrupted = True
    answer.end()
    if stats and answer.num_tokens:
        say_dimly(answer.summary(interrupted))
    if answer.error:
        say(f"octavo: {answer.error}")
        raise typer.Exit(EXIT_FAULT)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


@dataclass
class Answer:
    """Writes the deltas of one request to stdout and keeps the times."""

    asked_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float = 0.0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    _last_text: str = ""

    def take(self, output: RequestOutput) -> None:
        now_s = time.monotonic()
        completion = output.outputs[0]
        self.num_prompt_tokens = len(output.prompt_token_ids)
        self.error = output.error or self.error
        self.finish_reason = completion.finish_reason
        if completion.token_ids:
            self.first_s = self.first_s or now_s
            self.last_s = now_s
            self.num_tokens += len(completion.token_ids)
        if completion.text:
            self._last_text = completion.text
            sys.stdout.write(completion.text)
            sys.stdout.flush()

    def end(self) -> None:
        """Leaves the cursor at the beginning of a line."""
        if not self._last_text.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()

    def summary(self, interrupted: bool) -> str:
        """``42 tokens, 187.5 tok/s, TTFT 31 ms (35 prompt tokens)``: the rate is that of the tokens after the first."""
        assert self.first_s is not None
        parts = [f"{self.num_tokens} token{'s' if self.num_tokens != 1 else ''}"]
        if self.num_tokens > 1 and self.last_s > self.first_s:
            parts.append(f"{(self.num_tokens - 1) / (self.last_s - self.first_s):.1f} tok/s")
        parts.append(f"TTFT {1e3 * (self.first_s - self.asked_s):.0f} ms ({self.num_prompt_tokens} prompt tokens)")
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
