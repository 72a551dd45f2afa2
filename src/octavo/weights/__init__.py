"""Weights: opening checkpoints, what their tensors are, and where models come from."""

from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.dequantize import dequantize
from octavo.weights.pull import pull, resolve
from octavo.weights.quantized import Quantization, quantized
from octavo.weights.sources import ALIASES
from octavo.weights.store import CachedModel, PullError, list_models, remove_model
from octavo.weights.tensor import Checkpoint, Tensor, TensorType

__all__ = [
    "ALIASES",
    "CachedModel",
    "Checkpoint",
    "PullError",
    "Quantization",
    "Tensor",
    "TensorType",
    "dequantize",
    "list_models",
    "open_checkpoint",
    "pull",
    "quantized",
    "remove_model",
    "resolve",
]
