"""Text out of what a checkpoint carries: tokenizers, incremental detokenising, chat templates, thinking apart from answers."""

from octavo.text.chat_template import ChatTemplate, load_chat_template, load_hf_chat_template, template_variables
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.reasoning import ReasoningDelta, ReasoningSplitter, ReasoningTags, opens_reasoning, reasoning_tags, split_reasoning
from octavo.text.thinking import AnswerSplitter, Thinking, find_thinking
from octavo.text.tokenizer import Tokenizer, load_hf_tokenizer, load_tokenizer

__all__ = [
    "AnswerSplitter",
    "ChatTemplate",
    "IncrementalDetokenizer",
    "ReasoningDelta",
    "ReasoningSplitter",
    "ReasoningTags",
    "Thinking",
    "Tokenizer",
    "find_thinking",
    "load_chat_template",
    "load_hf_chat_template",
    "load_hf_tokenizer",
    "load_tokenizer",
    "opens_reasoning",
    "reasoning_tags",
    "split_reasoning",
    "template_variables",
]
