"""Octavo: a PagedAttention engine for language models on ordinary CPUs.

from octavo import LLM, SamplingParams

llm = LLM("smollm2-135m-instruct")
print(llm.generate("The capital of France is", SamplingParams(temperature=0))[0].outputs[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.decoding import BeamSearchParams, RequestOutputKind, SamplingParams
    from octavo.engine.async_llm import AsyncLLM, EngineDeadError
    from octavo.engine.likelihood import LogLikelihood, Perplexity
    from octavo.engine.llm_engine import LLMEngine, TokensPrompt
    from octavo.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from octavo.llm import LLM

_HOMES = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.engine.async_llm",
    "BeamSearchParams": "octavo.decoding",
    "CompletionOutput": "octavo.engine.outputs",
    "EngineConfig": "octavo.config",
    "EngineDeadError": "octavo.engine.async_llm",
    "LLMEngine": "octavo.engine.llm_engine",
    "LogLikelihood": "octavo.engine.likelihood",
    "Logprob": "octavo.engine.outputs",
    "Perplexity": "octavo.engine.likelihood",
    "RequestMetrics": "octavo.engine.outputs",
    "RequestOutput": "octavo.engine.outputs",
    "RequestOutputKind": "octavo.decoding",
    "SamplingParams": "octavo.decoding",
    "TokensPrompt": "octavo.engine.llm_engine",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineConfig",
    "EngineDeadError",
    "LLMEngine",
    "LogLikelihood",
    "Logprob",
    "Perplexity",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "TokensPrompt",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that ``octavo --help`` stays quick."""
    if name == "__version__":
        from importlib.metadata import version

        return version("octavo")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
