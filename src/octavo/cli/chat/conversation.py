"""``Conversation``: what was asked and answered, which part of it still fits the context, and its form in a file.

Turns that no longer fit are left out of the prompt, oldest first, but stay in the conversation and are saved. Once something has to
go, enough goes to leave half of the context free. Dropping a turn changes everything behind it, so that nothing of it is
found in the prefix cache: better seldom and much than at every turn a little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, Any]


@dataclass
class Turn:
    """``thinking`` is a reasoning model's, ``answer`` is ``None`` as long as there is none."""

    question: str
    answer: str | None = None
    thinking: str = ""

    def messages(self) -> list[Message]:
        found: list[Message] = [{"role": "user", "content": self.question}]
        if self.answer is not None:
            thinking = {"reasoning_content": self.thinking} if self.thinking else {}
            found.append({"role": "assistant", "content": self.answer, **thinking})
        return found


@dataclass
class Conversation:
    """``num_forgotten``: how many of the oldest turns the model is no longer shown."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    num_forgotten: int = 0

    def messages(self, first: int = 0) -> list[Message]:
        """The system message and the turns from number ``first`` on, as a chat template takes them."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        return found + [message for turn in self.turns[first:] for message in turn.messages()]

    def shown(self) -> list[Message]:
        """The messages that the model is shown."""
        return self.messages(self.num_forgotten)

    def take_back(self) -> Turn:
        """Removes the last turn and returns it. Raises ``ValueError`` if there is none."""
        if not self.turns:
            raise ValueError("there is nothing to take back: the conversation is empty")
        turn = self.turns.pop()
        self.num_forgotten = max(0, min(self.num_forgotten, len(self.turns) - 1))
        return turn

    def reset(self) -> None:
        """Forgets all turns; the system message stays."""
        self.turns.clear()
        self.num_forgotten = 0

    def fit(self, count: Callable[[Sequence[Message]], int], limit: int, reserve: int) -> int:
        """Leaves out as many of the oldest turns as it takes for the prompt and ``reserve`` tokens to fit in ``limit``.

        ``count(messages)`` is the number of tokens of a prompt. Returns how many turns were left out anew; the last one
        is never.
        """
        before = self.num_forgotten
        allowed = limit - reserve
        while self.num_forgotten < len(self.turns) - 1 and count(self.shown()) > allowed:
            self.num_forgotten += 1
            allowed = min(allowed, limit // 2)
        return self.num_forgotten - before

    def save(self, path: Path, model: str) -> None:
        """Writes JSON: ``{"model": …, "messages": [{"role": …, "content": …}, …]}``. Raises ``OSError``."""
        path.write_text(json.dumps({"model": model, "messages": self.messages()}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads what ``save`` wrote, or a bare list of messages. Raises ``OSError``, ``ValueError`` with what is wrong."""
        try:
            data = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        messages = data.get("messages") if isinstance(data, dict) else data
        if not isinstance(messages, list):
            raise ValueError(f'{path} holds no conversation: it must be {{"messages": [{{"role": …, "content": …}}, …]}}')
        try:
            return cls._of(messages)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, messages: list[Any]) -> Conversation:
        conversation = cls()
        expected = "user"
        for index, message in enumerate(messages):
            role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
            if not isinstance(content, str):
                raise ValueError(f"messages[{index}].content={content!r:.60} is invalid: must be a string")
            if role == "system" and index == 0:
                conversation.system = content
            elif role != expected:
                raise ValueError(f"messages[{index}].role={role!r:.60} is invalid: must be {expected!r}")
            elif role == "user":
                conversation.turns.append(Turn(content))
                expected = "assistant"
            else:
                thinking = message.get("reasoning_content")
                conversation.turns[-1].answer = content
                conversation.turns[-1].thinking = thinking if isinstance(thinking, str) else ""
                expected = "user"
        if expected == "assistant":
            raise ValueError("the last message has no answer: a conversation ends with one of 'assistant'")
        return conversation
