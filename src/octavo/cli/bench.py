"""``octavo bench latency`` and ``octavo bench throughput``: how fast a model runs on this machine, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import ModelOption, debug_option, engine_options
from octavo.config import DEFAULT_MODEL, EngineConfig

if TYPE_CHECKING:
    from octavo.cli.measure import Load, Run

InputLen = Annotated[int, typer.Option("--input-len", help="Prompt tokens of each request.", metavar="N")]
OutputLen = Annotated[int, typer.Option("--output-len", help="Tokens generated for each request, exactly.", metavar="N")]
Reps = Annotated[int, typer.Option("--reps", help="Measured repetitions; the medians are reported.", metavar="N")]
Warmup = Annotated[int, typer.Option("--warmup", help="Repetitions before that, not measured.", metavar="N")]
PromptSeed = Annotated[int, typer.Option("--prompt-seed", help="Seed of the random prompts.", metavar="N")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write every repetition and the medians to this file.", dir_okay=False, show_default="no file")
]

bench = typer.Typer(
    help="""Measure latency or throughput at fixed lengths, in this process.

    \b
    Examples:
      octavo bench latency
      octavo bench throughput --num-prompts 64
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@engine_options(without=frozenset({"served_model_name"}))
def latency(
    engine: dict[str, Any],
    model: ModelOption = DEFAULT_MODEL,
    input_len: InputLen = 32,
    output_len: OutputLen = 128,
    batch: Annotated[int, typer.Option("--batch", help="Requests at once.", metavar="N")] = 1,
    reps: Reps = 5,
    warmup: Warmup = 1,
    prompt_seed: PromptSeed = 0,
    json_file: JsonFile = None,
) -> None:
    """How long one request (or one batch) takes: time to the first token, and from token to token.

    \b
    Examples:
      octavo bench latency                                        32 tokens in, 128 out, alone
      octavo bench latency --input-len 512 --output-len 1         a prompt's prefill
      octavo bench latency --batch 8 --num-threads 2 --json latency.json
    """
    _bench("latency", model, engine, (input_len, output_len, batch, prompt_seed), reps, warmup, json_file)


@engine_options(without=frozenset({"served_model_name"}))
def throughput(
    engine: dict[str, Any],
    model: ModelOption = DEFAULT_MODEL,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    num_prompts: Annotated[int, typer.Option("--num-prompts", help="Requests, all handed over at once.", metavar="N")] = 64,
    reps: Reps = 3,
    warmup: Warmup = 1,
    prompt_seed: PromptSeed = 0,
    json_file: JsonFile = None,
) -> None:
    """How many tokens per second come out when many requests are there at once.

    \b
    Examples:
      octavo bench throughput                                     64 requests, 128 tokens in, 128 out
      octavo bench throughput --num-prompts 256 --input-len 512 --output-len 64
      octavo bench throughput --max-num-seqs 16 --json throughput.json
    """
    _bench("throughput", model, engine, (input_len, output_len, num_prompts, prompt_seed), reps, warmup, json_file)


bench.command()(debug_option(latency))
bench.command()(debug_option(throughput))

ROWS = {
    "latency": ("ttft_s", "tpot_s", "e2e_s", "prefill_tokens_per_s", "output_tokens_per_s"),
    "throughput": ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "ttft_s", "tpot_s", "e2e_s"),
}
LABELS = {
    "ttft_s": ("time to the first token", "ms", 1e3),
    "tpot_s": ("time per output token", "ms", 1e3),
    "e2e_s": ("until all are done", "s", 1.0),
    "prefill_tokens_per_s": ("prompt tokens", "tok/s", 1.0),
    "output_tokens_per_s": ("output tokens", "tok/s", 1.0),
    "total_tokens_per_s": ("tokens in and out", "tok/s", 1.0),
    "requests_per_s": ("requests", "1/s", 1.0),
}


def _bench(
    kind: str, model: str, engine: dict[str, Any], shape: tuple[int, int, int, int], reps: int, warmup: int, json_file: Path | None
) -> None:
    from octavo.cli.measure import Load, as_json, run_all
    from octavo.cli.progress import counting, fetch, working

    load = Load(*shape)
    EngineConfig(model=model, **engine)  # a setting that is invalid is refused before a model is fetched
    if reps < 1 or warmup < 0:
        raise ValueError(f"--reps {reps} --warmup {warmup} is invalid: at least 1 repetition is measured, and at least 0 before it are not")
    if json_file is not None:
        json_file.touch()  # before minutes of measuring, not after
    path = fetch(model)
    with working(f"Loading {path.name} …"):
        from octavo.cli.facts import engine_facts, vocabulary
        from octavo.llm import LLM

        llm = LLM(model, **engine)
    with llm:
        needed = load.input_len + load.output_len
        if needed > llm.max_model_len:
            raise ValueError(
                f"{load.input_len} tokens in and {load.output_len} out are {needed}: this model takes at most {llm.max_model_len}"
            )
        with counting(f"Measuring {kind}", warmup + reps) as tick:
            runs = run_all(llm, load, vocabulary(llm.engine), reps=reps, warmup=warmup, tick=tick)
        about = engine_facts(llm.engine, path)
    print_table(kind, load, runs, about)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(kind, load, runs, about), indent=1) + "\n")


def print_table(kind: str, load: Load, runs: list[Run], about: dict[str, Any]) -> None:
    """Medians and ranges on stdout."""
    from rich.console import Console
    from rich.table import Table

    from octavo.cli.measure import medians, spreads

    shape = f"{load.num_prompts} × ({load.input_len} in, {load.output_len} out)"
    title = f"{kind}: {shape}, {about['model']}, {about['isa']}, {about['num_threads']} threads"
    table = Table("", "median", "from", "to", "", title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    middle, spread = medians(runs), spreads(runs)
    for name in ROWS[kind]:
        label, unit, scale = LABELS[name]
        value, extent = middle[name], spread[name]
        if value is None or extent is None:
            continue
        table.add_row(label, *(f"{v * scale:,.1f}" if v * scale >= 10 else f"{v * scale:.3g}" for v in (value, *extent)), unit)
    Console().print(table)
