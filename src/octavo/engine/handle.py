"""``EngineHandle``: what ``LLM`` and ``AsyncLLM``, the two ways to drive an engine, tell about it alike."""

from __future__ import annotations

from octavo.config import EngineConfig
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
