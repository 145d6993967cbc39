"""The network in 8-bit integers: quantised after training by NNCF, and held against the network it came from."""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.errors import ConfigError, JobError
from bcd_ray.learning.dataset import LabelledImage, read_pixels
from bcd_ray.model.bundle import Model
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.engines.int8 import Int8Graph, leads
from bcd_ray.model.engines.openvino import BATCH, OpenVinoEngine, openvino_backbone, with_head
from bcd_ray.model.network import softmax
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
    """The backbone in int8, under a head that is fitted to it.

    Weights and activations are quantised after training, as in Jacob et al., CVPR 2018, with NNCF's correction of
    biases. What error is left in the embeddings is linear in large part: the head takes it up, by a ridge regression
    of the logits that fp32 gives the same images.

    Args:
        images: of the training part; up to 300 of them, evenly chosen, give the ranges of activations.
        logits: (n, 4) in fp32 of all the images.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    chosen = np.linspace(0, len(images) - 1, min(len(images), _CALIBRATION_IMAGES), dtype=int)
    chunks = in_chunks((images[index] for index in chosen), BATCH)
    batches = [np.stack([read_pixels(image) for image in chunk]) for chunk in chunks if len(chunk) == BATCH]
    if not batches:
        raise JobError(f"--int8 needs at least {BATCH} training images")
    backbone = openvino_backbone(model.tensors, model.preprocessing)
    # The whole of it: with some blocks left in fp32 as many images change class, at 0.7 to 0.9 times the speed.
    # Activations are quantised symmetrically (PERFORMANCE): 1.05 times as fast as MIXED.
    quantized = nncf.quantize(
        backbone,
        nncf.Dataset(batches),
        subset_size=len(batches),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        fast_bias_correction=False,  # the thorough one: half as many images change class
        # 7 bits for weights: CPUs without VNNI add products in 16 bits, which 8 would overflow.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.quantization.advanced_parameters.OverflowFix.ENABLE
        ),
    )
    head = model.tensors["head.weight"], model.tensors["head.bias"]
    embeddings = _run(_saved(with_head(quantized, *head)), images).embeddings
    weight, bias = _fitted(*head, embeddings, logits)
    doubt = _overstated(embeddings @ weight.T + bias, logits).max()
    return replace(_saved(with_head(quantized, weight, bias)), doubt=float(doubt))


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


def _saved(graph: Any) -> Int8Graph:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(graph, path, compress_to_fp16=False)
        return Int8Graph(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def _run(graph: Int8Graph, images: Sequence[LabelledImage]) -> Outputs:
    engine = OpenVinoEngine.of_int8(graph.xml, graph.weights, _THREADS)

    def infer(chunk: list[LabelledImage]) -> Outputs:
        return engine.infer([read_pixels(image) for image in chunk])

    parts = list(EngineThreads(_THREADS).map(infer, in_chunks(images, engine.chunk)))
    return Outputs(np.concatenate([part.embeddings for part in parts]), np.concatenate([part.logits for part in parts]))


def compare(graph: Int8Graph, images: Sequence[LabelledImage], logits: Floats) -> dict[str, Any]:
    """How `Int8Engine` agrees with the logits (n, 4) in fp32, on images that the network was not calibrated on."""
    quantized = _run(graph, images).logits
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
