"""What the endpoints take: the OpenAI API's requests, with vLLM's extensions, as strict pydantic models.

A field the server honours has its bounds here, so that ``/openapi.json`` tells the truth. A field of the OpenAI API that the server
does not honour is listed too, typed so that only its default passes: it is refused by name rather than ignored. Anything else is
unknown and refused. Types are strict (``"1"`` is not a number), numbers finite; ``null`` means the default wherever it is allowed. Of a key
that occurs twice in an object the last one counts, as for most readers of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic_core import from_json

from octavo.decoding import MAX_BEAM_WIDTH, BeamSearchParams
from octavo.decoding.params import (
    MAX_BAD_WORDS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_REPETITION_PENALTY,
    MIN_REPETITION_PENALTY,
    RequestOutputKind,
    SamplingParams,
)
from octavo.server.errors import invalid
from octavo.server.fields import (
    MAX_ALLOWED,
    BadWord,
    Int,
    LogitBias,
    Nothing,
    Penalty,
    Prompt,
    Stop,
    Strict,
    TokenId,
    Truncation,
    Zero,
    no,
    text_kind,
)
from octavo.text.chat_template import RESERVED_VARIABLES

MAX_CHOICES = 2048
"""Answers to one completion request, over all of its prompts."""

MAX_DETOKENIZED = 1_000_000
"""Token ids in one request to ``/detokenize``."""

DEFAULT_COMPLETION_TOKENS = 16


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage of the whole request.")
    continuous_usage_stats: bool | None = Field(None, description="Put the usage so far into every chunk (vLLM).")
    include_obfuscation: Literal[False] | None = Field(None, description="Chunks are never padded.")


class Truncatable(Strict):
    """A request whose prompt may be cut."""

    truncate_prompt_tokens: Truncation | None = Field(
        None,
        description="Keep only the last so many tokens of each prompt; -1: as many as the context leaves beside `max_tokens` (beside one "
        "output token where no limit is given). By default nothing is cut, and a prompt that overflows the context is refused with "
        "`context_length_exceeded`.",
    )


_NOT_WITH_BEAMS: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 1.0), "top_p": (1.0,), "top_k": (0, -1), "min_p": (0.0,), "typical_p": (1.0,), "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,), "repetition_penalty": (1.0,), "logit_bias": ({},), "bad_words": ([],), "allowed_token_ids": (),
    "prompt_logprobs": (),
}  # fmt: skip
"""Fields that choose among tokens in ways a beam search does not know, and the values that mean no change."""


class GenerationRequest(Truncatable):
    """The fields that completions and chat share."""

    model: str | None = Field(None, description="A model id from `/v1/models`; the served model if left out.")
    n: Annotated[Int, Field(ge=1, le=MAX_N)] | None = Field(
        None, description="Answers per prompt; they share the prompt's KV blocks. Default 1."
    )
    best_of: Annotated[Int, Field(ge=1, le=MAX_N)] | None = Field(
        None,
        description="Generate so many answers and return the `n` of the highest cumulative log-probability, best first; with "
        "`use_beam_search`, the beam width. More than `n` sampled answers cannot be streamed. Default `n`.",
    )
    use_beam_search: bool | None = Field(
        None,
        description="Search for the most probable answers instead of sampling; a stream gets them whole. Default false.",
    )
    length_penalty: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        None, description="With `use_beam_search`: answers rank by log-probability / tokens ** this. Default 1."
    )
    early_stopping: bool | Literal["never"] | None = Field(
        None,
        description="With `use_beam_search`: true ends once `best_of` answers are finished, false when better ones are unlikely, `never` "
        "when there can be none. Default false.",
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 is greedy. By default the model's own, else 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Nucleus: keep the most probable tokens up to this mass. By default the model's own, else 1."
    )
    top_k: Annotated[Int, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Keep this many of the most probable tokens; 0 or -1 keeps all. By default the model's own, else 0."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Drop tokens less probable than this share of the best one's. By default the model's own, else 0."
    )
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Keep the tokens whose information is nearest to the entropy, to this mass. By default the model's own, else 1.",
    )
    presence_penalty: Penalty | None = Field(None, description="Subtracted from the logit of every token that is in the output. Default 0.")
    frequency_penalty: Penalty | None = Field(
        None, description="Subtracted from a token's logit for each time that it is in the output. Default 0."
    )
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] | None = Field(
        None,
        description="Divides positive logits of tokens in the prompt or the output, multiplies negative ones. By default the model's own, "
        "else 1.",
    )
    logit_bias: LogitBias | None = Field(None, description="Token ids to what is added to their logits.")
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS, fail_fast=True)] | None = Field(
        None, description="Texts that are never written, neither at a beginning nor after a space."
    )
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED, fail_fast=True)] | None = Field(
        None, description="The only tokens that may be chosen."
    )
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="The same request with the same seed gives the same tokens, alone or in a crowd."
    )
    stop: Stop | None = Field(None, description="Strings that end an answer; cut off its text unless `include_stop_str_in_output`.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] | None = Field(
        None, description="Token ids that end an answer."
    )
    include_stop_str_in_output: bool | None = Field(None, description="Keep the stop string in the text. Default false.")
    ignore_eos: bool | None = Field(None, description="Go on after end-of-sequence tokens. Default false.")
    min_tokens: Annotated[Int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Output tokens before anything may end an answer. Default 0."
    )
    skip_special_tokens: bool | None = Field(None, description="Leave special tokens out of the text. Default true.")
    prompt_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities of the prompt's tokens and of this many alternatives. Not together with `stream`."
    )
    return_token_ids: bool | None = Field(None, description="Return `prompt_token_ids` and each choice's `token_ids`. Default false.")
    stream: bool | None = Field(None, description="Send server-sent events as tokens are made. Default false.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    user: str | None = Field(None, description="Accepted; nothing depends on it.")

    priority: Zero = no("only 0 is")

    @property
    def num_branches(self) -> int:
        """Answers per prompt that are generated."""
        return self.best_of or self.n or 1

    def _check_branches(self) -> None:
        n = self.n or 1
        if self.num_branches < n:
            raise invalid("best_of", self.best_of, f"must be at least n ({n})")
        if self.use_beam_search:
            if self.num_branches > MAX_BEAM_WIDTH:
                field = "n" if self.best_of is None else "best_of"
                raise invalid(field, self.num_branches, f"is the beam width with use_beam_search, of at most {MAX_BEAM_WIDTH}")
            for name, neutral in _NOT_WITH_BEAMS.items():
                if (value := getattr(self, name)) is not None and value not in neutral:
                    raise invalid(name, value, "cannot be combined with use_beam_search")
            return
        for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(self, name) not in (None, default):
                raise invalid(name, getattr(self, name), "only allowed when use_beam_search is true")
        if self.stream and self.num_branches > n:
            raise invalid(
                "best_of", self.best_of, f"must equal n ({n}) when stream is true: which answers are the best is known at the end"
            )

    def _beams(self, *, max_tokens: int, logprobs: int | None) -> BeamSearchParams:
        return BeamSearchParams(
            beam_width=self.num_branches,
            n=self.n or 1,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
            early_stopping=self.early_stopping or False,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            skip_special_tokens=self.skip_special_tokens is not False,
        )

    def _sampling(
        self, defaults: Mapping[str, Any], *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams | BeamSearchParams:
        """``defaults``: values of fields that are left out. Raises ``APIError`` for fields that contradict each other."""
        self._check_branches()
        if self.prompt_logprobs is not None:
            if self.stream:
                raise invalid("prompt_logprobs", self.prompt_logprobs, "only allowed when stream is false")
            prompt_logprobs = max(self.prompt_logprobs, prompt_logprobs or 0)
        if self.min_tokens is not None and self.min_tokens > max_tokens:
            raise invalid("min_tokens", self.min_tokens, f"must not exceed the output limit ({max_tokens} tokens)")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", self.stream_options.model_dump(exclude_unset=True), "only allowed when stream is true")
        if self.use_beam_search:
            if prompt_logprobs is not None:
                raise invalid("logprobs", logprobs, "with echo cannot be combined with use_beam_search")
            if max_tokens == 0:
                raise invalid("max_tokens", 0, "cannot be combined with use_beam_search")
            return self._beams(max_tokens=max_tokens, logprobs=logprobs)
        optional = dict(defaults) | {
            name: value
            for name in (
                "n",
                "best_of",
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "typical_p",
                "presence_penalty",
                "frequency_penalty",
                "repetition_penalty",
                "min_tokens",
                "include_stop_str_in_output",
                "ignore_eos",
                "skip_special_tokens",
            )
            if (value := getattr(self, name)) is not None
        }
        if self.logit_bias is not None:
            optional["logit_bias"] = {int(token): value for token, value in self.logit_bias.items()}
        return SamplingParams(
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            bad_words=self.bad_words,
            allowed_token_ids=self.allowed_token_ids,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            output_kind=RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY,
            **optional,
        )

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Prompt = Field(description="Text, token ids, or a list of either; each prompt is answered on its own.")
    max_tokens: Annotated[Int, Field(ge=0, lt=2**31)] | None = Field(
        None,
        description=f"At most this many output tokens. Default {DEFAULT_COMPLETION_TOKENS}, or as many as the context leaves. "
        "0 gives what is known of the prompt alone; it needs `echo` or `prompt_logprobs`.",
    )
    echo: bool | None = Field(
        None, description="Begin the text with the prompt, and the lists of `logprobs` with its tokens. Default false."
    )
    logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Log-probabilities of the chosen token and this many alternatives."
    )
    add_special_tokens: bool | None = Field(None, description="Let the tokenizer add its own special tokens to the prompt. Default true.")

    suffix: str | None = Field(
        None,
        description="What comes after the text to be written: the model fills in the middle. For models with tokens for it; not together "
        "with `truncate_prompt_tokens`. Empty is as good as none.",
    )

    def check(self) -> None:
        """Raises ``APIError`` for fields that contradict each other."""
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise invalid("max_tokens", 0, "must be at least 1 where neither echo nor prompt_logprobs ask for the prompt")
        if self.suffix and self.truncate_prompt_tokens is not None:
            raise invalid("truncate_prompt_tokens", self.truncate_prompt_tokens, "cannot be combined with suffix")
        if self.suffix and self.echo and self.logprobs is not None:
            raise invalid("echo", True, "cannot be combined with both suffix and logprobs")
        num_prompts = len(self.prompt) if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else 1
        if num_prompts * self.num_branches > MAX_CHOICES:
            field, value = ("n", self.n) if self.best_of is None else ("best_of", self.best_of)
            raise invalid(
                field, value, f"{num_prompts} prompts would get {num_prompts * self.num_branches} answers, more than {MAX_CHOICES}"
            )

    def sampling(self, room: int, defaults: Mapping[str, Any]) -> SamplingParams | BeamSearchParams:
        """``room``: output tokens the context leaves; ``defaults``: the model's own sampling parameters."""
        max_tokens = min(DEFAULT_COMPLETION_TOKENS, room) if self.max_tokens is None else self.max_tokens
        asked = self.logprobs if self.echo else None
        return self._sampling(defaults, max_tokens=max_tokens, logprobs=self.logprobs, prompt_logprobs=asked)


class TextPart(Strict):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("list")],
    Discriminator(text_kind, custom_error_type="content_type", custom_error_message="must be a string or a list of text parts"),
]


class SystemMessage(Strict):
    """Instructions to the model."""

    role: Literal["system"]
    content: Content
    name: str | None = None


class DeveloperMessage(Strict):
    """Instructions to the model; templates see the role `system`."""

    role: Literal["developer"]
    content: Content
    name: str | None = None


class UserMessage(Strict):
    """What the user said."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Strict):
    """What the model said before. The empty fields are those of an answer that a client hands back as it came."""

    role: Literal["assistant"]
    content: Content
    name: str | None = None
    reasoning_content: str | None = Field(None, description="What it had been thinking; the template decides what becomes of it.")
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None
    annotations: Nothing = None


Message = Annotated[SystemMessage | DeveloperMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class TextFormat(Strict):
    """Free text, the only response format."""

    type: Literal["text"]


class Conversation(Strict):
    """Messages, and how the chat template makes a prompt of them."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] = Field(
        description="The conversation so far; content is text or text parts."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="More variables for the chat template.")
    add_generation_prompt: bool | None = Field(None, description="End the prompt with the opening of an answer. Default true.")
    continue_final_message: bool | None = Field(
        None, description="Go on writing the last message, which must be the assistant's. Default false."
    )

    def check(self) -> None:
        """Raises ``APIError`` for fields that contradict each other."""
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise invalid("add_generation_prompt", True, "cannot be combined with continue_final_message")
            if self.messages[-1].role != "assistant":
                raise invalid(
                    "continue_final_message", True, f"the last message must be the assistant's, not the {self.messages[-1].role}'s"
                )
        for name in self.chat_template_kwargs or {}:
            if name in RESERVED_VARIABLES or not name.isidentifier():
                raise invalid(f"chat_template_kwargs.{name}", "…", "is not a variable the template can be given this way")


class ChatCompletionRequest(GenerationRequest, Conversation):
    """`POST /v1/chat/completions`."""

    max_completion_tokens: Annotated[Int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="At most this many output tokens. Default: what the context leaves."
    )
    max_tokens: Annotated[Int, Field(ge=1, lt=2**31)] | None = Field(None, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = Field(None, description="Return log-probabilities of the output tokens. Default false.")
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(None, description="Alternatives per token; needs `logprobs`.")
    include_reasoning: bool | None = Field(
        None,
        description="Give what a reasoning model thinks before its answer, as `reasoning_content`; false drops it. Its tokens are counted, "
        "and have log-probabilities and ids, either way. Default true.",
    )
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="Accepted; nothing is stored.")
    safety_identifier: str | None = Field(None, description="Accepted; nothing depends on it.")
    prompt_cache_key: str | None = Field(None, description="Accepted; prefixes are always shared.")
    parallel_tool_calls: bool | None = Field(None, description="Accepted; there are no tools.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")

    tools: Nothing = no("leave it out")
    tool_choice: Literal["none", "auto"] | None = no("only none and auto are")
    functions: Nothing = no("leave it out")
    function_call: Literal["none", "auto"] | None = no("only none and auto are")
    response_format: TextFormat | None = no('only {"type": "text"} is')
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = no('only ["text"] is')
    audio: None = no("leave it out")
    prediction: None = no("leave it out")
    reasoning_effort: Literal["none"] | None = no("only none is")
    verbosity: Literal["medium"] | None = no("only medium is")
    web_search_options: None = no("leave it out")
    moderation: None = no("leave it out")
    store: Literal[False] | None = no("only false is")
    prompt_cache_retention: Literal["in_memory"] | None = no("only in_memory is")
    prompt_cache_options: None = no("leave it out")

    def check(self) -> None:
        """Raises ``APIError`` for fields that contradict each other."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", self.top_logprobs, "only allowed when logprobs is true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise invalid(
                "max_tokens", self.max_tokens, f"contradicts max_completion_tokens ({self.max_completion_tokens}); give one of them"
            )
        super().check()

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def sampling(self, room: int, defaults: Mapping[str, Any]) -> SamplingParams | BeamSearchParams:
        """``room``: output tokens the context leaves; ``defaults``: the model's own sampling parameters."""
        return self._sampling(defaults, max_tokens=self.output_limit or room, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class TokenizeOptions(Truncatable):
    """What both forms of `POST /tokenize` share. A text that overflows the context is counted all the same."""

    model: str | None = Field(None, description="A model id from `/v1/models`; the served model if left out.")
    return_token_strs: bool | None = Field(None, description="Return the tokens as the vocabulary spells them, too. Default false.")


class TokenizeTextRequest(TokenizeOptions):
    """`POST /tokenize` with a text."""

    prompt: str
    add_special_tokens: bool | None = Field(None, description="Let the tokenizer add its own special tokens to the text. Default true.")


class TokenizeChatRequest(TokenizeOptions, Conversation):
    """`POST /tokenize` with a conversation, which the chat template makes a prompt."""

    prompt: None = no("give either prompt or messages")
    add_special_tokens: bool | None = Field(
        None, description="Let the tokenizer add its own special tokens to what the template wrote. Default false."
    )


def tokenize_form(raw: bytes) -> type[TokenizeTextRequest] | type[TokenizeChatRequest]:
    """Which form of ``/tokenize`` the body means; one that cannot be read is refused as either."""
    try:
        body = from_json(raw)
    except ValueError:
        return TokenizeTextRequest
    return TokenizeChatRequest if isinstance(body, dict) and "messages" in body else TokenizeTextRequest


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: str | None = Field(None, description="A model id from `/v1/models`; the served model if left out.")
    tokens: Annotated[list[TokenId], Field(max_length=MAX_DETOKENIZED, fail_fast=True)] = Field(
        description="Token ids; special tokens are spelled out."
    )
