"""``EngineHandle``: what ``LLM`` and ``AsyncLLM``, the two ways to drive an engine, tell about it alike."""

from __future__ import annotations

from typing import Any

from octavo.config import EngineConfig
from octavo.decoding import SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.text import ChatTemplate, Tokenizer


class EngineHandle:
    engine: LLMEngine

    @property
    def config(self) -> EngineConfig:
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self.engine.model.chat_template

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and output together."""
        return self.engine.max_model_len

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """The model's own recommendation, as fields of ``SamplingParams``; empty unless ``generation_config`` is ``auto``."""
        return dict(self.engine.model.sampling_defaults) if self.config.generation_config == "auto" else {}

    def get_default_sampling_params(self) -> SamplingParams:
        """What ``generate`` uses if it is given none."""
        return SamplingParams(**self.sampling_defaults)
