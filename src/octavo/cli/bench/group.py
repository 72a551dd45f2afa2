"""The group ``octavo bench`` and its commands."""

from __future__ import annotations

import typer

from octavo.cli.bench.offline import latency, throughput
from octavo.cli.options import debug_option

bench = typer.Typer(
    help="""Measure latency, throughput, a server or the start.

    \b
    Examples:
      octavo bench latency
      octavo bench throughput --workload sharegpt --num-prompts 64
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)

for command in (latency, throughput):
    bench.command()(debug_option(command))
