"""How the network runs: OpenVINO on CPUs, from the bundle's tensors alone; torch on a GPU, and as the reference.

OpenVINO's graph is built here in OpenVINO's own operations, with every BatchNorm folded into its convolution, so that a
scoring process imports no torch and starts in a second (torch, torchvision and a conversion took 12).
`network.SmearClassifier` is the same network in torch; a test holds the two together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bcd_ray.errors import ConfigError
from bcd_ray.images import SIZE, Pixels

if TYPE_CHECKING:
    from bcd_ray.model import Bundle

BATCH = 2  # images a request: more leave a CPU's caches (with 8 the job does 0.85 times as many images a second)
Tensors = Mapping[str, npt.NDArray[np.float32]]

# MobileNetV2's stages (Sandler et al., CVPR 2018, table 2): expansion, repeats, stride of the first.
_STAGES = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
_BATCH_NORM_EPSILON = 1e-5


class Outputs(NamedTuple):
    """What the network says of n images."""

    embeddings: npt.NDArray[np.float32]  # (n, 1280)
    logits: npt.NDArray[np.float32]  # (n, 4)
    quality: npt.NDArray[np.float32] | None = None  # (n, 4) of `quality.measure`, where an engine measures too


class Engine(Protocol):
    """The network, ready to run; several threads may call it at a time, and keep all cores busy if they do."""

    @property
    def chunk(self) -> int:
        """How many images to give it at a time."""

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """The outputs of n >= 1 images (224, 224, 3) uint8, in order."""


EngineName = Literal["openvino", "openvino-int8", "torch", "torch-cuda"]


@dataclass(frozen=True)
class Choice:
    """The engine of a run, and why it is the one."""

    name: EngineName
    reason: str

    @property
    def on_gpu(self) -> bool:
        """Whether an actor of it takes a share of a GPU."""
        return self.name == "torch-cuda"

    def __str__(self) -> str:
        return f"engine {self.name}: {self.reason}"


def precision(wanted: EngineName | Literal["auto"], bundle: "Bundle") -> str:
    """What of an engine changes the rows.

    Half precision on a GPU counts as float: were it another, an archive would be scored anew whenever `auto` finds a
    GPU, or finds none any more.

    Raises:
        ConfigError: the bundle lacks what the engine needs.
    """
    if wanted == "openvino-int8" and bundle.int8 is None:
        raise ConfigError("--engine openvino-int8: this bundle holds no int8 network: train it with --int8")
    return "int8" if wanted == "openvino-int8" else "float"


def choose_engine(wanted: EngineName | Literal["auto"], gpus: int) -> Choice:
    """The engine that was asked for, or, for `auto`, the best for a cluster with this many GPUs.

    Raises:
        ConfigError: the cluster lacks what the engine needs.
    """
    if wanted == "torch-cuda" and not gpus:
        raise ConfigError(
            "--engine torch-cuda: the cluster has no GPU now: add one (min_workers, on a cluster that grows), "
            "or use --engine openvino"
        )
    if wanted != "auto":
        return Choice(wanted, "as --engine says")
    if gpus:
        return Choice("torch-cuda", f"the cluster has {gpus} GPU{'s' if gpus > 1 else ''}")
    return Choice("openvino", "the cluster has no GPU")


def open_engine(name: EngineName, bundle: "Bundle", threads: int) -> Engine:
    """Compile the bundle's network for `threads` cores, or for the GPU that this process was given."""
    model = bundle.model
    if name == "openvino-int8":
        assert bundle.int8 is not None, "choose_engine sees to it"
        return Int8Engine(bundle.int8, model.tensors, model.preprocessing, threads)
    if name == "openvino":
        return OpenVinoEngine(model.tensors, model.preprocessing, threads)
    if name == "torch-cuda":
        from bcd_ray.cuda import CudaEngine

        return CudaEngine(model.tensors, model.preprocessing)
    from bcd_ray.network import TorchEngine

    return TorchEngine(model.tensors, model.preprocessing)


@dataclass(frozen=True)
class Int8Graph:
    """The quantised network in OpenVINO's own format: `model.int8.xml` and `model.int8.bin` of a bundle.

    `doubt` is the lead, in logits, of the suggested class over the next up to which fp32 may suggest another.
    """

    xml: bytes
    weights: bytes
    doubt: float = 0.0


class OpenVinoEngine:
    """OpenVINO on `threads` cores: as many requests at a time."""

    chunk = 4 * BATCH  # a thread that changes between decoding and waiting less often keeps its caches warm

    def __init__(self, tensors: Tensors, preprocessing: Mapping[str, Any], threads: int, batch: int = BATCH) -> None:
        backbone = openvino_backbone(tensors, preprocessing, batch)
        self._compile(with_head(backbone, tensors["head.weight"], tensors["head.bias"]), threads)

    @classmethod
    def of_int8(cls, graph: Int8Graph, threads: int) -> "OpenVinoEngine":
        """The engine of a quantised network."""
        import openvino

        engine = cls.__new__(cls)
        engine._compile(openvino.Core().read_model(graph.xml, graph.weights), threads)
        return engine

    def _compile(self, graph: Any, threads: int) -> None:
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
        self._idle = list[Any]()

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        parts = []
        for start in range(0, len(images), self._batch):
            batch = np.stack(images[start : start + self._batch])
            count = len(batch)
            if count < self._batch:  # the compiled shape is fixed
                batch = np.concatenate([batch, np.zeros((self._batch - count, SIZE, SIZE, 3), np.uint8)])
            request.infer({0: batch}, share_inputs=True, share_outputs=True)
            parts.append([request.get_output_tensor(index).data[:count].copy() for index in (0, 1)])
        self._idle.append(request)
        return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class Int8Engine:
    """The quantised network, and the one it came from where it is in doubt: 3 to 5 images in a hundred."""

    chunk = OpenVinoEngine.chunk

    def __init__(self, graph: Int8Graph, tensors: Tensors, preprocessing: Mapping[str, Any], threads: int) -> None:
        self._quantized, self._doubt = OpenVinoEngine.of_int8(graph, threads), graph.doubt
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


def mobilenet_v2(value: Any, convolve: Callable[..., Any], add: Callable[[Any, Any], Any]) -> Any:
    """MobileNetV2's features of a value, computed by `convolve(value, convolution, norm, stride=1, clamp=True)`.

    `convolution` and `norm` are names in a bundle's tensors; `clamp` says whether ReLU6 follows.
    """
    value = convolve(value, "features.0.0", "features.0.1", stride=2)
    block = 0
    for expansion, repeats, first_stride in _STAGES:
        for repeat in range(repeats):
            block += 1
            layers, shortcut = f"features.{block}.conv", value
            if expansion > 1:
                value = convolve(value, f"{layers}.0.0", f"{layers}.0.1")
            depthwise = 1 if expansion > 1 else 0
            stride = first_stride if repeat == 0 else 1
            value = convolve(value, f"{layers}.{depthwise}.0", f"{layers}.{depthwise}.1", stride)
            value = convolve(value, f"{layers}.{depthwise + 1}", f"{layers}.{depthwise + 2}", clamp=False)
            if repeat > 0:
                value = add(shortcut, value)
    return convolve(value, "features.18.0", "features.18.1")


def openvino_backbone(tensors: Tensors, preprocessing: Mapping[str, Any], batch: int = BATCH) -> Any:
    """MobileNetV2 and pooling as an OpenVINO model of (batch, 224, 224, 3) uint8; convolutions are named as tensors."""
    import openvino
    from openvino import opset13 as ops

    same = preprocessing["padding"] == "same"

    def convolve(value: Any, convolution: str, norm: str, stride: int = 1, clamp: bool = True) -> Any:
        weight, bias = folded(tensors, convolution, norm)
        kernel = weight.shape[-1]
        after = 0 if kernel == 1 else 1
        before = 0 if same and stride == 2 else after  # TensorFlow's SAME pads stride 2 below and right alone
        layout = ([stride, stride], [before, before], [after, after], [1, 1])
        if kernel == 3 and weight.shape[1] == 1:
            value = ops.group_convolution(value, ops.constant(weight[:, :, None]), *layout)
        else:
            value = ops.convolution(value, ops.constant(weight), *layout)
        value.set_friendly_name(convolution)
        value = ops.add(value, ops.constant(bias.reshape(1, -1, 1, 1)))
        return ops.clamp(value, 0.0, 6.0) if clamp else value

    images = ops.parameter([batch, SIZE, SIZE, 3], np.uint8, name="images")
    mean, std = (np.array(preprocessing[key], np.float32) for key in ("mean", "std"))
    value = ops.divide(ops.subtract(ops.convert(images, "f32"), ops.constant(mean)), ops.constant(std))
    value = mobilenet_v2(ops.transpose(value, ops.constant(np.array([0, 3, 1, 2]))), convolve, ops.add)
    embeddings = ops.reduce_mean(value, ops.constant(np.array([2, 3])), keep_dims=False)
    return openvino.Model([embeddings], [images], "smear_classifier")


def with_head(backbone: Any, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> Any:
    """An OpenVINO model of embeddings with a linear head of weight (4, 1280) and bias (4,) over them."""
    import openvino
    from openvino import opset13 as ops

    embeddings = backbone.output(0).get_node().input_value(0)
    logits = ops.add(ops.matmul(embeddings, ops.constant(weight), False, True), ops.constant(bias.reshape(1, -1)))
    return openvino.Model([embeddings, logits.output(0)], backbone.get_parameters(), "smear_classifier")


def folded(tensors: Tensors, convolution: str, norm: str) -> tuple[Any, Any]:
    """Weight and bias of a convolution with the BatchNorm after it folded in."""
    scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
    weight = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities (n, classes) of logits (n, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
