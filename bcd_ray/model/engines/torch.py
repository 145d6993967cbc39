"""The classifier in torch: the reference for `engine`, and where torchvision's weights come from."""

from collections.abc import Callable, Mapping, Sequence
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from bcd_ray.archives.images import Pixels
from bcd_ray.errors import ConfigError
from bcd_ray.labels import CLASSES
from bcd_ray.model.backbones import BACKBONES, Backbone, field_backbone, padding
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.network import Tensors, folded

_AT_A_TIME = 64  # images


class Walked:
    """A backbone's blocks over tensors by name, which may be asked for gradients; norms keep their statistics.

    Called with a value (n, c, h, w) it gives that of the last block, and the map of each stage to `tap`.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], backbone: Backbone, how: str) -> None:
        """`how` to pad, see `backbones.padding`."""
        self._tensors, self._backbone, self._how = tensors, backbone, how

    def __call__(
        self,
        value: torch.Tensor,
        tap: Callable[[torch.Tensor], None] = lambda value: None,
        first: int = 0,
        last: int | None = None,
    ) -> torch.Tensor:
        last = self._backbone.last if last is None else last
        result: torch.Tensor = self._backbone.walk(value, self._convolve, torch.add, tap, first, last)
        return result

    def _convolve(
        self, value: torch.Tensor, convolution: str, norm: str, stride: int = 1, clamp: bool = True
    ) -> torch.Tensor:
        weight, bias = folded(self._tensors, convolution, norm, self._backbone.epsilon)
        before, after = padding(weight.shape[-1], stride, self._how)
        if before != after:
            value, before = functional.pad(value, (before, after, before, after)), 0
        value = functional.conv2d(value, weight, bias, stride, before, 1, value.shape[1] // weight.shape[1])
        return functional.relu6(value) if clamp else value


class SmearClassifier(nn.Module):
    """A backbone up to its pooled features, and a linear head over them; of MobileNetV2 torchvision's own layers.

    `forward` takes (N, 224, 224, 3) uint8 RGB and returns the embeddings (N, 1280) and the logits (N, 4), float32.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, tensors: Tensors, preprocessing: Mapping[str, Any], device: str = "cpu") -> None:
        super().__init__()
        self.head = nn.Linear(1280, len(CLASSES))
        backbone, given = field_backbone(preprocessing), as_torch(tensors, device)
        if backbone is BACKBONES["mobilenet_v2"]:
            self.features: Any = mobilenet_v2().features
            missing, unexpected = self.load_state_dict(given, strict=False)
            if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
                raise ConfigError("these weights are not those of a MobileNetV2: train anew")
            if preprocessing["padding"] == "same":
                _pad_like_tensorflow(self.features)
        else:
            self.features = Walked(given, backbone, preprocessing["padding"])
            self.head.load_state_dict({name: given[f"head.{name}"] for name in ("weight", "bias")})
        self.register_buffer("mean", torch.tensor(preprocessing["mean"]))
        self.register_buffer("std", torch.tensor(preprocessing["std"]))
        self.eval().to(device)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = (images.to(self.mean.dtype) - self.mean) / self.std
        # Channels stand last in memory already, the layout that convolutions are fastest in.
        embeddings = self.features(scaled.permute(0, 3, 1, 2)).mean((2, 3))
        return embeddings, self.head(embeddings)


class TorchStages:
    """The means (n, d) of a backbone's stages, of n grey images (side, side, 1) uint8, in float32: the reference."""

    def __init__(self, tensors: Tensors, backbone: Backbone, device: str = "cpu") -> None:
        self._backbone, self._device = backbone, device
        self._walked = Walked(as_torch(tensors, device), backbone, backbone.preprocessing["padding"])

    def __call__(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        parts = [self._some(images[start : start + _AT_A_TIME]) for start in range(0, len(images), _AT_A_TIME)]
        return np.concatenate(parts)

    def _some(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        grey = torch.from_numpy(np.stack(images)).to(self._device)
        scaling = self._backbone.preprocessing
        mean, std = (torch.tensor(scaling[name], device=self._device) for name in ("mean", "std"))
        means = list[torch.Tensor]()
        with torch.inference_mode():
            scaled = ((grey.expand(-1, -1, -1, 3) - mean) / std).permute(0, 3, 1, 2)
            self._walked(scaled, lambda value: means.append(value.mean((2, 3))))
            return np.asarray(torch.cat(means, 1).cpu().numpy())


class TorchEngine:
    """`base.Engine` in torch, in float32: the reference."""

    chunk = 8

    def __init__(self, tensors: Tensors, preprocessing: Mapping[str, Any], device: str = "cpu") -> None:
        self._network = SmearClassifier(tensors, preprocessing, device).to(memory_format=torch.channels_last)
        self._device = device

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        with torch.inference_mode():
            found = self._network(torch.from_numpy(np.stack(images)).to(self._device))
            return Outputs(*(output.cpu().numpy() for output in found))


def as_torch(tensors: Tensors, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Copies, by name."""
    return {name: torch.from_numpy(np.array(value)).to(device) for name, value in tensors.items()}


def torchvision_backbone() -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of torchvision's own ImageNet weights, downloaded by torchvision or found in its cache."""
    try:
        state = MobileNet_V2_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ConfigError(
            f"torchvision's weights could not be downloaded or read ({error}): "
            "use --weights keras, which needs no network"
        ) from error
    wanted = {name: value.numpy() for name, value in state.items() if name.startswith("features.")}
    return {name: value for name, value in wanted.items() if not name.endswith("num_batches_tracked")}


class _PaddedBelowRight(nn.Module):
    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        padded: torch.Tensor = self.convolution(nn.functional.pad(images, (0, 1, 0, 1)))
        return padded


def _pad_like_tensorflow(features: nn.Module) -> None:
    """TensorFlow's SAME padding of a stride-2 3x3 convolution on an even size: one row below, one column right."""
    for parent in list(features.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                setattr(parent, name, _PaddedBelowRight(child))
