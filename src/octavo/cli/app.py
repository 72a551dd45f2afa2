"""The application: its commands, in the order in which a newcomer meets them, and ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli.bench.group import bench
from octavo.cli.chat.command import chat
from octavo.cli.generate import generate
from octavo.cli.info import info, print_version
from octavo.cli.inspection import inspect_group
from octavo.cli.models import list_cached, remove
from octavo.cli.options import debug_option
from octavo.cli.perplexity import perplexity
from octavo.cli.pull import pull
from octavo.cli.serve import serve

app = typer.Typer(
    name="octavo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command has its own examples: octavo serve --help.",
)

for command in (serve, chat, generate, pull):
    app.command()(debug_option(command))
app.command("list")(debug_option(list_cached))
app.command("rm")(debug_option(remove))
app.add_typer(inspect_group, name="inspect")
app.add_typer(bench, name="bench")
app.command()(debug_option(perplexity))
app.command()(debug_option(info))


@app.callback()
def octavo(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Octavo serves language models on ordinary CPUs, with a paged KV cache and the OpenAI API.

    \b
    Examples:
      octavo serve                                  serve the default model on http://127.0.0.1:8000
      octavo chat                                   talk with it in the terminal
      octavo generate "What is gravity?"        answer here, in the terminal
      octavo bench throughput                       how fast is it on this machine?
    """
