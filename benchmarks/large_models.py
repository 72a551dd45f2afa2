"""Larger models beside what the machine allows: decode, prefill, and memory besides the file and the KV cache.

    python -m benchmarks.random_models 1b 7b --tokenizer-of model.gguf --directory models/
    python -m benchmarks.large_models models/random-1b.Q4_K.gguf:64 models/random-7b.Q4_K.gguf:512

``FILE:MIB`` is a GGUF file and the size of its KV cache. Each runs in a process of its own: prompts of 512 tokens until the whole cache has
been used (the best is the prefill), then single streams of 32 tokens, before and after each of which reading alone is measured: machines'
memory changes its speed within minutes. Streams between two readings that agree count, and the share is of the faster of the two. A first
start packs the weights, a second finds them packed; both are measured where the packed weights are not there yet. Memory is the process'
peak. llama.cpp's counterpart is ``llama-bench -t THREADS -p 512 -n 32``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.kernels import ceilings
from benchmarks.peers.limits import ModelSize
from benchmarks.peers.machine import describe, peak_memory_mib, wait_for_quiet

PROMPT_TOKENS, STREAM_TOKENS, REPETITIONS = 512, 32, 5
MOST_TRIES = 15
AGREEING = 0.05
"""By how much readings that agree may differ."""


@dataclass(frozen=True)
class Stream:
    """``read_gb_s``: of reading alone, just before or just after, whichever was faster."""

    token_s: float
    read_gb_s: float


@dataclass(frozen=True)
class Figures:
    streams: list[Stream]
    prefill_s: float
    beside_mib: float
    """The peak of the process less file and cache."""


def measure(path: Path, cache_mib: int, num_threads: int, limits: Path) -> Figures:
    """``limits``: the program of ``ceilings``."""
    from octavo import LLM, SamplingParams

    llm = LLM(str(path), kv_cache_memory_bytes=cache_mib << 20, num_threads=num_threads)
    vocab_size = llm.engine.model.program.vocab_size
    drawn = iter(range(10**9))

    def run_s(prompt_tokens: int, output_tokens: int) -> float:
        ids = [300 + next(drawn) * 7919 % (vocab_size - 300) for _ in range(prompt_tokens)]
        params = SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True)
        started = time.perf_counter()
        llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        return time.perf_counter() - started

    capacity = llm.engine.scheduler.kv.num_blocks * llm.engine.model.executable.options.block_size
    prefill_s = min(run_s(PROMPT_TOKENS, 1) for _ in range(1 + -(-capacity // PROMPT_TOKENS)))
    streams: list[Stream] = []
    before = ceilings.run(limits, num_threads)["read_gb_s"]
    for _ in range(MOST_TRIES):
        run_s(32, 1)
        token_s = (run_s(32, 1 + STREAM_TOKENS) - run_s(32, 1)) / STREAM_TOKENS
        after = ceilings.run(limits, num_threads)["read_gb_s"]
        if abs(after - before) <= AGREEING * before:
            streams.append(Stream(token_s, max(before, after)))
        before = after
        if len(streams) == REPETITIONS:
            break
    beside = peak_memory_mib([os.getpid()]) - path.stat().st_size / 2**20 - cache_mib
    return Figures(streams, prefill_s, beside)


def span(values: list[float], form: str = ".3g") -> str:
    """``76–113``, or one number where both are the same."""
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return "–".join(ends)


def row(name: str, start: str, size: ModelSize, figures: Figures, int8_gops: float) -> str:
    gops = 2 * size.layer_weights * PROMPT_TOKENS / figures.prefill_s / 1e9
    prefill = f"{PROMPT_TOKENS / figures.prefill_s:.3g} | {gops / int8_gops:.0%} | {figures.beside_mib:.0f} MiB"
    if not figures.streams:
        return f"| {name} | {start} | no two readings agreed | – | – | {prefill} |"
    read = [size.weight_bytes / s.token_s / 1e9 for s in figures.streams]
    share = median(r / s.read_gb_s for r, s in zip(read, figures.streams, strict=True))
    tokens = span([1 / s.token_s for s in figures.streams])
    beside = f"{span(read, '.0f')} of {span([s.read_gb_s for s in figures.streams], '.0f')} GB/s"
    return f"| {name} | {start} | {tokens} | {beside} | {share:.0%} | {prefill} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FILE:MIB")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    models = []
    for given in args.models:
        name, colon, mib = given.rpartition(":")
        if not colon or not mib.isdigit() or not Path(name).is_file():
            parser.error(f"{given}: a file, a colon and the MiB of its KV cache")
        models.append((Path(name), int(mib)))
    wait_for_quiet()
    with tempfile.TemporaryDirectory() as directory:
        program = ceilings.build(Path(directory))
        limits = ceilings.run(program, args.threads)
        found = []
        for path, mib in models:
            for start in ("first", "second"):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found.append((path, start, pool.submit(measure, path, mib, args.threads, program).result()))
        limits = ceilings.best(limits, ceilings.run(program, args.threads))
    print(
        "| | start | decode, tok/s | weights read at | share, median | prefill 512, tok/s | of the integer limit | besides file and cache |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for path, start, figures in found:
        print(row(path.stem, start, ModelSize.of(path), figures, limits["int8_gops"]))
    about = describe()
    print(
        f"\n{time.strftime('%F %T')}, {about['cpu']}, {args.threads} threads; "
        f"the best before and after: {limits['int8_gops']:.0f} GOPS int8."
    )


if __name__ == "__main__":
    main()
