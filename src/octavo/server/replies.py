"""What the endpoints answer, as models for ``/openapi.json``. The answers themselves are built as plain dictionaries and strings;
the tests hold them against these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Prompt tokens whose KV came out of the prefix cache.")


class Usage(BaseModel):
    """Tokens of a whole request, over all its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(BaseModel):
    """Parallel lists with one entry per output token; with `echo`, the prompt's tokens come first. Nothing precedes the first of a text:
    it has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="Characters of the choice's text in front of the token.")


class PromptLogprob(BaseModel):
    logprob: float
    rank: int = Field(description="1 for the most probable token of the vocabulary.")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per prompt token, by token id: its own first, then the most probable ones'."""


class CompletionChoice(BaseModel):
    index: int = Field(description="Number of the prompt times `n`, plus the number of the answer.")
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = Field(description="The stop string or token id that ended the answer; null for end-of-sequence.")
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """An answer to `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="Build, ISA family, weights and KV dtype: the scope in which a seed repeats its tokens.")
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionChunk(BaseModel):
    """One event of a completion's stream. With `stream_options.include_usage` the last has no choices but the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChosenTokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | None = Field(None, description="What a reasoning model thought first. Absent for models that do not think.")


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = Field(description="The stop string or token id that ended the answer; null for end-of-sequence.")
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """An answer to `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="Build, ISA family, weights and KV dtype: the scope in which a seed repeats its tokens.")
    service_tier: None
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatDelta(BaseModel):
    """What a chunk adds to a message; the role comes with the first chunk of a choice."""

    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """One event of an answer's stream. With `stream_options.include_usage` the last has no choices but the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="Prompt and output tokens a sequence can hold.")


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    """An answer to `/tokenize`."""

    count: int
    max_model_len: int = Field(description="Prompt and output tokens a sequence can hold.")
    tokens: list[int]
    token_strs: list[str] | None = Field(description="The tokens as the vocabulary spells them, if asked for.")


class Text(BaseModel):
    """An answer to `/detokenize`."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What the served model's text is made of. A token is shown as the vocabulary spells it; null where there is none."""

    model: str
    tokenizer_class: str = Field(description="The kind of vocabulary: BPE, Unigram, WordPiece or WordLevel.")
    vocab_size: int
    max_model_len: int
    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None
    eos_token_ids: list[int] = Field(description="All tokens that end an answer.")
    special_tokens: dict[str, int] = Field(description="Control tokens, which are left out of text.")
    chat_template: str | None
    reasoning_tags: list[str] | None = Field(description="What opens and closes the thinking of a reasoning model.")


class Health(BaseModel):
    status: Literal["ok"]


class Version(BaseModel):
    version: str
    model: str
    system_fingerprint: str
    config: dict[str, Any] = Field(description="The engine's configuration.")
