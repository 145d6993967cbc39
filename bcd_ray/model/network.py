"""MobileNetV2 as a walk over named tensors, whatever computes it; folding; softmax. NumPy alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[np.float32]]

# MobileNetV2's stages (Sandler et al., CVPR 2018, table 2): expansion, repeats, stride of the first.
_STAGES = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
_BATCH_NORM_EPSILON = 1e-5


def mobilenet_v2(value: Any, convolve: Callable[..., Any], add: Callable[[Any, Any], Any]) -> Any:
    """MobileNetV2's features of a value, computed by `convolve(value, convolution, norm, stride=1, clamp=True)`.

    `convolution` and `norm` are names in a bundle's tensors; `clamp` says whether ReLU6 follows.
    """
    value = convolve(value, "features.0.0", "features.0.1", stride=2)
    block = 0
    for expansion, repeats, first_stride in _STAGES:
        for repeat in range(repeats):
            block += 1
            layers, shortcut = f"features.{block}.conv", value
            if expansion > 1:
                value = convolve(value, f"{layers}.0.0", f"{layers}.0.1")
            depthwise = 1 if expansion > 1 else 0
            stride = first_stride if repeat == 0 else 1
            value = convolve(value, f"{layers}.{depthwise}.0", f"{layers}.{depthwise}.1", stride)
            value = convolve(value, f"{layers}.{depthwise + 1}", f"{layers}.{depthwise + 2}", clamp=False)
            if repeat > 0:
                value = add(shortcut, value)
    return convolve(value, "features.18.0", "features.18.1")


def folded(tensors: Tensors, convolution: str, norm: str) -> tuple[Any, Any]:
    """Weight and bias of a convolution with the BatchNorm after it folded in."""
    scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
    weight = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities (n, classes) of logits (n, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
