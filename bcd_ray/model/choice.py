"""Which engine a run gets, and why. A new engine is a file in `engines`, a name in `engines.base` and a line here."""

from dataclasses import dataclass
from typing import Literal

from bcd_ray.errors import ConfigError
from bcd_ray.model.backbones import BACKBONES
from bcd_ray.model.bundle import Bundle, Model
from bcd_ray.model.engines.base import Engine, EngineName
from bcd_ray.model.engines.cells import CellsEngine
from bcd_ray.model.engines.int8 import Int8Engine, Int8Graph
from bcd_ray.model.engines.openvino import BATCH, OpenVinoEngine, open_int8_stages, open_stages
from bcd_ray.model.engines.whitened import WhitenedEngine


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


def precision(wanted: EngineName | Literal["auto"], bundle: Bundle) -> str:
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


def open_engine(name: EngineName, bundle: Bundle, threads: int) -> Engine:
    """Compile the bundle's network for `threads` cores, or for the GPU that this process was given."""
    model = bundle.model
    if name == "openvino-int8":
        assert bundle.int8 is not None, "choose_engine sees to it"
        quantized = open_quantized(bundle.int8, model, threads)
        return Int8Engine(quantized, open_on_cpus(model, threads, few=True), bundle.int8.doubt)
    if model.representation != "field":
        return _open_cells_engine(name, model, threads)
    engine = _open_field_engine(name, model, threads)
    return WhitenedEngine(engine) if model.white else engine


def _open_field_engine(name: EngineName, model: Model, threads: int) -> Engine:
    if name == "openvino":
        return OpenVinoEngine(model.tensors, model.preprocessing, threads)
    if name == "torch-cuda" and model.backbone is BACKBONES["mobilenet_v2"]:
        from bcd_ray.model.engines.cuda import CudaEngine

        return CudaEngine(model.tensors, model.preprocessing)
    from bcd_ray.model.engines.torch import TorchEngine

    return TorchEngine(model.tensors, model.preprocessing, "cuda" if name == "torch-cuda" else "cpu")


def open_on_cpus(model: Model, threads: int, few: bool = False) -> Engine:
    """The engine in fp32 on `threads` cores, which makes the embeddings that heads are fitted on.

    With `few` it is for an image now and then, not for many at a time.
    """
    if model.representation != "field":
        return _open_cells_engine("openvino", model, threads, few)
    engine = OpenVinoEngine(model.tensors, model.preprocessing, threads, 1 if few else BATCH)
    return WhitenedEngine(engine) if model.white else engine


def open_quantized(int8: Int8Graph, model: Model, threads: int) -> Engine:
    """The quantised network of a model alone, whatever it doubts."""
    if model.representation == "field":
        return OpenVinoEngine.of_int8(*int8.graphs[""], threads)
    return CellsEngine({**model.tensors, **int8.head}, model.preprocessing, open_int8_stages(int8.graphs, threads))


def _open_cells_engine(name: EngineName, model: Model, threads: int, few: bool = False) -> Engine:
    if name == "openvino":
        return CellsEngine(model.tensors, model.preprocessing, open_stages(threads, few))
    from bcd_ray.model.engines.torch import TorchStages

    device = "cuda" if name == "torch-cuda" else "cpu"
    return CellsEngine(
        model.tensors,
        model.preprocessing,
        lambda tensors, part: TorchStages(tensors, part.backbone, device),
    )
