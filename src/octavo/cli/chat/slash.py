"""The commands of a chat: lines that begin with a slash. Each is a function of the session and the rest of its line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.session import Session
from octavo.text import template_variables

PARAMS = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "max_tokens",
    "min_tokens", "seed", "stop", "ignore_eos",
)  # fmt: skip
"""Fields of ``SamplingParams`` that may be changed in a conversation."""

_NOTHING = ("none", "null", "")


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True)
class Slash:
    usage: str
    help: str
    run: Callable[[Session, str], None]


def help_(session: Session, _: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    lines += ["", 'A line that ends in \\ goes on in the next one; """ begins and ends a message of several lines.']
    lines += ["// at the beginning sends a line that begins with one slash. Ctrl-C stops an answer; twice, or Ctrl-D, leaves."]
    session.screen.show("\n".join(lines))


def reset(session: Session, _: str) -> None:
    session.conversation.reset()
    session.screen.note("[a new conversation]")


def system(session: Session, text: str) -> None:
    if text:
        session.conversation.system = None if text == "none" else text
    now = session.conversation.system
    session.screen.note("[no system message of yours: the template may have its own]" if now is None else f"[system: {now}]")


def undo(session: Session, _: str) -> None:
    question = session.conversation.take_back().question.splitlines() or [""]
    session.screen.note(f"[taken back: {question[0][:60]}{'…' if len(question) > 1 or len(question[0]) > 60 else ''}]")


def retry(session: Session, _: str) -> None:
    turns = session.conversation.turns
    turn = session.conversation.take_back()
    num_turns = len(turns)
    try:
        session.ask(turn.question)
    finally:
        if len(turns) == num_turns:
            turns.append(turn)  # nothing new was said: the old answer stands


def params(session: Session, text: str) -> None:
    changes: dict[str, Any] = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in PARAMS:
            raise ValueError(f"/params {word}: write NAME=VALUE, where NAME is one of {', '.join(PARAMS)}")
        changes[name] = _value(name, value)
    if changes.get("max_tokens") == 0:
        raise ValueError("max_tokens=0 is invalid: an answer has at least 1 token")
    if changes:
        session.params = replace(session.params, **changes)
    shown = {name: getattr(session.params, name) for name in PARAMS}
    session.screen.note("[" + " ".join(f"{name}={_spelled(value)}" for name, value in shown.items()) + "]")


def _value(name: str, text: str) -> Any:
    """The value that ``text`` spells for the field ``name``; ``SamplingParams`` says whether it is a good one."""
    if name == "stop":
        return None if text in _NOTHING else text
    if text.lower() in _NOTHING:
        return None
    if name == "ignore_eos":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"ignore_eos={text!r} is invalid: must be true or false")
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{name}={text!r} is invalid: must be a number")


def _spelled(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return shlex.quote(" ".join(value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def template(session: Session, text: str) -> None:
    changes: dict[str, Any] = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"/template {word}: write NAME=VALUE, such as enable_thinking=false")
        try:
            changes[name] = json.loads(value)
        except (ValueError, RecursionError):
            changes[name] = value  # a string without its quotes
    session.template_kwargs = {**session.template_kwargs, **template_variables(changes)}
    now = " ".join(f"{name}={shlex.quote(json.dumps(value))}" for name, value in session.template_kwargs.items())
    session.screen.note(f"[{now}]" if now else "[the template has no variables of yours]")


def save(session: Session, text: str) -> None:
    path = _path(text, "/save")
    session.conversation.save(path, session.llm.engine.model.name)
    session.screen.note(f"[{len(session.conversation.turns)} turns saved to {path}]")


def load(session: Session, text: str) -> None:
    path = _path(text, "/load")
    session.conversation = Conversation.load(path)
    session.screen.note(f"[{len(session.conversation.turns)} turns loaded from {path}]")


def _path(text: str, command: str) -> Path:
    if not text:
        raise ValueError(f"{command} needs the name of a file: {command} talk.json")
    return Path(text).expanduser()


def stats(session: Session, _: str) -> None:
    talk, totals = session.conversation, session.totals
    used = session.count(talk.shown()) if talk.turns else 0
    kv = session.llm.engine.scheduler.kv
    forgotten = f", {talk.num_forgotten} of which the model no longer sees" if talk.num_forgotten else ""
    share = f" ({totals.num_cached_tokens / totals.num_prompt_tokens:.0%})" if totals.num_prompt_tokens else ""
    rate = f", {totals.num_decoded / totals.decode_s:.1f} tok/s" if totals.decode_s else ""
    rows = [
        ("model", session.llm.engine.model.name),
        ("turns", f"{len(talk.turns)}{forgotten}"),
        ("context", f"{used:,} of {session.context_length:,} tokens"),
        ("answers", f"{totals.num_answers}, {totals.num_tokens:,} tokens{rate}"),
        ("prompts", f"{totals.num_prompt_tokens:,} tokens, {totals.num_cached_tokens:,} of them from the prefix cache{share}"),
        ("KV cache", f"{kv.num_blocks:,} blocks of {kv.block_size} tokens, {kv.num_used_blocks:,} in use"),
    ]
    session.screen.show("\n".join(f"{name:<9} {value}" for name, value in rows))


def leave(_: Session, __: str) -> None:
    raise Leave


COMMANDS: Mapping[str, Slash] = {
    "/help": Slash("/help", "this list", help_),
    "/reset": Slash("/reset", "begin a new conversation; the system message stays", reset),
    "/system": Slash("/system [TEXT]", "set the system message (none removes it), or show it", system),
    "/undo": Slash("/undo", "take back the last question and its answer", undo),
    "/retry": Slash("/retry", "ask the last question again", retry),
    "/params": Slash("/params [NAME=VALUE …]", "change how answers are chosen (temperature=0.7 seed=1 …), or show it", params),
    "/template": Slash("/template [NAME=VALUE …]", "give the chat template a variable (enable_thinking=false …), or show them", template),
    "/save": Slash("/save FILE", "write the conversation to a file, as JSON", save),
    "/load": Slash("/load FILE", "go on with a conversation from a file", load),
    "/stats": Slash("/stats", "tokens, speed and cache of this session", stats),
    "/quit": Slash("/quit", "leave (as do /exit and Ctrl-D)", leave),
}
ALIASES: Mapping[str, str] = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "/clear": "/reset"}


def run_line(session: Session, line: str) -> None:
    """Runs a command or asks the model. Raises ``ValueError`` or ``OSError`` for what cannot be done, ``Leave``."""
    if not line.startswith("/") or line.startswith("//"):
        session.ask(line[1:] if line.startswith("//") else line)
        return
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        raise ValueError(f"there is no command {name}: /help lists them, and // sends a line that begins with a slash")
    command.run(session, rest.strip())
