"""What the chunks of both endpoints' streams have in common: how a choice ends, and how the stream does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.engine.outputs import CompletionOutput
from octavo.server.generation import Account
from octavo.server.protocol import GenerationRequest
from octavo.server.sse import DONE


def ending(branch: CompletionOutput) -> str:
    """The fields, as JSON, that say whether and why a choice ends with this chunk."""
    if branch.finish_reason is None:
        return '"finish_reason": null'
    return f'"finish_reason": "{branch.finish_reason}", "stop_reason": {json.dumps(branch.stop_reason)}'


def last_events(request: GenerationRequest, head: Mapping[str, Any], account: Account) -> bytes:
    """The usage of the whole request, if it was asked for, and the end of the stream."""
    if not request.include_usage:
        return DONE
    return f"data: {json.dumps({**head, 'choices': [], 'usage': account.usage()})}\n\n".encode("ascii") + DONE
