"""Thinking and answer of a model: ``find_thinking`` says once how it marks them, an ``AnswerSplitter`` takes one branch apart.

Some models spell their tags in control tokens, which are left out of a text. Those are asked for then, and hidden again here once
the tags have done their work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo.text.chat_template import ChatTemplate
from octavo.text.reasoning import REASONING_TAGS, ReasoningSplitter, ReasoningTags, opens_reasoning, reasoning_tags
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Thinking:
    """``control_tokens``: the spellings to hide where ``tags`` are spelled in control tokens; empty where they are ordinary text."""

    tags: ReasoningTags
    control_tokens: frozenset[str] = frozenset()

    @property
    def needs_control_tokens(self) -> bool:
        """Whether the engine's text must keep special tokens for the tags to be seen."""
        return bool(self.control_tokens)

    def splitter_for(self, prompt: str, said: str = "", *, hides_control: bool = True) -> Callable[[], AnswerSplitter]:
        """Makes the splitters of a request's branches. ``said``: the beginning of the message that is continued, if one is;
        ``hides_control``: leave control tokens out, as is usual."""
        opened = opens_reasoning(prompt, self.tags) or said.rfind(self.tags.opening) > said.rfind(self.tags.closing)
        hidden = self.control_tokens if hides_control else frozenset[str]()
        return lambda: AnswerSplitter(self.tags, opened=opened, hidden=hidden)


def find_thinking(template: ChatTemplate | None, tokenizer: Tokenizer) -> Thinking | None:
    """The thinking that the chat template speaks of, or that the vocabulary has both tags for; ``None`` for models that do not think."""
    if template is None:
        return None
    tags = reasoning_tags(template.source)
    if tags is None:
        spelled = {tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)}
        tags = next((tags for tags in REASONING_TAGS if {tags.opening, tags.closing} <= spelled), None)
    if tags is None:
        return None
    control = frozenset(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in tokenizer.special_ids) - {""}
    in_tags = any(token in tag for token in control for tag in (tags.opening, tags.closing, tags.answer))
    return Thinking(tags, control if in_tags else frozenset())


class AnswerSplitter:
    """One branch's text in, reasoning and content out. Not thread-safe."""

    def __init__(self, tags: ReasoningTags, *, opened: bool = False, hidden: Iterable[str] = ()) -> None:
        self._splitter = ReasoningSplitter(tags, opened=opened)
        hidden = frozenset(hidden)
        self._eraser = (_Eraser(hidden), _Eraser(hidden)) if hidden else None

    def push(self, text: str, *, finished: bool = False) -> tuple[str, str]:
        """``(reasoning, content)`` that ``text`` made certain; with ``finished``, all that is left."""
        delta = self._splitter.push(text)
        reasoning, content = delta.reasoning, delta.content
        if finished:
            delta = self._splitter.flush()
            reasoning += delta.reasoning
            content += delta.content
        if self._eraser is not None:
            reasoning = self._eraser[0].push(reasoning, finished=finished)
            content = self._eraser[1].push(content, finished=finished)
        return reasoning, content


class _Eraser:
    """Removes strings from a text that streams by. Where several begin at one place, the longest goes."""

    def __init__(self, strings: frozenset[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))))
        self._beginnings = frozenset(string[:end] for string in strings for end in range(1, len(string)))
        self._longest = max(map(len, strings))
        self._held = ""

    def push(self, text: str, *, finished: bool) -> str:
        text = self._held + text
        if finished:
            self._held = ""
            return self._pattern.sub("", text)
        kept, start = [], 0
        for match in self._pattern.finditer(text):
            if text[match.start() :] in self._beginnings:
                break  # of a longer one, perhaps
            kept.append(text[start : match.start()])
            start = match.end()
        first = max(start, len(text) - self._longest + 1)
        held = next((i for i in range(first, len(text)) if text[i:] in self._beginnings), len(text))
        kept.append(text[start:held])
        self._held = text[held:]
        return "".join(kept)
