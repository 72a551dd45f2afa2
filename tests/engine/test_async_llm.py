"""``AsyncLLM``: streams, cancellation, refusals and the engine's death, over the toy model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from octavo.decoding import RequestOutputKind, SamplingParams
from octavo.engine.async_llm import AsyncLLM, EngineDeadError
from octavo.engine.outputs import RequestOutput
from tests.engine.toy import toy_engine

pytestmark = pytest.mark.asyncio


def params(max_tokens: int, kind: RequestOutputKind = RequestOutputKind.DELTA, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False, seed=1, output_kind=kind, **more)  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def llm() -> AsyncIterator[AsyncLLM]:
    with AsyncLLM.from_engine(toy_engine()) as llm:
        yield llm


async def collect(llm: AsyncLLM, prompt: list[int], p: SamplingParams) -> list[RequestOutput]:
    return [output async for output in llm.generate({"prompt_token_ids": prompt}, p)]


async def blocks_are_freed(llm: AsyncLLM) -> None:
    for _ in range(500):
        if llm.engine.scheduler.kv.num_used_blocks == 0 and not llm.engine.has_unfinished_requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("blocks are still in use")


async def test_the_three_kinds_of_output_tell_the_same(llm: AsyncLLM) -> None:
    deltas = await collect(llm, [1, 2, 3], params(12))
    whole = await collect(llm, [1, 2, 3], params(12, RequestOutputKind.CUMULATIVE))
    final = await collect(llm, [1, 2, 3], params(12, RequestOutputKind.FINAL_ONLY))
    tokens = [token for output in deltas for token in output.outputs[0].token_ids]
    lengths = [len(output.outputs[0].token_ids) for output in whole]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 12
    assert tokens == whole[-1].outputs[0].token_ids == final[0].outputs[0].token_ids
    assert len(final) == 1
    assert [output.finished for output in deltas] == [False] * 11 + [True]


async def test_many_streams_at_once_give_what_each_gives_alone(llm: AsyncLLM) -> None:
    prompts = [[1 + i % 7] * (1 + i) for i in range(50)]
    alone = [await collect(llm, prompt, params(8)) for prompt in prompts[:10]]
    together = await asyncio.gather(*(collect(llm, prompt, params(8)) for prompt in prompts))
    assert [[o.outputs[0].token_ids for o in outputs] for outputs in alone] == [
        [o.outputs[0].token_ids for o in outputs] for outputs in together[:10]
    ]
    await blocks_are_freed(llm)


async def test_leaving_a_stream_frees_its_blocks(llm: AsyncLLM) -> None:
    stream = llm.generate({"prompt_token_ids": [1] * 40}, params(300, n=3))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await blocks_are_freed(llm)
    task = asyncio.create_task(collect(llm, [1] * 40, params(300)))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await blocks_are_freed(llm)


async def test_abort_ends_the_stream_with_a_last_output(llm: AsyncLLM) -> None:
    outputs = []
    async for output in llm.generate({"prompt_token_ids": [1, 2]}, params(300), "mine"):
        outputs.append(output)
        if len(outputs) == 2:
            await llm.abort("mine")
            await llm.abort("nobody's")
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert outputs[-1].finished
    await blocks_are_freed(llm)


@pytest.mark.parametrize("prompt", [[], [1] * 400, [64], [-1]])
async def test_a_request_that_cannot_be_served_is_refused_and_others_go_on(llm: AsyncLLM, prompt: list[int]) -> None:
    good = asyncio.create_task(collect(llm, [1, 2, 3], params(20)))
    with pytest.raises(ValueError, match="prompt"):
        await collect(llm, prompt, params(4))
    assert (await good)[-1].finished


async def test_a_dead_engine_says_so_to_everybody(llm: AsyncLLM) -> None:
    def fail() -> None:
        raise RuntimeError("struck by lightning")

    task = asyncio.create_task(collect(llm, [1], params(390)))
    await asyncio.sleep(0.02)
    llm._commands.put(fail)
    with pytest.raises(EngineDeadError, match="struck by lightning"):
        await task
    assert not llm.is_running
    with pytest.raises(EngineDeadError):
        await collect(llm, [1], params(1))


async def test_shutdown_ends_what_is_under_way() -> None:
    llm = AsyncLLM.from_engine(toy_engine())
    task = asyncio.create_task(collect(llm, [1], params(390)))
    await asyncio.sleep(0.02)
    await asyncio.to_thread(llm.shutdown)
    assert (await task)[-1].outputs[0].finish_reason in ("abort", "length")
    with pytest.raises(EngineDeadError):
        await collect(llm, [1], params(1))


async def test_an_id_may_be_used_again_at_once(llm: AsyncLLM) -> None:
    for _ in range(30):
        stream = llm.generate({"prompt_token_ids": [1] * 20}, params(300), "mine")
        assert (await anext(stream)).request_id == "mine"
        await stream.aclose()  # type: ignore[attr-defined]
        outputs = [output async for output in llm.generate({"prompt_token_ids": [2, 3]}, params(3), "mine")]
        assert outputs[-1].outputs[0].finish_reason == "length"
    stream = llm.generate({"prompt_token_ids": [2, 3]}, params(300), "twice")
    await anext(stream)
    again = llm.generate({"prompt_token_ids": [2, 3]}, params(3), "twice")
    with pytest.raises(ValueError, match="under way"):
        await anext(again)
    await stream.aclose()  # type: ignore[attr-defined]
    await blocks_are_freed(llm)


async def test_a_slow_reader_of_cumulative_outputs_holds_one(llm: AsyncLLM) -> None:
    stream = llm.generate({"prompt_token_ids": [1, 2]}, params(300, RequestOutputKind.CUMULATIVE))
    await anext(stream)
    while llm.engine.has_unfinished_requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    rest = [len(output.outputs[0].token_ids) async for output in stream]
    assert rest == [300]
