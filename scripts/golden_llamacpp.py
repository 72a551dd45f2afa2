"""Makes the golden numbers that Octavo is held against from llama.cpp, on the quantised file.

    pip install llama-cpp-python==0.3.36
    python scripts/golden_llamacpp.py SmolLM2-135M-Instruct.Q4_1.gguf [--threads 1]

Writes into ``tests/golden``:

- ``prompts.json``: token ids of the 200 prompts of ``golden_prompts.py`` and of its text.
- ``llamacpp_greedy.npz``: 64 greedy tokens after each prompt, one prompt at a time (llama.cpp's numbers depend on the batch),
  with the gap between the two largest logits at each step; and, at a sample of these steps, the largest logits and some
  at random, from which the distribution of |Δlogit| is measured.
- ``llamacpp_perplexity.npz``: log-probability of each token of the text, in windows of at most 512 tokens that
  start afresh.
- ``llamacpp.json``: how it was made.

The context has fp16 K and V, no flash attention (its fp16 accumulation is less exact), and llama.cpp's defaults otherwise.
Loading a library built elsewhere: set ``LLAMA_CPP_LIB_PATH``. Takes about five minutes on one core; its threads wait
busily for each other, so more of them are slower on a machine that has other work.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
from pathlib import Path

import llama_cpp as llama
import numpy as np
import numpy.typing as npt
from golden_prompts import GOLDEN, prompts, text

NUM_TOKENS = 64
WINDOW = 512
SAMPLED_STEPS = (0, 1, 17, 40)  # of every fourth prompt
NUM_TOP, NUM_RANDOM = 192, 64

Float32Array = npt.NDArray[np.float32]


class Model:
    """One sequence at a time over llama.cpp's C interface."""

    def __init__(self, path: Path, threads: int) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.vocab_size = llama.llama_vocab_n_tokens(self.vocab)
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = 2048, 2048, 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama.llama_init_from_model(self.model, context)

    def tokenize(self, string: str) -> list[int]:
        data = string.encode()
        room = (llama.llama_token * (len(data) + 8))()
        count = llama.llama_tokenize(self.vocab, data, len(data), room, len(room), False, True)
        if count < 0:
            raise SystemExit("llama.cpp cannot tokenise")
        return list(room[:count])

    def reset(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def decode(self, tokens: list[int], position: int, every: bool = False) -> Float32Array:
        """Logits (1 or all tokens, vocab) after these tokens at ``position`` and on."""
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == len(tokens) - 1
        if llama.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        rows = range(len(tokens)) if every else [len(tokens) - 1]
        logits = [np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, i), (self.vocab_size,)).copy() for i in rows]
        llama.llama_batch_free(batch)
        return np.stack(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    model = Model(arguments.model, arguments.threads)
    rng = np.random.default_rng(0)

    ids = [model.tokenize(prompt) for prompt in prompts()]
    text_ids = model.tokenize(text())
    (GOLDEN / "prompts.json").write_text(json.dumps({"prompts": ids, "text": text_ids}, separators=(",", ":")) + "\n")

    tokens = np.zeros((len(ids), NUM_TOKENS), np.int32)
    gaps = np.zeros((len(ids), NUM_TOKENS), np.float32)
    sample_steps: list[tuple[int, int]] = []
    sample_ids: list[npt.NDArray[np.int32]] = []
    sample_logits: list[Float32Array] = []
    for p, prompt in enumerate(ids):
        model.reset()
        logits = model.decode(prompt, 0)[0]
        for step in range(NUM_TOKENS):
            best = int(np.argmax(logits))
            tokens[p, step] = best
            gaps[p, step] = logits[best] - max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
            if p % 4 == 0 and step in SAMPLED_STEPS:
                order = np.argsort(-logits, kind="stable")
                chosen = np.concatenate([order[:NUM_TOP], rng.choice(order[NUM_TOP:], NUM_RANDOM, replace=False)])
                sample_steps.append((p, step))
                sample_ids.append(chosen.astype(np.uint16))
                sample_logits.append(logits[chosen])
            if step + 1 < NUM_TOKENS:
                logits = model.decode([int(tokens[p, step])], len(prompt) + step)[0]
        if p % 20 == 0:
            print(f"prompt {p + 1} of {len(ids)}", flush=True)
    np.savez_compressed(
        GOLDEN / "llamacpp_greedy.npz",
        tokens=tokens.astype(np.uint16),
        gaps=gaps,
        sample_steps=np.array(sample_steps, np.int32),
        sample_ids=np.stack(sample_ids),
        sample_logits=np.stack(sample_logits),
    )

    logprobs = []
    for start in range(0, len(text_ids), WINDOW):
        window = text_ids[start : start + WINDOW]
        model.reset()
        rows = model.decode(window, 0, every=True).astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        logprobs.append(rows[np.arange(len(window) - 1), window[1:]])
    flat = np.concatenate(logprobs)
    np.savez_compressed(GOLDEN / "llamacpp_perplexity.npz", logprobs=flat.astype(np.float32), window=np.int32(WINDOW))
    print(f"perplexity {np.exp(-flat.mean()):.4f} over {len(flat)} tokens")

    about = {
        "made_by": "scripts/golden_llamacpp.py",
        "llama_cpp": "llama-cpp-python 0.3.36",
        "system": ctypes.string_at(llama.llama_print_system_info()).decode(),
        "model_sha256": hashlib.sha256(arguments.model.read_bytes()).hexdigest(),
        "kv_dtype": "fp16",
        "perplexity": round(float(np.exp(-flat.mean())), 5),
    }
    (GOLDEN / "llamacpp.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
