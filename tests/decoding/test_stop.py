"""Stop strings: whatever the pieces, the text is that of the whole, and no part of a stop string is ever shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.decoding import StopStringMatcher

_text = st.text("abc", max_size=30)


def feed(matcher: StopStringMatcher, pieces: list[str]) -> tuple[list[str], str | None]:
    shown = []
    for piece in pieces:
        text, stop = matcher.push(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    shown.append(matcher.flush())
    return shown, None


@given(pieces=st.lists(st.text("abc", max_size=5), max_size=12), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_pieces_give_what_the_whole_gives(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    shown, stop = feed(StopStringMatcher(stops), pieces)
    text = "".join(shown)
    assert (stop is not None) == bool(ends)
    if stop is None:
        assert text == whole
    else:
        assert whole.startswith(text + stop)
        assert not any(s in text for s in stops)
        assert len(text) + len(stop) <= max(end for end, _ in ends)


@given(pieces=st.lists(st.text("ab", max_size=4), max_size=12))
def test_text_that_cannot_become_a_stop_string_is_not_held_back(pieces: list[str]) -> None:
    matcher = StopStringMatcher(["xyz"])
    for piece in pieces:
        assert matcher.push(piece) == (piece, None)


def test_the_stop_string_is_kept_on_request() -> None:
    assert feed(StopStringMatcher(["END"], include=True), ["one E", "N", "D two"]) == (["one ", "", "END"], "END")


def test_a_partial_stop_string_comes_out_when_the_text_ends() -> None:
    assert feed(StopStringMatcher(["END"]), ["one EN"]) == (["one ", "EN"], None)


def test_a_stop_string_may_begin_before_it_is_looked_for_but_not_end() -> None:
    matcher = StopStringMatcher(["abc"])
    assert matcher.hold("xabca") == "xabc"
    assert matcher.push("b") == ("", None)
    assert matcher.push("c") == ("", "abc")
    matcher = StopStringMatcher(["ab", "abc"])
    assert matcher.hold("ab") == ""
    assert matcher.push("x") == ("abx", None)
