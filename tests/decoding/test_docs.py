"""``docs/sampling.md`` against the code: every parameter is there, with its default and its bounds."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from octavo.decoding import SamplingParams

PAGE = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
TABLE = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|$", PAGE.split("## The parameters")[1].split("\n## ")[0], re.MULTILINE)
ROWS = {name: [cell.strip() for cell in cells] for name, *cells in TABLE}
NOT_SAMPLING = {"output_kind", "prompt_logprobs_start"}
"""How outputs are handed out, and how many of a prompt's tokens are scored."""

DEFAULTS = {"none": None, "drawn afresh": None, "all": None, "`n`": None, "true": True, "false": False}


def test_every_parameter_is_there() -> None:
    assert {f.name for f in fields(SamplingParams)} - NOT_SAMPLING == set(ROWS) - {"echo", "suffix"}


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"echo", "suffix"}))
def test_defaults(name: str) -> None:
    said = re.split(r"[;¹]", ROWS[name][1])[0].strip()
    default = next(f.default for f in fields(SamplingParams) if f.name == name)
    assert default is not MISSING
    assert default == (DEFAULTS[said] if said in DEFAULTS else float(said))


def bounds(text: str) -> tuple[float, float, bool] | None:
    """(low, high, whether low is in) of a numeric range; an end that is left open is far away."""
    if found := re.fullmatch(r"(\()?(−?[\d.]+)(?:, | … )(\d+\.?\d*)?\]?", text):
        return float(found[2].replace("−", "-")), float(found[3] or 1e6), not found[1]
    return None


NUMERIC = {name: limits for name, row in ROWS.items() if (limits := bounds(row[0])) is not None}


def test_ranges_are_read() -> None:
    assert {"temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "n", "logprobs"} <= set(NUMERIC)


@pytest.mark.parametrize("name", sorted(NUMERIC))
def test_ranges(name: str) -> None:
    low, high, closed = NUMERIC[name]
    kind: Any = type(next(f.default for f in fields(SamplingParams) if f.name == name))
    step = 1 if kind is int or kind is type(None) else 0.001
    number: Any = int if step == 1 else float
    for value in (low if closed else low + step, high):
        SamplingParams(**{name: number(value)})
    for value in (low - step if closed else low, *([high + step] if high < 1e6 else [])):
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: number(value)})


def test_the_example_runs_as_written() -> None:
    """Its function, on logits of its own."""
    code = re.search(r"```python\n(.*?)llm = ", PAGE, re.DOTALL)
    assert code is not None
    scope: dict[str, Any] = {"digits": [1, 3]}
    exec(code[1], scope)  # the page's own code
    masked = scope["digits_only"]([], scope["np"].arange(5.0))
    assert masked.tolist() == [float("-inf"), 1.0, float("-inf"), 3.0, float("-inf")]
