"""The laws, on the engine alone: whatever the company, the order, the chunks, the cache and the pressure, a request
gives what it gives alone; every reference is counted; no token is lost or emitted twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.decoding import RequestOutputKind, SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.outputs import RequestOutput
from tests.engine.toy import VOCAB, toy_engine


@dataclass(frozen=True)
class Job:
    prompt: tuple[int, ...]
    params: SamplingParams
    at_step: int
    abort_at_step: int | None


_PREFIXES = [tuple((7 * i + k) % (VOCAB - 1) + 1 for i in range(75)) for k in (1, 2)]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    prefix = draw(st.sampled_from([(), _PREFIXES[0], _PREFIXES[1], _PREFIXES[0][:32], _PREFIXES[0][:33]]))
    own = tuple(draw(st.lists(st.integers(1, VOCAB - 1), min_size=0 if prefix else 1, max_size=20)))
    max_tokens = draw(st.integers(1, 40))
    params = SamplingParams(
        n=draw(st.sampled_from([1, 1, 1, 2, 3, 5])),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.5])),
        top_k=draw(st.sampled_from([0, 5])),
        seed=draw(st.integers(0, 5)),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        logprobs=draw(st.sampled_from([None, 2])),
        ignore_eos=draw(st.booleans()),
        allowed_token_ids=draw(st.sampled_from([None, None, [1, 2]])),
        detokenize=False,
        output_kind=draw(st.sampled_from([RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])),
    )
    abort = draw(st.one_of(st.none(), st.none(), st.integers(1, 30)))
    return Job(prefix + own, params, draw(st.integers(0, 6)), abort)


def run(engine: LLMEngine, work: list[Job]) -> dict[int, dict[int, tuple[list[int], list[float], str | None]]]:
    """Per job and branch: tokens, log-probabilities, finish reason, put together from what was streamed."""
    results: dict[int, dict[int, tuple[list[int], list[float], str | None]]] = {}

    def take(output: RequestOutput) -> None:
        number = int(output.request_id)
        delta = work[number].params.output_kind is RequestOutputKind.DELTA
        assert output.error is None
        for branch in output.outputs:
            tokens, logprobs, reason = results.setdefault(number, {}).setdefault(branch.index, ([], [], None))
            assert reason is None or not delta, "a finished branch is emitted again"
            new = [entry[token].logprob for entry, token in zip(branch.logprobs or [], branch.token_ids, strict=False)]
            tokens, logprobs = (tokens + branch.token_ids, logprobs + new) if delta else (list(branch.token_ids), new)
            results[number][branch.index] = (tokens, logprobs, branch.finish_reason)

    step = 0
    while engine.has_unfinished_requests or step <= max(job.at_step for job in work):
        for number, job in enumerate(work):
            if job.at_step == step:
                engine.add_request(str(number), {"prompt_token_ids": list(job.prompt)}, job.params)
            if job.abort_at_step == step and (output := engine.abort_request(str(number))) is not None:
                take(output)
        for output in engine.step():
            take(output)
        engine.check_integrity()
        step += 1
        assert step < 5000, "no progress"
    assert engine.scheduler.kv.num_used_blocks == 0, "blocks are left behind"
    return results


def alone(job: Job) -> dict[int, tuple[list[int], list[float], str | None]]:
    return run(toy_engine(), [replace(job, at_step=0, abort_at_step=None)])[0]


@settings(max_examples=150, deadline=None)
@given(
    work=st.lists(jobs(), min_size=1, max_size=7),
    num_blocks=st.integers(14, 60),
    max_num_seqs=st.integers(1, 8),
    extra_budget=st.sampled_from([0, 1, 15, 16, 17, 64, 200]),
    caching=st.booleans(),
    max_step_ms=st.sampled_from([1e9, 1e-3]),
    prompt_lookup_tokens=st.sampled_from([0, 1, 6]),
)
def test_a_request_gives_the_same_alone_and_in_any_crowd(
    work: list[Job], num_blocks: int, max_num_seqs: int, extra_budget: int, caching: bool, max_step_ms: float, prompt_lookup_tokens: int
) -> None:
    engine = toy_engine(
        num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + extra_budget,
        enable_prefix_caching=caching,
        max_step_ms=max_step_ms,
        prompt_lookup_tokens=prompt_lookup_tokens,
    )
    results = run(engine, work)
    for number, job in enumerate(work):
        for index, (tokens, logprobs, reason) in alone(job).items():
            if number not in results or index not in results[number]:
                assert job.abort_at_step is not None
                continue
            got_tokens, got_logprobs, got_reason = results[number][index]
            if got_reason == "abort" or (got_reason == "length" and len(got_tokens) < job.params.max_tokens):
                assert got_tokens == tokens[: len(got_tokens)]  # aborted, or it outgrew the whole pool
                assert got_logprobs == logprobs[: len(got_logprobs)]
            else:
                assert (got_tokens, got_logprobs, got_reason) == (tokens, logprobs, reason)


def test_a_prefix_is_computed_once_by_requests_that_come_together() -> None:
    engine = toy_engine(max_num_batched_tokens=512)
    prefix = list(range(1, 49))
    for i in range(4):
        engine.add_request(str(i), {"prompt_token_ids": [*prefix, 50 + i]}, SamplingParams(max_tokens=1, detokenize=False))
    while engine.has_unfinished_requests:
        engine.step()
    assert len(engine.model.executable.computed_tokens) == 48 + 4  # type: ignore[attr-defined]


def test_branches_share_the_prompt_and_cost_one_block_each() -> None:
    engine = toy_engine(max_num_batched_tokens=512)
    engine.add_request("a", {"prompt_token_ids": [5] * 100}, SamplingParams(n=8, max_tokens=4, ignore_eos=True, detokenize=False))
    engine.step()
    assert engine.scheduler.kv.num_used_blocks == 7
    engine.step()
    engine.step()
    assert engine.scheduler.kv.num_used_blocks == 6 + 8
    assert engine.scheduler.kv.num_copies == 7
    engine.check_integrity()


def test_a_fault_ends_its_request_alone() -> None:
    engine = toy_engine()
    engine.model.executable.poisonous_token = 63  # type: ignore[attr-defined]
    engine.model.executable.nan_token = 62  # type: ignore[attr-defined]
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
    prompts = {"good": [1, 2, 3], "poison": [4, 63], "nan": [5, 62, 6], "fine": [7, 8]}
    for name, prompt in prompts.items():
        engine.add_request(name, {"prompt_token_ids": prompt}, params)
    outputs = {}
    while engine.has_unfinished_requests:
        outputs |= {output.request_id: output for output in engine.step()}
        engine.check_integrity()
    assert {name: output.outputs[0].finish_reason for name, output in outputs.items()} == {
        "good": "length",
        "poison": "error",
        "nan": "error",
        "fine": "length",
    }
    assert "poisonous" in (outputs["poison"].error or "")
    assert len(outputs["good"].outputs[0].token_ids) == len(outputs["fine"].outputs[0].token_ids) == 5
    assert engine.scheduler.kv.num_used_blocks == 0


def test_what_fails_after_the_step_ends_its_request_alone() -> None:
    engine = toy_engine()

    def token_bytes(token: int) -> bytes:
        if token in broken:
            raise ValueError(f"no text for token {token}")
        return b"x"

    engine.tokenizer.token_bytes = token_bytes  # type: ignore[method-assign]
    params = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
    broken = set(range(VOCAB))
    engine.add_request("broken", {"prompt_token_ids": [1, 2]}, SamplingParams(**params, logprobs=1, n=3))  # type: ignore[arg-type]
    engine.add_request("good", {"prompt_token_ids": [1, 2]}, SamplingParams(**params))  # type: ignore[arg-type]
    outputs = {}
    while engine.has_unfinished_requests:
        outputs |= {output.request_id: output for output in engine.step()}
        engine.check_integrity()
    assert outputs["broken"].outputs[0].finish_reason == "error"
    assert "no text" in (outputs["broken"].error or "")
    assert outputs["good"].outputs[0].finish_reason == "length"


def test_a_branch_that_has_ended_is_not_ended_again_by_an_abort() -> None:
    engine = toy_engine()
    aborted = 0
    for seed in range(20):
        params = SamplingParams(n=2, max_tokens=50, detokenize=False, output_kind=RequestOutputKind.DELTA, temperature=3.0, seed=seed)
        engine.add_request("a", {"prompt_token_ids": [1, 2]}, params)
        ended: list[int] = []
        while not ended:
            ended = [branch.index for output in engine.step() for branch in output.outputs if branch.finished]
        if (output := engine.abort_request("a")) is not None:
            assert not {branch.index for branch in output.outputs} & set(ended)
            aborted += 1
    assert aborted
    assert engine.metrics.registry.get_sample_value("octavo_requests_finished_total", {"reason": "abort"}) == aborted
