"""``octavo inspect model`` and ``octavo inspect program``: what a model is, and what Octavo computes for it, without loading it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from octavo.cli.options import ModelArgument, debug_option
from octavo.config import DEFAULT_MODEL, Quantization

TEMPLATE_LINES = 4
LINE_LENGTH = 100

QuantizationOption = Annotated[
    Quantization | None,
    typer.Option("--quantization", help="As if it were loaded with this flag.", show_default="as it is"),
]

inspect_group = typer.Typer(
    help="""Say what a model is, or what is computed for it, without loading it.

    \b
    Examples:
      octavo inspect model model.gguf
      octavo inspect program smollm2-135m-instruct
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def inspect_model(
    model: ModelArgument = DEFAULT_MODEL,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    quantization: QuantizationOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show a model's architecture, tensors, tokenizer, chat template and the memory it will need.

    \b
    Examples:
      octavo inspect model                          the default model
      octavo inspect model model.gguf --tensors
      octavo inspect model path/to/directory --quantization int4
      octavo inspect model model.gguf --json | jq .memory
    """
    from octavo.cli.model_facts import model_facts
    from octavo.cli.progress import fetch
    from octavo.weights import open_checkpoint, quantized

    checkpoint = open_checkpoint(fetch(model))
    facts = model_facts(quantized(checkpoint, quantization) if quantization is not None else checkpoint)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        print(report(facts, tensors=tensors))


def inspect_program(
    model: ModelArgument = DEFAULT_MODEL,
    full: Annotated[bool, typer.Option("--full", help="Write every layer out, also those that are alike.")] = False,
    max_model_len: Annotated[int | None, typer.Option("--max-model-len", metavar="N", help="As the engine's flag.")] = None,
) -> None:
    """List the operations that a model is made of; %n[a:b] are columns a to b of buffer n, ᴸ marks rows whose logits are wanted.

    \b
    Examples:
      octavo inspect program                        one layer stands for those like it
      octavo inspect program model.gguf --full
    """
    from octavo.cli.listing import listing
    from octavo.cli.progress import fetch
    from octavo.models import build_program
    from octavo.weights import open_checkpoint

    if max_model_len is not None and max_model_len < 2:
        raise ValueError(f"max_model_len={max_model_len!r} is invalid: must be at least 2 tokens")
    print(listing(build_program(open_checkpoint(fetch(model)), max_model_len), full=full))


inspect_group.command("model")(debug_option(inspect_model))
inspect_group.command("program")(debug_option(inspect_program))


def report(facts: dict[str, Any], *, tensors: bool) -> str:
    """The facts of ``model_facts`` for people."""
    from octavo.cli.banner import megabytes

    name = f"{facts['name']}, " if facts["name"] else ""
    rows = [("model", facts["path"]), ("family", f"{name}{facts['architecture']}")]
    if not facts["supported"]:
        rows.append(("", f"cannot run: {facts['unsupported_because']}"))
    at_least = "at least " if facts["unreadable"] else ""
    rows.append(("weights", f"{at_least}{facts['num_parameters']:,} in {facts['num_tensors']} tensors"))
    for kind in facts["types"]:
        size = f"{kind['bits_per_weight']:g} bits per weight, {megabytes(kind['bytes'])}"
        packed = ((facts["memory"] or {}).get("packed_bytes_by_type") or {}).get(kind["type"])
        size += f", {megabytes(packed)} packed" if packed is not None else ""
        rows.append(("", f"{kind['type']:<6} {kind['tensors']:>5} tensors, {kind['weights']:>14,} weights, {size}"))
    rows += [("unreadable" if not index else "", text) for index, text in enumerate(unreadable(facts["unreadable"]))]
    rows += [
        ("settings" if not index else "", f"{key} = {value:.6g}" if isinstance(value, float) else f"{key} = {value}")
        for index, (key, value) in enumerate(facts["hyperparameters"].items())
    ]
    rows += [("tokenizer" if not index else "", text) for index, text in enumerate(tokenizer_lines(facts["tokenizer"]))]
    rows += [("template" if not index else "", text) for index, text in enumerate(template_lines(facts["chat_template"]))]
    rows += [("memory" if not index else "", text) for index, text in enumerate(memory_lines(facts["memory"]))]
    if tensors:
        width = max((len(tensor["name"]) for tensor in facts["tensors"]), default=0)
        for index, tensor in enumerate(facts["tensors"]):
            shape = " × ".join(str(n) for n in tensor["shape"])
            rows.append(
                ("tensors" if not index else "", f"{tensor['name']:<{width}}  {tensor['type']:<6} {tensor['bytes']:>13,} bytes  {shape}")
            )
    return "\n".join(f"{label:<10} {text}".rstrip() for label, text in rows)


def unreadable(refused: dict[str, str], most: int = 5) -> list[str]:
    """The first tensors that cannot be read, with why, and how many more there are."""
    lines = [refusal if name in refusal else f"{name}: {refusal}" for name, refusal in list(refused.items())[:most]]
    return lines + ([f"and {len(refused) - most} more (--json has them all)"] if len(refused) > most else [])


def tokenizer_lines(tokenizer: dict[str, Any]) -> list[str]:
    if "error" in tokenizer:
        return [f"{tokenizer['kind']}; cannot be used: {tokenizer['error']}"]

    def named(token: dict[str, Any]) -> str:
        return f"{token['token']} ({token['id']})"

    special = [f"{name} {named(tokenizer[name])}" for name in ("bos", "eos", "pad") if tokenizer[name] is not None]
    ends = ", ".join(named(token) for token in tokenizer["ends_generation"])
    return [
        f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens, {tokenizer['num_special']} of them control tokens",
        ", ".join(special) or "no special tokens named",
        f"a generation ends with {ends}" if ends else "no token ends a generation",
    ]


def template_lines(template: dict[str, Any] | None) -> list[str]:
    if template is None:
        return ["none: for octavo generate --raw and /v1/completions only"]
    if "error" in template:
        return [f"cannot be used: {template['error']}"]
    lines = template["text"].splitlines()
    shown = [line[:LINE_LENGTH] + ("…" if len(line) > LINE_LENGTH else "") for line in lines[:TEMPLATE_LINES]]
    return shown + ([f"… {len(lines) - TEMPLATE_LINES} more lines (--json has them all)"] if len(lines) > TEMPLATE_LINES else [])


def memory_lines(memory: dict[str, Any] | None) -> list[str]:
    from octavo.cli.banner import megabytes

    if memory is None:
        return ["unknown, since it cannot run"]
    packed, context = memory["packed_weight_bytes"], memory["context_length"]
    lines = [f"{megabytes(packed)} of packed weights" if packed is not None else f"packed weights unknown: {memory['packing_error']}"]
    for kind, size in memory["kv_bytes_per_1000_tokens"].items():
        whole = megabytes(memory["kv_bytes_of_full_context"][kind])
        lines.append(f"{megabytes(size)} of KV cache in {kind} per 1,000 tokens; {whole} for the context of {context:,}")
    return lines
