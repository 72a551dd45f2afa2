"""Thinking and answer apart in chat: any answer cut in any way, then a real model that is shown how to think by its template."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.outputs import CompletionOutput, RequestOutput
from octavo.server.chat import ChatAnswer
from octavo.server.generation import Account
from octavo.server.protocol import ChatCompletionRequest
from octavo.text import AnswerSplitter, ChatTemplate, ReasoningTags, Thinking, find_thinking, load_tokenizer, split_reasoning
from octavo.text.reasoning import REASONING_TAGS
from octavo.weights import Checkpoint

from .process import ServerProcess, running_server

THINK = ReasoningTags("<think>", "</think>")
CONTROL = ("<|end|>", "<|end_of_all|>", "<s>", "</s>", "[THINK]", "[/THINK]")


@st.composite
def answers(draw: st.DrawFn, tags: ReasoningTags) -> list[str]:
    """An answer in pieces, made of tags, parts of tags, and other text."""
    bits = [tags.opening, tags.closing, tags.answer, *CONTROL, "<", "</", "[", " ", "\n", "a", "think", "é", "|>"]
    whole = draw(st.booleans()) * tags.opening + "".join(draw(st.lists(st.sampled_from(bits), max_size=12)))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(data=st.data(), tags=st.sampled_from(REASONING_TAGS), opened=st.booleans())
def test_pieces_give_what_the_whole_gives(data: st.DataObject, tags: ReasoningTags, opened: bool) -> None:
    pieces = data.draw(answers(tags))
    splitter = AnswerSplitter(tags, opened=opened)
    parts = [splitter.push(piece, finished=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    assert ("".join(r for r, _ in parts), "".join(c for _, c in parts)) == split_reasoning("".join(pieces), tags, opened=opened)


@given(data=st.data())
def test_control_tokens_are_hidden_wherever_they_are_cut(data: st.DataObject) -> None:
    """As if they were taken out of each part of the whole answer, at each place the longest, from left to right."""
    tags = ReasoningTags("[THINK]", "[/THINK]")
    pieces = data.draw(answers(tags))
    splitter = AnswerSplitter(tags, hidden=CONTROL)
    parts = [splitter.push(piece, finished=i == len(pieces) - 1) for i, piece in enumerate(pieces)]

    def without(text: str) -> str:
        kept = ""
        while text:
            longest = max((token for token in CONTROL if text.startswith(token)), key=len, default="")
            kept += "" if longest else text[0]
            text = text[len(longest) or 1 :]
        return kept

    reasoning, content = split_reasoning("".join(pieces), tags)
    assert ("".join(r for r, _ in parts), "".join(c for _, c in parts)) == (without(reasoning), without(content))


def output(pieces: dict[int, str], finished: bool) -> list[tuple[int, RequestOutput]]:
    branches = [CompletionOutput(i, text, [1], finish_reason="stop" if finished else None) for i, text in pieces.items()]
    return [(0, RequestOutput("r", None, [1], branches, finished))]


async def streamed(answer: ChatAnswer, branches: list[list[str]]) -> list[dict[str, Any]]:
    async def batches() -> AsyncGenerator[list[tuple[int, RequestOutput]], None]:
        for step in range(max(map(len, branches))):
            for index, pieces in enumerate(branches):
                if step < len(pieces):
                    yield output({index: pieces[step]}, step == len(pieces) - 1)

    events = b"".join([event async for event in answer.events(batches())]).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [choice for event in events[:-2] for choice in json.loads(event.removeprefix("data: "))["choices"]]


@settings(max_examples=50)
@given(branches=st.lists(answers(THINK), min_size=1, max_size=3), include=st.sampled_from([None, True, False]), opened=st.booleans())
async def test_streams_and_whole_answers_say_the_same(branches: list[list[str]], include: bool | None, opened: bool) -> None:
    """The splits of several branches are their own; no chunk has both kinds of text; an answer that is not to be shown never is."""
    service: Any = SimpleNamespace(llm=SimpleNamespace(model_name="m", system_fingerprint="f", tokenizer=None))
    prompt = "Answer:<think>\n" if opened else "Answer:"

    def new(stream: bool) -> ChatAnswer:
        request = ChatCompletionRequest.model_validate(
            {"messages": [{"role": "user", "content": "x"}], "include_reasoning": include, "stream": stream}
        )
        return ChatAnswer(service, request, [1], Account(), Thinking(THINK).splitter_for(prompt))

    choices = await streamed(new(True), branches)
    whole = json.loads(bytes(new(False).whole(output(dict(enumerate(map("".join, branches))), True)[0][1]).body))["choices"]
    for index, pieces in enumerate(branches):
        reasoning, content = split_reasoning("".join(pieces), THINK, opened=opened)
        shown = reasoning if include is not False else ""
        message = whole[index]["message"]
        assert message["content"] == content
        assert message.get("reasoning_content", None) == (shown or None)
        assert ("reasoning_content" in message) == (include is not False)
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert not any(delta.get("content") and delta.get("reasoning_content") for delta in deltas)
        assert "".join(delta.get("content", "") for delta in deltas) == content
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == shown
        assert [choice["finish_reason"] for choice in choices if choice["index"] == index].count("stop") == 1


@pytest.mark.parametrize(
    ("prompt", "said", "answer", "expected"),
    [
        ("A:<think>\n", "", "Hm.</think>Yes", ("Hm.", "Yes")),
        ("A:<think>\n\n</think>\n\n", "", "Yes", ("", "Yes")),
        ("A:<think>Well,", "<think>Well,", " hm.</think>Yes", ("hm.", "Yes")),
        ("A:<think>Hm.</think>Ye", "<think>Hm.</think>Ye", "s", ("", "s")),
        ("What does <think> mean? A:", "", "It is a tag.", ("", "It is a tag.")),
    ],
)
def test_where_the_answer_begins(prompt: str, said: str, answer: str, expected: tuple[str, str]) -> None:
    """In the middle of the thinking if the prompt has opened it, or the message that is continued has not closed it."""
    assert Thinking(THINK).splitter_for(prompt, said)().push(answer, finished=True) == expected


def test_who_thinks(smollm2: Checkpoint) -> None:
    tokenizer = load_tokenizer(smollm2)
    assert find_thinking(None, tokenizer) is None
    assert find_thinking(ChatTemplate("{{ messages[0].content }}"), tokenizer) is None
    assert find_thinking(ChatTemplate("{{ messages[0].content.split('</think>')[-1] }}"), tokenizer) == Thinking(THINK)
    tokens: Any = SimpleNamespace(
        vocab_size=3,
        special_ids={1},
        id_to_token=["<think>", "</think>", "a"].__getitem__,
        token_bytes=[b"<think>", b"</think>"].__getitem__,
    )
    assert find_thinking(ChatTemplate("{{ messages[0].content }}"), tokens) == Thinking(THINK, frozenset({"</think>"}))


def shown_by_example(opening: str, closing: str, special: bool) -> str:
    """Python for a server whose model thinks because its template shows it how; ``special`` makes control tokens of the tags."""
    sums = ((2, 3), (1, 1), (4, 2))
    examples = "".join(
        f"Q: What is {a} + {b}?\nA:\n{opening}I add {a} and {b}. That makes {a + b}.\n{closing}The answer is {a + b}.\n" for a, b in sums
    )
    source = examples + "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:\n{% if opened %}" + opening + "{% endif %}"
    return f"""
import octavo.engine.loader as loader
import octavo.text.reasoning as reasoning
from octavo.text import ChatTemplate, ReasoningTags, Tokenizer

reasoning.REASONING_TAGS = (ReasoningTags({opening!r}, {closing!r}),)
loader.load_chat_template = lambda checkpoint: ChatTemplate({source!r})
adopt = Tokenizer._adopt

def adopt_with_tags(self, parts):
    adopt(self, parts)
    if {special}:
        self.special_ids |= {{self.encode({opening!r}, add_special_tokens=False)[0], self.encode({closing!r}, add_special_tokens=False)[0]}}

Tokenizer._adopt = adopt_with_tags
"""


@pytest.fixture(scope="module", params=["text", "control tokens"])
def thinker(request: pytest.FixtureRequest, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tags = {"text": ("<think>", "</think>"), "control tokens": ("[[", "]]")}[request.param]
    prelude = shown_by_example(*tags, special=request.param == "control tokens")
    with running_server(tmp_path_factory.mktemp("thinker") / "log", prelude=prelude) as server:
        yield server
        assert "Traceback" not in server.log, server.log


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "What is 3 + 3?"}], "temperature": 0, "max_tokens": 60, "stop": "\nQ", **fields}


def ask(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body(**fields), timeout=60)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


@pytest.mark.parametrize("opened", [False, True])
def test_a_model_that_thinks(thinker: ServerProcess, opened: bool) -> None:
    choice = ask(thinker, chat_template_kwargs={"opened": opened})
    assert choice["message"]["reasoning_content"] == "I add 3 and 3. That makes 6."
    assert choice["message"]["content"] == "The answer is 6."
    assert choice["finish_reason"] == "stop"


def test_its_stream(thinker: ServerProcess) -> None:
    """By the official client, and with token ids and log-probabilities, which belong to all tokens."""
    whole = ask(thinker, return_token_ids=True)
    with thinker.client() as client:
        stream: Any = client.chat.completions.create(
            model="smollm2-135m-instruct",
            **{key: value for key, value in body(stream=True, logprobs=True).items() if key != "model"},
            extra_body={"return_token_ids": True},
        )
        choices = [choice for chunk in stream for choice in chunk.choices]
    assert "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in choices) == whole["message"]["reasoning_content"]
    assert "".join(choice.delta.content or "" for choice in choices) == whole["message"]["content"]
    ids = [i for choice in choices for i in getattr(choice, "token_ids", None) or []]
    assert ids == whole["token_ids"]
    assert sum(len(choice.logprobs.content) for choice in choices if choice.logprobs) == len(ids)


def test_thinking_that_is_not_wanted(thinker: ServerProcess) -> None:
    whole = ask(thinker, include_reasoning=False)
    assert whole["message"] == {"role": "assistant", "content": "The answer is 6.", "refusal": None}
    with httpx.stream(
        "POST", f"{thinker.url}/v1/chat/completions", json=body(include_reasoning=False, stream=True), timeout=60
    ) as response:
        text = response.read().decode()
    assert "reasoning_content" not in text
    assert "add" not in text


def test_thinking_that_does_not_end(thinker: ServerProcess) -> None:
    choice = ask(thinker, max_tokens=6)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert "I add 3 and 3. That makes 6.".startswith(choice["message"]["reasoning_content"])


def test_an_answer_handed_back(thinker: ServerProcess) -> None:
    message = ask(thinker)["message"]
    assert ask(thinker, messages=[*body()["messages"], message, {"role": "user", "content": "What is 2 + 2?"}])["message"]["content"]


def test_models_that_do_not_think_have_no_such_field(server: ServerProcess) -> None:
    for include in (None, True, False):
        message = ask(server, include_reasoning=include, max_tokens=2)["message"]
        assert set(message) == {"role", "content", "refusal"}
