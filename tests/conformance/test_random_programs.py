"""Programs that no model would write: random graphs of operations, so that whatever a backend fuses, reorders or overlays in
memory is held against plain interpretation. Values are read late, twice, in part, or never; rotations are shared, or read by others
than attention; rows are selected early or late; projections mix weight types.
"""

from __future__ import annotations

import numpy as np
import pytest

from octavo.backends.base import Backend
from octavo.program import Program, ProgramBuilder, RopeStyle, Rows, Value
from octavo.weights.tensor import Tensor, TensorType

from .programs import compile_program
from .steps import Driver
from .tensors import ALL_TYPES, FLOAT_TYPES, Rng, float_tensor, random_tensor

VOCAB, WIDTH, HEAD_DIM = 50, 64, 32


def random_program(rng: Rng, types: tuple[TensorType, ...], num_ops: int = 24) -> tuple[Program, dict[str, Tensor]]:
    b = ProgramBuilder("random", 256)
    tensors: dict[str, Tensor] = {}
    values: dict[Rows, list[Value]] = {Rows.TOKENS: [], Rows.LOGITS: []}
    num_layers = 0

    def weight(shape: tuple[int, ...], type: TensorType | None = None) -> str:
        name = f"w{len(tensors)}"
        if len(shape) == 1:
            tensors[name] = float_tensor(name, rng.normal(1, 0.2, shape))
        else:
            tensors[name] = random_tensor(rng, name, type or types[rng.integers(len(types))], shape, 1.0 if shape[0] == VOCAB else None)
        return name

    def pick(rows: Rows) -> Value:
        """Any value, the latest ones more often."""
        found = values[rows]
        return found[max(0, len(found) - 1 - int(rng.geometric(0.4)) + 1)]

    def normed(rows: Rows) -> Value:
        value = pick(rows)
        return b.rms_norm(value, weight((WIDTH,)), 1e-5) if rng.random() < 0.7 else value

    def linear(rows: Rows) -> None:
        parts = [WIDTH] * int(rng.integers(1, 4))
        weights = {weight((n, WIDTH)): n for n in parts}
        biases = [weight((n,)) if rng.random() < 0.3 else None for n in parts] if rng.random() < 0.5 else []
        values[rows] += b.split(b.linear(normed(rows), weights, biases), parts)

    def rope(rows: Rows) -> None:
        rotary = int(rng.choice([HEAD_DIM, HEAD_DIM // 2]))
        inv_freq = [100.0 ** (-2 * i / rotary) for i in range(rotary // 2)]
        style = list(RopeStyle)[rng.integers(2)]
        values[rows].append(b.rope(pick(rows), head_dim=HEAD_DIM, style=style, inv_freq=inv_freq))

    def attention(rows: Rows) -> None:
        nonlocal num_layers
        q, k, v = (pick(rows) for _ in range(3))
        if rng.random() < 0.5:
            rope(rows)
            q = values[rows][-1]
        if rng.random() < 0.5:
            rope(rows)
            k = values[rows][-1]
        out = b.paged_attention(q, k.columns(32, 32), v.columns(0, 32), layer=num_layers, num_heads=2, num_kv_heads=1, head_dim=HEAD_DIM)
        num_layers += 1
        values[rows].append(out)

    def add(rows: Rows) -> None:
        values[rows].append(b.add(pick(rows), pick(rows)))

    def silu(rows: Rows) -> None:
        values[rows].append(b.silu_mul(normed(rows), pick(rows)))

    def select(rows: Rows) -> None:
        values[Rows.LOGITS].append(b.select_rows(pick(rows)))

    values[Rows.TOKENS].append(b.embedding(weight((VOCAB, WIDTH), TensorType.F32), VOCAB, WIDTH))
    attention(Rows.TOKENS)
    for _ in range(num_ops):
        if values[Rows.LOGITS] and rng.random() < 0.4:
            [linear, add, silu][rng.integers(3)](Rows.LOGITS)
        else:
            [linear, linear, rope, attention, add, add, silu, select][rng.integers(8)](Rows.TOKENS)
    select(Rows.TOKENS)
    x = b.add(pick(Rows.LOGITS), pick(Rows.LOGITS))
    x = b.rms_norm(x, weight((WIDTH,)), 1e-5)
    return b.build(b.linear(x, {weight((37, WIDTH)): 37})), tensors


def run(backend: Backend, program: Program, tensors: dict[str, Tensor], num_threads: int = 1) -> np.ndarray:
    driver = Driver(compile_program(backend, program, tensors, num_threads=num_threads))
    rng = np.random.default_rng(0)
    sequences = [driver.sequence(rng.integers(0, VOCAB, n + 4)) for n in (1, 17, 20)]
    first = driver.run([(s, n) for s, n in zip(sequences, (1, 17, 20), strict=True)], logits_rows=[0, 2, 9, 17, 18, 37])
    second = driver.run([(s, 4) for s in sequences])
    driver.exe.close()
    return np.concatenate([first, second])


@pytest.mark.parametrize("seed", range(40))
def test_float_weights(native: Backend, reference: Backend, seed: int) -> None:
    program, tensors = random_program(np.random.default_rng(seed), FLOAT_TYPES)
    want = run(reference, program, tensors)
    got = run(native, program, tensors, num_threads=1 + seed % 2)
    scale = np.sqrt((want**2).mean(axis=1, keepdims=True))
    assert (np.abs(got - want) < 1e-4 * scale).all(), f"{np.max(np.abs(got - want) / scale):.3g}\n{program}"


@pytest.mark.parametrize("seed", range(40, 80))
def test_any_weights(native: Backend, reference: Backend, seed: int) -> None:
    """int8 activations have edges (see ``test_programs``), so most rows must agree closely, and all of them roughly."""
    program, tensors = random_program(np.random.default_rng(seed), ALL_TYPES)
    want = run(reference, program, tensors)
    got = run(native, program, tensors, num_threads=1 + seed % 2)
    error = np.abs(got - want).max(axis=1) / np.sqrt((want**2).mean(axis=1))
    assert np.quantile(error, 0.3) < 1e-4, f"{np.sort(error)}\n{program}"
    assert error.max() < 0.3, f"{np.sort(error)}\n{program}"
