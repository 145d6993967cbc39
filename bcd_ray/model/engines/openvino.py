"""OpenVINO on CPUs, from the bundle's tensors alone.

The graph is built here in OpenVINO's own operations, with every BatchNorm folded into its convolution, so that a
scoring process imports no torch and starts in a second (torch, torchvision and a conversion took 12).
`torch.SmearClassifier` is the same network in torch; a test holds the two together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import SIZE, Pixels
from bcd_ray.model.backbones import field_backbone, padding
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.engines.cells import OpenStages, Part, Stages
from bcd_ray.model.network import Tensors, folded

BATCH = 2  # images a request: more leave a CPU's caches (with 8 the job does 0.85 times as many images a second)


class OpenVinoEngine:
    """OpenVINO on `threads` cores: as many requests at a time."""

    chunk = 4 * BATCH  # a thread that changes between decoding and waiting less often keeps its caches warm

    def __init__(self, tensors: Tensors, preprocessing: Mapping[str, Any], threads: int, batch: int = BATCH) -> None:
        backbone = openvino_backbone(tensors, preprocessing, batch)
        self._compile(with_head(backbone, tensors["head.weight"], tensors["head.bias"]), threads)

    @classmethod
    def of_int8(cls, xml: bytes, weights: bytes, threads: int) -> "OpenVinoEngine":
        """The engine of a quantised network in OpenVINO's own format."""
        import openvino

        engine = cls.__new__(cls)
        engine._compile(openvino.Core().read_model(xml, weights), threads)
        return engine

    def _compile(self, graph: Any, threads: int) -> None:
        self._requests = Requests(graph, threads)

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        embeddings, logits = self._requests.run(images)
        return Outputs(embeddings, logits)


class Requests:
    """A compiled graph of a fixed batch, and the requests that threads run it by."""

    def __init__(self, graph: Any, threads: int) -> None:
        import openvino

        config = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads,
            # Pinned, two actors of one machine land on the same core: 106 images a second instead of 188.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled = openvino.Core().compile_model(graph, "CPU", config)
        self._batch: int = self._compiled.input(0).shape[0]
        self._outputs = range(len(self._compiled.outputs))
        self._idle = list[Any]()

    def run(self, images: Sequence[Pixels]) -> list[npt.NDArray[np.float32]]:
        """Of each output (n, count) of n >= 1 images."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        parts = []
        for start in range(0, len(images), self._batch):
            batch = np.stack(images[start : start + self._batch])
            count = len(batch)
            if count < self._batch:  # the compiled shape is fixed
                batch = np.concatenate([batch, np.zeros((self._batch - count, *batch.shape[1:]), np.uint8)])
            request.infer({0: batch}, share_inputs=True, share_outputs=True)
            parts.append([request.get_output_tensor(index).data[:count].copy() for index in self._outputs])
        self._idle.append(request)
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


def openvino_backbone(tensors: Tensors, preprocessing: Mapping[str, Any], batch: int = BATCH) -> Any:
    """The backbone and pooling as an OpenVINO model of (batch, 224, 224, 3) uint8; convolutions are named as tensors.

    Of a `Model.trunk` its map, flat.
    """
    import openvino
    from openvino import opset13 as ops

    images = ops.parameter([batch, SIZE, SIZE, 3], np.uint8, name="images")
    backbone = field_backbone(preprocessing)
    convolve = _convolve(tensors, backbone.epsilon, preprocessing["padding"])
    last = preprocessing.get("last", backbone.last)
    value = backbone.walk(_scaled(images, preprocessing), convolve, ops.add, last=last)
    flat = _pooled(value) if last == backbone.last else ops.reshape(value, ops.constant([batch, -1]), False)
    return openvino.Model([flat], [images], "smear_classifier")


def open_stages(threads: int, few: bool = False) -> OpenStages:
    """How `CellsEngine` gets its backbones on `threads` cores; with `few` for a field now and then."""

    return lambda tensors, part: _run(
        openvino_stages(tensors, part._replace(batch=part.of_one) if few else part), threads
    )


def open_int8_stages(graphs: Mapping[str, tuple[bytes, bytes]], threads: int) -> OpenStages:
    """The same of quantised networks, each by its part's name in OpenVINO's own format."""
    import openvino

    return lambda tensors, part: _run(openvino.Core().read_model(*graphs[part.name]), threads)


def _run(graph: Any, threads: int) -> Stages:
    requests = Requests(graph, threads)
    return lambda images: requests.run(images)[0]


def openvino_stages(tensors: Tensors, part: Part) -> Any:
    """The means of a backbone's stages, (batch, sum of widths), of grey images (batch, size, size, 1) uint8."""
    import openvino
    from openvino import opset13 as ops

    _, backbone, size, batch, _ = part
    images, means = ops.parameter([batch, size, size, 1], np.uint8, name="images"), list[Any]()
    how = backbone.preprocessing["padding"]
    grey = {name: backbone.preprocessing[name][:1] for name in ("mean", "std")}  # of the three colours the same
    convolve = _convolve(tensors, backbone.epsilon, how, grey=True)
    backbone.walk(_scaled(images, grey), convolve, ops.add, lambda value: means.append(_pooled(value)))
    return openvino.Model([ops.concat(means, 1)], [images], "stages")


def _scaled(images: Any, preprocessing: Mapping[str, Any]) -> Any:
    from openvino import opset13 as ops

    mean, std = (np.array(preprocessing[key], np.float32) for key in ("mean", "std"))
    value = ops.divide(ops.subtract(ops.convert(images, "f32"), ops.constant(mean)), ops.constant(std))
    return ops.transpose(value, ops.constant(np.array([0, 3, 1, 2])))


def _pooled(value: Any) -> Any:
    from openvino import opset13 as ops

    return ops.reduce_mean(value, ops.constant(np.array([2, 3])), keep_dims=False)


def _convolve(tensors: Tensors, epsilon: float, how: str, grey: bool = False) -> Any:
    """A backbone's `convolve` in OpenVINO; of grey images the first one adds its colours up."""
    from openvino import opset13 as ops

    def convolve(value: Any, convolution: str, norm: str, stride: int = 1, clamp: bool = True) -> Any:
        weight, bias = folded(tensors, convolution, norm, epsilon)
        kernel, depthwise = weight.shape[-1], weight.shape[1] == 1
        if grey and weight.shape[1] == 3:
            weight = weight.sum(axis=1, keepdims=True)
        before, after = padding(kernel, stride, how)
        layout = ([stride, stride], [before, before], [after, after], [1, 1])
        if depthwise:
            value = ops.group_convolution(value, ops.constant(weight[:, :, None]), *layout)
        else:
            value = ops.convolution(value, ops.constant(weight), *layout)
        value.set_friendly_name(convolution)
        value = ops.add(value, ops.constant(bias.reshape(1, -1, 1, 1)))
        return ops.clamp(value, 0.0, 6.0) if clamp else value

    return convolve


def with_head(backbone: Any, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> Any:
    """An OpenVINO model of embeddings with a linear head of weight (4, d) and bias (4,) over them."""
    import openvino
    from openvino import opset13 as ops

    embeddings = backbone.output(0).get_node().input_value(0)
    logits = ops.add(ops.matmul(embeddings, ops.constant(weight), False, True), ops.constant(bias.reshape(1, -1)))
    return openvino.Model([embeddings, logits.output(0)], backbone.get_parameters(), "smear_classifier")
