"""The quantised network in OpenVINO, with the one it came from beside it for where it is in doubt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import Pixels
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.engines.openvino import OpenVinoEngine
from bcd_ray.model.network import Tensors


@dataclass(frozen=True)
class Int8Graph:
    """The quantised network in OpenVINO's own format: `model.int8.xml` and `model.int8.bin` of a bundle.

    `doubt` is the lead, in logits, of the suggested class over the next up to which fp32 may suggest another.
    """

    xml: bytes
    weights: bytes
    doubt: float = 0.0


class Int8Engine:
    """The quantised network, and the one it came from where it is in doubt: 3 to 5 images in a hundred."""

    chunk = OpenVinoEngine.chunk

    def __init__(self, graph: Int8Graph, tensors: Tensors, preprocessing: Mapping[str, Any], threads: int) -> None:
        self._quantized, self._doubt = OpenVinoEngine.of_int8(graph.xml, graph.weights, threads), graph.doubt
        self._full = OpenVinoEngine(tensors, preprocessing, threads, batch=1)

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
