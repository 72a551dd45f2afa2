"""A tiny deterministic "model" whose every logit depends on every slot that its row sees.

It stands in for a backend where the engine's own behaviour is tested: a block that is stale, swapped for another,
overwritten or read before it was written changes the tokens, or fails at once.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from octavo.backends.base import ChoiceBatch, Choices, CompileOptions, Executable, Float32Array, Int32Array, StepInput, UInt8Array
from octavo.backends.reference.choice import choose
from octavo.config import EngineConfig
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.loader import LoadedModel
from octavo.kv import scope_hash

VOCAB = 64
EOS = 0
BLOCK = 16
UNWRITTEN = -1
MAX_MODEL_LEN = 400
_MODULUS = (1 << 61) - 1


def toy_logits(token_ids: list[int]) -> Float32Array:
    """The model itself: (VOCAB,) logits of what follows these tokens."""
    digest = 0
    for token in token_ids:
        digest = (digest * 1_000_003 + token + 7) % _MODULUS
    values = np.random.default_rng(digest).normal(size=VOCAB).astype(np.float32)
    values[EOS] -= 1.0
    return values


class ToyExecutable(Executable):
    def __init__(self, num_threads: int = 1) -> None:
        self.program = cast(Any, SimpleNamespace(vocab_size=VOCAB, max_model_len=MAX_MODEL_LEN))
        self.options = CompileOptions(BLOCK, "fp32", 512, 64, MAX_MODEL_LEN, num_threads)
        self.computed_tokens: list[int] = []
        self.poisonous_token: int | None = None
        self.nan_token: int | None = None

    kv_block_bytes = BLOCK * 8
    weight_bytes = 0
    isa = "toy"

    def allocate_kv(self, num_blocks: int, *, fill_nan: bool = False) -> None:
        self.slots = np.full((num_blocks, BLOCK), UNWRITTEN, np.int64)

    def run(self, step: StepInput) -> Float32Array:
        if self.poisonous_token is not None and self.poisonous_token in step.token_ids:
            raise RuntimeError("the poisonous token was computed")
        self.computed_tokens += step.token_ids.tolist()
        assert len(set(step.slot_mapping.tolist())) == len(step.slot_mapping), "two tokens are written to one slot"
        self.slots.reshape(-1)[step.slot_mapping] = step.token_ids
        logits = []
        for row in step.logits_rows:
            s = int(np.searchsorted(step.query_start_loc, row, side="right")) - 1
            length = int(step.positions[row]) + 1
            table = step.block_tables[s, : -(-length // BLOCK)]
            seen = self.slots[table].reshape(-1)[:length]
            assert (seen != UNWRITTEN).all(), "a slot is read before it was written"
            values = toy_logits(seen.tolist())
            if self.nan_token is not None and self.nan_token in seen:
                values[3] = np.nan
            logits.append(values)
        return np.array(logits, np.float32).reshape(len(step.logits_rows), VOCAB)

    def choose(self, logits: Float32Array, batch: ChoiceBatch) -> Choices:
        return choose(logits, batch)

    def copy_blocks(self, pairs: Int32Array) -> None:
        for source, destination in pairs:
            self.slots[destination] = self.slots[source]

    def read_block(self, block: int) -> UInt8Array:
        return self.slots[block].view(np.uint8).copy()

    def write_block(self, block: int, data: UInt8Array) -> None:
        self.slots[block] = data.view(np.int64)


def toy_engine(num_blocks: int = 4096, **config: Any) -> LLMEngine:
    executable = ToyExecutable()
    executable.allocate_kv(num_blocks)
    tokenizer = SimpleNamespace(
        eos_token_ids=frozenset({EOS}),
        special_ids=frozenset({EOS}),
        token_bytes=lambda i: b"%d " % i,
        first_token_bytes=lambda i: b"%d " % i,
        encode=lambda text, **_: list(text.encode()),
    )
    model = LoadedModel(
        name="toy",
        program=executable.program,
        executable=executable,
        tokenizer=cast(Any, tokenizer),
        chat_template=None,
        num_blocks=num_blocks,
        root=scope_hash(model="toy"),
        fingerprint="toy",
        load_s=0.0,
    )
    return LLMEngine(model, EngineConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_step_ms": 1e9, **config}))
