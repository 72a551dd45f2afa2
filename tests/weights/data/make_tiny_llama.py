"""Makes ``tiny_llama``: a random Llama in Hugging Face's layout, and the logits that transformers computes with it.

    pip install torch==2.13.0 transformers==5.23.0 tokenizers
    python tests/weights/data/make_tiny_llama.py

2 layers of width 64, 4 heads of 8 elements over 2 KV heads, vocabulary 288, tied bf16 weights in two shards, Llama 3's rope scaling,
a byte-level BPE tokenizer and a chat template. ``golden.npz``: ``ids`` (3, 48) int32, ``positions`` (4,) and ``logits``
(3, 4, 288) float32 at these positions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = Path(__file__).parent / "tiny_llama"
VOCABULARY = 288
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = ["the quick brown fox jumps over the lazy dog", "pages of a book are folded out of one sheet", "and the cat sat on the mat"]


def main() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    assert tokenizer.get_vocab_size() <= VOCABULARY
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=2, dtype="bfloat16",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.2 if name.endswith("norm.weight") else 1.5 * parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, scale)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=[1, 2], pad_token_id=2, do_sample=True, temperature=0.7, top_p=0.9, top_k=40
    )
    for old in OUT.glob("*"):
        old.unlink()
    model.save_pretrained(OUT, max_shard_size="60KB")
    fast.save_pretrained(OUT)
    reference = LlamaForCausalLM.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager").eval()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 48), dtype=np.int32)
    with torch.inference_mode():
        logits = reference(torch.from_numpy(ids).long()).logits.numpy()
    positions = np.array([0, 7, 31, 47])
    np.savez_compressed(OUT / "golden.npz", ids=ids, positions=positions, logits=logits[:, positions])
    print(json.dumps({path.name: path.stat().st_size for path in sorted(OUT.iterdir())}, indent=1), float(np.abs(logits).max()))


if __name__ == "__main__":
    main()
