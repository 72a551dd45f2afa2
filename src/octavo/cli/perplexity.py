"""``octavo perplexity``: how well a model predicts a text, in nats, per token and in bits per byte."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import ModelOption, engine_options
from octavo.config import DEFAULT_MODEL, EngineConfig

if TYPE_CHECKING:
    from octavo.engine.likelihood import Perplexity


@engine_options(without=frozenset({"served_model_name", "seed"}))
def perplexity(
    engine: dict[str, Any],
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text in UTF-8; - reads it from standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="N", min=2, help="Tokens the model sees at once.", show_default="2048, or what the model takes"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride", metavar="N", min=1, help="Tokens by which the window moves on; fewer mean more context.", show_default="half of it"
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file, too.", dir_okay=False, show_default="no file")
    ] = None,
) -> None:
    """Measure how well a model predicts a text.

    \b
    Examples:
      octavo perplexity book.txt
      octavo perplexity book.txt --window 512 --stride 512 --json book.json
      octavo perplexity book.txt --model model.gguf --quantization int4
      curl -s https://www.gutenberg.org/files/11/11-0.txt | octavo perplexity -

    \b
    A text longer than the window is read through windows that overlap; each token is counted once, with at least WINDOW - STRIDE tokens
    in front of it where there are so many. Bits per byte can be compared between models with different tokenizers, perplexity cannot.
    """
    from octavo.cli.progress import counted, fetch, working

    EngineConfig(model=model, **engine)  # a setting that is invalid is refused before a model is fetched
    text = _read(file)
    if json_file is not None:
        json_file.touch()  # before minutes of measuring, not after
    path = fetch(model)
    with working(f"Loading {path.name} …"):
        from octavo.cli.facts import engine_facts, run_facts
        from octavo.llm import LLM

        llm = LLM(model, **engine)
    with llm:
        began_s = time.monotonic()
        with counted("Reading the text") as on_window:
            found = llm.perplexity(text, window=window, stride=stride, on_window=on_window)
        took_s = time.monotonic() - began_s
        about = {**engine_facts(llm.engine, path), **run_facts()}
    if not found.num_tokens:
        raise ValueError(
            f"{_name(file)} is too short: nothing precedes its {'only token' if text else 'end'}, so there is nothing to predict"
        )
    _print(file, found, took_s)
    if json_file is not None:
        record = {"kind": "perplexity", "text": _name(file), **_figures(found), "took_s": took_s, **about}
        json_file.write_text(json.dumps(record, indent=1) + "\n")


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _read(file: str) -> str:
    """Raises ``OSError``, ``ValueError`` for what is no text."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{_name(file)} is no text in UTF-8: {error.reason} at byte {error.start}") from None


def _figures(found: Perplexity) -> dict[str, Any]:
    return {
        "log_likelihood": found.log_likelihood,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "num_tokens": found.num_tokens,
        "num_bytes": found.num_bytes,
        "num_windows": found.num_windows,
        "window": found.window,
        "stride": found.stride,
    }


def _print(file: str, found: Perplexity, took_s: float) -> None:
    windows = f"{found.num_windows:,} of at most {found.window:,} tokens, moving on by {found.stride:,}" if found.num_windows > 1 else "1"
    rows = [
        ("text", f"{_name(file)}: {found.num_tokens:,} tokens, {found.num_bytes:,} bytes"),
        ("windows", windows),
        ("log-likelihood", f"{found.log_likelihood:,.3f}"),
        ("perplexity", f"{found.perplexity:,.4f}"),
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("took", f"{took_s:.1f} s, {found.num_tokens / took_s:,.0f} tok/s"),
    ]
    for name, value in rows:
        print(f"{name:<14}  {value}")
