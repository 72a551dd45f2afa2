"""Sampling defaults that come with a model: what its makers recommend, to be used where a request says nothing.

Hugging Face directories have them in ``generation_config.json``, GGUF files under ``general.sampling.*``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from octavo.decoding.params import SamplingParams

logger = logging.getLogger(__name__)

_KEYS = {
    "temperature": ("octavo.generation.temperature", "general.sampling.temp"),
    "top_k": ("octavo.generation.top_k", "general.sampling.top_k"),
    "top_p": ("octavo.generation.top_p", "general.sampling.top_p"),
    "min_p": ("octavo.generation.min_p", "general.sampling.min_p"),
    "typical_p": ("octavo.generation.typical_p",),
    "repetition_penalty": ("octavo.generation.repetition_penalty", "general.sampling.penalty_repeat"),
}
"""Field of ``SamplingParams`` to the metadata that may hold it."""


def sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``SamplingParams`` to what ``metadata`` recommends. What cannot be is left out with a warning."""
    found: dict[str, Any] = {}
    value: Any
    for name, keys in _KEYS.items():
        for key in keys:
            value = metadata.get(key)
            if value is None or name in found:
                continue
            if isinstance(value, float):
                value = int(value) if name == "top_k" and value.is_integer() else float(f"{value:.7g}")  # GGUF stores fp32
            given: dict[str, Any] = {name: value}
            try:
                SamplingParams(**given)
            except ValueError as error:
                logger.warning("%s is not used as a default: %s", key, error)
            else:
                found |= given
    return found
