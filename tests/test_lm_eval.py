"""EleutherAI's lm-eval against the server: what it makes of ``local-completions`` is what its ``hf`` backend gives, request by request.

Needs the ``reference`` extra. Weights and KV cache are fp32; the ``hf`` backend computes in fp64, as its sums of fp32 log-softmaxes are off
by 1.4e-3 over the two hundred tokens of the longest text.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .server.process import MODEL, ServerProcess, running_server

pytestmark = [pytest.mark.reference, pytest.mark.model]

if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "lm_eval")):
    pytest.skip("torch, transformers and lm-eval are not installed", allow_module_level=True)

ROOT = Path(__file__).parents[1]
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "lm_eval.json").read_text())


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """``scripts/golden_lm_eval.py``, which made the golden numbers and knows the tasks."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import golden_lm_eval

    yield golden_lm_eval
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def tokenizer(script: ModuleType, smollm2_path: Path) -> Any:
    return script.load_tokenizer(smollm2_path if smollm2_path.is_file() else next(smollm2_path.glob("*.gguf")))


@pytest.fixture(scope="module")
def exact(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("exact") / "log", "--dequantize", "true", "--kv-cache-dtype", "fp32") as server:
        yield server
        server.wait_until_idle()
        assert "Traceback" not in server.log, server.log


def compare(found: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("octavo_choices", "octavo_texts"):
        assert [one["request"] for one in found[name]] == [one["request"] for one in GOLDEN[name]]
        for mine, theirs in zip(found[name], GOLDEN[name], strict=True):
            assert mine["loglikelihood"] == pytest.approx(theirs["loglikelihood"], abs=1e-3, rel=0), mine["request"]
            assert mine["is_greedy"] == theirs["is_greedy"], mine["request"]


@pytest.mark.parametrize("backend", ["huggingface", "remote"])
def test_the_server_is_as_good_as_the_hf_backend(
    script: ModuleType, tokenizer: Any, exact: ServerProcess, backend: str, tmp_path: Path
) -> None:
    """With the original tokenizer, and with the server's; several prompts to a request, several requests at once, twice: the second
    time the prefix cache holds all of it."""
    tokenizer.save_pretrained(tmp_path)
    arguments = {
        "model": MODEL, "base_url": f"{exact.url}/v1/completions", "tokenizer_backend": backend, "num_concurrent": 4, "batch_size": 3,
        "max_retries": 1, "max_length": 1024, **({"tokenizer": str(tmp_path)} if backend == "huggingface" else {}),
    }  # fmt: skip
    first = script.evaluate("local-completions", arguments)
    compare(first)
    assert script.evaluate("local-completions", arguments) == first, "the same bits, cached or not"


def test_the_golden_numbers_are_the_hf_backends(script: ModuleType, tokenizer: Any, smollm2_path: Path) -> None:
    path = smollm2_path if smollm2_path.is_file() else next(smollm2_path.glob("*.gguf"))
    compare(script.evaluate(script.hf_backend(path, tokenizer)))
