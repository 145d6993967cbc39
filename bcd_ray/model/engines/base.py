"""What every engine gives and takes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import Pixels


class Outputs(NamedTuple):
    """What the network says of n images."""

    embeddings: npt.NDArray[np.float32]  # (n, d)
    logits: npt.NDArray[np.float32]  # (n, 4)
    quality: npt.NDArray[np.float32] | None = None  # (n, 6) of `quality.measure`, where an engine measures too
    cells: npt.NDArray[np.int32] | None = None  # (n,) white cells found, where the model looks at them


class Engine(Protocol):
    """The network, ready to run; several threads may call it at a time, and keep all cores busy if they do."""

    @property
    def chunk(self) -> int:
        """How many images to give it at a time."""

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """The outputs of n >= 1 images (224, 224, 3) uint8, in order."""


EngineName = Literal["openvino", "openvino-int8", "torch", "torch-cuda"]
