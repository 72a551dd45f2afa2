"""What a model's own files say about sampling, and about filling in the middle, as requests meet it: a tiny random model that has both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from octavo import LLM, SamplingParams

from .process import running_server

TINY = Path(__file__).parents[1] / "weights" / "data" / "tiny_llama"
OWN = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
SPELLED = {"<|user|>": "<|fim_prefix|>", "<|assistant|>": "<|fim_suffix|>", "<|pad|>": "<|fim_middle|>"}


@pytest.fixture(scope="module")
def infilling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with three of its tokens spelled as those for filling in the middle."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(TINY, path)
    tokenizer = (path / "tokenizer.json").read_text()
    for old, new in SPELLED.items():
        tokenizer = tokenizer.replace(old, new)
    (path / "tokenizer.json").write_text(tokenizer)
    return path


def served(path: Path, log: Path, *flags: str) -> Any:
    return running_server(log, "--model", str(path), "--served-model-name", "tiny", "--max-model-len", "200", *flags)


@pytest.fixture(scope="module")
def client(infilling: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with served(infilling, tmp_path_factory.mktemp("server") / "log") as server, server.client() as client:
        yield client


def ids(client: openai.OpenAI, **body: Any) -> list[int]:
    extra = {"ignore_eos": True, "return_token_ids": True, **body}
    choice = client.completions.create(model="tiny", prompt="abc", seed=4, max_tokens=40, extra_body=extra).choices[0]
    return choice.token_ids  # type: ignore[attr-defined, no-any-return]


def test_what_is_left_out_is_the_models_own(client: openai.OpenAI) -> None:
    own = ids(client)
    assert own == ids(client, **OWN)
    assert own != ids(client, **NEUTRAL)
    assert ids(client, temperature=0) != own, "what a request says wins"
    assert ids(client, top_k=0, top_p=1) == ids(client, **{**NEUTRAL, "temperature": 0.7})


def test_chat_has_the_same(client: openai.OpenAI) -> None:
    def ask(**body: Any) -> list[int]:
        messages: Any = [{"role": "user", "content": "ab"}]
        extra = {"ignore_eos": True, "return_token_ids": True, **body}
        answer = client.chat.completions.create(model="tiny", messages=messages, seed=4, max_tokens=40, extra_body=extra)
        return answer.choices[0].token_ids  # type: ignore[attr-defined, no-any-return]

    assert ask() == ask(**OWN)
    assert ask() != ask(**NEUTRAL)


def test_the_switch(infilling: Path, tmp_path: Path, client: openai.OpenAI) -> None:
    with served(infilling, tmp_path / "log", "--generation-config", "none") as server, server.client() as other:
        assert ids(other) == ids(client, **NEUTRAL)


@pytest.mark.parametrize(("switch", "fields"), [("auto", OWN), ("none", {}), ("vllm", {})])
def test_offline(switch: Any, fields: dict[str, Any]) -> None:
    with LLM(str(TINY), generation_config=switch, kv_cache_memory_bytes=1 << 20, seed=3) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(**fields)
        assert llm.sampling_defaults == fields
        prompt = {"prompt_token_ids": [5, 6, 7]}
        seeded = [SamplingParams(**fields, seed=3), SamplingParams(**fields, seed=4)]
        assert [o.outputs[0].token_ids for o in llm.generate([prompt, prompt])] == [  # type: ignore[list-item]
            o.outputs[0].token_ids
            for o in llm.generate([prompt, prompt], seeded)  # type: ignore[list-item]
        ]


def test_a_wrong_switch_is_refused() -> None:
    with pytest.raises(ValueError, match="generation_config='here' is invalid"):
        LLM(str(TINY), generation_config="here")


# -- filling in the middle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_suffix_becomes_a_prompt_with_a_gap(client: openai.OpenAI, infilling: Path, stream: bool) -> None:
    vocabulary = {t["content"]: t["id"] for t in json.loads((infilling / "tokenizer.json").read_text())["added_tokens"]}
    answer: Any = client.completions.create(
        model="tiny", prompt=["ab", "c"], suffix="xyz", max_tokens=4, temperature=0, stream=stream, extra_body={"return_token_ids": True}
    )
    parts = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    prompts: dict[int, list[int]] = {}
    for choice in parts:
        prompts.setdefault(choice.index, getattr(choice, "prompt_token_ids", None) or [])
    prefix, suffix, middle = (vocabulary[text] for text in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
    byte = {c: LETTERS[c] for c in "abcxyz"}
    assert prompts[0] == [prefix, byte["a"], byte["b"], suffix, byte["x"], byte["y"], byte["z"], middle]
    assert prompts[1] == [prefix, byte["c"], suffix, byte["x"], byte["y"], byte["z"], middle]


LETTERS = {token: i for token, i in json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"].items() if len(token) == 1}


def test_tokens_of_the_gap_end_the_middle(client: openai.OpenAI) -> None:
    forced = {"logit_bias": {"3": 100}, "suffix": "z"}  # token 3 opens a prompt of this kind
    choice = client.completions.create(model="tiny", prompt="a", max_tokens=5, temperature=0, extra_body=forced).choices[0]
    assert (choice.finish_reason, choice.text) == ("stop", "")
    echoed = client.completions.create(model="tiny", prompt="a", echo=True, max_tokens=5, temperature=0, extra_body=forced).choices[0]
    assert echoed.text == "a"


def test_an_empty_suffix_is_none(client: openai.OpenAI) -> None:
    assert ids(client, suffix="") == ids(client)


def test_what_does_not_go_with_a_suffix(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be combined with suffix"):
        ids(client, suffix="z", truncate_prompt_tokens=2)
    with pytest.raises(openai.BadRequestError, match="context length"):
        ids(client, suffix="z" * 300)
