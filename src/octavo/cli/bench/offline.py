"""``octavo bench latency`` and ``octavo bench throughput``: how fast a model runs on this machine, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.bench.options import (
    InputLen,
    Iterations,
    JsonFile,
    NumBranches,
    OutputLen,
    PlotFile,
    Prompts,
    PromptSeed,
    PromptsOption,
    Warmup,
    workload_of,
    workload_options,
)
from octavo.cli.options import ModelOption, engine_options
from octavo.config import DEFAULT_MODEL, EngineConfig

if TYPE_CHECKING:
    from octavo.bench.offline import OfflineRun
    from octavo.bench.workload import Workload


@engine_options(without=frozenset({"served_model_name"}))
def latency(
    engine: dict[str, Any],
    model: ModelOption = DEFAULT_MODEL,
    input_len: InputLen = 32,
    output_len: OutputLen = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Requests at once.", metavar="N")] = 1,
    n: NumBranches = 1,
    iterations: Iterations = 5,
    warmup: Warmup = 1,
    prompts: PromptsOption = Prompts.RANDOM,
    prompt_seed: PromptSeed = 0,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """How long one request (or one batch) takes: to the first token, from token to token, in all; and what the engine itself costs.

    \b
    Examples:
      octavo bench latency                                        32 tokens in, 128 out, alone
      octavo bench latency --input-len 512 --output-len 1         a prompt's prefill
      octavo bench latency --batch-size 8 --num-threads 2 --json latency.json
      octavo bench latency --input-len 512 --output-len 64 --n 8  eight samples of one prompt
    """
    from octavo.bench.workload import Workload

    num_seqs = batch_size * n
    if num_seqs > engine["max_num_seqs"]:
        raise ValueError(
            f"--batch-size {batch_size} with --n {n} is {num_seqs} sequences, but only {engine['max_num_seqs']} run at once: "
            f"give --max-num-seqs {num_seqs}"
        )
    workload = Workload(num_prompts=batch_size, input_len=input_len, output_len=output_len, n=n, seed=prompt_seed)
    _measure("latency", model, engine, workload, iterations, warmup, prompts, json_file, plot_file)


@engine_options(without=frozenset({"served_model_name"}))
@workload_options()
def throughput(
    engine: dict[str, Any],
    workload: dict[str, Any],
    model: ModelOption = DEFAULT_MODEL,
    iterations: Iterations = 3,
    warmup: Warmup = 1,
    prompts: PromptsOption = Prompts.RANDOM,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """How many tokens per second come out when all requests are there at once, and how the KV cache was used.

    \b
    Examples:
      octavo bench throughput                                     64 requests, 128 tokens in, 128 out
      octavo bench throughput --workload sharegpt --num-prompts 100 --max-num-seqs 32
      octavo bench throughput --workload shared-prefix --num-prompts 32 --prefix-len 512 --input-len 16 --output-len 32
      octavo bench throughput --num-prompts 256 --kv-cache-memory-bytes 64MB --json throughput.json --plot throughput.svg
    """
    _measure("throughput", model, engine, workload_of(workload), iterations, warmup, prompts, json_file, plot_file)


def _measure(
    kind: str,
    model: str,
    engine: dict[str, Any],
    workload: Workload,
    iterations: int,
    warmup: int,
    prompts: Prompts,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    from octavo.cli.bench.show import check_files, offline_record, print_offline, write_json
    from octavo.cli.progress import counting, fetch, working

    EngineConfig(model=model, **engine)  # a setting that is invalid is refused before a model is fetched
    if iterations < 1 or warmup < 0:
        raise ValueError(f"--iterations {iterations} --warmup {warmup} is invalid: at least 1 is measured, and at least 0 are not")
    check_files(json_file, plot_file)
    path = fetch(model)
    with working(f"Loading {path.name} …"):
        from octavo.bench.offline import run_offline
        from octavo.bench.vocabulary import EncodedWords, TokenIds
        from octavo.bench.workload import fit
        from octavo.cli.facts import engine_facts, run_facts, vocabulary
        from octavo.llm import LLM

        llm = LLM(model, **engine)
    runs: list[OfflineRun] = []
    with llm:
        encode = llm.tokenizer.encode
        words = TokenIds(vocabulary(llm.engine)) if prompts is Prompts.RANDOM else EncodedWords(encode)
        asked = workload.requests(words, -warmup, encode)
        kept = fit(workload, asked, llm.max_model_len)
        with counting(f"Measuring {kind}", (warmup + iterations) * len(kept)) as tick:
            for rep in range(-warmup, iterations):
                requests = fit(workload, workload.requests(words, rep, encode), llm.max_model_len)
                run = run_offline(llm.engine, requests, seed=workload.seed, on_finished=tick)
                if rep >= 0:
                    runs.append(run)
        about = {**engine_facts(llm.engine, path), **run_facts()}
    record = offline_record(kind, workload, prompts.value, runs, {**about, "num_too_long": len(asked) - len(kept)}, warmup)
    print_offline(kind, workload, runs, about)
    write_json(json_file, record)
    if plot_file is not None:
        from octavo.bench.plot import plot_run

        middle = sorted(runs, key=lambda run: run.wall_s)[len(runs) // 2]
        plot_run(plot_file, middle.records, f"{kind}: {workload.describe()}, {about['model']}", middle.steps)
