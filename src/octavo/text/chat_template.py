"""``ChatTemplate``: messages to prompt, by the Jinja template that a checkpoint carries.

Templates are programs from strangers, so they run in Jinja's immutable sandbox. The environment is the one that templates
are written for (Hugging Face transformers, ``utils/chat_template_utils.py``): trimmed blocks, ``break`` and
``continue``, ``raise_exception``, ``strftime_now``, a ``tojson`` that escapes nothing, and the ``generation`` tag.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from octavo.weights.tensor import Checkpoint

Message = Mapping[str, Any]
"""``{"role": str, "content": str | [{"type": "text", "text": str}, …] | None, …}``: OpenAI's chat message."""


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template. Immutable and safe to use from several threads.

    Raises ``ValueError`` with the line when ``source`` is not a valid template.
    """

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is invalid at line {error.lineno}: {error.message}") from error
        except (RecursionError, MemoryError, OverflowError) as error:  # the compiler's answer to absurd nesting
            raise ValueError(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt. Content given as text parts is joined by newlines; ``kwargs`` are further variables of the template.

        Raises ``ValueError`` when a message is malformed (saying which and why) or the template refuses the messages.
        """
        variables: dict[str, Any] = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or "", **kwargs}
        variables |= {"messages": _normalised(messages), "tools": tools or None, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error.message or type(error).__name__}") from error
        except Exception as error:  # a template can divide by zero, recurse, add None to a string, …
            raise ValueError(f"the chat template fails on these messages: {type(error).__name__}: {error}") from error


def load_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """The template in ``checkpoint``'s metadata, or ``None``. Raises ``ValueError`` with the file's name and what is wrong."""
    metadata = checkpoint.metadata
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        return None
    tokens = metadata.get("tokenizer.ggml.tokens", [])

    def text_of(name: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return str(tokens[index]) if isinstance(index, int) and 0 <= index < len(tokens) else None

    try:
        if not isinstance(source, str):
            raise ValueError(f"tokenizer.chat_template is invalid: it must be a string, not {type(source).__name__}")
        return ChatTemplate(source, bos_token=text_of("bos"), eos_token=text_of("eos"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(checkpoint.path)}: {error}") from error


def _normalised(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of the messages with every content a plain string or ``None``."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is invalid: it must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise ValueError("messages is invalid: it must not be empty")
    result = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where} is invalid: a message is an object with role and content, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ValueError(f"{where}.role={role!r} is invalid: it must be a non-empty string")
        copy = dict(message)
        if "content" in copy:
            copy["content"] = _text_content(copy["content"], f"{where}.content")
        result.append(copy)
    return result


def _text_content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"{where} is invalid: it must be a string or a list of parts, not {type(content).__name__}")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind is None:
            raise ValueError(f"{where}[{index}] is invalid: a part is an object with a type")
        if kind != "text":
            raise ValueError(f"{where}[{index}].type={kind!r} is not supported; only 'text' is")
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{where}[{index}].text={text!r:.100} is invalid: it must be a string")
        texts.append(text)
    return "\n".join(texts)
