"""The types of the requests' fields: strict, bounded, with errors that say what would be right.

``protocol.py`` makes requests of them. Types are exact (``"1"`` is not a number) and numbers finite; what JSON cannot tell apart (16.0
and 16) is one.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from octavo.decoding.params import MAX_LOGIT_BIAS, MAX_PENALTY, MAX_STOP_STRINGS

MAX_PROMPTS = 2048
"""Prompts in one completion request, as in the OpenAI API."""

MAX_STOP_CHARS = 1024
"""Of one stop string; a stream holds back that much of its end."""

MAX_ALLOWED = 262_144
"""Token ids in ``allowed_token_ids``: more than vocabularies have."""


def _integral(value: Any) -> Any:
    """In JSON, 16.0 is an integer; ``1e300`` and ``inf`` are left to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


Int = Annotated[int, BeforeValidator(_integral)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be at least 1, or -1 for as many as fit")
    return value


Truncation = Annotated[Int, Field(ge=-1, lt=2**31, json_schema_extra={"not": {"const": 0}}), AfterValidator(_not_zero)]


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        head = value[0] if value else ""
        if isinstance(head, str):
            return "list of strings"
        return "list of token id lists" if isinstance(head, list) else "list of token ids"
    return None


def text_kind(value: Any) -> str | None:
    """Which of the forms a text may have."""
    return "string" if isinstance(value, str) else "list" if isinstance(value, list) else None


TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("list of strings")]
    | Annotated[TokenIds, Tag("list of token ids")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("list of token id lists")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, a list of strings, a list of token ids or a list of lists of token ids",
    ),
]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    Annotated[StopString, Tag("string")] | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), Tag("list")],
    Discriminator(text_kind, custom_error_type="stop_type", custom_error_message="must be a string or a list of strings"),
]


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


BadWord = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS, pattern=r"\S"), AfterValidator(_not_blank)]
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
"""JSON has no other keys than strings."""
LogitBias = Annotated[
    dict[TokenKey, Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]],
    Field(json_schema_extra={"additionalProperties": False}),
]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None
Zero = Annotated[float, Field(ge=0, le=0)] | None


def no(hint: str) -> Any:
    """A field of the OpenAI API that only takes its default here; ``hint`` completes "… is not supported by this server: "."""
    return Field(None, description=f"Not supported: {hint}.", json_schema_extra={"x-unsupported": hint})


class Strict(BaseModel):
    """Unknown fields, inexact types and infinite numbers are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
