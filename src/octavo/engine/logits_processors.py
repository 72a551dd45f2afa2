"""Runs the Python functions that a request may give to change its logits (``SamplingParams.logits_processors``).

They see the logits as the model gave them, before every rule and penalty. One that raises, or returns what is not logits, is an error of
its sequence alone.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np

from octavo.backends.base import Float32Array
from octavo.decoding import LogitsProcessor
from octavo.engine.sequence import Sequence

logger = logging.getLogger(__name__)


def process_logits(sequences: list[Sequence], logits: Float32Array) -> tuple[Float32Array, list[int], dict[Sequence, str]]:
    """``logits`` (S, V), a row per sequence, with the rows that were changed appended; the row to draw from, per sequence; errors."""
    rows = list(range(len(sequences)))
    errors: dict[Sequence, str] = {}
    changed: list[Float32Array] = []
    for row, sequence in enumerate(sequences):
        if sequence.request.params.logits_processors:
            try:
                changed.append(_processed(sequence, logits[row].copy()))
                rows[row] = len(sequences) + len(changed) - 1
            except Exception as error:
                logger.warning("request %s: %s", sequence.request.request_id, error, exc_info=error.__cause__)
                errors[sequence] = str(error)
    return np.concatenate([logits, np.array(changed)]) if changed else logits, rows, errors


def _processed(sequence: Sequence, logits: Float32Array) -> Float32Array:
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    for i, processor in enumerate(sequence.request.params.logits_processors or ()):
        try:
            arguments = (sequence.request.prompt_token_ids, output) if _takes_prompt(processor) else (output,)
            result = np.asarray(processor(*(ids.copy() for ids in arguments), logits), np.float32)
        except Exception as error:
            raise RuntimeError(f"logits_processors[{i}] failed with {type(error).__name__}: {error}") from error
        if result.shape != logits.shape:
            raise RuntimeError(f"logits_processors[{i}] returned an array of shape {result.shape}: it must be {logits.shape}")
        if np.isnan(result).any():
            raise RuntimeError(f"logits_processors[{i}] returned logits that are not numbers (NaN)")
        logits = result
    return logits


def _takes_prompt(processor: LogitsProcessor) -> bool:
    """Whether it wants the prompt's token ids before the output's: one of three parameters does."""
    try:
        parameters = inspect.signature(processor).parameters.values()
    except (TypeError, ValueError):  # not every callable can be asked
        return False
    positional: list[Any] = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(positional) == 3
