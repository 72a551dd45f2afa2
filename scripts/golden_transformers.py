"""Makes the golden logits that Octavo's ``dequantize=True`` is held against from transformers, in fp32 on the CPU.

    pip install torch==2.13.0 transformers==5.23.0 gguf
    python scripts/golden_transformers.py SmolLM2-135M-Instruct.Q4_1.gguf

The model is the quantised file expanded to fp32 by transformers' own reader. Reads ``tests/golden/prompts.json``
(made by ``golden_llamacpp.py``), writes ``tests/golden/transformers.npz``: for 24 prompts, four positions of each, the 256
largest logits and 128 at random; and all logits of the last position of two of them. Takes a minute.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_prompts import GOLDEN
from transformers import AutoModelForCausalLM

NUM_TOP, NUM_RANDOM = 256, 128
LONG_PROMPT = 600  # tokens of the text, as the last prompt
WHOLE = (3, 23)  # prompts whose last position is stored in full


def load(path: Path) -> Any:
    """A Llama GGUF file expanded to fp32. The reader of transformers 5.23 leaves rms_norm_eps at its default: it is taken from the file."""
    from gguf import GGUFReader

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    eps = float(GGUFReader(path).fields["llama.attention.layer_norm_rms_epsilon"].contents())
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = eps
    return model


def chosen_prompts() -> list[list[int]]:
    """23 of the 200, short and long, of every kind, and the beginning of the text."""
    golden = json.loads((GOLDEN / "prompts.json").read_text())
    return [*golden["prompts"][2:200:9], golden["prompts"][157], golden["text"][:LONG_PROMPT]][-24:]


def positions(length: int) -> list[int]:
    return [0, length // 3, 2 * length // 3, length - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    model = load(parser.parse_args().model)
    rng = np.random.default_rng(0)
    rows, ids, values, whole = [], [], [], []
    prompts = chosen_prompts()
    assert len(prompts) == 24
    for p, prompt in enumerate(prompts):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt])).logits[0].numpy()
        for position in positions(len(prompt)):
            order = np.argsort(-logits[position], kind="stable")
            chosen = np.concatenate([order[:NUM_TOP], rng.choice(order[NUM_TOP:], NUM_RANDOM, replace=False)])
            rows.append((p, position))
            ids.append(chosen.astype(np.uint16))
            values.append(logits[position, chosen])
        if p in WHOLE:
            whole.append(logits[-1])
        print(f"prompt {p + 1} of 24: {len(prompt)} tokens", flush=True)
    np.savez_compressed(
        GOLDEN / "transformers.npz",
        prompt_lengths=np.array([len(p) for p in prompts], np.int32),
        prompt_ids=np.concatenate(prompts).astype(np.uint16),
        rows=np.array(rows, np.int32),
        ids=np.stack(ids),
        logits=np.stack(values).astype(np.float32),
        whole=np.array(WHOLE, np.int32),
        whole_logits=np.stack(whole).astype(np.float32),
    )


if __name__ == "__main__":
    main()
