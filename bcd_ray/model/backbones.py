"""The backbones, an entry each: a walk over named tensors, whatever computes it, and what their weights need.

To add one: a walk, an entry in `BACKBONES`, and its weights with provenance and licence in `weights`; a test holds each
against torch.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from bcd_ray.errors import JobError

Convolve = Callable[..., Any]  # (value, convolution, norm, stride=1, clamp=True): by names of tensors; ReLU6 if `clamp`
Add = Callable[[Any, Any], Any]
Tap = Callable[[Any], None]  # is given the map of each of a backbone's stages

# MobileNetV2's stages (Sandler et al., CVPR 2018, table 2): expansion, repeats, stride of the first.
_MOBILENET_V2 = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
_MOBILENET_V2_TAPPED = (6, 10, 13, 17)  # blocks
# EfficientNet-Lite0's, which are those of B0 (Tan and Le, ICML 2019, table 1) without squeeze-and-excitation.
_LITE0 = ((1, 1, 1), (6, 2, 2), (6, 2, 2), (6, 3, 2), (6, 3, 1), (6, 4, 2), (6, 1, 1))
_LITE0_TAPPED = (3, 4, 5, 7)  # stages


def mobilenet_v2(value: Any, convolve: Convolve, add: Add, tap: Tap = lambda value: None) -> Any:
    """MobileNetV2's last map of a value; tensors under torchvision's names."""
    value = convolve(value, "features.0.0", "features.0.1", stride=2)
    block = 0
    for expansion, repeats, first_stride in _MOBILENET_V2:
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
            if block in _MOBILENET_V2_TAPPED:
                tap(value)
    return convolve(value, "features.18.0", "features.18.1")


def efficientnet_lite0(value: Any, convolve: Convolve, add: Add, tap: Tap = lambda value: None) -> Any:
    """EfficientNet-Lite0's last map of a value; tensors as its checkpoints name them."""
    value = convolve(value, "_conv_stem", "_bn0", stride=2)
    block = 0
    for stage, (expansion, repeats, first_stride) in enumerate(_LITE0, start=1):
        for repeat in range(repeats):
            layers, shortcut = f"_blocks.{block}", value
            if expansion > 1:
                value = convolve(value, f"{layers}._expand_conv", f"{layers}._bn0")
            stride = first_stride if repeat == 0 else 1
            value = convolve(value, f"{layers}._depthwise_conv", f"{layers}._bn1", stride)
            value = convolve(value, f"{layers}._project_conv", f"{layers}._bn2", clamp=False)
            if repeat > 0:
                value = add(shortcut, value)
            block += 1
        if stage in _LITE0_TAPPED:
            tap(value)
    return convolve(value, "_conv_head", "_bn1")


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        walk: from a value to the last map, giving the map of each stage to `tap`.
        file: of its ImageNet weights, in `weights`.
        sha256: of that file.
        epsilon: of its BatchNorms.
        preprocessing: scaling of values 0..255 and padding, as it was trained with: `mean`, `std`, `padding`.
        widths: channels of the stages.
    """

    walk: Callable[..., Any]
    file: str
    sha256: str
    epsilon: float
    preprocessing: Mapping[str, Any]
    widths: tuple[int, ...]

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Its ImageNet tensors; JobError if the file is not the one that belongs to this release."""
        data = (resources.files("bcd_ray.model") / "weights" / self.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise JobError(f"the weights {self.file} are not those of this release: install bcd_ray again")
        return {name: value for name, value in load(data).items() if not name.endswith("num_batches_tracked")}


BACKBONES = {
    "mobilenet_v2": Backbone(
        mobilenet_v2,
        "mobilenet_v2_imagenet_keras.safetensors",
        "74a6c25f4863dac4ea5a622451b8842aeae965b05defc916b847a5314e2cf0b9",
        1e-5,
        {"mean": [127.5] * 3, "std": [127.5] * 3, "padding": "same"},
        (32, 64, 96, 320),
    ),
    "efficientnet_lite0": Backbone(
        efficientnet_lite0,
        "efficientnet_lite0_imagenet.safetensors",
        "13badca7f05595226fd5df1861c04c6a9e92854bffb31b67616e2a844a375bc0",
        1e-3,
        {"mean": [127.0] * 3, "std": [128.0] * 3, "padding": "same"},
        (40, 80, 112, 320),
    ),
}


def padding(kernel: int, stride: int, how: str) -> tuple[int, int]:
    """Rows before and after a map of even sides: TensorFlow's `same`, or torchvision's `symmetric`."""
    before = max(kernel - stride, 0) // 2 if how == "same" else kernel // 2
    return before, max(kernel - stride, 0) - before if how == "same" else before
