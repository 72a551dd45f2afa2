"""What packing and int8 activations do to a model's weights, logits and speed, one line for each GGUF file.

    python -m benchmarks.formats model.Q4_0.gguf model.Q5_1.gguf …

Each file is run twice by ``native`` with one thread: as packed, and with ``dequantize`` (all weights and activations in fp32). The
logits of all positions of eight prompts are compared. ``weights``: root mean square of what packing changed, relative to the
weights', for each type. ``tok/s``: of single decode steps, the 10th percentile of processor time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo import _native
from octavo.backends import get_backend
from octavo.backends.base import CompileOptions, Executable, StepInput
from octavo.config import BLOCK_SIZE
from octavo.models import build_program
from octavo.text import load_tokenizer
from octavo.weights import Checkpoint, dequantize, open_checkpoint

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small red fox who",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics state that",
    "In 1969, the first humans to walk on the Moon were",
    "Water boils at a lower temperature on a mountain because",
    "Dear Sir or Madam, I am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
)
MAX_LEN = 512
DECODE_STEPS = 48
Float32Array = npt.NDArray[np.float32]


def step(token_ids: npt.NDArray[np.int32], start: int) -> StepInput:
    """One sequence in the first blocks: these tokens after ``start`` others."""
    n = len(token_ids)
    positions = np.arange(start, start + n, dtype=np.int32)
    blocks = np.arange(MAX_LEN // BLOCK_SIZE, dtype=np.int32)[None, :]
    return StepInput(
        token_ids,
        positions,
        np.array([0, n], np.int32),
        np.array([start + n], np.int32),
        blocks,
        positions.astype(np.int64),
        np.arange(n, dtype=np.int32),
    )


def load(checkpoint: Checkpoint, *, expand: bool) -> Executable:
    program = build_program(checkpoint, MAX_LEN)
    executable = get_backend("native").compile(program, checkpoint.tensors, CompileOptions(BLOCK_SIZE, "fp32", 64, 64, MAX_LEN, 1, expand))
    executable.allocate_kv(MAX_LEN // BLOCK_SIZE)
    return executable


def all_logits(executable: Executable, prompts: list[npt.NDArray[np.int32]]) -> Float32Array:
    return np.concatenate([executable.run(step(ids, 0)).copy() for ids in prompts])


def tokens_per_s(executable: Executable) -> float:
    times = []
    for position in range(DECODE_STEPS):
        began_s = time.process_time()
        executable.run(step(np.array([1], np.int32), position))
        times.append(time.process_time() - began_s)
    return float(1 / np.percentile(times, 10))


def weight_errors(checkpoint: Checkpoint) -> str:
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) != 2 or tensor.type.is_float:
            continue
        want = dequantize(tensor)
        off = (
            _native.packed_values(getattr(_native.SourceType, tensor.type.name), np.ascontiguousarray(tensor.data), tensor.shape[1]) - want
        )
        squares = np.array([np.square(off, dtype=np.float64).sum(), np.square(want, dtype=np.float64).sum()])
        sums[tensor.type.name] = sums.get(tensor.type.name, np.zeros(2)) + squares
    return ", ".join(f"{name} {np.sqrt(off / size):.2g}" for name, (off, size) in sums.items())


def measure(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(checkpoint)
    prompts = [np.array(tokenizer.encode(text), np.int32) for text in PROMPTS]
    packed, plain = load(checkpoint, expand=False), load(checkpoint, expand=True)
    got, want = all_logits(packed, prompts), all_logits(plain, prompts)
    delta = np.abs(got - want)
    same = (got.argmax(axis=1) == want.argmax(axis=1)).mean()
    line = (
        f"{path.name}: file {path.stat().st_size / 2**20:.1f} MiB, memory {packed.weight_bytes / 2**20:.1f} MiB, "
        f"|Δlogit| mean {delta.mean():.3f}, median of rows' largest {np.median(delta.max(axis=1)):.2f}, same argmax {same:.1%}, "
        f"{tokens_per_s(packed):.0f} tok/s, weights: {weight_errors(checkpoint) or 'floats'}"
    )
    packed.close()
    plain.close()
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        print(measure(path), flush=True)


if __name__ == "__main__":
    main()
