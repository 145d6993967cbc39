"""The network in 8-bit integers: quantised after training by NNCF, and held against the network it came from."""

import logging
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import Pixels
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.learning.dataset import LabelledImage, read_pixels
from bcd_ray.model.bundle import Model
from bcd_ray.model.cells import find_cells
from bcd_ray.model.choice import open_quantized
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.engines.cells import parts_of
from bcd_ray.model.engines.int8 import Int8Graph, leads
from bcd_ray.model.engines.openvino import openvino_backbone, openvino_stages, with_head
from bcd_ray.model.network import Tensors, softmax
from bcd_ray.threads import EngineThreads, in_chunks

Floats = npt.NDArray[np.float32]
_THREADS = len(os.sched_getaffinity(0))
_CALIBRATION_IMAGES = 300  # NNCF's own default; more change the ranges of activations little
_RIDGE = 10.0  # of 1, 10, 100 and 1000 the one after which fewest of 746 validation images change class: 4


def check_installed() -> None:
    """ConfigError if the package that quantises is not there."""
    if find_spec("nncf") is None:
        raise ConfigError("--int8 needs nncf: pip install 'bcd_ray[int8]'")


def quantize(model: Model, images: Sequence[LabelledImage], logits: Floats) -> Int8Graph:
    """The backbones in int8, under a head that is fitted to them.

    Weights and activations are quantised after training, as in Jacob et al., CVPR 2018, with NNCF's correction of
    biases. What error is left in the embeddings is linear in large part: the head takes it up, by a ridge regression
    of the logits that fp32 gives the same images.

    Args:
        images: of the training part; up to 300 of them, evenly chosen, give the ranges of activations.
        logits: (n, 4) in fp32 of all the images.
    """
    chosen = [read_pixels(image) for image in _evenly(images)]
    head = model.tensors["head.weight"], model.tensors["head.bias"]
    if model.representation == "field":
        backbone = _quantized(openvino_backbone(model.tensors, model.preprocessing), chosen)
        before = Int8Graph({"": _saved(with_head(backbone, *head))})
    else:
        fields = [find_cells(pixels) for pixels in chosen]
        seen: dict[str, list[Pixels]] = {"crops": [crop for each in fields for crop in each.crops()]}
        seen["field"] = [each.grey[..., None] for each in fields]
        parts = parts_of(model.preprocessing)
        graphs = {each.name: _quantized(openvino_stages(model.tensors, each), seen[each.name]) for each in parts}
        before = Int8Graph({name: _saved(graph) for name, graph in graphs.items()}, head=_named(*head))
    embeddings = _run(before, model, images).embeddings
    weight, bias = _fitted(*head, embeddings, logits)
    doubt = float(_overstated(embeddings @ weight.T + bias, logits).max())
    if model.representation == "field":
        return Int8Graph({"": _saved(with_head(backbone, weight, bias))}, doubt)
    return Int8Graph(before.graphs, doubt, _named(weight, bias))


def _named(weight: Floats, bias: Floats) -> Tensors:
    return {"head.weight": weight, "head.bias": bias}


def _evenly(items: Sequence[Any]) -> list[Any]:
    chosen = np.linspace(0, len(items) - 1, min(len(items), _CALIBRATION_IMAGES), dtype=int)
    return [items[index] for index in chosen]


def _quantized(graph: Any, images: Sequence[Pixels]) -> Any:
    """The graph in int8, its ranges those of up to 300 of the images, evenly chosen; JobError of too few."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    batch = int(graph.input(0).shape[0])
    batches = [np.stack(chunk) for chunk in in_chunks(_evenly(images), batch) if len(chunk) == batch]
    if not batches:
        raise JobError(f"--int8 needs at least {batch} training images")
    # The whole of it: with some blocks left in fp32 as many images change class, at 0.7 to 0.9 times the speed.
    # Activations are quantised symmetrically (PERFORMANCE): 1.05 times as fast as MIXED.
    return nncf.quantize(
        graph,
        nncf.Dataset(batches),
        subset_size=len(batches),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        fast_bias_correction=False,  # the thorough one: half as many images change class
        # 7 bits for weights: CPUs without VNNI add products in 16 bits, which 8 would overflow.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.quantization.advanced_parameters.OverflowFix.ENABLE
        ),
    )


def _fitted(weight: Floats, bias: Floats, embeddings: Floats, logits: Floats) -> tuple[Floats, Floats]:
    """Weight (4, 1280) and bias (4,) that give `logits` from the quantised embeddings, close to those they were."""
    mean, missing = embeddings.mean(axis=0), logits - (embeddings @ weight.T + bias)
    centred = (embeddings - mean).astype(np.float64)
    square = centred.T @ centred + _RIDGE * np.eye(centred.shape[1])
    change = np.linalg.solve(square, centred.T @ (missing - missing.mean(axis=0))).T
    shift = missing.mean(axis=0) - change @ mean
    return (weight + change).astype(np.float32), (bias + shift).astype(np.float32)


def _overstated(found: Floats, logits: Floats) -> Floats:
    """(n,) by how much the lead of the class that `found` (n, 4) suggests is less in `logits`."""
    rows, suggested = np.arange(len(found)), found.argmax(axis=1)
    others = logits.copy()
    others[rows, suggested] = -np.inf
    return np.asarray(leads(found) - (logits[rows, suggested] - others.max(axis=1)))


def _saved(graph: Any) -> tuple[bytes, bytes]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(graph, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _run(graph: Int8Graph, model: Model, images: Sequence[LabelledImage]) -> Outputs:
    engine = open_quantized(graph, model, _THREADS)

    def infer(chunk: list[LabelledImage]) -> Outputs:
        return engine.infer([read_pixels(image) for image in chunk])

    parts = list(EngineThreads(_THREADS).map(infer, in_chunks(images, engine.chunk)))
    return Outputs(np.concatenate([part.embeddings for part in parts]), np.concatenate([part.logits for part in parts]))


def compare(graph: Int8Graph, model: Model, images: Sequence[LabelledImage], logits: Floats) -> dict[str, Any]:
    """How `Int8Engine` agrees with the logits (n, 4) in fp32, on images that the network was not calibrated on."""
    quantized = _run(graph, model, images).logits
    doubtful = leads(quantized) <= graph.doubt
    found, expected = softmax(np.where(doubtful[:, None], logits, quantized)), softmax(logits)
    same = found.argmax(1) == expected.argmax(1)
    difference = np.abs(found - expected).max(axis=1)
    labels = np.array([image.label for image in images])
    accuracy, before = (float((each.argmax(1) == labels).mean()) for each in (found, expected))
    half_width = 1.96 * (before * (1 - before) / len(images)) ** 0.5
    return {
        "images": len(images),
        "computed_in_fp32": float(doubtful.mean()),
        "agreement": float(same.mean()),
        "accuracy": accuracy,
        "accuracy_fp32": before,
        "accuracy_fp32_interval": [before - half_width, min(1.0, before + half_width)],  # 95 %, normal
        "probability_difference": {"median": float(np.median(difference)), "largest": float(difference.max())},
    }
