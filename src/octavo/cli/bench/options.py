"""Flags that the bench commands share: those of a workload, and where the figures go."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import Command, collecting

if TYPE_CHECKING:
    from octavo.bench.workload import Workload


class OfflineKind(StrEnum):
    FIXED = "fixed"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    SHARED_PREFIX = "shared-prefix"
    FILE = "file"


class WorkloadKind(StrEnum):
    """What is asked of a server: also streams that a long prompt disturbs."""

    FIXED = "fixed"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    SHARED_PREFIX = "shared-prefix"
    FILE = "file"
    SMOOTH = "smooth"


class Prompts(StrEnum):
    RANDOM = "random"
    TEXT = "text"


JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write everything that was measured to this file.", dir_okay=False, show_default="no file")
]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot", help="Draw latencies and a timeline into this .png or .svg (needs octavo[plot]).", dir_okay=False, show_default="no plot"
    ),
]
Iterations = Annotated[int, typer.Option("--iterations", help="Measured repetitions.", metavar="N")]
Warmup = Annotated[int, typer.Option("--warmup", help="Repetitions before that, not measured.", metavar="N")]
InputLen = Annotated[int, typer.Option("--input-len", help="Prompt tokens of each request.", metavar="N")]
OutputLen = Annotated[int, typer.Option("--output-len", help="Tokens generated for each request, exactly.", metavar="N")]
NumBranches = Annotated[int, typer.Option("--n", help="Answers to each prompt (parallel sampling).", metavar="N")]
PromptSeed = Annotated[int, typer.Option("--prompt-seed", help="Seed of the prompts and their lengths.", metavar="N")]
PromptsOption = Annotated[Prompts, typer.Option("--prompts", help="Random token ids, or English words.")]


def workload_parameters(kinds: type[StrEnum]) -> list[inspect.Parameter]:
    def option(name: str, kind: Any, default: Any, flag: str, help: str, **more: Any) -> inspect.Parameter:
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, typer.Option(flag, help=help, **more)]
        )

    return [
        option("kind", kinds, kinds("fixed"), "--workload", "Lengths that are all the same, or like a trace's, or a file's."),
        option("num_prompts", int, 64, "--num-prompts", "Requests.", metavar="N"),
        option("input_len", int | None, None, "--input-len", "Prompt tokens of each.", metavar="N", show_default="128, or the trace's"),
        option("output_len", int | None, None, "--output-len", "Output tokens of each.", metavar="N", show_default="128, or the trace's"),
        option("num_prefixes", int, 1, "--num-prefixes", "shared-prefix: how many different ones.", metavar="N"),
        option("prefix_len", int, 512, "--prefix-len", "shared-prefix: its tokens, before --input-len of each request's own.", metavar="N"),
        option("n", int, 1, "--n", "Answers to each prompt (parallel sampling).", metavar="N"),
        option(
            "dataset", Path | None, None, "--dataset", "file: conversations as JSON (ShareGPT, Alpaca, …).",
            exists=True, dir_okay=False, metavar="FILE", show_default="none",
        ),
        option("prompt_seed", int, 0, "--prompt-seed", "Seed of the prompts and their lengths.", metavar="N"),
    ]  # fmt: skip


def workload_options(*, smooth: bool = False) -> Callable[[Command], Command]:
    """Gives ``command(…, workload: dict[str, Any])`` the flags of a workload."""
    return lambda command: collecting("workload", workload_parameters(WorkloadKind if smooth else OfflineKind), command)


def workload_of(given: dict[str, Any]) -> Workload:
    """The ``Workload`` that the flags describe. Raises ``ValueError``."""
    from octavo.bench.workload import Workload

    dataset = given["dataset"]
    return Workload(
        kind=given["kind"].value,
        dataset=None if dataset is None else str(dataset),
        seed=given["prompt_seed"],
        **{name: given[name] for name in ("num_prompts", "input_len", "output_len", "num_prefixes", "prefix_len", "n")},
    )
