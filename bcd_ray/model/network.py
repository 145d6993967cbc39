"""Tensors by name, folding, softmax: NumPy alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

NETWORK_VERSION = 1  # raise it when the same tensors would give other embeddings: walks, scaling, which cells are seen
Tensors = Mapping[str, npt.NDArray[np.float32]]


def folded(tensors: Mapping[str, Any], convolution: str, norm: str, epsilon: float = 1e-5) -> tuple[Any, Any]:
    """Weight and bias of a convolution with the BatchNorm after it folded in; of torch with gradients too."""
    scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + epsilon) ** 0.5
    weight = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities (n, classes) of logits (n, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
