"""``/openapi.json`` against the server itself: schemathesis makes requests from the document, good and bad ones, and holds every
response against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import BaseSchema, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi_checks

from .process import running_server

EXAMPLES = 60
MAX_TOKENS = 3

CHECKED = [
    not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
    openapi_checks.allow_header_conformance,
]
"""Not ``positive_data_acceptance``: a schema cannot say that min_tokens is at most max_tokens, or that a token id is in the vocabulary."""


@pytest.fixture(scope="module")
def api(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    with running_server(tmp_path_factory.mktemp("schema") / "log") as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        server.wait_until_idle()
        assert "Traceback" not in server.log, server.log


OPERATIONS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/version"),
]


def _keep_it_short(body: object) -> None:
    """Generated requests may ask for any amount of text; what they ask for is theirs, how much is ours."""
    if not isinstance(body, dict):
        return
    for name in ("max_tokens", "max_completion_tokens"):
        if type(body.get(name)) is int and body[name] > MAX_TOKENS:
            body[name] = MAX_TOKENS
    if "messages" in body and body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = MAX_TOKENS
    if type(body.get("n")) is int and 4 < body["n"] <= 128:
        body["n"] = 4


def test_all_operations_are_here(api: BaseSchema) -> None:
    operations: list[Any] = [result.ok() for result in api.get_all_operations()]  # type: ignore[union-attr]
    assert {(operation.method.upper(), operation.path) for operation in operations} == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_document_tells_the_truth(api: BaseSchema, method: str, path: str, mode: GenerationMode) -> None:
    operation = api[path][method]
    has_input = method == "POST" or "{" in path
    if mode is GenerationMode.NEGATIVE and method == "GET":
        pytest.skip("it takes nothing that could be wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES if has_input else 2, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def holds(case: schemathesis.Case[Any]) -> None:
        _keep_it_short(case.body)
        case.call_and_validate(checks=CHECKED, timeout=60)

    holds()
