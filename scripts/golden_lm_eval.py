"""Makes the golden log-likelihoods that Octavo's are held against from EleutherAI's lm-eval, its ``hf`` backend in fp64 on the CPU.

    pip install torch==2.13.0 transformers==5.23.0 gguf "lm-eval[api]==0.4.13"
    python scripts/golden_lm_eval.py SmolLM2-135M-Instruct.Q4_1.gguf

The tasks are those of ``tests/lm_eval``; the model is loaded as in ``golden_transformers.py``, then computed in fp64: in fp32 the sum over
the longest text is off by 1.4e-3, more than the comparison allows. Writes ``tests/golden/lm_eval.json``: for
each context and continuation, and for each whole text, the log-likelihood and whether every token was the most probable. Takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before the libraries look

import golden_transformers
from golden_prompts import GOLDEN
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

import lm_eval

TASKS = Path(__file__).parents[1] / "tests" / "lm_eval"
NAMES = ("octavo_choices", "octavo_texts")


def load_tokenizer(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def hf_backend(path: Path, tokenizer: Any) -> HFLM:
    return HFLM(pretrained=golden_transformers.load(path).double(), tokenizer=tokenizer, batch_size=1, device="cpu")


def evaluate(model: Any, model_args: dict[str, Any] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Per task, every request that lm-eval made of ``model`` and what came of it. ``model``: a backend, or the name of one."""
    with tempfile.TemporaryDirectory() as directory:
        for name in NAMES:
            task = (TASKS / f"{name}.yaml").read_text().replace("{here}", str(TASKS))
            (Path(directory) / f"{name}.yaml").write_text(task)
        results = lm_eval.simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=list(NAMES),
            task_manager=TaskManager(include_path=directory, include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
    found: dict[str, list[dict[str, Any]]] = {}
    for name, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            requests = zip(sample["arguments"], sample["resps"], strict=True)
            for request, responses in requests:
                (response,) = responses
                pair = isinstance(response, tuple | list)
                found.setdefault(name, []).append(
                    {
                        "request": list(request),
                        "loglikelihood": float(response[0] if pair else response),
                        "is_greedy": bool(response[1]) if pair else None,
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    path = parser.parse_args().model
    tokenizer = load_tokenizer(path)
    golden = {"prefix_token_id": hf_backend(path, tokenizer).prefix_token_id, **evaluate(hf_backend(path, tokenizer))}
    (GOLDEN / "lm_eval.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
