"""``ChatTemplate``: messages to prompt, by the Jinja template that a checkpoint carries.

Templates are programs from strangers, so they run in a sandbox with limits (``template_sandbox``) and see only plain data:
strings, numbers, lists and dictionaries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from octavo.config import quoted
from octavo.text.hf_tokenizer import is_hf_directory, read_json, token_text
from octavo.text.template_sandbox import Sandbox

if TYPE_CHECKING:
    from octavo.weights.tensor import Checkpoint

_MAX_TEMPLATE_BYTES = 4 << 20

Message = Mapping[str, Any]
"""``{"role": str, "content": str | [{"type": "text", "text": str}, …] | None, …}``: OpenAI's chat message."""


RESERVED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt"})
"""What makes the prompt itself; callers give any other variable (``chat_template_kwargs``)."""


def template_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a caller's ``variables``. Raises ``ValueError`` naming the first that cannot be given."""
    for name in variables:
        if name in RESERVED_VARIABLES or not name.isidentifier():
            raise ValueError(f"chat_template_kwargs.{name} is invalid: it is not a variable that the template can be given this way")
    return dict(variables)


class ChatTemplate:
    """A compiled template. Immutable and safe to use from several threads.

    ``tool_source`` is the template for requests with tools where a model has a separate one; ``special_tokens`` are further
    variables (``pad_token``, …). Raises ``ValueError`` with the line when a source is not a valid template.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        tool_source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.tool_source = tool_source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._special_tokens = dict(special_tokens or {})
        self._template = self._compiled(source)
        self._tool_template = self._template if tool_source is None else self._compiled(tool_source)

    @staticmethod
    def _compiled(source: str) -> jinja2.Template:
        try:
            return Sandbox().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is invalid at line {error.lineno}: {error.message}") from error
        except (RecursionError, MemoryError, OverflowError) as error:  # the compiler's answer to absurd nesting
            raise ValueError(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt. Content given as text parts is joined by newlines; ``kwargs`` are further variables of the template.

        Raises ``ValueError`` when a message is malformed (saying which and why), the template refuses the messages, or it takes more
        time or memory than a template may.
        """
        variables: dict[str, Any] = self._special_tokens | {
            "bos_token": self.bos_token or "",
            "eos_token": self.eos_token or "",
            "documents": None,
        }
        variables |= {name: _plain(value, name) for name, value in kwargs.items()}
        variables |= {
            "messages": _normalised(messages),
            "tools": _plain(tools, "tools") if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return Sandbox.render(self._tool_template if tools else self._template, variables)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error.message or type(error).__name__}") from error
        except Exception as error:  # a template can divide by zero, recurse, add None to a string, …
            raise ValueError(f"the chat template fails on these messages: {type(error).__name__}: {error}") from error


def load_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """``checkpoint``'s template, or ``None``: from a Hugging Face directory's files, else from GGUF metadata.

    Raises ``ValueError`` with the file's name and what is wrong.
    """
    if is_hf_directory(checkpoint.path):
        return load_hf_chat_template(checkpoint.path)
    metadata = checkpoint.metadata
    tokens = metadata.get("tokenizer.ggml.tokens", [])

    def text_of(name: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return str(tokens[index]) if isinstance(tokens, list) and isinstance(index, int) and 0 <= index < len(tokens) else None

    def source_of(key: str) -> str | None:
        source = metadata.get(key)
        if source is not None and not isinstance(source, str):
            raise ValueError(f"{key} is invalid: it must be a string, not {type(source).__name__}")
        return source

    try:
        source, tool_source = source_of("tokenizer.chat_template"), source_of("tokenizer.chat_template.tool_use")
        if source is None:
            return None
        return ChatTemplate(source, bos_token=text_of("bos"), eos_token=text_of("eos"), tool_source=tool_source)
    except ValueError as error:
        raise ValueError(f"{os.fspath(checkpoint.path)}: {error}") from error


def load_hf_chat_template(directory: str | os.PathLike[str]) -> ChatTemplate | None:
    """The template of a Hugging Face directory, or ``None``.

    ``chat_template.jinja`` comes first (with ``additional_chat_templates/tool_use.jinja``), then ``chat_template.json``, then
    ``chat_template`` in ``tokenizer_config.json``: a string, or a list of ``{"name", "template"}`` of which ``default`` and
    ``tool_use`` are taken. Raises ``ValueError`` with the file's name and what is wrong.
    """
    root = Path(directory)
    config = read_json(root / "tokenizer_config.json")
    named = read_json(root / "special_tokens_map.json")
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
        text = token_text(config.get(name, named.get(name)))
        if text is not None:
            special[name] = text
    for path in (root / "chat_template.jinja", root / "chat_template.json", root / "tokenizer_config.json"):
        try:
            sources = _template_sources(path, config)
            if sources.get("default") is not None:
                bos, eos = special.get("bos_token"), special.get("eos_token")
                tool_source = sources.get("tool_use")
                return ChatTemplate(sources["default"], bos_token=bos, eos_token=eos, tool_source=tool_source, special_tokens=special)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return None


def _template_sources(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> source of the templates in one of the files that may hold some."""
    if path.suffix == ".jinja":
        sources = {"default": path, "tool_use": path.parent / "additional_chat_templates" / "tool_use.jinja"}
        return {name: _template_text(file) for name, file in sources.items() if file.is_file()}
    value = (config if path.name == "tokenizer_config.json" else read_json(path)).get("chat_template")
    entries = value if isinstance(value, list) else [] if value is None else [{"name": "default", "template": value}]
    sources_by_name = {}
    for entry in entries:
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise ValueError("chat_template is invalid: it must be a string or a list of objects with name and template")
        sources_by_name[name] = source
    return sources_by_name


def _template_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise ValueError(f"more than {_MAX_TEMPLATE_BYTES} bytes")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error


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
            raise ValueError(f"{where}.role={quoted(role)} is invalid: it must be a non-empty string")
        result.append(
            {
                str(name): _text_content(value, f"{where}.content") if name == "content" else _plain(value, f"{where}.{name}")
                for name, value in message.items()
            }
        )
    return result


def _plain(value: Any, where: str) -> Any:
    """A copy made of JSON's types alone, so that a template gets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{where} is invalid: {type(value).__name__} is not one of JSON's types")


def _text_content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content if content is None else str.__str__(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"{where} is invalid: it must be a string or a list of parts, not {type(content).__name__}")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind is None:
            raise ValueError(f"{where}[{index}] is invalid: a part is an object with a type")
        if kind != "text":
            raise ValueError(f"{where}[{index}].type={quoted(kind)} is not supported; only 'text' is")
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{where}[{index}].text={quoted(text)} is invalid: it must be a string")
        texts.append(text)
    return "\n".join(texts)
