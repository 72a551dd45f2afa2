"""The Jinja environment of chat templates: the one they are written for, in a sandbox, with limits.

What they are written for is Hugging Face transformers' (``utils/chat_template_utils.py``): trimmed blocks, ``break`` and
``continue``, ``raise_exception``, ``strftime_now``, a ``tojson`` that escapes nothing, and the ``generation`` tag. Jinja's own sandbox
keeps a template from reaching Python; it does not keep it from running for ever or from filling the memory. So each
rendering has a budget: loop rounds and calls are counted, a clock is looked at, and no operation may make a text or a list
larger than a limit.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2
import jinja2.visitor
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SECONDS = 5.0
MAX_ROUNDS = 2_000_000
"""Loop rounds and calls of one rendering."""
MAX_LENGTH = 32 << 20
"""Characters of a text, elements of a list, digits' bits of a number."""

_WIDE = re.compile(r"\d{6}")
_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs"}


class _Budget:
    """What one rendering may still spend."""

    __slots__ = ("_deadline_s", "_rounds")

    def __init__(self) -> None:
        self._rounds = MAX_ROUNDS
        self._deadline_s = time.monotonic() + MAX_SECONDS

    def spend(self) -> None:
        self._rounds -= 1
        if self._rounds < 0:
            raise SecurityError(f"the template runs through more than {MAX_ROUNDS} rounds")
        if self._rounds % 256 == 0 and time.monotonic() > self._deadline_s:
            raise SecurityError(f"the template runs for more than {MAX_SECONDS:.0f} seconds")


_budget: ContextVar[_Budget] = ContextVar("octavo_template_budget")


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"the template makes something of {length} elements; at most {MAX_LENGTH} are allowed")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    budget = _budget.get()
    for item in items:
        budget.spend()
        yield item


def _concatenated(values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _check_format(form: object) -> None:
    if isinstance(form, str) and _WIDE.search(form):
        raise SecurityError("the template pads a text to an absurd width")


def _check_call(function: object, arguments: tuple[Any, ...]) -> None:
    """Refuses methods of texts whose result would be far larger than what goes in."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if not isinstance(owner, str):
        return
    if name in _PADDING:
        _check_length(max((a for a in arguments if isinstance(a, int)), default=0))
    elif name == "replace" and len(arguments) >= 2:
        _check_replacement(owner, *arguments[:2])
    elif name == "join" and arguments and isinstance(arguments[0], list | tuple):
        _check_length(sum(len(str(a)) + len(owner) for a in arguments[0]))


def _check_replacement(text: str, old: object, new: object) -> None:
    old, new = str(old), str(new)
    _check_length(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """``dict`` without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's ``namespace``, whose assignments the sandbox does not watch: names beginning with ``_`` are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # ``namespace(self=1)`` is allowed, hence no named argument
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names that begin with an underscore are refused")


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


class Sandbox(ImmutableSandboxedEnvironment):
    """Compile with ``from_string`` and render with ``Sandbox.render``, which alone gives a budget."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False)
        self.filters |= {
            "tojson": _tojson,
            "octavo_counted": _counted,
            "octavo_concatenated": _concatenated,
            "center": _bounded(self.filters["center"], lambda text, width=80, *_: _check_length(width)),
            "indent": _bounded(self.filters["indent"], _check_indent),
            "format": _bounded(self.filters["format"], lambda form, *_, **__: _check_format(str(form))),
        }
        replace = self.filters["replace"]  # wants the evaluation context first, which its mark tells Jinja

        @jinja2.pass_eval_context
        def bounded_replace(context: Any, text: Any, old: str, new: str, count: int | None = None) -> Any:
            _check_replacement(str(text), old, new)
            return replace(context, text, old, new, count)

        self.filters["replace"] = bounded_replace
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    @staticmethod
    def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The text. Raises what the template raises, ``SecurityError`` when a limit is reached."""
        token = _budget.set(_Budget())
        try:
            pieces, length = [], 0
            for piece in template.generate(variables):
                length += len(piece)
                _check_length(length)
                pieces.append(piece)
            return "".join(pieces)
        finally:
            _budget.reset(token)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Loops are made to count their rounds, and ``~`` to look at the length of its result."""
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "octavo_counted", [], [], None, None, lineno=loop.lineno)
        return _ConcatenationBounded().visit(template)  # type: ignore[no-any-return]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    _check_length(len(sequence) * count)
            if isinstance(left, int) and isinstance(right, int):
                _check_length(left.bit_length() + right.bit_length())
        elif operator == "+":
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _check_length(len(left) + len(right))
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                _check_length(left.bit_length() * max(0, right))
        elif operator == "%":
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        _check_call(__obj, args)
        return super().call(__context, __obj, *args, **kwargs)


class _ConcatenationBounded(jinja2.visitor.NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(values, "octavo_concatenated", [], [], None, None, lineno=node.lineno)


def _check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text, step = str(text), width if isinstance(width, int) else len(str(width))
    _check_length(len(text) + (text.count("\n") + 1) * step)


def _bounded(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    def bounded(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return function(*args, **kwargs)

    return bounded
