"""The quantised network, with the one it came from beside it for where it is in doubt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import Pixels
from bcd_ray.model.engines.base import Engine, Outputs
from bcd_ray.model.network import Tensors


@dataclass(frozen=True)
class Int8Graph:
    """The quantised network in OpenVINO's own format.

    Attributes:
        graphs: xml and weights, of a model of whole fields under ``, with its head; else of each part by its name
            (`engines.cells.parts_of`).
        doubt: the lead, in logits, of the suggested class over the next up to which fp32 may suggest another.
        head: `head.weight` and `head.bias` over the quantised parts of a model that looks at cells.
    """

    graphs: Mapping[str, tuple[bytes, bytes]]
    doubt: float = 0.0
    head: Tensors = field(default_factory=dict)


class Int8Engine:
    """The quantised network, and the one it came from where it is in doubt: 2 to 5 images in a hundred."""

    def __init__(self, quantized: Engine, full: Engine, doubt: float) -> None:
        self._quantized, self._full, self._doubt = quantized, full, doubt
        self.chunk = quantized.chunk

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        outputs = self._quantized.infer(images)
        doubtful = np.flatnonzero(leads(outputs.logits) <= self._doubt)
        if len(doubtful):
            full = self._full.infer([images[row] for row in doubtful.tolist()])
            outputs.embeddings[doubtful], outputs.logits[doubtful] = full.embeddings, full.logits
        return outputs


def leads(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n,) by how much the largest of the logits (n, classes) exceeds the next."""
    ranked = np.sort(logits, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2])
