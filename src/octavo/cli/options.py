"""Flags that several commands share: one for each field of ``EngineConfig``, and those of ``SamplingParams``.

``@engine_options`` derives the engine's flags from the dataclass itself, so a new field is a new flag everywhere at once;
only its help text is written here. The command receives what was given as one ``engine`` dictionary of keyword arguments
for ``LLM``.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from octavo.config import EngineConfig

Command = TypeVar("Command", bound=Callable[..., Any])

FALLBACK_TEMPERATURE = 0.7
"""Of answers on a terminal, where neither the user nor the model has one."""

ENGINE_HELP: dict[str, str] = {
    "backend": "What runs the model: native (C++), or reference (NumPy: slow, obviously right).",
    "kv_cache_dtype": "How keys and values are stored; int8 holds nearly twice as many tokens as fp16, a little less exactly.",
    "kv_cache_memory_bytes": "Memory for the KV cache, such as 512MB or 2GiB; wins over --memory-fraction.",
    "memory_fraction": "Share of the memory left to this process that the KV cache may take.",
    "max_model_len": "Longest prompt plus output, in tokens.",
    "max_num_seqs": "Most sequences that run at once; more wait in a queue.",
    "max_num_batched_tokens": "Most tokens computed in one step; longer prompts are computed in chunks.",
    "max_step_ms": "Longest step, in milliseconds, while others read along as their tokens come.",
    "max_slowdown": "Longest such step, as a multiple of one without prompts: more answers prompts sooner, less keeps streams smoother.",
    "prompt_lookup_tokens": "Draft up to so many tokens a step from the text itself: the same output, sooner where it repeats its prompt.",
    "enable_prefix_caching": "Reuse the KV blocks of prompts that begin alike; on by default.",
    "num_threads": "Threads that compute.",
    "seed": "Seed of the requests that bring none.",
    "served_model_name": "The model's name in the API.",
    "quantization": "Quantise float weights at load: int8, int4, or int8-channel, whose one scale for each output makes long prompts and"
    " many requests fastest and is less exact than int8; what is quantised already stays as it is.",
    "dequantize": "Expand quantised weights to fp32 (a reference for numerics; several times the memory).",
    "generation_config": "Sampling parameters that a request leaves out: the model's own (auto), or neutral ones (none, vllm).",
    "weight_cache": "Keep packed weights on disk for a quicker next start; on by default.",
}

NONE_MEANS: dict[str, str] = {
    "kv_cache_memory_bytes": "by --memory-fraction",
    "max_model_len": "the model's context length",
    "quantization": "as they are",
    "num_threads": "every core this process may use",
    "seed": "drawn afresh",
    "served_model_name": "as given",
}

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str | int) -> int:
    """``"512MB"``, ``"2GiB"``, ``"1.5G"`` or ``"1048576"`` in bytes: MB is 10⁶, MiB is 2²⁰. Raises ``typer.BadParameter``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size: write it like 512MB, 2GiB or 1048576")
    return int(float(match[1]) * _UNITS[match[2] or ""])


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's alias (see octavo pull --help) or a path to its file.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="A model's alias or a path to its file.")]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def engine_parameters() -> list[inspect.Parameter]:
    """A keyword-only parameter, annotated for typer, for each field of ``EngineConfig`` but ``model``."""
    hints = get_type_hints(EngineConfig)
    parameters = []
    for field in fields(EngineConfig):
        if field.name == "model":
            continue
        options: dict[str, Any] = {"help": ENGINE_HELP.get(field.name)}
        kind = hints[field.name]
        if field.default is None and field.name in NONE_MEANS:
            options["show_default"] = NONE_MEANS[field.name]
        names = [_flag(field.name)]
        if kind is bool and field.default is True:
            names = [f"{_flag(field.name)}/--no-{field.name.replace('_', '-')}"]
            options["show_default"] = False
        if field.name.endswith("_bytes"):
            options |= {"parser": parse_bytes, "metavar": "SIZE"}
            kind = int | None if type(None) in get_args(kind) else int
        annotation = Annotated[kind, typer.Option(*names, **options)]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation))
    return parameters


def sampling_parameters() -> list[inspect.Parameter]:
    """Keyword-only parameters for the fields of ``SamplingParams`` that make sense for one answer on a terminal."""

    def option(name: str, kind: Any, default: Any, help: str, *names: str, **more: Any) -> inspect.Parameter:
        annotation = Annotated[kind, typer.Option(*(names or (_flag(name),)), help=help, **more)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def the_models(name: str, kind: Any, otherwise: float, help: str, *names: str) -> inspect.Parameter:
        return option(name, kind | None, None, help, *names, show_default=f"the model's own, else {otherwise:g}")

    return [
        option(
            "max_tokens", int | None, None, "Most tokens to generate.", "--max-tokens", "-n", min=1, show_default="up to the context length"
        ),
        the_models(
            "temperature",
            float,
            FALLBACK_TEMPERATURE,
            "0 always takes the likeliest token (greedy); higher is more varied.",
            "--temperature",
            "-t",
        ),
        the_models("top_p", float, 1, "Choose among the likeliest tokens that together reach this probability."),
        the_models("top_k", int, 0, "Choose among this many of the likeliest tokens; 0 keeps all."),
        the_models("min_p", float, 0, "Drop tokens less likely than this share of the likeliest one."),
        the_models("typical_p", float, 1, "Choose among the tokens of the most typical information that together reach this probability."),
        the_models("repetition_penalty", float, 1, "Above 1, makes tokens of the prompt and the answer less likely to come again."),
        option("presence_penalty", float, 0.0, "Above 0, makes tokens that the answer has already less likely."),
        option("frequency_penalty", float, 0.0, "The same, for each time that the answer has them."),
        option("seed", int | None, None, "Makes a sampled answer repeatable.", show_default="drawn afresh"),
        option("stop", list[str] | None, None, "End before this text; may be given several times.", show_default="none"),
        option("min_tokens", int, 0, "End no earlier than this."),
        option("ignore_eos", bool, False, "Go on past the model's end-of-sequence token.", "--ignore-eos"),
    ]


def sampling_fields(given: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Fields of ``SamplingParams`` from the sampling flags: what was ``given``, else the model's ``defaults``, else the terminal's."""
    return {
        "temperature": FALLBACK_TEMPERATURE,
        "max_tokens": None,
        **defaults,
        **{name: value for name, value in given.items() if value is not None},
    }


def collecting(parameter: str, added: list[inspect.Parameter], command: Command) -> Command:
    """``command`` with its ``parameter`` (a dict) replaced by the flags ``added``, less those that it has already."""
    signature = inspect.signature(command, eval_str=True)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != parameter]
    taken = {p.name for p in own}
    added = [p for p in added if p.name not in taken]

    @functools.wraps(command)
    def collect(**given: Any) -> Any:
        given[parameter] = {p.name: given.pop(p.name) for p in added}
        return command(**given)

    collect.__signature__ = signature.replace(parameters=own + added)  # type: ignore[attr-defined]
    collect.__annotations__ = {p.name: p.annotation for p in own + added}
    return collect  # type: ignore[return-value]


def engine_options(*, without: frozenset[str] = frozenset()) -> Callable[[Command], Command]:
    """Gives ``command(…, engine: dict[str, Any])`` a flag for each field of ``EngineConfig`` but ``model`` and those in ``without``."""
    return lambda command: collecting("engine", [p for p in engine_parameters() if p.name not in without], command)


def sampling_options(command: Command) -> Command:
    """Gives ``command(…, sampling: dict[str, Any])`` the sampling flags. Goes below ``engine_options`` (both know a seed)."""
    return collecting("sampling", sampling_parameters(), command)


def debug_option(command: Command) -> Command:
    """Gives ``command`` the flag ``--debug``, which it never sees: it is kept in the context's ``RunState``."""
    signature = inspect.signature(command, eval_str=True)

    def remember(ctx: typer.Context, value: bool) -> bool:
        if value and ctx.obj is not None:
            ctx.obj.debug = True
        return value

    annotation = Annotated[bool, typer.Option("--debug", help="Show the traceback when something fails.", callback=remember, is_eager=True)]
    flag = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)

    @functools.wraps(command)
    def drop(*, debug: bool, **given: Any) -> Any:
        return command(**given)

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    drop.__signature__ = signature.replace(parameters=[*own, flag])  # type: ignore[attr-defined]
    drop.__annotations__ = {p.name: p.annotation for p in [*own, flag]}
    return drop  # type: ignore[return-value]


__all__ = ["ModelArgument", "ModelOption", "debug_option", "engine_options", "parse_bytes", "sampling_fields", "sampling_options"]
