"""Larger models beside what the machine allows: decode, prefill, and memory besides the file and the KV cache.

    python -m benchmarks.random_models 1b 7b --tokenizer-of model.gguf --directory models/
    python -m benchmarks.large_models models/random-1b.Q4_K.gguf:64 models/random-7b.Q4_K.gguf:512

``FILE:MIB`` is a GGUF file and the size of its KV cache. Each runs in a process of its own: prompts of 512 tokens until the whole cache has
been used (the best is the prefill), then single streams of 32 tokens (the best token time). A first start packs the weights, a second finds
them packed; both are measured where the packed weights are not there yet. Memory is the process' peak. llama.cpp's counterpart is
``llama-bench -t THREADS -p 512 -n 32``.
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

from benchmarks.kernels import ceilings
from benchmarks.peers.limits import ModelSize
from benchmarks.peers.machine import describe, peak_memory_mib, wait_for_quiet

PROMPT_TOKENS, STREAM_TOKENS, REPETITIONS = 512, 32, 5


@dataclass(frozen=True)
class Figures:
    token_s: float
    prefill_s: float
    beside_mib: float
    """The peak of the process less file and cache."""


def measure(path: Path, cache_mib: int, num_threads: int) -> Figures:
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
    token_s = min((run_s(32, 1 + STREAM_TOKENS) - run_s(32, 1)) / STREAM_TOKENS for _ in range(REPETITIONS))
    beside = peak_memory_mib([os.getpid()]) - path.stat().st_size / 2**20 - cache_mib
    return Figures(token_s, prefill_s, beside)


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
        limits = ceilings.measure(Path(directory), args.threads)
        found = []
        for path, mib in models:
            for start in ("first", "second"):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found.append((path, start, pool.submit(measure, path, mib, args.threads).result()))
        limits = ceilings.best(limits, ceilings.measure(Path(directory), args.threads))
    print("| | start | decode, tok/s | weights read at | prefill 512, tok/s | of the integer limit | besides file and cache |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for path, start, figures in found:
        size = ModelSize.of(path)
        read = size.weight_bytes / figures.token_s / 1e9
        gops = 2 * size.layer_weights * PROMPT_TOKENS / figures.prefill_s / 1e9
        print(
            f"| {path.stem} | {start} | {1 / figures.token_s:.3g} | {read:.0f} GB/s ({read / limits['read_gb_s']:.0%}) | "
            f"{PROMPT_TOKENS / figures.prefill_s:.3g} | {gops / limits['int8_gops']:.0%} | {figures.beside_mib:.0f} MiB |"
        )
    about = describe()
    print(
        f"\n{time.strftime('%F %T')}, {about['cpu']}, {args.threads} threads; the best before and after: {limits['read_gb_s']:.1f} GB/s "
        f"read, {limits['int8_gops']:.0f} GOPS int8."
    )


if __name__ == "__main__":
    main()
