"""The Llama family: RMSNorm, rotary positions, grouped-query attention, SiLU-gated feed-forward; no biases.

Also what follows it to the letter: SmolLM2, TinyLlama, Mistral without sliding windows. Source: "LLaMA: Open and
Efficient Foundation Language Models" (Touvron et al., 2023) and, for grouped queries, Ainslie et al., 2023.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from octavo.models.hyperparameters import Hyperparameters
from octavo.models.registry import register
from octavo.program import Program, ProgramBuilder, RopeStyle
from octavo.weights import dequantize
from octavo.weights.tensor import Checkpoint


@register("llama")
def write_llama(checkpoint: Checkpoint, max_model_len: int | None) -> Program:
    h = Hyperparameters(checkpoint)
    hidden = h.integer("embedding_length")
    num_heads = h.integer("attention.head_count")
    num_kv_heads = h.integer("attention.head_count_kv", num_heads)
    head_dim = h.integer("attention.key_length", hidden // num_heads)
    intermediate = h.integer("feed_forward_length")
    if "token_embd.weight" not in checkpoint.tensors:
        raise ValueError(f"{checkpoint.path.name}: the tensor 'token_embd.weight' is missing")
    vocab_size = checkpoint.tensors["token_embd.weight"].shape[0]
    eps = h.real("attention.layer_norm_rms_epsilon", high=1.0)
    if h.integer("expert_count", 0, low=0):
        raise ValueError(f"{checkpoint.path.name}: mixtures of experts are not supported by the llama family")

    context_length = h.integer("context_length")
    b = ProgramBuilder("llama", min(context_length, max_model_len or context_length))
    if 0 < h.integer("attention.sliding_window", 0, low=0) < min(context_length, max_model_len or context_length):
        raise ValueError(f"{checkpoint.path.name}: sliding windows shorter than the context are not supported by the llama family")
    style = RopeStyle(checkpoint.metadata.get("octavo.rope_style", RopeStyle.INTERLEAVED.value))
    rope = partial(b.rope, head_dim=head_dim, style=style, inv_freq=_inverse_frequencies(checkpoint, h, head_dim))

    x = b.embedding("token_embd.weight", vocab_size, hidden)
    for layer in range(h.integer("block_count", high=4096)):
        p = f"blk.{layer}."
        y = b.rms_norm(x, p + "attn_norm.weight", eps)
        kv_width = num_kv_heads * head_dim
        qkv = b.linear(y, {p + "attn_q.weight": num_heads * head_dim, p + "attn_k.weight": kv_width, p + "attn_v.weight": kv_width})
        q, k, v = b.split(qkv, [num_heads * head_dim, kv_width, kv_width])
        y = b.paged_attention(rope(q), rope(k), v, layer=layer, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        x = b.add(x, b.linear(y, {p + "attn_output.weight": hidden}))

        y = b.rms_norm(x, p + "ffn_norm.weight", eps)
        gate, up = b.split(b.linear(y, {p + "ffn_gate.weight": intermediate, p + "ffn_up.weight": intermediate}), [intermediate] * 2)
        x = b.add(x, b.linear(b.silu_mul(gate, up), {p + "ffn_down.weight": hidden}))

    y = b.rms_norm(b.select_rows(x), "output_norm.weight", eps)
    head = "output.weight" if "output.weight" in checkpoint.tensors else "token_embd.weight"
    return b.build(b.linear(y, {head: vocab_size}))


def _inverse_frequencies(checkpoint: Checkpoint, h: Hyperparameters, head_dim: int) -> tuple[float, ...]:
    """base^(-2i/d), stretched by the file's own factors (Llama 3) or by linear position scaling."""
    rotary_dim = h.integer("rope.dimension_count", head_dim, high=head_dim)
    base = h.real("rope.freq_base", 10000.0)
    inv_freq = base ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if "rope_freqs.weight" in checkpoint.tensors:
        inv_freq = inv_freq / dequantize(checkpoint.tensors["rope_freqs.weight"]).astype(np.float64)
    scaling = h.text("rope.scaling.type", "none")
    if scaling == "linear":
        inv_freq = inv_freq / h.real("rope.scaling.factor")
    elif scaling != "none":
        raise ValueError(f"{checkpoint.path.name}: rope scaling {scaling!r} is not supported by the llama family")
    return tuple(float(f) for f in inv_freq)
