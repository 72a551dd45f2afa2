"""Splitting thinking from answers piece by piece equals splitting the whole, and never shows a part of a tag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.reasoning import (
    REASONING_TAGS,
    ReasoningSplitter,
    ReasoningTags,
    opens_reasoning,
    reasoning_tags,
    split_reasoning,
)

THINK, GPT_OSS = REASONING_TAGS[0], next(tags for tags in REASONING_TAGS if tags.answer)
KINDS = st.sampled_from(REASONING_TAGS)


@st.composite
def answers(draw: st.DrawFn) -> tuple[ReasoningTags, str, list[int]]:
    """Tags, a text made of them, of parts of them and of other things, and where to cut it."""
    tags = draw(KINDS)
    whole = [tags.opening, tags.closing, tags.answer or "x"]
    parts = st.one_of(
        st.sampled_from([*whole, " ", "\n", "\n\n", "a", "hm, wait", "<", "</", "é", "<|start|>assistant"]),
        st.builds(lambda tag, end: tag[:end], st.sampled_from(whole), st.integers(0, 12)),
    )
    text = "".join(draw(st.lists(parts, max_size=10)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return tags, text, cuts


@given(answer=answers(), opened=st.booleans(), every_kind=st.booleans())
def test_pieces_give_the_whole(answer: tuple[ReasoningTags, str, list[int]], opened: bool, every_kind: bool) -> None:
    tags, text, cuts = answer
    choices = (tags, *REASONING_TAGS) if every_kind else tags
    splitter = ReasoningSplitter(choices, opened=opened)
    for _ in range(2):  # a flushed splitter is as good as new
        deltas = [splitter.push(text[start:end]) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert "".join(delta.reasoning for delta in deltas) == "".join(delta.reasoning for delta in deltas).lstrip()
        deltas.append(splitter.flush())
        whole = ("".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas))
        assert whole == split_reasoning(text, choices, opened=opened)


@given(tags=KINDS, thinking=st.text(), content=st.text(), before=st.sampled_from(["", "\n", "  "]), opened=st.booleans())
def test_no_part_of_a_tag_is_shown(tags: ReasoningTags, thinking: str, content: str, before: str, opened: bool) -> None:
    if tags.closing in thinking + tags.closing[:-1]:
        return
    between = f"<|start|>assistant{tags.answer}" if tags.answer else "\n\n"
    text = (before if opened else before + tags.opening) + "\n" + thinking + "\n" + tags.closing + between + content
    splitter = ReasoningSplitter(tags, opened=opened)
    reasoning, answer = "", ""
    for character in text:
        delta = splitter.push(character)
        reasoning += delta.reasoning
        answer += delta.content
        assert thinking.strip().startswith(reasoning) or thinking.strip().startswith(tags.opening)
        assert content.lstrip().startswith(answer)
    assert answer == content.lstrip()
    if not thinking.strip().startswith(tags.opening):
        assert reasoning == thinking.strip()


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nFour.", False, ("Hm.", "Four.")),
        ("Hm.\n</think>\n\nFour.", True, ("Hm.", "Four.")),
        ("<think>\nHm.</think>Four.", True, ("Hm.", "Four.")),
        ("<think>\n\n</think>\n\nFour.", False, ("", "Four.")),
        ("\n<think>Hm", False, ("Hm", "")),
        (" The tag is <think>…</think>.", False, ("", " The tag is <think>…</think>.")),
        ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
        ("<thi", False, ("", "<thi")),
        ("[THINK]a[/THINK]b", False, ("a", "b")),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.", False, ("Hm.", "Four.")),
        ("<|channel|>final<|message|>Four.", False, ("", "Four.")),
        ("<|channel>thought\nHm.<channel|>Four.", False, ("Hm.", "Four.")),
        ("", False, ("", "")),
        ("", True, ("", "")),
    ],
)
def test_examples(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split_reasoning(text, opened=opened) == expected
    splitter = ReasoningSplitter(opened=opened)
    deltas = [*map(splitter.push, text), splitter.flush()]
    assert ("".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas)) == expected


def test_answers_are_not_held_back() -> None:
    splitter = ReasoningSplitter(THINK)
    assert splitter.push("Four").content == "Four"
    assert splitter.push(" <").content == " <"


def test_what_templates_and_prompts_say() -> None:
    assert reasoning_tags("{{ messages }}") is None
    assert reasoning_tags("{% if '</think>' in content %}") == THINK
    assert reasoning_tags("{{ '<|channel|>analysis<|message|>' }}") == GPT_OSS
    assert reasoning_tags("<|user|>{{ content }}<|end|>") is None, "<|end|> alone ends turns of other models"
    assert opens_reasoning("<|im_start|>assistant\n<think>\n", THINK)
    assert not opens_reasoning("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", THINK)
    assert not opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", THINK)
