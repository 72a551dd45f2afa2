"""The command ``octavo chat``: loads the model, then reads messages and commands until the user leaves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import ModelArgument, engine_options, sampling_fields, sampling_options
from octavo.config import DEFAULT_MODEL, EngineConfig

if TYPE_CHECKING:
    from octavo.cli.chat.session import Session


@engine_options(without=frozenset({"max_num_seqs", "served_model_name"}))
@sampling_options
def chat(
    engine: dict[str, Any],
    sampling: dict[str, Any],
    model: ModelArgument = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option("--system", help="System message of the chat.", show_default="the template's own")] = None,
    stats: Annotated[
        bool | None, typer.Option("--stats/--no-stats", help="After each answer, say how fast it was.", show_default="in a terminal")
    ] = None,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Show what a reasoning model thinks.")] = True,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            "--chat-template-kwargs", metavar="JSON", help="More variables for the chat template, as a JSON object.", show_default="none"
        ),
    ] = None,
) -> None:
    """Talk with a model here, in the terminal.

    \b
    Examples:
      octavo chat                                   the default model; /help lists what else you can do
      octavo chat --system "Answer in one sentence." --temperature 0.3
      octavo chat model.gguf --max-tokens 256 --seed 7
      octavo chat model.gguf --chat-template-kwargs '{"enable_thinking": false}'
      printf 'What is 2 + 2?\\nAnd twice that?\\n' | octavo chat --temperature 0

    \b
    From a pipe, each line is a message (with the same rules for several lines) and each answer is one line of output, in which a
    line break is written as \\n; printf '%b' makes it one again.
    """
    from octavo.cli.progress import fetch, working
    from octavo.decoding.params import SamplingParams

    template_kwargs = None if chat_template_kwargs is None else template_object(chat_template_kwargs)
    EngineConfig(model=model, **engine)  # a setting that is invalid is refused before a model is fetched
    SamplingParams(**sampling_fields(sampling))
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    path = fetch(model)
    with working(f"Loading {path.name} …"):
        from octavo.cli.chat.screen import PipeScreen, TerminalScreen
        from octavo.cli.chat.session import Session
        from octavo.llm import LLM

        llm = LLM(model, **engine, max_num_seqs=1)
    with llm:
        params = SamplingParams(**sampling_fields(sampling, llm.sampling_defaults))
        screen = TerminalScreen(thinking=thinking) if interactive else PipeScreen()
        shows_stats = interactive if stats is None else stats
        session = Session(llm, params, screen, system=system, stats=shows_stats, template_kwargs=template_kwargs)
        if interactive:
            talk(session)
        else:
            answer_lines(session)


def template_object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` spells. Raises ``ValueError``."""
    import json

    from octavo.text import template_variables

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--chat-template-kwargs {text!r:.60} is invalid: it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f'--chat-template-kwargs {text!r:.60} is invalid: must be an object, such as {{"enable_thinking": false}}')
    return template_variables(value)


def answer_lines(session: Session) -> None:
    """Answers standard input to its end; what cannot be done ends it."""
    from octavo.cli.chat.reading import pipe_line, read_message
    from octavo.cli.chat.slash import Leave, run_line

    try:
        while True:
            if message := read_message(pipe_line).strip():
                run_line(session, message)
                if session.interrupted:
                    raise KeyboardInterrupt
    except (EOFError, Leave):
        return


def talk(session: Session) -> None:
    """Reads what somebody types; what cannot be done is said and the conversation goes on."""
    from octavo.cli.chat.reading import line_editing, read_message, terminal_line
    from octavo.cli.chat.slash import COMMANDS, Leave, run_line
    from octavo.cli.run import describe, one_line

    screen = session.screen
    context = f"context of {session.context_length:,} tokens"
    screen.note(f"{session.llm.engine.model.name}, {context}. /help lists the commands, Ctrl-D leaves.")
    with line_editing(list(COMMANDS)):
        leaves = False
        while True:
            try:
                message = read_message(terminal_line).strip()
            except KeyboardInterrupt:
                screen.show("")
                if leaves:
                    return
                leaves = True
                screen.note("[Ctrl-C again, or Ctrl-D, leaves]")
                continue
            except EOFError:
                screen.show("")
                return
            leaves = False
            if not message:
                continue
            try:
                run_line(session, message)
                leaves = session.interrupted
            except (ValueError, OSError) as error:
                screen.complain(one_line(describe(error)))
            except Leave:
                return
            except KeyboardInterrupt:  # the second one during an answer
                screen.end()
                return
            session.interrupted = False
