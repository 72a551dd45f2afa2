"""From a configuration to a model that is ready to run: weights, tokenizer, program, executable, KV storage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from octavo.backends import get_backend
from octavo.backends.base import Backend, CompileOptions, Executable
from octavo.config import BLOCK_SIZE, EngineConfig
from octavo.decoding import sampling_defaults
from octavo.engine.memory import available_memory_bytes
from octavo.kv import BlockHash, scope_hash
from octavo.models import build_program
from octavo.program import Program
from octavo.text import ChatTemplate, Tokenizer, load_chat_template, load_tokenizer
from octavo.weights import Checkpoint, open_checkpoint, quantized, resolve

logger = logging.getLogger(__name__)

BLOCK_LAYOUT = "layer,kv_head,k_transposed,v/1"
_SCORE_LOGITS_BYTES = 32 << 20
"""Of logits of prompt tokens whose log-probabilities are wanted, in one step; touched only then."""
_FALLBACK_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``root``: the hash under which its KV blocks are named. ``fingerprint``: the scope of law 1, for people."""

    name: str
    program: Program
    executable: Executable
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    num_blocks: int
    root: BlockHash
    fingerprint: str
    load_s: float
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    """What the model's makers recommend, as fields of ``SamplingParams``."""


def load_model(config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> LoadedModel:
    """``on_progress(done_bytes, total_bytes)`` is called while a model is fetched.

    Raises ``ValueError`` for a model or a setting that cannot work, ``MemoryError`` when the KV cache cannot be had.
    """
    began_s = time.monotonic()
    original = open_checkpoint(resolve(config.model, on_progress=on_progress))
    checkpoint = original if config.quantization is None else quantized(original, config.quantization)
    program = build_program(checkpoint, config.max_model_len)
    options = CompileOptions(
        block_size=BLOCK_SIZE,
        kv_dtype=config.kv_cache_dtype,
        max_tokens=config.max_num_batched_tokens,
        max_logits_rows=config.max_num_seqs + max(1, min(config.max_num_batched_tokens, _SCORE_LOGITS_BYTES // (4 * program.vocab_size))),
        max_model_len=program.max_model_len,
        num_threads=config.threads,
        dequantize=config.dequantize,
    )
    with ThreadPoolExecutor(1) as beside:  # packing, reading and hashing weights hold no Python lock
        text = beside.submit(lambda: (load_tokenizer(checkpoint), load_chat_template(checkpoint)))
        executable = _backend(config, original, checkpoint).compile(program, checkpoint.tensors, options)
    try:
        tokenizer, chat_template = text.result()
        if tokenizer.vocab_size < program.vocab_size:
            raise ValueError(
                f"{checkpoint.path.name}: the tokenizer knows {tokenizer.vocab_size} tokens, but the model can choose among "
                f"{program.vocab_size}: the file is not whole"
            )
        num_blocks = _num_blocks(config, program, executable)
        executable.allocate_kv(num_blocks)
    except BaseException:
        executable.close()
        raise
    release = version("octavo")
    weights = checkpoint.fingerprint + ("-fp32" if config.dequantize else "")
    root = scope_hash(
        weights=weights,
        kv_dtype=config.kv_cache_dtype,
        layout=BLOCK_LAYOUT,
        block_size=BLOCK_SIZE,
        isa=executable.isa,
        build=release,
    )
    return LoadedModel(
        name=config.served_model_name or config.model,
        program=program,
        executable=executable,
        tokenizer=tokenizer,
        chat_template=chat_template,
        num_blocks=num_blocks,
        root=root,
        fingerprint=f"octavo-{release}-{executable.isa}-{weights}-kv{config.kv_cache_dtype}",
        load_s=time.monotonic() - began_s,
        sampling_defaults=sampling_defaults(checkpoint.metadata),
    )


def _backend(config: EngineConfig, original: Checkpoint, checkpoint: Checkpoint) -> Backend:
    if config.backend != "native":
        return get_backend(config.backend)
    from octavo.backends.native import NativeBackend, PackedCache

    if not config.weight_cache:
        return NativeBackend(originals=original.tensors)
    cache = PackedCache(
        source=original.path.resolve(),
        source_fingerprint=original.fingerprint,
        weights=checkpoint.fingerprint,
        variant=config.quantization or ("fp32" if config.dequantize else "as stored"),
        build=version("octavo"),
    )
    return NativeBackend(cache, original.tensors)


def _num_blocks(config: EngineConfig, program: Program, executable: Executable) -> int:
    """As many blocks as the memory allows, but no more than all sequences at full length could fill."""
    block_bytes = executable.kv_block_bytes
    if config.kv_cache_memory_bytes is not None:
        num_blocks = config.kv_cache_memory_bytes // block_bytes
        if num_blocks < 2:
            raise ValueError(
                f"kv_cache_memory_bytes={config.kv_cache_memory_bytes} is too small: a KV block of this model takes {block_bytes} bytes "
                "and at least 2 are needed"
            )
    else:
        available = available_memory_bytes()
        budget = int((_FALLBACK_MEMORY_BYTES if available is None else available) * config.memory_fraction)
        most = config.max_num_seqs * -(-program.max_model_len // BLOCK_SIZE)
        num_blocks = min(budget // block_bytes, most)
        if num_blocks < 2:
            raise MemoryError(
                f"memory_fraction={config.memory_fraction} of what is left to this process is {budget} bytes, but a KV block of this model "
                f"takes {block_bytes} and at least 2 are needed: free memory, or set kv_cache_memory_bytes"
            )
    if num_blocks * BLOCK_SIZE < program.max_model_len:
        logger.warning(
            "the KV cache holds %d tokens, less than the context length of %d: longer requests end early (finish_reason=length)",
            num_blocks * BLOCK_SIZE,
            program.max_model_len,
        )
    return num_blocks
