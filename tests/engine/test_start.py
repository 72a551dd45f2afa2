"""From a configuration to a model: what the second start finds of the first, and that it answers the same."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.native import NativeExecutable
from octavo.config import EngineConfig
from octavo.engine.loader import LoadedModel, load_model

from ..conformance.steps import Driver

TOKENS = np.random.default_rng(0).integers(0, 49152, 24)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "octavo"


def load(path: Path, **options: object) -> LoadedModel:
    given = {"max_model_len": 64, "kv_cache_memory_bytes": 16 << 20, "num_threads": 2, **options}
    model = load_model(EngineConfig.from_kwargs(model=str(path), **given))
    for thread in threading.enumerate():
        if thread.name == "octavo-packed-weights":
            thread.join()
    return model


def logits(model: LoadedModel) -> np.ndarray:
    assert isinstance(model.executable, NativeExecutable)
    result = Driver(model.executable, 4).whole(TOKENS).copy()
    model.executable.close()
    return result


@pytest.mark.parametrize("options", [{}, {"dequantize": True}], ids=["as stored", "fp32"])
def test_a_second_start_finds_the_weights_and_computes_the_same_bits(smollm2_path: Path, own_cache: Path, options: dict[str, bool]) -> None:
    want = logits(load(smollm2_path, weight_cache=False, **options))
    assert not (own_cache / "packed").exists()
    first = load(smollm2_path, **options)
    (packed,) = (own_cache / "packed").glob("*.packed")
    assert packed.stat().st_size == pytest.approx(first.executable.weight_bytes, rel=0.01)
    record = json.loads(packed.with_suffix(".json").read_bytes())
    assert record["source"] == str(smollm2_path.resolve())
    assert (logits(first) == want).all()
    written = packed.stat()
    second = load(smollm2_path, **options)
    assert packed.stat().st_ctime_ns == written.st_ctime_ns
    assert (second.root, second.fingerprint) == (first.root, first.fingerprint)
    assert (logits(second) == want).all()


def test_a_tokenizer_that_cannot_be_built_ends_the_start(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built in a thread: what it raises must arrive, and nothing of the model may stay."""

    def refuse(checkpoint: object) -> None:
        raise ValueError("tokenizer.ggml.model='mystery' is not supported")

    monkeypatch.setattr("octavo.engine.loader.load_tokenizer", refuse)
    before = threading.active_count()
    with pytest.raises(ValueError, match="mystery"):
        load(smollm2_path, weight_cache=False)
    assert threading.active_count() == before
