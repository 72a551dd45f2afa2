"""``octavo bench startup``: from the command to the first token."""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Annotated, Any

import typer

from octavo.cli.bench.options import Iterations, JsonFile
from octavo.cli.options import ModelOption, engine_options
from octavo.cli.run import Refused
from octavo.config import DEFAULT_MODEL, EngineConfig


class Through(StrEnum):
    GENERATE = "generate"
    SERVE = "serve"
    BOTH = "both"


@engine_options(without=frozenset({"served_model_name", "max_num_seqs"}))
def startup(
    engine: dict[str, Any],
    model: ModelOption = DEFAULT_MODEL,
    through: Annotated[Through, typer.Option("--through", help="The command that is started.")] = Through.BOTH,
    cold: Annotated[
        bool, typer.Option("--cold/--warm-only", help="Also a first start, which packs the weights.", show_default=False)
    ] = True,
    iterations: Iterations = 3,
    json_file: JsonFile = None,
) -> None:
    """How long it takes from the command to the first token, in a fresh process each time, first starts and later ones.

    \b
    Examples:
      octavo bench startup
      octavo bench startup --through generate --warm-only --iterations 10
      octavo bench startup --model model.gguf --quantization int4 --json startup.json
    """
    from octavo.bench.startup import Start, Way, measure_starts
    from octavo.bench.summary import Spread
    from octavo.cli.bench.show import check_files, number, print_title, write_json
    from octavo.cli.facts import run_facts
    from octavo.cli.progress import counting, fetch

    EngineConfig(model=model, **engine)
    if iterations < 1:
        raise ValueError(f"--iterations {iterations} is invalid: at least 1 is measured")
    check_files(json_file, None)
    path = fetch(model)
    ways: list[Way] = ["generate", "serve"] if through is Through.BOTH else [through.value]  # type: ignore[list-item]
    flags = engine_flags(engine)
    with counting("Measuring startup", iterations * len(ways) * (1 + cold)) as tick:
        try:
            starts = measure_starts(path, ways, flags, iterations, cold=cold, on_finished=tick)
        except RuntimeError as error:
            raise Refused(str(error)) from error

    from rich.console import Console
    from rich.table import Table

    print_title(f"startup: {path.name}{''.join(' ' + flag for flag in flags)}")
    table = Table("seconds", "median", "min", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    record: dict[str, Any] = {}
    for way in ways:
        for is_cold in (True, False):
            chosen: list[Start] = [s for s in starts if s.way == way and s.cold == is_cold]
            for field, label in (("ready_s", "until it listens"), ("first_token_s", "until the first token")):
                values = [value for s in chosen if (value := getattr(s, field)) is not None]
                if (spread := Spread.of(values)) is not None:
                    table.add_row(
                        f"octavo {way}, {'cold' if is_cold else 'warm'}: {label}", *map(number, (spread.median, min(values), spread.max))
                    )
                    record[f"{way}_{'cold' if is_cold else 'warm'}_{field}"] = spread.median
    Console().print(table)
    write_json(json_file, {"benchmark": "startup", **run_facts(), "model": path.name, "flags": shlex.join(flags), "median": record,
                           "starts": [asdict(s) for s in starts]})  # fmt: skip


def engine_flags(engine: dict[str, Any]) -> list[str]:
    """The flags that say what differs from the defaults."""
    defaults = {field.name: field.default for field in fields(EngineConfig)}
    flags = []
    for name, value in engine.items():
        if value == defaults[name]:
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag[2:])
        else:
            flags += [flag, str(value)]
    return flags
