"""Octavo beside transformers, afresh: small random Llamas written to GGUF on the fly, and SmolLM2 over its whole vocabulary.

Needs the ``reference`` extra (torch, transformers, accelerate); ``make test-reference`` installs it. The committed golden numbers of
``test_numerics.py`` come from the same comparison.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends import get_backend
from octavo.backends.base import CompileOptions
from octavo.config import BLOCK_SIZE
from octavo.models import build_program
from octavo.weights import open_checkpoint

from .conformance.steps import Driver

pytestmark = pytest.mark.reference

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
    pytest.skip("torch and transformers are not installed", allow_module_level=True)

import gguf  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

SCRIPTS = Path(__file__).parents[1] / "scripts"
Float32Array = npt.NDArray[np.float32]

SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 192, "tie_word_embeddings": True},
    "one-kv-head-wide": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 80, "hidden_size": 96},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "llama3-rope": {
        "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 500000.0,
        }
    },
}  # fmt: skip


def random_llama(**shape: Any) -> LlamaForCausalLM:
    """Weights large enough that every layer matters, norms away from one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 160, "hidden_size": 128, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, **shape,
        }
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.2)
            else:
                weight.normal_(0.0, 1.0 if "embed" in name else weight.shape[1] ** -0.5)
    return model


def interleaved(weight: Float32Array, num_heads: int) -> Float32Array:
    """Rows of Q or K from the half-split order of Hugging Face to the interleaved order of llama's GGUF files."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: LlamaForCausalLM, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The model as a llama GGUF file, its matrices stored as ``kind``; the model's own weights become what the file stores."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32))
    names = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            layer = name.removeprefix("model.layers.").split(".", 1)
            target = names.get(name) or f"blk.{layer[0]}.{names[layer[1].removesuffix('.weight')]}.weight"
            if weight.ndim == 1:
                writer.add_tensor(target, weight.numpy())
                continue
            stored = gguf.quants.quantize(weight.numpy(), kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind).reshape(weight.shape)))
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            part = target.split(".")[-2]
            writer.add_tensor(target, interleaved(stored, heads[part]) if part in heads else stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def octavo_logits(path: Path, backend: str, ids: list[int], dequantize: bool = True) -> Float32Array:
    """All logits of one sequence, computed in chunks of 37 tokens with an fp32 cache."""
    checkpoint = open_checkpoint(path)
    program = build_program(checkpoint, max_model_len=512)
    options = CompileOptions(BLOCK_SIZE, "fp32", 64, 64, program.max_model_len, 2, dequantize)
    exe = get_backend(backend).compile(program, checkpoint.tensors, options)  # type: ignore[arg-type]
    logits = Driver(exe, num_blocks=64).whole(ids, chunk=37)
    exe.close()
    return logits


def torch_logits(model: Any, ids: list[int]) -> Float32Array:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_llamas(tmp_path: Path, shape: str, backend: str) -> None:
    model = random_llama(**SHAPES[shape])
    write_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType.F32)
    ids = np.random.default_rng(0).integers(0, 160, 150).tolist()
    want = torch_logits(model, ids)
    got = octavo_logits(tmp_path / "model.gguf", backend, ids)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_stored_types(tmp_path: Path, kind: str, backend: str) -> None:
    """Bytes written by the ``gguf`` package, expanded by it for transformers and by Octavo for itself."""
    model = random_llama()
    write_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    ids = np.random.default_rng(1).integers(0, 160, 90).tolist()
    want = torch_logits(model, ids)
    got = octavo_logits(tmp_path / "model.gguf", backend, ids)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_int8_activations_stay_close(tmp_path: Path, kind: str) -> None:
    """As it runs by default, with activations rounded to int8: within a few percent of the row's size, on a model of noise."""
    model = random_llama()
    write_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    ids = np.random.default_rng(2).integers(0, 160, 90).tolist()
    want = torch_logits(model, ids)
    got = octavo_logits(tmp_path / "model.gguf", "native", ids, dequantize=False)
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.03


def test_smollm2(smollm2_path: Path) -> None:
    """Every logit of every position of six of the golden prompts: max |Δlogit| < 2e-3."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import golden_transformers
    finally:
        sys.path.remove(str(SCRIPTS))
    path = smollm2_path if smollm2_path.is_file() else next(smollm2_path.glob("*.gguf"))
    model = golden_transformers.load(path)
    prompts = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text())["prompts"]
    for p in (0, 61, 119, 125, 159, 170):
        ids = prompts[p][:200]
        difference = np.abs(octavo_logits(path, "native", ids) - torch_logits(model, ids)).max()
        print(f"prompt {p}, {len(ids)} tokens: max |Δlogit| {difference:.2e}")
        assert difference < 2e-3
