"""Thinking and answer apart: ``ReasoningSplitter`` for a text that streams in, ``split_reasoning`` for a whole one.

Reasoning models think aloud between two tags (``<think>…</think>`` and its kin) before they answer. Thinking is only looked for at
the beginning of an answer, where models put it, so an answer about ``<think>`` stays whole. White space around the thinking
belongs to neither part. No part of a tag is ever shown: what could still become one is held back until it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """``answer``, if not empty, opens the answer; what stands between ``closing`` and it is dropped."""

    opening: str
    closing: str
    answer: str = ""


REASONING_TAGS: tuple[ReasoningTags, ...] = (
    ReasoningTags("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, GLM, Nemotron, Hunyuan, MiniMax, …
    ReasoningTags("<thinking>", "</thinking>"),
    ReasoningTags("<thought>", "</thought>"),  # EXAONE Deep
    ReasoningTags("<reasoning>", "</reasoning>"),
    ReasoningTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningTags("[THINK]", "[/THINK]"),  # Magistral
    ReasoningTags("◁think▷", "◁/think▷"),  # Kimi
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ReasoningTags("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    ReasoningTags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ReasoningTags("<|channel>thought\n", "<channel|>"),  # Gemma 4
    ReasoningTags("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>"),  # gpt-oss
    ReasoningTags("Here is my thought process:", "Here is my response:"),  # Granite 3
)


def reasoning_tags(template: str) -> ReasoningTags | None:
    """The tags that a chat template speaks of, or ``None``. A template may know only the closing one, where it drops old thinking."""
    for tags in REASONING_TAGS:
        if tags.opening in template or (tags.closing in template and tags.closing != "<|end|>"):
            return tags
        if tags.answer and tags.answer in template:
            return tags
    return None


def opens_reasoning(prompt: str, tags: ReasoningTags) -> bool:
    """Whether ``prompt`` ends with the opening tag, so that the model begins in the middle of its thinking."""
    return prompt.rstrip().endswith(tags.opening.rstrip())


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """New text of either part. An answer begins only when the thinking is over, so in one delta thinking comes first."""

    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """Splits one answer, piece by piece. Not thread-safe; one instance per branch.

    ``tags``: the kinds of thinking to look for. ``opened``: the prompt has opened the first of them already.
    ``"".join`` of what ``push`` and ``flush`` give is what ``split_reasoning`` gives for the whole.
    """

    def __init__(self, tags: ReasoningTags | Sequence[ReasoningTags] = REASONING_TAGS, *, opened: bool = False) -> None:
        self._tags = (tags,) if isinstance(tags, ReasoningTags) else tuple(tags)
        self._opened = opened
        self._state: _State = _Start(self._tags, opened)

    def push(self, text: str) -> ReasoningDelta:
        reasoning, content = "", ""
        state: _State | None = self._state
        while state is not None:
            self._state = state
            delta, state, text = state.push(text)
            reasoning += delta.reasoning
            content += delta.content
        return ReasoningDelta(reasoning, content)

    def flush(self) -> ReasoningDelta:
        """What was held back and can no longer become a tag. Ready for another answer afterwards."""
        delta = self._state.flush()
        self._state = _Start(self._tags, self._opened)
        return delta


def split_reasoning(text: str, tags: ReasoningTags | Sequence[ReasoningTags] = REASONING_TAGS, *, opened: bool = False) -> tuple[str, str]:
    """``(reasoning, content)`` of a whole answer. Thinking that never ends is all reasoning."""
    choices = (tags,) if isinstance(tags, ReasoningTags) else tuple(tags)
    start = text.lstrip()
    found = next((choice for choice in choices if start.startswith(choice.opening)), None)
    if found is None:
        found = choices[0] if opened else None
        body = start
    else:
        body = start[len(found.opening) :]
    if found is None:
        answer = next((choice.answer for choice in choices if choice.answer and start.startswith(choice.answer)), "")
        return "", start[len(answer) :].lstrip() if answer else text
    reasoning, _, rest = body.partition(found.closing)
    if found.answer:
        rest = rest.partition(found.answer)[2]
    return reasoning.strip(), rest.lstrip()


_Step = tuple[ReasoningDelta, "_State | None", str]
"""What became certain, and where the rest of the text goes if the state has changed."""

_NOTHING = ReasoningDelta()


class _State:
    """A stretch of the answer, with the text that it holds back."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> _Step:
        raise NotImplementedError

    def flush(self) -> ReasoningDelta:
        return _NOTHING


class _Start(_State):
    """Before anything but white space, or in the middle of the first tag."""

    def __init__(self, choices: tuple[ReasoningTags, ...], opened: bool) -> None:
        super().__init__()
        self._choices = choices
        self._opened = opened
        self._tags = [choice.opening for choice in choices] + [choice.answer for choice in choices if choice.answer and not opened]

    def push(self, text: str) -> _Step:
        self._held += text
        start = self._held.lstrip()
        for choice in self._choices:
            if start.startswith(choice.opening):
                return _NOTHING, _Thinking(choice), start[len(choice.opening) :]
            if choice.answer and not self._opened and start.startswith(choice.answer):
                return _NOTHING, _Answer(strips=True), start[len(choice.answer) :]
        if any(tag.startswith(start) for tag in self._tags):
            return _NOTHING, None, ""
        if self._opened:
            return _NOTHING, _Thinking(self._choices[0]), start
        return _NOTHING, _Answer(strips=False), self._held

    def flush(self) -> ReasoningDelta:
        return ReasoningDelta(reasoning=self._held.strip()) if self._opened else ReasoningDelta(content=self._held)


class _Thinking(_State):
    """Between the tags. White space waits until something follows it."""

    def __init__(self, tags: ReasoningTags) -> None:
        super().__init__()
        self._tags = tags
        self._begun = False

    def push(self, text: str) -> _Step:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        end = text.find(self._tags.closing)
        if end >= 0:
            after = _Between(self._tags.answer) if self._tags.answer else _Answer(strips=True)
            return ReasoningDelta(reasoning=text[:end].rstrip()), after, text[end + len(self._tags.closing) :]
        certain = text[: len(text) - _held_length(text, self._tags.closing)].rstrip()
        self._held = text[len(certain) :]
        return ReasoningDelta(reasoning=certain), None, ""

    def flush(self) -> ReasoningDelta:
        return ReasoningDelta(reasoning=self._held.rstrip())


class _Between(_State):
    """From the end of the thinking to the tag that opens the answer: dropped."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self._answer = answer

    def push(self, text: str) -> _Step:
        text = self._held + text
        start = text.find(self._answer)
        if start >= 0:
            return _NOTHING, _Answer(strips=True), text[start + len(self._answer) :]
        self._held = text[len(text) - _held_length(text, self._answer) :]
        return _NOTHING, None, ""


class _Answer(_State):
    """All that follows, perhaps without the white space in front of it."""

    def __init__(self, *, strips: bool) -> None:
        super().__init__()
        self._strips = strips

    def push(self, text: str) -> _Step:
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        return ReasoningDelta(content=text), None, ""


def _held_length(text: str, tag: str) -> int:
    """How much of ``text``'s end could be the beginning of ``tag``."""
    return next((length for length in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:length])), 0)
