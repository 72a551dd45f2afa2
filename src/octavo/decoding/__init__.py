"""The rules of decoding: parameters, logit edits, stop strings. Pure Python; their kernels are the backends'."""

from octavo.decoding.beam_search import MAX_BEAM_WIDTH, Beam, BeamSearch, BeamSearchParams, Continuations, Growth, Hypothesis
from octavo.decoding.edits import LogitEdit, logit_edits
from octavo.decoding.params import MAX_LOGPROBS, MAX_N, RequestOutputKind, SamplingParams
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
    "LogitEdit",
    "RequestOutputKind",
    "SamplingParams",
    "StopStringMatcher",
    "logit_edits",
]
