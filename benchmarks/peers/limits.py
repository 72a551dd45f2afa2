"""What this machine allows at most: bandwidth and arithmetic, measured by ``benchmarks/kernels/limits.cpp``, and what they make of a row.

The floor of a row is the time that its weights, keys and values take to be read, or its products of weights take to be computed,
whichever is longer in each step. Attention's arithmetic, norms, token choice and everything between kernels count as free, so nothing
reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import workload

if TYPE_CHECKING:
    from octavo.config import KVDType


@dataclass(frozen=True)
class ModelSize:
    """``weight_bytes`` are read in every step; each row multiplies with the layers' weights, each row of logits with the head's."""

    weight_bytes: int
    layer_weights: int
    head_weights: int
    kv_bytes_per_token: int

    @classmethod
    def of(cls, gguf: Path, kv_dtype: KVDType = "fp16") -> ModelSize:
        """Of a GGUF file of the Llama family."""
        from octavo.backends.base import kv_bytes_per_token
        from octavo.program import KVSpec
        from octavo.weights.gguf import GGUFFile

        file = GGUFFile(gguf)
        layer_weights = head_weights = weight_bytes = 0
        head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
        for name in file.tensors:
            tensor = file.tensors[name]
            if name.startswith("blk.") or name == head:
                weight_bytes += tensor.num_bytes
            if len(tensor.shape) == 2:
                size = tensor.shape[0] * tensor.shape[1]
                layer_weights += size if name.startswith("blk.") else 0
                head_weights += size if name == head else 0
        facts: Any = file.metadata
        family = facts["general.architecture"]
        heads, width = facts[f"{family}.attention.head_count"], facts[f"{family}.embedding_length"]
        kv_heads = facts.get(f"{family}.attention.head_count_kv", heads)
        kv = kv_bytes_per_token(KVSpec(facts[f"{family}.block_count"], kv_heads, width // heads), kv_dtype)
        return cls(weight_bytes, layer_weights, head_weights, kv)


@dataclass(frozen=True)
class Limits:
    """``read_gb_s``: of memory. ``gops``: multiply-adds count as two; of integers for quantised weights, of fp32 for fp32."""

    read_gb_s: float
    gops: float
    size: ModelSize

    def step_s(self, rows: int, kv_tokens: float) -> float:
        read = (self.size.weight_bytes + self.size.kv_bytes_per_token * kv_tokens) / self.read_gb_s / 1e9
        return max(read, 2 * rows * (self.size.layer_weights + self.size.head_weights) / self.gops / 1e9)

    def prompt_s(self, tokens: int) -> float:
        return max(self.size.weight_bytes / self.read_gb_s, 2 * tokens * self.size.layer_weights / self.gops) / 1e9

    def best(self, row: str) -> float | None:
        """The best that a row could be, in its unit; ``None`` for those that are not a matter of bandwidth and arithmetic."""
        if row == "decode":
            return 1 / self.step_s(1, workload.DECODE.input_len + workload.DECODE.output_len / 2)
        if row == "prefill":
            return workload.PREFILL.input_len / self.prompt_s(workload.PREFILL.input_len)
        if row in ("requests", "serving"):
            n, lengths = workload.SERVING.num_prompts, workload.SERVING
            steps = sum(self.step_s(n, n * (lengths.input_len + i)) for i in range(lengths.output_len))
            return n * lengths.output_len / (self.prompt_s(n * lengths.input_len) + steps)
        if row == "context":
            n, lengths = workload.CONTEXT.num_prompts, workload.CONTEXT
            return n / self.step_s(n, n * (lengths.input_len + lengths.output_len / 2))
        if row == "samples":
            n, lengths = workload.NUM_SAMPLES, workload.SAMPLES
            return self.prompt_s(lengths.input_len) + sum(self.step_s(n, lengths.input_len + n * i) for i in range(lengths.output_len))
        if row == "beams":  # at best they differ in their last tokens only
            n, lengths = workload.BEAM_WIDTH, workload.BEAMS
            return self.prompt_s(lengths.input_len) + sum(self.step_s(n, lengths.input_len + i + n) for i in range(lengths.output_len))
        if row == "prefix":
            n, lengths = workload.PREFIX.num_prompts, workload.PREFIX
            distinct = workload.SHARED_LEN + n * (lengths.input_len - workload.SHARED_LEN)
            return self.prompt_s(distinct) + sum(self.step_s(n, distinct + n * i) for i in range(lengths.output_len))
        return None
