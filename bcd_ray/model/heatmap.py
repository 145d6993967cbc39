"""Where in an image the evidence for a class lies: class activation maps, and a check that they depend on the weights.

Under pooled features and a linear head the map is exact: Zhou et al., "Learning Deep Features for Discriminative
Localization", CVPR 2016. Of a model that looks at cells, a map shows the squares that it looked at, each with its
cell's evidence, and what the whole field adds evenly. A map shows what the model used, never why a cell is malignant.
"""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image, ImageDraw

from bcd_ray.archives.images import SIZE, Pixels
from bcd_ray.model.bundle import Model
from bcd_ray.model.cells import REGION, whitened
from bcd_ray.model.engines.cells import CellsEngine, Evidence
from bcd_ray.model.engines.openvino import open_stages

Maps = npt.NDArray[np.float32]

_PLACES = 28  # a side of the maps of cells
_GAP, _CAPTION = 8, 34  # pixels
_OPACITY = 0.45  # of the map over the image: the cells stay visible


def class_activation(model: Model, batches: Iterable[Pixels]) -> Iterator[Maps]:
    """The evidence (n, 4, h, w) for each class at each place of each batch of images (n, 224, 224, 3).

    There are 7x7 places, of a model that looks at cells 28x28. The mean of a map over its places, plus the bias of its
    class, is the logit.
    """
    if model.representation != "field":
        engine = CellsEngine(model.tensors, model.preprocessing, open_stages(threads=1))
        for images in batches:
            yield np.stack([_map_of_cells(found) for found in engine.evidence(list(images))])
        return
    import torch

    from bcd_ray.model.engines.torch import SmearClassifier

    network = SmearClassifier(model.tensors, model.preprocessing)
    for images in batches:
        if model.white:
            images = np.stack([whitened(image) for image in images])
        with torch.inference_mode():  # not around the yield: it would hold for the caller too
            scaled = (torch.from_numpy(images).float() - network.mean) / network.std
            features = network.features(scaled.permute(0, 3, 1, 2))
            maps: Maps = torch.einsum("nfyx,cf->ncyx", features, network.head.weight).numpy()
        yield maps


def _map_of_cells(found: Evidence) -> Maps:
    """(4, 28, 28) in which the square about a cell holds what the cell speaks for, as a share of all places."""
    maps = np.zeros((found.of_rest.size, _PLACES, _PLACES), np.float32)
    maps += found.of_rest[:, None, None].astype(np.float32)
    for (row, column), evidence in zip(found.centres, found.of_cells, strict=True):
        rows, columns = (_beside(int(place)) for place in (row, column))
        square = maps[:, rows, columns]
        square += (evidence * maps[0].size / (len(found.centres) * square[0].size))[:, None, None]
    return maps


def _beside(place: int) -> slice:
    """The places that the square about a pixel covers in one direction."""
    side = SIZE // _PLACES
    return slice(max(0, round((place - REGION / 2) / side)), min(_PLACES, round((place + REGION / 2) / side)))


def randomised(model: Model, seed: int = 0) -> dict[str, Model]:
    """The model with its head, or its last convolution, put in random order: the values stay, what was learned goes.

    The check of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: a map that such a model gives as well
    says nothing about the trained one.
    """
    random = np.random.default_rng(seed)

    def shuffled(name: str) -> Model:
        values = model.tensors[name]
        mixed = random.permutation(values.ravel()).reshape(values.shape)
        return Model({**model.tensors, name: mixed}, model.preprocessing)

    if model.representation == "field":
        (last,) = model.backbone.layers(model.backbone.last, model.backbone.last)
    else:
        last = ("_blocks.15._project_conv", "")
    return {"head": shuffled("head.weight"), "last_convolution": shuffled(f"{last[0]}.weight")}


def similarity(one: Maps, other: Maps) -> npt.NDArray[np.float64]:
    """(n,) correlation of ranks (Spearman) between maps (n, h, w), from -1 to 1; equal values share a rank."""
    first, second = (np.stack([_ranks(each.ravel()) for each in maps]) for maps in (one, other))
    centred = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    lengths = [np.linalg.norm(each, axis=1) for each in centred]
    return np.asarray((centred[0] * centred[1]).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12))


def _ranks(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - counts / 2)[which])


def draw(pixels: Pixels, class_map: Maps, caption: str) -> bytes:
    """PNG of an image (224, 224, 3) beside itself under a class's map (h, w): red speaks for it, blue against."""
    largest = float(np.abs(class_map).max()) or 1.0
    smooth = Image.fromarray(class_map / largest).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    colours: Any = colormaps["RdBu_r"](np.clip(np.asarray(smooth) / 2 + 0.5, 0, 1))[..., :3] * 255
    height, width = pixels.shape[:2]
    sheet = Image.new("RGB", (2 * width + _GAP, height + _CAPTION), "white")
    sheet.paste(Image.fromarray(pixels), (0, 0))
    blended = (1 - _OPACITY) * pixels + _OPACITY * colours
    sheet.paste(Image.fromarray(blended.round().astype(np.uint8)), (width + _GAP, 0))
    ImageDraw.Draw(sheet).text((2, height + 4), caption.encode("ascii", "replace").decode(), fill="black")
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    return sink.getvalue()
