"""The group ``octavo bench`` and its commands."""

from __future__ import annotations

import typer

from octavo.cli.bench.offline import latency, throughput
from octavo.cli.bench.serve import serve
from octavo.cli.bench.startup import startup
from octavo.cli.options import debug_option

bench = typer.Typer(
    help="""Measure latency, throughput, a server or the start.

    \b
    Examples:
      octavo bench latency
      octavo bench throughput --workload sharegpt --num-prompts 64
      octavo bench serve --request-rate 4 --goodput ttft:500
      octavo bench startup
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)

for command in (latency, throughput, serve, startup):
    bench.command()(debug_option(command))
