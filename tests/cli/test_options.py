"""Sizes in bytes, and what the command line hands to the engine."""

from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.options import parse_bytes

FACTORS = {
    "": 1,
    "K": 1e3,
    "KB": 1e3,
    "KiB": 2**10,
    "M": 1e6,
    "MB": 1e6,
    "MiB": 2**20,
    "G": 1e9,
    "GB": 1e9,
    "GiB": 2**30,
    "B": 1,
    "TiB": 2**40,
}


@given(st.integers(0, 10**6), st.sampled_from(sorted(FACTORS)), st.sampled_from([str.upper, str.lower, str]), st.sampled_from(["", " "]))
def test_sizes(number: int, unit: str, case: type[str], gap: str) -> None:
    assert parse_bytes(f"{number}{gap}{case(unit)}") == number * FACTORS[unit]


def test_fractions_of_a_unit() -> None:
    assert parse_bytes("1.5GiB") == 3 * 2**29
    assert parse_bytes(2048) == 2048


@pytest.mark.parametrize("text", ["", "B", "GB", "-1", "1.5.2G", "5PB", "1e9", "12 MB 3", "0x10", "²"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a size"):
        parse_bytes(text)
