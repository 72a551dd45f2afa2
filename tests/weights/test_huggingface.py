"""Hugging Face directories: a tiny Llama against transformers' logits, translation of names and hyperparameters, and refusals.

``data/tiny_llama`` and its golden logits come from ``data/make_tiny_llama.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.weights import Checkpoint, TensorType, dequantize, open_checkpoint
from octavo.weights.hf_config import read_json
from octavo.weights.hf_families import FAMILIES

TINY_LLAMA = Path(__file__).parent / "data" / "tiny_llama"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_LLAMA, tmp_path / "model"))


def change(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; ``...`` deletes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


# The whole model ------------------------------------------------------------------------------------------------


def logits(checkpoint: Checkpoint, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A Llama forward pass in float64, from GGUF names and keys alone: (sequences, positions, vocabulary)."""
    m = {key.removeprefix("llama."): value for key, value in checkpoint.metadata.items()}
    w = {name: dequantize(tensor).astype(np.float64) for name, tensor in checkpoint.tensors.items()}
    heads, kv_heads = m["attention.head_count"], m["attention.head_count_kv"]
    dim, eps = m["attention.key_length"], m["attention.layer_norm_rms_epsilon"]
    length = ids.shape[1]
    frequencies = m["rope.freq_base"] ** (-np.arange(0, dim, 2) / dim) / w.get("rope_freqs.weight", 1.0)
    angles = np.arange(length)[:, None] * frequencies  # (length, dim / 2)
    assert m["octavo.rope_style"] == "half_split"

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def rotate(x: np.ndarray, n: int) -> np.ndarray:
        a, b = np.split(x.reshape(len(x), length, n, dim), 2, axis=-1)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["token_embd.weight"][ids]
    mask = np.triu(np.full((length, length), -np.inf), 1)
    for layer in range(m["block_count"]):
        p = {name.removeprefix(f"blk.{layer}."): array for name, array in w.items() if name.startswith(f"blk.{layer}.")}
        y = norm(x, p["attn_norm.weight"])
        q, k = rotate(y @ p["attn_q.weight"].T, heads), rotate(y @ p["attn_k.weight"].T, kv_heads)
        v = (y @ p["attn_v.weight"].T).reshape(len(x), length, kv_heads, dim)
        k, v = (np.repeat(t, heads // kv_heads, axis=2) for t in (k, v))
        scores = np.einsum("sqhd,skhd->shqk", q, k) / np.sqrt(dim) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("shqk,skhd->sqhd", weights / weights.sum(-1, keepdims=True), v).reshape(len(x), length, -1)
        x = x + attended @ p["attn_output.weight"].T
        y = norm(x, p["ffn_norm.weight"])
        gate = y @ p["ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p["ffn_up.weight"].T)) @ p["ffn_down.weight"].T
    return norm(x, w["output_norm.weight"])[:, positions] @ w.get("output.weight", w["token_embd.weight"]).T


def test_the_same_logits_as_transformers() -> None:
    with np.load(TINY_LLAMA / "golden.npz") as golden:
        ours = logits(open_checkpoint(TINY_LLAMA), golden["ids"], golden["positions"])
        assert np.abs(ours - golden["logits"]).max() < 2e-5


def test_untied_and_single_file(copy: Path) -> None:
    """The same weights written otherwise: one file, an output matrix of its own, older configuration keys."""
    embedding = open_checkpoint(copy).tensors["token_embd.weight"]
    header: dict[str, Any] = {}
    data = b""
    names = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {name: open_checkpoint(copy).tensors[FAMILIES["LlamaForCausalLM"].translate(name) or ""] for name in names}
    for name, tensor in (tensors | {"lm_head.weight": embedding}).items():
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (len(data), len(data) + tensor.num_bytes)}
        data += tensor.data.tobytes()
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"dtype": "I32", "shape": [0], "data_offsets": (len(data), len(data))}
    for path in copy.glob("model*"):
        path.unlink()
    text = json.dumps(header).encode()
    (copy / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    rope = dict(json.loads((copy / "config.json").read_text())["rope_parameters"])
    change(copy / "config.json", tie_word_embeddings=False, rope_parameters=..., rope_theta=rope.pop("rope_theta"), rope_scaling=rope)

    checkpoint = open_checkpoint(copy)
    assert "output.weight" in checkpoint.tensors
    assert not any("inv_freq" in name for name in checkpoint.tensors)
    with np.load(copy / "golden.npz") as golden:
        assert np.abs(logits(checkpoint, golden["ids"], golden["positions"]) - golden["logits"]).max() < 2e-5
    change(copy / "config.json", tie_word_embeddings=True)
    assert "output.weight" not in open_checkpoint(copy).tensors


def test_names_types_and_metadata() -> None:
    checkpoint = open_checkpoint(TINY_LLAMA)
    assert checkpoint.path == TINY_LLAMA
    assert checkpoint.architecture == "llama"
    layer = {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"}
    assert set(checkpoint.tensors) == {"rope_freqs.weight", "token_embd.weight", "output_norm.weight"} | {
        f"blk.{i}.{name}.weight" for i in range(2) for name in layer
    }
    for name, tensor in checkpoint.tensors.items():
        assert tensor.name == name
        assert tensor.type is (TensorType.F32 if name == "rope_freqs.weight" else TensorType.BF16)
    assert checkpoint.tensors["blk.1.ffn_down.weight"].shape == (64, 32)
    assert {key: value for key, value in checkpoint.metadata.items() if key not in ("general.name", "tokenizer.chat_template")} == {
        "general.architecture": "llama",
        "llama.vocab_size": 288,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 1000.0,
        "llama.rope.dimension_count": 8,
        "octavo.rope_style": "half_split",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
        "octavo.eos_token_ids": [1, 2],
        "octavo.generation.temperature": 0.7,
        "octavo.generation.top_p": 0.9,
        "octavo.generation.top_k": 40,
    }
    assert checkpoint.metadata["tokenizer.chat_template"] == (TINY_LLAMA / "chat_template.jinja").read_text()


def test_the_fingerprint_follows_weights_and_configuration(copy: Path) -> None:
    seen = {open_checkpoint(copy).fingerprint, open_checkpoint(TINY_LLAMA).fingerprint}
    assert len(seen) == 1, "not where they lie"
    change(copy / "config.json", rms_norm_eps=1e-6)
    seen.add(open_checkpoint(copy).fingerprint)
    shard = copy / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x3e")
    seen.add(open_checkpoint(copy).fingerprint)
    assert len(seen) == 3


def test_a_chat_template_in_the_tokenizers_configuration(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert "tokenizer.chat_template" not in open_checkpoint(copy).metadata
    change(copy / "tokenizer_config.json", chat_template="one")
    assert open_checkpoint(copy).metadata["tokenizer.chat_template"] == "one"
    change(copy / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}])
    assert open_checkpoint(copy).metadata["tokenizer.chat_template"] == "two"
    (copy / "tokenizer_config.json").unlink()
    assert "tokenizer.chat_template" not in open_checkpoint(copy).metadata


# Hyperparameters ------------------------------------------------------------------------------------------------


def test_linear_scaling(copy: Path) -> None:
    change(copy / "config.json", rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0})
    checkpoint = open_checkpoint(copy)
    assert checkpoint.metadata["llama.rope.freq_base"] == 5e5
    assert checkpoint.metadata["llama.rope.scaling.type"] == "linear"
    assert checkpoint.metadata["llama.rope.scaling.factor"] == 4.0
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_yarn_is_told(copy: Path) -> None:
    change(copy / "config.json", rope_parameters=..., rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
    metadata = open_checkpoint(copy).metadata
    assert metadata["llama.rope.freq_base"] == 10000.0
    found = {key: value for key, value in metadata.items() if "rope.scaling" in key}
    assert found == {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }


def test_defaults(copy: Path) -> None:
    absent = (
        "rope_parameters",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
        "attention_bias",
        "hidden_act",
    )
    change(copy / "config.json", **dict.fromkeys(absent, ...), mlp_bias=None)
    metadata = open_checkpoint(copy).metadata
    assert metadata["llama.attention.head_count_kv"] == 4
    assert metadata["llama.attention.key_length"] == 16
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert metadata["llama.context_length"] == 2048
    assert metadata["llama.rope.freq_base"] == 10000.0


def test_mistral(copy: Path) -> None:
    change(copy / "config.json", architectures=["MistralForCausalLM"], sliding_window=None)
    assert open_checkpoint(copy).architecture == "llama"
    change(copy / "config.json", sliding_window=256)
    assert open_checkpoint(copy).architecture == "llama"
    change(copy / "config.json", sliding_window=128)
    with pytest.raises(ValueError, match=r"config\.json: sliding_window=128 is invalid: attention windows shorter"):
        open_checkpoint(copy)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no architectures": ({"architectures": ...}, "architectures=None is invalid: it must name the model's class"),
    "architectures no list": ({"architectures": "LlamaForCausalLM"}, "architectures='LlamaForCausalLM' is invalid"),
    "unknown architecture": ({"architectures": ["FooForCausalLM"]}, r"architectures=\['FooForCausalLM'\] is not supported; known"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config \(quant_method='gptq'\) is not supported"),
    "attention bias": ({"attention_bias": True}, "attention_bias=True is invalid: projections with biases are not supported"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias=True is invalid"),
    "bias no flag": ({"attention_bias": 1}, "attention_bias=1 is invalid: must be true or false"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act='gelu' is invalid"),
    "activation no string": ({"hidden_act": 5}, "hidden_act=5 is invalid: must be a string"),
    "no width": ({"hidden_size": ...}, "the key hidden_size is missing"),
    "width of text": ({"hidden_size": "64"}, r"hidden_size='64' is invalid: must be an integer in \[1, "),
    "width of nothing": ({"hidden_size": 0}, "hidden_size=0 is invalid"),
    "layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000 is invalid"),
    "flag for a number": ({"num_hidden_layers": True}, "num_hidden_layers=True is invalid"),
    "heads": ({"num_attention_heads": 5, "head_dim": ...}, "num_attention_heads=5 is invalid: it must divide hidden_size=64"),
    "KV heads": ({"num_key_value_heads": 3}, "num_key_value_heads=3 is invalid: it must divide num_attention_heads=4"),
    "eps": ({"rms_norm_eps": -1}, r"rms_norm_eps=-1 is invalid: must be a number in \(0.0, 1.0\]"),
    "eps NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is invalid"),
    "theta": ({"rope_parameters": {"rope_theta": "x"}}, r"rope_parameters\.rope_theta='x' is invalid"),
    "rope no object": ({"rope_parameters": 3}, "rope_parameters=3 is invalid: must be an object"),
    "rope type": ({"rope_parameters": {"rope_type": "dynamic"}}, r"rope_parameters\.rope_type='dynamic' is invalid: known are"),
    "old rope type": ({"rope_parameters": ..., "rope_scaling": {"type": "ntk"}}, r"rope_scaling\.type='ntk' is invalid"),
    "llama3 factor": ({"rope_parameters": {"rope_type": "llama3"}}, r"the key rope_parameters\.factor is missing"),
    "llama3 bounds": (
        {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
        r"rope_parameters\.high_freq_factor=4 is invalid: it must be greater than low_freq_factor=4",
    ),
    "odd rotation": ({"head_dim": 7}, "head_dim=7 is invalid: 7 elements of a head would be rotated"),
    "tied": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes' is invalid"),
    "untied without output": ({"tie_word_embeddings": False}, "the tensor 'lm_head.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(copy: Path, case: str) -> None:
    changes, message = WRONG[case]
    change(copy / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(copy)
    assert str(caught.value).startswith(str(copy))


@given(factor=st.floats(1, 64), low=st.floats(0.5, 3), span=st.floats(0.5, 8), context=st.integers(16, 10**5), base=st.floats(100, 1e7))
def test_llama3_factors(factor: float, low: float, span: float, context: int, base: float) -> None:
    """Against the branches of transformers' formula, one frequency at a time."""
    from octavo.weights.hf_config import Config

    scaling = {"rope_type": "llama3", "rope_theta": base, "factor": factor, "low_freq_factor": low, "high_freq_factor": low + span}
    config = {
        "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 1, "num_hidden_layers": 1, "vocab_size": 1,
        "rope_parameters": {**scaling, "original_max_position_embeddings": context},
    }  # fmt: skip
    _, tensors = FAMILIES["LlamaForCausalLM"].hyperparameters(Config(Path("config.json"), config))
    factors = dequantize(tensors["rope_freqs.weight"])
    assert factors.shape == (32,)
    for i, found in enumerate(factors):
        frequency = base ** (-2 * i / 64)
        wavelength = 2 * np.pi / frequency
        if wavelength < context / (low + span):
            expected = frequency
        elif wavelength > context / low:
            expected = frequency / factor
        else:
            smooth = (context / wavelength - low) / span
            expected = (1 - smooth) * frequency / factor + smooth * frequency
        assert found == pytest.approx(frequency / expected, rel=1e-5)


# Directories that are not what they should be -------------------------------------------------------------------


def test_missing_files(copy: Path) -> None:
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json: of 2 files are missing: model-00002-of-00002\.safetensors$"):
        open_checkpoint(copy)
    (copy / "model.safetensors.index.json").unlink()
    (copy / "model-00001-of-00002.safetensors").unlink()
    (copy / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor .*; weight files found: pytorch_model\.bin"):
        open_checkpoint(copy)
    with pytest.raises(ValueError, match=r"golden\.npz: not a GGUF file"):
        open_checkpoint(copy / "golden.npz")


def test_a_file_of_the_directory_names_the_directory() -> None:
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        with pytest.raises(ValueError, match=rf"{name}: is a part of a Hugging Face directory; give the directory, .*tiny_llama"):
            open_checkpoint(TINY_LLAMA / name)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (..., "weight_map is missing"),
        ([], "weight_map is invalid: it must map"),
        ({}, "weight_map is invalid: it must map"),
        ({"a": 1}, "weight_map is invalid: its files must be named without a directory"),
        ({"a": "../model.safetensors"}, "without a directory"),
        ({"a": "/etc/passwd"}, "without a directory"),
        ({"a": ".."}, "without a directory"),
        ({"a": ""}, "without a directory"),
        ({"a": "x\0y"}, "without a directory"),
        ({"a": "other.safetensors"}, "of 1 files are missing: other.safetensors"),
        ({str(i): f"{i}.safetensors" for i in range(2000)}, "names 2000 files; at most 1024 are accepted"),
        ({"a": "model-00001-of-00002.safetensors"}, "model-00001-of-00002.safetensors: the tensor 'a', which .* places here, is missing"),
    ],
)
def test_broken_indices(copy: Path, weight_map: Any, message: str) -> None:
    change(copy / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(copy)


def test_two_tensors_of_one_name(copy: Path) -> None:
    """``model.norm`` and, as in a checkpoint of the bare decoder, ``norm``."""
    index = copy / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = copy / weight_map.pop("model.norm.weight")
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b'"model.norm.weight"', b'      "norm.weight"'))
    change(index, weight_map=weight_map | {"norm.weight": shard.name})
    assert "output_norm.weight" in open_checkpoint(copy).tensors
    (copy / "more.safetensors").write_bytes(whole)
    change(index, weight_map=weight_map | {"norm.weight": shard.name, "model.norm.weight": "more.safetensors"})
    with pytest.raises(ValueError, match=r"the tensor 'model.norm.weight' is a second 'output_norm.weight'"):
        open_checkpoint(copy)


VALUES = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**70) | st.floats() | st.text(max_size=5) | st.lists(st.integers(0, 5), max_size=3)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_any_configuration(copy: Path, data: st.DataObject) -> None:
    """Whatever stands under whatever key: the directory opens or is refused with the name of one of its files."""
    original = json.loads((TINY_LLAMA / "config.json").read_text())
    changed = data.draw(
        st.dictionaries(st.sampled_from([*original, "rope_scaling", "quantization_config", "rope_theta"]), VALUES, max_size=3)
    )
    rope = data.draw(st.dictionaries(st.sampled_from([*original["rope_parameters"], "type"]), VALUES, max_size=2))
    config = {**original, "rope_parameters": {**original["rope_parameters"], **rope}, **changed}
    (copy / "config.json").write_text(json.dumps(config))
    try:
        checkpoint = open_checkpoint(copy)
    except ValueError as error:
        if not str(error).startswith(str(copy)):
            raise
    else:
        assert len(checkpoint.fingerprint) == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "config.json: is not valid JSON"),
        (b"[]", "config.json: must hold a JSON object, not list"),
        (b'{"a": 1, "a": 2}', "config.json: is not valid JSON: the key 'a' occurs twice"),
        (b"\xff", "config.json: is not valid JSON"),
        (b'{"a":' + b"[" * 200_000, "config.json: is not usable: its JSON is nested too deeply"),
    ],
)
def test_broken_configurations(copy: Path, text: bytes, message: str) -> None:
    (copy / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(copy)


def test_a_configuration_of_unreasonable_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # sparse
    with pytest.raises(ValueError, match=r"has 1073741824 bytes; at most"):
        read_json(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": [1, "2"]}, r"eos_token_id=\[1, '2'\] is invalid"),
        ({"bos_token_id": [0]}, r"bos_token_id=\[0\] is invalid"),
        ({"pad_token_id": -1}, "pad_token_id=-1 is invalid: must be a token id"),
    ],
)
def test_wrong_token_ids(copy: Path, changes: dict[str, Any], message: str) -> None:
    change(copy / "generation_config.json", **changes)
    with pytest.raises(ValueError, match=rf"generation_config\.json: .*{message}"):
        open_checkpoint(copy)


def test_a_template_that_is_no_text(copy: Path) -> None:
    (copy / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: is not UTF-8"):
        open_checkpoint(copy)
    (copy / "chat_template.jinja").unlink()
    change(copy / "tokenizer_config.json", chat_template=3)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is invalid"):
        open_checkpoint(copy)
