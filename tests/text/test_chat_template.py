"""Chat templates beside transformers (golden files), and the sandbox and messages that templates and clients may break."""

from __future__ import annotations

import datetime
import time
import tracemalloc
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.text import ChatTemplate, load_chat_template
from octavo.weights import Checkpoint

TEMPLATES = Path(__file__).parent / "templates"
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.model
def test_smollm2_as_transformers(smollm2: Checkpoint, golden: Any) -> None:
    template = load_chat_template(smollm2)
    assert template is not None
    assert (template.bos_token, template.eos_token) == ("<|im_start|>", "<|im_end|>")
    for case in golden("chats.json")["smollm2"]:
        assert template.render(case["messages"], add_generation_prompt=case["add_generation_prompt"]) == case["text"]


def test_features_as_transformers(golden: Any) -> None:
    chats = golden("chats.json")
    assert {case["template"] for case in chats["templates"]} == {path.name for path in TEMPLATES.glob("*.jinja")}
    for case in chats["templates"]:
        source = (TEMPLATES / case["template"]).read_text()
        template = ChatTemplate(source, bos_token=chats["bos_token"], eos_token=chats["eos_token"])
        assert template.render(case["messages"], tools=case["tools"], flavour=case["flavour"]) == case["text"], case["template"]


def test_text_parts_are_joined() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "a\nb"
    assert template.render([{"role": "user", "content": []}]) == ""
    assert template.render([{"role": "assistant", "content": None}]) == "None"


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    with pytest.raises(ValueError, match=r"append"):
        ChatTemplate("{% set _ = messages.append(1) %}").render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


def test_values_are_plain() -> None:
    class Colour(str, Enum):  # noqa: UP042 - whose str() is "Colour.RED"
        RED = "red"

    class Loud(str):
        def shout(self) -> str:
            return self.upper()

    template = ChatTemplate("{{ messages[0].content }}{{ messages[0].colour }}{{ messages[0].content.shout is defined }}{{ extra.a }}")
    assert template.render([{"role": "user", "content": Loud("x"), "colour": Colour.RED}], extra={"a": (1, True, None)}) == (
        "xredFalse[1, True, None]"
    )
    with pytest.raises(ValueError, match=r"extra\.a is invalid: object is not one of JSON's types"):
        template.render(HI, extra={"a": object()})


def test_the_time_is_now() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(HI) == str(datetime.datetime.now().year)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__class__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(__init__=1) %}",
        "{{ namespace().__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template"):
        ChatTemplate(source + "{{ undefined_name.x }}").render(HI)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[0].surname.x }}", "refuses these messages: .*surname"),
        ("{{ 1 // 0 }}", "fails on these messages: ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "fails on these messages: TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on these messages: RecursionError"),
    ],
)
def test_failures_of_templates(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source).render(HI)


@pytest.mark.parametrize(
    "source", ["\n{% if %}", "{% for x in y %}", "{{ x | nofilter }}", "{{ '" + "(" * 5000 + " }}", "{{ " + "(" * 5000 + " }}"]
)
def test_invalid_templates(source: str) -> None:
    with pytest.raises(ValueError, match=r"the chat template (is invalid at line|cannot be compiled)"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is invalid: it must not be empty"),
        ("Hi", "messages is invalid: it must be a list of messages, not str"),
        ({"role": "user"}, "messages is invalid: it must be a list of messages, not dict"),
        (["Hi"], r"messages\[0\] is invalid: a message is an object with role and content, not str"),
        ([{"content": "x"}], r"messages\[0\].role=None is invalid"),
        ([*HI, {"role": 3, "content": "x"}], r"messages\[1\].role=3 is invalid"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is invalid: it must be a string or a list of parts, not int"),
        ([{"role": "user", "content": b"x"}], r"messages\[0\].content is invalid: .*, not bytes"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\] is invalid: a part is an object with a type"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r"messages\[0\].content\[0\].type='image_url' is not supported; only 'text' is",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\].content\[0\].text=None is invalid"),
        ([{"role": "user", "content": "x", "name": {1, 2}}], r"messages\[0\].name is invalid: set is not one of JSON's types"),
    ],
)
def test_malformed_messages(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate("{{ messages }}").render(messages)


def test_loading() -> None:
    def checkpoint(**metadata: Any) -> Any:
        return SimpleNamespace(
            path=Path("m.gguf"), metadata={f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()}
        )

    assert load_chat_template(checkpoint()) is None
    loaded = load_chat_template(checkpoint(chat_template="{{ bos_token }}{{ eos_token }}", ggml__tokens=["<s>"], ggml__bos_token_id=0))
    assert loaded is not None
    assert loaded.render(HI) == "<s>"
    both = load_chat_template(checkpoint(chat_template="d", chat_template__tool_use="t"))
    assert both is not None
    assert (both.render(HI), both.render(HI, tools=[{"name": "f"}])) == ("d", "t")
    with pytest.raises(ValueError, match=r"m\.gguf: the chat template is invalid at line 1"):
        load_chat_template(checkpoint(chat_template="{{"))
    with pytest.raises(ValueError, match=r"m\.gguf: tokenizer.chat_template is invalid: it must be a string, not list"):
        load_chat_template(checkpoint(chat_template=["x"]))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' }}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x' | indent(10 ** 9, true) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_cannot_take_all_the_time_or_memory(source: str) -> None:
    tracemalloc.start()
    began_s = time.monotonic()
    try:
        with pytest.raises(ValueError, match="chat template"):
            ChatTemplate(source).render([{"role": "user", "content": "x"}])
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began_s < 30


def test_limits_do_not_change_what_loops_and_concatenations_mean() -> None:
    source = (
        "{% for m in messages %}{{ loop.index ~ '/' ~ loop.length }}{{ ',' if not loop.last }}"
        "{% if loop.index == 2 %}{% break %}{% endif %}"
        "{% else %}none{% endfor %};{% for k, v in {'a': 1, 'b': 2}.items() if v > 1 %}{{ k ~ v }}{% endfor %};"
        "{% for x in missing %}{% else %}empty{% endfor %};{{ 1 ~ none ~ 2.5 }}"
    )
    messages = [{"role": "user", "content": "x"}] * 3
    assert ChatTemplate(source).render(messages) == "1/3,2/3,;b2;empty;1None2.5"
