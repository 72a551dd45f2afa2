"""The rules of decoding: parameters, logit rules, token counts, stop strings. Pure Python; their kernels are the backends'."""

from octavo.decoding.beam_search import MAX_BEAM_WIDTH, Beam, BeamSearch, BeamSearchParams, Continuations, Growth, Hypothesis
from octavo.decoding.counts import TokenCounts
from octavo.decoding.defaults import sampling_defaults
from octavo.decoding.edits import LogitEdits, LogitRules
from octavo.decoding.params import MAX_LOGPROBS, MAX_N, LogitsProcessor, RequestOutputKind, SamplingParams
from octavo.decoding.prompt_lookup import PromptLookup
from octavo.decoding.stop import StopStringMatcher

__all__ = [
    "MAX_BEAM_WIDTH",
    "MAX_LOGPROBS",
    "MAX_N",
    "Beam",
    "BeamSearch",
    "BeamSearchParams",
    "Continuations",
    "Growth",
    "Hypothesis",
    "LogitEdits",
    "LogitRules",
    "LogitsProcessor",
    "PromptLookup",
    "RequestOutputKind",
    "SamplingParams",
    "StopStringMatcher",
    "TokenCounts",
    "sampling_defaults",
]
