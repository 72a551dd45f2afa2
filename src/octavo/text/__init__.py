"""Text: tokenizers, incremental detokenising and chat templates, all out of a checkpoint's metadata."""

from octavo.text.chat_template import ChatTemplate, load_chat_template
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizer import Tokenizer, load_hf_tokenizer, load_tokenizer

__all__ = ["ChatTemplate", "IncrementalDetokenizer", "Tokenizer", "load_chat_template", "load_hf_tokenizer", "load_tokenizer"]
