"""A field as its white cells: the square about each through a backbone, the means of whose stages are averaged.

`both` puts the same of the whole field beside it, in grey and by another backbone. Each part of an embedding has length
one. What runs the backbones is given: OpenVINO, or torch on CPUs or a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import SIZE, Pixels
from bcd_ray.model.backbones import BACKBONES, Backbone
from bcd_ray.model.cells import CROP, MOST, Cells, find_cells
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.network import Tensors
from bcd_ray.threads import in_chunks

Floats = npt.NDArray[np.float32]
Stages = Callable[[Sequence[Pixels]], Floats]  # of n images (side, side, 1), the means (n, d) of a backbone's stages


class Part(NamedTuple):
    """What a backbone looks at."""

    name: str  # in a model's `preprocessing`
    backbone: Backbone
    size: int  # pixels a side
    batch: int  # images at a time: as many values as fit a CPU's caches
    of_one: int  # that a field has, at most


OpenStages = Callable[[Tensors, Part], Stages]


class Evidence(NamedTuple):
    """What of an image speaks for each class: the mean over its cells, the rest and the head's bias are the logits."""

    centres: npt.NDArray[np.int64]  # (k, 2) row and column of each cell that was looked at
    of_cells: Floats  # (k, 4)
    of_rest: Floats  # (4,) of the whole field, where the model looks at it too


class CellsEngine:
    """`base.Engine` of a model whose representation is `cells` or `both`."""

    chunk = 16  # some 70 crops: of 8 images the last request would be a tenth of all, and half empty

    def __init__(self, tensors: Tensors, preprocessing: Mapping[str, Any], open_stages: OpenStages) -> None:
        cv2.setNumThreads(1)  # the callers' threads fill the cores
        opened = {part.name: open_stages(tensors, part) for part in parts_of(preprocessing)}
        self._of_crops, self._of_field = opened["crops"], opened.get("field")
        self._weight, self._bias = tensors["head.weight"], tensors["head.bias"]

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        looked = [self._means(chunk) for chunk in in_chunks(images, self.chunk)]
        embeddings = np.concatenate(
            [np.concatenate([of_length_one(each) for each in of], axis=1) for _, _, of in looked]
        )
        found = np.array([field.found for fields, *_ in looked for field in fields], np.int32)
        return Outputs(embeddings, embeddings @ self._weight.T + self._bias, cells=found)

    def evidence(self, images: Sequence[Pixels]) -> list[Evidence]:
        """Of each image what each of its cells, and the rest, speak for."""
        fields, of_crops, (means, *whole) = self._means(images)
        size = means.shape[1]
        rest = of_length_one(whole[0]) @ self._weight[:, size:].T if whole else np.zeros((len(images), len(self._bias)))
        found, start = list[Evidence](), 0
        for row, field in enumerate(fields):
            of_field = of_crops[start : start + len(field.centres)] @ self._weight[:, :size].T
            start += len(field.centres)
            found.append(Evidence(field.centres, of_field / np.linalg.norm(means[row]), rest[row]))
        return found

    def _means(self, images: Sequence[Pixels]) -> tuple[list[Cells], Floats, list[Floats]]:
        """Of n images the cells, the features of all of their squares, and of each part of an embedding (n, d)."""
        fields = [find_cells(image) for image in images]
        of_crops = self._of_crops([crop for field in fields for crop in field.crops()])
        counts = np.array([len(field.centres) for field in fields])
        first = np.cumsum(counts) - counts
        parts = [np.asarray(np.add.reduceat(of_crops, first) / counts[:, None], np.float32)]
        if self._of_field:
            parts.append(self._of_field([field.grey[..., None] for field in fields]))
        return fields, of_crops, parts


def parts_of(preprocessing: Mapping[str, Any]) -> list[Part]:
    """`crops`, and of `both` the `field` too."""
    known = {"crops": (CROP, 8, MOST), "field": (SIZE, 2, 1)}
    return [
        Part(name, BACKBONES[preprocessing[name]["backbone"]], *sizes)
        for name, sizes in known.items()
        if name in preprocessing
    ]


def of_length_one(features: Floats) -> Floats:
    """(n, d) each divided by its length."""
    scaled: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return scaled
