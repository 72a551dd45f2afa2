"""Law 1 through the whole engine and the native kernels: a sequence's logits are the same bits alone and in any company,
whole or in chunks, from cache or computed, after preemption and fork, on any number of threads, over a poisoned cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.backends import get_backend
from octavo.backends.base import ChoiceBatch, CompileOptions, Float32Array
from octavo.config import EngineConfig, KVDType
from octavo.decoding import SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.loader import LoadedModel
from octavo.engine.model_runner import ChosenToken, Drafts, ModelRunner
from octavo.engine.sequence import Sequence
from octavo.engine.steady_batch import Owner
from octavo.kv import scope_hash
from octavo.models import build_program
from octavo.program import Program
from octavo.weights import Checkpoint, Tensor, TensorType
from tests.conformance.programs import LittleLlama

Key = tuple[str, int, int]
"""(request, branch, position of the token that the logits are for)."""


class RecordingRunner(ModelRunner):
    """Keeps the bytes of every logits row, and insists that a row computed twice is the same both times."""

    def __init__(self, engine: LLMEngine) -> None:
        super().__init__(engine.model.executable)
        self.logits: dict[Key, bytes] = {}

    def draw(
        self, owners: list[Owner], batch: ChoiceBatch, logits: Float32Array, drafts: Drafts
    ) -> tuple[dict[Sequence, list[ChosenToken]], dict[Sequence, str]]:
        chosen, errors = super().draw(owners, batch, logits, drafts)
        rows: dict[Sequence, list[int]] = {}
        for (sequence, _), row in zip(owners, batch.rows.tolist(), strict=True):
            if row not in rows.setdefault(sequence, []):
                rows[sequence].append(row)
        for sequence, its_rows in rows.items():
            for ahead, row in enumerate(its_rows):
                if sequence in drafts and ahead >= len(chosen[sequence]):
                    continue  # behind a token that was not chosen
                key = (sequence.request.request_id, sequence.branch, sequence.num_tokens + ahead)
                assert self.logits.setdefault(key, logits[row].tobytes()) == logits[row].tobytes()
        return chosen, errors


def make_engine(
    program: Program,
    tensors: dict[str, Tensor],
    *,
    num_blocks: int = 600,
    num_threads: int = 1,
    kv_dtype: KVDType = "fp16",
    **config: Any,
) -> LLMEngine:
    options = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "max_step_ms": 1e9, **config}
    num_rows = options["max_num_seqs"] + 12
    limits = CompileOptions(16, kv_dtype, options["max_num_batched_tokens"], num_rows, program.max_model_len, num_threads)
    executable = get_backend("native").compile(program, tensors, limits)
    executable.allocate_kv(num_blocks, fill_nan=True)
    tokenizer = cast(Any, SimpleNamespace(eos_token_ids=frozenset(), token_bytes=lambda i: b""))
    model = LoadedModel("little", program, executable, tokenizer, None, num_blocks, scope_hash(model="little"), "little", 0.0)
    engine = LLMEngine(model, EngineConfig(**options))
    engine.runner = RecordingRunner(engine)
    return engine


@dataclass(frozen=True)
class Job:
    prompt: tuple[int, ...]
    params: SamplingParams
    at_step: int = 0


def run(engine: LLMEngine, jobs: list[Job]) -> tuple[dict[Key, bytes], dict[str, list[list[int]]]]:
    """All logits, and the tokens of each request's branches."""
    tokens: dict[str, list[list[int]]] = {}
    step = 0
    while engine.has_unfinished_requests or step <= max(job.at_step for job in jobs):
        for number, job in enumerate(jobs):
            if job.at_step == step:
                engine.add_request(str(number), {"prompt_token_ids": list(job.prompt)}, job.params)
        for output in engine.step():
            if output.finished:
                assert output.error is None
                tokens[output.request_id] = [branch.token_ids for branch in output.outputs]
        engine.check_integrity()
        step += 1
    assert engine.scheduler.kv.num_used_blocks == 0
    assert isinstance(engine.runner, RecordingRunner)
    return engine.runner.logits, tokens


def check(engine: LLMEngine, jobs: list[Job], alone: LLMEngine) -> None:
    """Every row of ``engine``'s logits equals the row of the same request run by itself."""
    logits, tokens = run(engine, jobs)
    for number, job in enumerate(jobs):
        assert isinstance(alone.runner, RecordingRunner)
        alone.runner.logits = {}
        alone_logits, alone_tokens = run(alone, [Job(job.prompt, job.params)])
        assert tokens[str(number)] == alone_tokens["0"]
        mine = {key[1:]: row for key, row in logits.items() if key[0] == str(number)}
        assert mine == {key[1:]: row for key, row in alone_logits.items()}


MIXED = (TensorType.Q4_1, TensorType.Q8_0, TensorType.F16, TensorType.Q4_0, TensorType.F32)
LITTLE = LittleLlama(vocab_size=80, num_heads=6, num_kv_heads=2, linear_types=MIXED, embedding_type=TensorType.Q8_0, max_model_len=700)
PREFIX = tuple((11 * i) % 79 + 1 for i in range(130))


@st.composite
def job(draw: st.DrawFn) -> Job:
    prefix = PREFIX[: draw(st.sampled_from([0, 0, 16, 40, 64, 130]))]
    own = tuple(draw(st.lists(st.integers(0, 79), min_size=1, max_size=70)))
    params = SamplingParams(
        n=draw(st.sampled_from([1, 1, 2, 3])),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 3)),
        max_tokens=draw(st.integers(1, 24)),
        detokenize=False,
    )
    return Job(prefix + own, params, draw(st.integers(0, 5)))


@pytest.mark.parametrize("kv_dtype", get_args(KVDType))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(job(), min_size=1, max_size=6),
    num_blocks=st.integers(20, 60),
    max_num_seqs=st.integers(1, 8),
    extra_budget=st.sampled_from([0, 1, 7, 16, 100, 248]),
    num_threads=st.sampled_from([1, 2, 3]),
    caching=st.booleans(),
    prompt_lookup_tokens=st.sampled_from([0, 5]),
)
def test_logits_are_the_same_bits_alone_and_in_any_crowd(
    kv_dtype: KVDType,
    jobs: list[Job],
    num_blocks: int,
    max_num_seqs: int,
    extra_budget: int,
    num_threads: int,
    caching: bool,
    prompt_lookup_tokens: int,
) -> None:
    program, tensors = LITTLE.build()
    engine = make_engine(
        program,
        tensors,
        num_blocks=num_blocks,
        num_threads=num_threads,
        kv_dtype=kv_dtype,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + extra_budget,
        enable_prefix_caching=caching,
        prompt_lookup_tokens=prompt_lookup_tokens,
    )
    alone = make_engine(program, tensors, kv_dtype=kv_dtype, enable_prefix_caching=False)
    check(engine, jobs, alone)


def test_long_contexts_too(smollm2: Checkpoint) -> None:
    """The real model: contexts across several splits, a shared prefix, a pool that forces preemption, two threads."""
    program = build_program(smollm2)
    tensors = dict(smollm2.tensors)
    shared = [(13 * i) % 40000 + 100 for i in range(600)]
    jobs = [
        Job((*shared, 7, 8, 9), SamplingParams(temperature=0, max_tokens=12, detokenize=False)),
        Job((*shared[:530], 5), SamplingParams(temperature=1, seed=3, n=2, max_tokens=20, detokenize=False), 1),
        Job(tuple(range(200, 240)), SamplingParams(temperature=1, seed=4, max_tokens=40, detokenize=False), 1),
        Job((*shared, *range(300, 345)), SamplingParams(temperature=0, max_tokens=3, detokenize=False), 3),
    ]
    crowd = make_engine(program, tensors, num_blocks=43, num_threads=2, max_num_batched_tokens=96)
    check(crowd, jobs, make_engine(program, tensors, num_threads=1, max_num_batched_tokens=512, enable_prefix_caching=False))
    assert crowd.scheduler.num_preemptions > 0
