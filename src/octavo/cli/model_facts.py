"""What a checkpoint is and what it needs, without loading it: the facts behind ``octavo inspect model``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from octavo.backends.base import kv_bytes_per_token
from octavo.config import KVDType
from octavo.models import build_program
from octavo.program import Program
from octavo.text import load_chat_template, load_tokenizer
from octavo.weights.tensor import Checkpoint, Tensor, TensorType


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything, ready for JSON. Where a part cannot be had, its place says why: ``{"error": …}``."""
    readable, refused = split_tensors(checkpoint)
    program, error = _program(checkpoint)
    return {
        "path": str(checkpoint.path),
        "name": _text(checkpoint.metadata.get("general.name")),
        "architecture": checkpoint.architecture,
        "hyperparameters": hyperparameters(checkpoint),
        "supported": program is not None,
        "unsupported_because": error,
        "num_parameters": sum(math.prod(tensor.shape) for tensor in readable),
        "num_tensors": len(readable) + len(refused),
        "types": types(readable),
        "unreadable": refused,
        "tokenizer": tokenizer_facts(checkpoint),
        "chat_template": template_facts(checkpoint),
        "memory": None if program is None else memory(program, checkpoint),
        "tensors": [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.num_bytes, "bits_per_weight": bits(t)}
            for t in readable
        ],
    }


def split_tensors(checkpoint: Checkpoint) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors that can be read, in the file's order, and why each other one cannot."""
    readable, refused = [], {}
    for name in checkpoint.tensors:
        try:
            readable.append(checkpoint.tensors[name])
        except ValueError as error:
            refused[name] = str(error).removeprefix(f"{checkpoint.path}: ")
    return readable, refused


def hyperparameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """The architecture's own keys, without their prefix; long lists by their length."""
    prefix = checkpoint.architecture + "."
    return {key.removeprefix(prefix): _short(value) for key, value in checkpoint.metadata.items() if key.startswith(prefix)}


def _short(value: Any) -> Any:
    return f"[{len(value)} values]" if isinstance(value, list) and len(value) > 8 else value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def bits(tensor: Tensor) -> float:
    """Bits per weight in the file."""
    return 8 * tensor.type.block_bytes / tensor.type.block_length


def types(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Per tensor type, the one with the most bytes first: how many tensors, weights and bytes."""
    found: dict[TensorType, dict[str, Any]] = {}
    for tensor in tensors:
        row = found.setdefault(
            tensor.type, {"type": tensor.type.name, "tensors": 0, "weights": 0, "bytes": 0, "bits_per_weight": bits(tensor)}
        )
        row["tensors"] += 1
        row["weights"] += math.prod(tensor.shape)
        row["bytes"] += tensor.num_bytes
    return sorted(found.values(), key=lambda row: -int(row["bytes"]))


def tokenizer_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Kind, size and special tokens."""
    kind = tokenizer_kind(checkpoint)
    try:
        tokenizer = load_tokenizer(checkpoint)
    except (ValueError, OSError) as error:
        return {"kind": kind, "error": str(error)}

    def named(token_id: int | None) -> dict[str, Any] | None:
        return None if token_id is None else {"id": token_id, "token": tokenizer.id_to_token(token_id)}

    return {
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "num_special": len(tokenizer.special_ids),
        "bos": named(tokenizer.bos_token_id),
        "eos": named(tokenizer.eos_token_id),
        "pad": named(tokenizer.pad_token_id),
        "ends_generation": [named(token_id) for token_id in sorted(tokenizer.eos_token_ids)],
    }


def tokenizer_kind(checkpoint: Checkpoint) -> str:
    """``gpt2, pre-tokenizer smollm`` as a GGUF file names it; ``BPE (tokenizer.json)`` of a directory."""
    model, pre = (_text(checkpoint.metadata.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if model is not None:
        return f"{model}, pre-tokenizer {pre}" if pre else model
    for name in ("tokenizer.json", "tokenizer.model"):
        path = Path(checkpoint.path) / name
        if not path.is_file():
            continue
        if path.suffix == ".model":
            return f"SentencePiece ({name})"
        try:
            return f"{json.loads(path.read_bytes())['model']['type']} ({name})"
        except (ValueError, KeyError, TypeError, RecursionError):
            return name
    return "none"


def template_facts(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The template's text, ``None`` for a model without one."""
    try:
        template = load_chat_template(checkpoint)
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    return None if template is None else {"text": template.source, "for_tools": template.tool_source}


def _program(checkpoint: Checkpoint) -> tuple[Program | None, str | None]:
    try:
        return build_program(checkpoint), None
    except ValueError as error:
        return None, str(error)


def memory(program: Program, checkpoint: Checkpoint) -> dict[str, Any]:
    """Bytes of the packed weights (or why that is unknown), by the type they had, and of the KV cache."""
    per_token = {name: kv_bytes_per_token(program.kv, name) for name in get_args(KVDType)}
    packed: dict[str, int] | None = None
    error = None
    try:
        packed = packed_bytes(program, checkpoint)
    except (ImportError, KeyError, ValueError) as reason:
        error = f"tensor {reason} is missing" if isinstance(reason, KeyError) else str(reason)
    return {
        "packed_weight_bytes": None if packed is None else sum(packed.values()),
        "packed_bytes_by_type": packed,
        "packing_error": error,
        "context_length": program.max_model_len,
        "kv_bytes_per_1000_tokens": {name: 1000 * size for name, size in per_token.items()},
        "kv_bytes_of_full_context": {name: program.max_model_len * size for name, size in per_token.items()},
    }


def packed_bytes(program: Program, checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes that the native backend packs ``program``'s weights into, by their types in the file; vectors become fp32.

    Raises ``ImportError`` where the backend was not built, ``KeyError`` for a missing tensor, ``ValueError`` for one that cannot be packed.
    """
    from octavo.backends.native.packed_layout import plan_layout

    places = {place.name: place.num_bytes for place in plan_layout(program, checkpoint.tensors, dequantize=False).places}
    found: dict[str, int] = {}
    for name, shape in program.weights.items():
        kind = checkpoint.tensors[name].type.name
        found[kind] = found.get(kind, 0) + places.get(name, 4 * math.prod(shape))
    return found
