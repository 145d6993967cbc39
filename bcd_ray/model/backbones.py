"""The backbones, an entry each: a walk over named tensors, whatever computes it, and what their weights need.

To add one: a walk, an entry in `BACKBONES`, and its weights with provenance and licence in `weights`; a test holds each
against torch.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from bcd_ray.errors import JobError

Convolve = Callable[..., Any]  # (value, convolution, norm, stride=1, clamp=True): by names of tensors; ReLU6 if `clamp`
Add = Callable[[Any, Any], Any]
Tap = Callable[[Any], None]  # is given the map of each of a backbone's stages


class _Block(NamedTuple):
    """An inverted residual."""

    expands: bool
    stride: int
    adds: bool  # its input to what it makes of it


def _blocks(*stages: tuple[int, int, int]) -> tuple[_Block, ...]:
    """The blocks of stages (expansion, repeats, stride of the first)."""
    return tuple(
        _Block(expansion > 1, stride if repeat == 0 else 1, repeat > 0)
        for expansion, repeats, stride in stages
        for repeat in range(repeats)
    )


# MobileNetV2's stages (Sandler et al., CVPR 2018, table 2).
_MOBILENET_V2 = _blocks((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
_MOBILENET_V2_TAPPED = (6, 10, 13, 17)
# EfficientNet-Lite0's, which are those of B0 (Tan and Le, ICML 2019, table 1) without squeeze-and-excitation.
_LITE0 = _blocks((1, 1, 1), (6, 2, 2), (6, 2, 2), (6, 3, 2), (6, 3, 1), (6, 4, 2), (6, 1, 1))
_LITE0_TAPPED = (5, 8, 11, 16)


def mobilenet_v2(
    value: Any, convolve: Convolve, add: Add, tap: Tap = lambda value: None, first: int = 0, last: int = 18
) -> Any:
    """What MobileNetV2's blocks from `first` to `last`, numbered as torchvision's features, make of a value."""
    for number in range(first, last + 1):
        if number in (0, 18):
            value = convolve(value, f"features.{number}.0", f"features.{number}.1", stride=2 if number == 0 else 1)
            continue
        block, layers, shortcut = _MOBILENET_V2[number - 1], f"features.{number}.conv", value
        if block.expands:
            value = convolve(value, f"{layers}.0.0", f"{layers}.0.1")
        depthwise = int(block.expands)
        value = convolve(value, f"{layers}.{depthwise}.0", f"{layers}.{depthwise}.1", block.stride)
        value = convolve(value, f"{layers}.{depthwise + 1}", f"{layers}.{depthwise + 2}", clamp=False)
        if block.adds:
            value = add(shortcut, value)
        if number in _MOBILENET_V2_TAPPED:
            tap(value)
    return value


def efficientnet_lite0(
    value: Any, convolve: Convolve, add: Add, tap: Tap = lambda value: None, first: int = 0, last: int = 17
) -> Any:
    """What EfficientNet-Lite0's blocks make of a value, the stem 0 and the head 17; named as in checkpoints."""
    for number in range(first, last + 1):
        if number in (0, 17):
            names = ("_conv_stem", "_bn0") if number == 0 else ("_conv_head", "_bn1")
            value = convolve(value, *names, stride=2 if number == 0 else 1)
            continue
        block, layers, shortcut = _LITE0[number - 1], f"_blocks.{number - 1}", value
        if block.expands:
            value = convolve(value, f"{layers}._expand_conv", f"{layers}._bn0")
        value = convolve(value, f"{layers}._depthwise_conv", f"{layers}._bn1", block.stride)
        value = convolve(value, f"{layers}._project_conv", f"{layers}._bn2", clamp=False)
        if block.adds:
            value = add(shortcut, value)
        if number in _LITE0_TAPPED:
            tap(value)
    return value


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        walk: from a value to the last map, giving the map of each stage to `tap`; or through some of the blocks alone.
        last: number of its last block.
        file: of its ImageNet weights, in `weights`.
        sha256: of that file.
        epsilon: of its BatchNorms.
        preprocessing: scaling of values 0..255 and padding, as it was trained with: `mean`, `std`, `padding`.
        widths: channels of the stages.
    """

    walk: Callable[..., Any]
    last: int
    file: str
    sha256: str
    epsilon: float
    preprocessing: Mapping[str, Any]
    widths: tuple[int, ...]

    def layers(self, first: int, last: int) -> list[tuple[str, str]]:
        """Each convolution of some of the blocks and the norm after it, by name, in order."""
        found = list[tuple[str, str]]()

        def note(value: None, convolution: str, norm: str, stride: int = 1, clamp: bool = True) -> None:
            found.append((convolution, norm))

        self.walk(None, note, lambda shortcut, value: None, first=first, last=last)
        return found

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Its ImageNet tensors; JobError if the file is not the one that belongs to this release."""
        data = (resources.files("bcd_ray.model") / "weights" / self.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise JobError(f"the weights {self.file} are not those of this release: install bcd_ray again")
        return {name: value for name, value in load(data).items() if not name.endswith("num_batches_tracked")}


BACKBONES = {
    "mobilenet_v2": Backbone(
        mobilenet_v2,
        18,
        "mobilenet_v2_imagenet_keras.safetensors",
        "74a6c25f4863dac4ea5a622451b8842aeae965b05defc916b847a5314e2cf0b9",
        1e-5,
        {"mean": [127.5] * 3, "std": [127.5] * 3, "padding": "same"},
        (32, 64, 96, 320),
    ),
    "efficientnet_lite0": Backbone(
        efficientnet_lite0,
        17,
        "efficientnet_lite0_imagenet.safetensors",
        "13badca7f05595226fd5df1861c04c6a9e92854bffb31b67616e2a844a375bc0",
        1e-3,
        {"mean": [127.0] * 3, "std": [128.0] * 3, "padding": "same"},
        (40, 80, 112, 320),
    ),
}


def field_backbone(preprocessing: Mapping[str, Any]) -> Backbone:
    """That of a model that looks at whole fields; bundles of earlier formats name none and hold MobileNetV2."""
    return BACKBONES[preprocessing.get("backbone", "mobilenet_v2")]


def padding(kernel: int, stride: int, how: str) -> tuple[int, int]:
    """Rows before and after a map of even sides: TensorFlow's `same`, or torchvision's `symmetric`."""
    before = max(kernel - stride, 0) // 2 if how == "same" else kernel // 2
    return before, max(kernel - stride, 0) - before if how == "same" else before
