"""A chat from inside: what is kept, what is forgotten, what an interrupt leaves behind; with a tiny random model."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.chat.conversation import Conversation, Message, Turn
from octavo.cli.chat.reading import read_message
from octavo.cli.chat.session import Session
from octavo.cli.chat.slash import COMMANDS, Leave, run_line
from octavo.decoding import SamplingParams
from octavo.llm import LLM
from octavo.text import ChatTemplate

TINY = str(Path(__file__).parents[1] / "weights" / "data" / "tiny_llama")


class Recorder:
    """A screen that remembers. ``interrupt_at``: the number of words after which Ctrl-C is pressed."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.notes: list[str] = []
        self.interrupt_at: set[int] = set()

    def write(self, text: str) -> None:
        self.words.append(text)
        if len(self.words) in self.interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def think(self, text: str) -> None:
        assert not text

    def end(self) -> None:
        pass

    def show(self, text: str) -> None:
        self.notes.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def complain(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(TINY, kv_cache_memory_bytes=1 << 20, max_num_seqs=1, num_threads=1) as llm:
        yield llm


PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def session(llm: LLM) -> Iterator[Session]:
    session = Session(llm, PARAMS, Recorder(), stats=False)
    yield session
    assert llm.engine.scheduler.kv.num_used_blocks == 0
    assert not llm.engine.has_unfinished_requests
    llm.engine.check_integrity()


def screen(session: Session) -> Recorder:
    assert isinstance(session.screen, Recorder)
    return session.screen


def test_it_answers_as_the_library_does(session: Session, llm: LLM) -> None:
    messages: list[Message] = []
    for question in ("the quick", "brown fox", "jumps"):
        session.ask(question)
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, PARAMS)[0].outputs[0].text
        assert session.conversation.turns[-1].answer == answer
        messages.append({"role": "assistant", "content": answer})
    assert session.conversation.messages() == messages
    assert "".join(screen(session).words) == "".join(m["content"] for m in messages if m["role"] == "assistant")


def test_what_was_said_is_found_in_the_cache(session: Session) -> None:
    session.ask("a book is folded out of one sheet of paper and another")
    before = session.totals.num_cached_tokens
    session.ask("and")
    assert session.totals.num_cached_tokens - before >= 32
    run_line(session, "/retry")
    assert session.totals.num_cached_tokens - before >= 64
    assert len(session.conversation.turns) == 2


def test_the_oldest_turns_go_when_the_context_is_full(session: Session) -> None:
    for number in range(24):
        before = session.totals.num_prompt_tokens
        session.ask(f"page {number} of the book lies on page {number + 1}")
        assert session.totals.num_prompt_tokens - before <= session.context_length - 6
        assert session.conversation.turns[-1].answer
    notes = [note for note in screen(session).notes if "oldest" in note]
    assert 2 <= len(notes) <= 12, "it drops many turns at once, not one each time"
    assert 0 < session.conversation.num_forgotten < 24
    assert len(session.conversation.turns) == 24
    run_line(session, "/stats")
    assert f"{session.conversation.num_forgotten} of which the model no longer sees" in screen(session).notes[-1]


def test_a_question_that_cannot_fit_is_refused_and_forgotten(session: Session) -> None:
    session.ask("short")
    with pytest.raises(ValueError, match="256"):
        session.ask("x" * 1000)
    assert [turn.question for turn in session.conversation.turns] == ["short"]


def test_an_interrupt_keeps_what_was_said(session: Session) -> None:
    session.params = replace(session.params, max_tokens=100)
    screen(session).interrupt_at = {3}
    session.ask("tell me")
    assert session.interrupted
    answer = session.conversation.turns[0].answer
    assert answer is not None
    assert answer.startswith("".join(screen(session).words[:3]))
    assert 3 <= session.totals.num_tokens < 20
    session.params = replace(session.params, max_tokens=2)
    session.ask("go on")
    assert not session.interrupted
    assert len(session.conversation.turns) == 2


def test_an_interrupt_before_the_first_word_takes_the_question_back(session: Session, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    add_request = llm.engine.add_request

    def interrupted(*arguments: Any) -> None:
        add_request(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(llm.engine, "add_request", interrupted)
    session.ask("tell me")
    assert session.interrupted
    assert session.conversation.turns == []
    assert "taken back" in screen(session).notes[-1]


def test_a_second_interrupt_gets_through(session: Session) -> None:
    session.params = replace(session.params, max_tokens=100)
    handler = signal.getsignal(signal.SIGINT)
    write = screen(session).write

    def twice(text: str) -> None:
        write(text)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    screen(session).write = twice  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        session.ask("tell me")
    assert signal.getsignal(signal.SIGINT) is handler


def test_retry_that_fails_leaves_the_old_answer(session: Session) -> None:
    session.ask("hello")
    before = list(session.conversation.turns)
    session.conversation.system = "x" * 1000
    with pytest.raises(ValueError, match="256"):
        run_line(session, "/retry")
    assert session.conversation.turns == before


def test_params(session: Session) -> None:
    run_line(session, "/params temperature=0.5 top-k=40 stop='the end' max_tokens=none seed=7 ignore_eos=false")
    p = session.params
    assert (p.temperature, p.top_k, p.stop_strings, p.max_tokens, p.seed, p.ignore_eos) == (0.5, 40, ("the end",), None, 7, False)
    for wrong in ("temperature=hot", "top_p=2", "colour=red", "seed", "max_tokens=0", "ignore_eos=maybe", "stop='a"):
        with pytest.raises(ValueError, match=f"{wrong[:4]}|quotation"):
            run_line(session, f"/params {wrong}")
        assert session.params == p
    run_line(session, "/params stop=none")
    assert session.params.stop_strings == ()


TEMPLATE_KWARGS_PROBE = "{{ messages[-1].content }}{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}"


def test_variables_for_the_template(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start and by command; what is shown can be typed in again; the prompt is the template's with them."""
    monkeypatch.setattr(llm.engine, "model", replace(llm.engine.model, chat_template=ChatTemplate(TEMPLATE_KWARGS_PROBE)))

    def prompt() -> str:
        return llm.tokenizer.decode(session._prompt([{"role": "user", "content": "hi"}])["prompt_token_ids"])

    session = Session(llm, PARAMS, Recorder(), stats=False)
    run_line(session, "/template")
    assert (prompt(), screen(session).notes) == ("hi", ["[the template has no variables of yours]"])
    session = Session(llm, PARAMS, Recorder(), stats=False, template_kwargs={"enable_thinking": False})
    assert prompt() == "hi[False]"
    run_line(session, """/template enable_thinking=true tone='"very warm"' depth=3 name=Ann""")
    assert session.template_kwargs == {"enable_thinking": True, "tone": "very warm", "depth": 3, "name": "Ann"}
    assert prompt() == "hi[True]"
    shown = screen(session).notes[-1].strip("[]")
    other = Session(llm, PARAMS, Recorder(), stats=False)
    run_line(other, f"/template {shown}")
    assert other.template_kwargs == session.template_kwargs
    for wrong in ("messages=[]", "enable_thinking", "a-b=1", "add_generation_prompt=false", "='x'"):
        with pytest.raises(ValueError, match=r"/template|chat_template_kwargs"):
            run_line(other, f"/template {wrong}")
    assert other.template_kwargs == session.template_kwargs
    with pytest.raises(ValueError, match=r"chat_template_kwargs\.tools"):
        Session(llm, PARAMS, Recorder(), template_kwargs={"tools": []})


def test_other_commands(session: Session, tmp_path: Path) -> None:
    run_line(session, "/system Be brief.")
    run_line(session, "hello")
    run_line(session, "//hello")
    assert [turn.question for turn in session.conversation.turns] == ["hello", "/hello"]
    run_line(session, f"/save {tmp_path / 'a talk.json'}")
    before = session.conversation.messages()
    run_line(session, "/clear")
    assert session.conversation.messages() == [{"role": "system", "content": "Be brief."}]
    run_line(session, f"/load {tmp_path / 'a talk.json'}")
    assert session.conversation.messages() == before
    run_line(session, "/undo")
    assert session.conversation.messages() == before[:3]
    run_line(session, "/system none")
    assert session.conversation.system is None
    run_line(session, "/help")
    assert all(command.usage in screen(session).notes[-1] for command in COMMANDS.values())
    with pytest.raises(Leave):
        run_line(session, "/quit")
    for wrong in ("/save", "/load", "/Help", "/"):
        with pytest.raises(ValueError, match=f"{wrong} needs|no command {wrong}"):
            run_line(session, wrong)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
CONVERSATIONS = st.builds(Conversation, st.none() | TEXTS, st.lists(st.builds(Turn, TEXTS, TEXTS, TEXTS), max_size=6))


@given(CONVERSATIONS)
def test_a_saved_conversation_is_the_same(tmp_path_factory: pytest.TempPathFactory, conversation: Conversation) -> None:
    path = tmp_path_factory.getbasetemp() / "talk.json"
    conversation.save(path, "m")
    assert Conversation.load(path) == conversation
    path.write_text(json.dumps(conversation.messages()))
    assert Conversation.load(path) == conversation


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{", "no JSON"),
        ("3", "no conversation"),
        ("{}", "no conversation"),
        ([ASSISTANT], "messages[0].role='assistant'"),
        ([USER, USER], "messages[1].role='user'"),
        ([USER, ASSISTANT, {"role": "system", "content": "s"}], "messages[2].role='system'"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content=None"),
        ([USER, "b"], "messages[1].content=None"),
        ([USER], "no answer"),
    ],
)
def test_what_is_no_conversation(data: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        Conversation.load(path)
    assert "talk.json" in str(error.value)


@given(CONVERSATIONS, st.integers(1, 60), st.integers(0, 60))
def test_what_fits(conversation: Conversation, limit: int, reserve: int) -> None:
    def count(messages: Sequence[Message]) -> int:
        return sum(1 + len(message["content"]) for message in messages)

    before = count(conversation.messages())
    dropped = conversation.fit(count, limit, reserve)
    assert dropped == conversation.num_forgotten
    assert (dropped == 0) == (before <= limit - reserve or len(conversation.turns) <= 1)
    if dropped:
        left = len(conversation.turns) - dropped
        assert left >= 1
        assert count(conversation.shown()) <= min(limit - reserve, limit // 2) or left == 1
        if dropped > 1:  # no more than was needed
            assert count(conversation.messages(dropped - 1)) > min(limit - reserve, limit // 2)
    assert conversation.fit(count, limit, reserve) == 0 or len(conversation.turns) > 1


def lines_of(*lines: str) -> Any:
    remaining = list(lines)

    def read(_continued: bool) -> str:
        if not remaining:
            raise EOFError
        return remaining.pop(0)

    return read


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three", "four"], "one\ntwo\nthree"),
        (["one\\"], "one"),
        (['"""one', "two", 'three"""', "four"], "one\ntwo\nthree"),
        (['"""', "one\\", "", 'two "quoted"', '"""'], 'one\\\n\ntwo "quoted"'),
        (['"""one line"""'], "one line"),
        (['"""never', "ended"], "never\nended"),
        (["pasted\nlines"], "pasted\nlines"),
        ([""], ""),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    assert read_message(lines_of(*lines)) == message


def test_the_end_of_the_input() -> None:
    with pytest.raises(EOFError):
        read_message(lines_of())
