"""``octavo generate``: one prompt, its answer streamed to the terminal."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from octavo.cli.answer import Answer, say_dimly
from octavo.cli.options import ModelOption, engine_options, sampling_fields, sampling_options
from octavo.cli.run import EXIT_FAULT, EXIT_INTERRUPTED, say
from octavo.config import DEFAULT_MODEL, EngineConfig


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
    SamplingParams(**sampling_fields(sampling))
    path = fetch(model)
    with working(f"Loading {path.name} …"):
        from octavo.llm import LLM

        llm = LLM(model, **engine, max_num_seqs=1)
    with llm:
        params = SamplingParams(**sampling_fields(sampling, llm.sampling_defaults), output_kind=RequestOutputKind.DELTA)
        as_chat = chat if chat is not None else llm.chat_template is not None
        if system is not None and not as_chat:
            raise ValueError("--system belongs to a chat, and this model has no chat template")
        messages = [{"role": "system", "content": system}] if system is not None else []
        asked = llm.engine.chat_prompt([*messages, {"role": "user", "content": text}]) if as_chat else text
        answer = Answer()
        interrupted, last = False, ""
        try:
            for output in llm.stream(asked, params):
                if new := answer.take(output):
                    last = new
                    sys.stdout.write(new)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            interrupted = True
    if not last.endswith("\n"):
        print(flush=True)
    if stats and answer.num_tokens:
        say_dimly(answer.summary(interrupted))
    if answer.error:
        say(f"octavo: {answer.error}")
        raise typer.Exit(EXIT_FAULT)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
