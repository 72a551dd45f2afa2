"""The rules of decoding: parameters, logit rules, token counts, stop strings. Pure Python; their kernels are the backends'."""

from octavo.decoding.counts import TokenCounts
from octavo.decoding.edits import LogitEdits, LogitRules
from octavo.decoding.params import MAX_LOGPROBS, MAX_N, LogitsProcessor, RequestOutputKind, SamplingParams
from octavo.decoding.stop import StopStringMatcher

__all__ = [
    "MAX_LOGPROBS",
    "MAX_N",
    "LogitEdits",
    "LogitRules",
    "LogitsProcessor",
    "RequestOutputKind",
    "SamplingParams",
    "StopStringMatcher",
    "TokenCounts",
]
