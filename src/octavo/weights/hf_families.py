"""What Hugging Face calls things, in GGUF's words: one ``Family`` for each class name in ``architectures``.

A family gives the registry's name of the architecture, its hyperparameters under the keys that GGUF files of that architecture have
(``llama.attention.head_count_kv``), and a table of tensor names. To add one, add a row to ``FAMILIES``. Names are
those of ggml-org/llama.cpp's converter (gguf-py, constants.py and tensor_mapping.py); defaults are those of the
configuration classes in huggingface/transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from octavo.weights.hf_config import Config
from octavo.weights.tensor import Tensor, TensorType

ROPE_STYLE_KEY = "octavo.rope_style"
"""Metadata: a value of ``octavo.program.RopeStyle``, ``half_split`` here. Without it, the style of the architecture's GGUF files."""

Hyperparameters = tuple[dict[str, Any], dict[str, Tensor]]
"""Key-value pairs without the architecture's prefix, and tensors that take the place of what no key says."""


@dataclass(frozen=True, slots=True)
class Family:
    """``layers`` maps a tensor's name inside ``model.layers.N.`` to its name inside ``blk.N.``, ``top`` the others; both without
    ``.weight`` or ``.bias``. ``ignored`` matches names that carry nothing that the model needs."""

    architecture: str
    hyperparameters: Callable[[Config], Hyperparameters]
    layers: Mapping[str, str]
    top: Mapping[str, str]
    ignored: re.Pattern[str] = field(default=re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"))

    def translate(self, name: str) -> str | None:
        """The GGUF name of a tensor; its own name if the tables do not have it; ``None`` if it is ignored."""
        if self.ignored.fullmatch(name):
            return None
        stem, dot, kind = name.rpartition(".")
        if dot and kind in ("weight", "bias"):
            layer = _LAYER.fullmatch(stem)
            if layer is not None and layer["rest"] in self.layers:
                return f"blk.{int(layer['number'])}.{self.layers[layer['rest']]}.{kind}"
            if stem in self.top:
                return f"{self.top[stem]}.{kind}"
        return name


_LAYER = re.compile(r"(?:model\.)?layers\.(?P<number>0|[1-9]\d{0,4})\.(?P<rest>.+)")

_LLAMA_LAYERS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_DECODER_TOP = {
    "model.embed_tokens": "token_embd",
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "norm": "output_norm",
    "lm_head": "output",
}


def _llama(config: Config) -> Hyperparameters:
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key, False):
            config.fail(key, "projections with biases are not supported in the llama family")
    if config.text("hidden_act", "silu") not in ("silu", "swish"):
        config.fail("hidden_act", "the llama family has silu")
    return _decoder(config)


def _mistral(config: Config) -> Hyperparameters:
    window = config.get("sliding_window")
    if window is not None and config.integer("sliding_window") < config.integer("max_position_embeddings"):
        config.fail("sliding_window", "attention windows shorter than max_position_embeddings are not supported; null means none")
    return _llama(config)


def _decoder(config: Config) -> Hyperparameters:
    """What Llama and its followers have in common."""
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if config.get("head_dim") is None and hidden % num_heads:
        config.fail("num_attention_heads", f"it must divide hidden_size={hidden} where head_dim is not given")
    head_dim = config.integer("head_dim", hidden // num_heads)
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        config.fail("num_key_value_heads", f"it must divide num_attention_heads={num_heads}")
    pairs: dict[str, Any] = {
        "vocab_size": config.integer("vocab_size"),
        "context_length": config.integer("max_position_embeddings", 2048),
        "embedding_length": hidden,
        "block_count": config.integer("num_hidden_layers", high=4096),
        "feed_forward_length": config.integer("intermediate_size"),
        "attention.head_count": num_heads,
        "attention.head_count_kv": num_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", 1e-6, high=1.0),
    }
    rope, tensors = _rope(config, head_dim)
    return pairs | rope, tensors


def _rope(config: Config, head_dim: int) -> Hyperparameters:
    """``rope_parameters`` (since transformers 5) or ``rope_theta`` beside ``rope_scaling``, in GGUF's keys."""
    scaling = config.section("rope_parameters") or config.section("rope_scaling")
    base = _holder("rope_theta", scaling, config).real("rope_theta", 10000.0)
    rotary_dim = int(head_dim * _holder("partial_rotary_factor", scaling, config).real("partial_rotary_factor", 1.0, high=1.0))
    if rotary_dim < 2 or rotary_dim % 2:
        config.fail("head_dim", f"{rotary_dim} elements of a head would be rotated: it must be an even number of at least 2")
    pairs: dict[str, Any] = {"rope.freq_base": base, "rope.dimension_count": rotary_dim}
    if scaling is None:
        return pairs, {}
    key = "rope_type" if scaling.get("rope_type") is not None else "type"
    kind = scaling.text(key, "default")
    if kind == "llama3":
        return pairs, {"rope_freqs.weight": _llama3_factors(config, scaling, base, rotary_dim)}
    if kind == "yarn":
        pairs["rope.scaling.original_context_length"] = _original_context(config, scaling)
        for theirs, ours in (("attention_factor", "attn_factor"), ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if scaling.get(theirs) is not None:
                pairs[f"rope.scaling.{ours}"] = scaling.real(theirs)
    if kind in ("linear", "yarn"):
        pairs |= {"rope.scaling.type": kind, "rope.scaling.factor": scaling.real("factor")}
    elif kind != "default":
        scaling.fail(key, "known are default, linear, llama3 and yarn")
    return pairs, {}


def _holder(key: str, first: Config | None, second: Config) -> Config:
    """Whichever of the two has the key."""
    return first if first is not None and first.get(key) is not None else second


def _original_context(config: Config, scaling: Config) -> int:
    key = "original_max_position_embeddings"
    return _holder(key, scaling, config).integer(key, config.integer("max_position_embeddings", 2048))


def _llama3_factors(config: Config, scaling: Config, base: float, rotary_dim: int) -> Tensor:
    """What each frequency is divided by, F32 (rotary_dim / 2,): 1 for short wavelengths, ``factor`` for long ones, a blend between.

    Source: ``_compute_llama3_parameters`` in huggingface/transformers, modeling_rope_utils.py.
    """
    factor = scaling.real("factor")
    low, high = scaling.real("low_freq_factor"), scaling.real("high_freq_factor")
    if low >= high:
        scaling.fail("high_freq_factor", f"it must be greater than low_freq_factor={low}")
    context = _original_context(config, scaling)
    frequencies = base ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    turns = context * frequencies / (2 * math.pi)  # in the original context; low … high is the blend
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors = (1.0 / ((1.0 - kept) / factor + kept)).astype("<f4")
    return Tensor("rope_freqs.weight", TensorType.F32, factors.shape, factors.view(np.uint8).reshape(1, -1))


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family("llama", _llama, _LLAMA_LAYERS, _DECODER_TOP),
        "MistralForCausalLM": Family("llama", _mistral, _LLAMA_LAYERS, _DECODER_TOP),
    }
)
"""By the class name in ``config.json``'s ``architectures``."""
