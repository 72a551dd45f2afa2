"""What reading shared blocks once saves: steps of sequences over one prefix, with and without it, alternately.

    python -m benchmarks.shared_prefixes MODEL [--num-threads N] [--repeats N]

Each case is a step of a whole model: one token (or a chunk of a prompt) of every sequence, behind a prefix whose blocks
all of them share. Printed are the least times of attention and of the whole step, in milliseconds, shared and alone.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo import LLM
from octavo.backends.base import StepInput

BLOCK = 16


@dataclass(frozen=True)
class Case:
    """``num_sequences`` behind a prefix of ``shared`` tokens, each at ``own`` of its own, ``chunk`` of them in this step."""

    num_sequences: int
    shared: int
    own: int
    chunk: int = 1


CASES = (
    Case(1, 0, 577),
    Case(32, 0, 300),
    Case(2, 64, 64),
    Case(2, 128, 64),
    Case(2, 512, 64),
    Case(4, 64, 64),
    Case(4, 512, 64),
    Case(8, 512, 1),
    Case(8, 512, 64),
    Case(32, 64, 32),
    Case(32, 512, 32),
    Case(8, 512, 16, chunk=8),
    Case(32, 512, 5, chunk=5),
    Case(8, 1536, 64),
)


def make_step(case: Case) -> StepInput:
    length = case.shared + case.own
    shared, width = case.shared // BLOCK, -(-length // BLOCK)
    tables = np.zeros((case.num_sequences, width), np.int32)
    tables[:, :shared] = np.arange(shared)
    own = width - shared
    tables[:, shared:] = shared + np.arange(case.num_sequences * own).reshape(case.num_sequences, own)
    positions = np.tile(np.arange(length - case.chunk, length), case.num_sequences)
    owner = np.repeat(np.arange(case.num_sequences), case.chunk)
    ends = np.cumsum(np.full(case.num_sequences, case.chunk))
    return StepInput(
        token_ids=(positions + owner).astype(np.int32),
        positions=positions.astype(np.int32),
        query_start_loc=np.concatenate([[0], ends]).astype(np.int32),
        seq_lens=np.full(case.num_sequences, length, np.int32),
        block_tables=tables,
        slot_mapping=tables[owner, positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK,
        logits_rows=(ends - 1).astype(np.int32),
    )


def measure(exe: Any, case: Case, repeats: int) -> str:
    """Blocks hold zeros, or what an earlier case left there: times do not depend on it."""
    step = make_step(case)
    best = {(what, enabled): np.inf for what in ("attention", "step") for enabled in (True, False)}
    logits = {}
    for repeat in range(repeats):
        for enabled in (True, False) if repeat % 2 else (False, True):
            exe.set_prefix_sharing(enabled)
            exe.set_profiling(True)
            start = time.perf_counter()
            logits[enabled] = exe.run(step).copy()
            seconds = time.perf_counter() - start
            best["step", enabled] = min(best["step", enabled], seconds)
            best["attention", enabled] = min(best["attention", enabled], exe.profile()["attention"])
    assert np.array_equal(logits[True], logits[False])
    ms = {key: 1e3 * value for key, value in best.items()}
    name = f"{case.num_sequences:3} x ({case.shared:4} + {case.own:3}), {case.chunk:2} at once"
    columns = [f"{ms[what, True]:8.2f} {ms[what, False]:8.2f} {ms[what, False] / ms[what, True]:6.2f}x" for what in ("attention", "step")]
    return f"{name}  {'  '.join(columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    options = {} if args.num_threads is None else {"num_threads": args.num_threads}
    with LLM(args.model, max_model_len=2048, max_num_batched_tokens=1024, **options) as llm:
        exe: Any = llm.engine.model.executable
        print(f"{exe.isa}, {exe.options.num_threads} threads, KV in {exe.options.kv_dtype}, ms: shared, alone, ratio")
        print(f"{'sequences x (shared + own tokens)':38}{'attention':28}step")
        for case in CASES:
            print(measure(exe, case, args.repeats), flush=True)


if __name__ == "__main__":
    main()
