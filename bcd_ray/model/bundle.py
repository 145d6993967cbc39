"""A model as tensors and facts, and its bundle on disk.

A bundle is a folder: `model.safetensors` (backbone, head and the distance model of triage), `model.json` (what they
are, how they were made, and the limits of triage), `model.sha256` (the digests of the two, for `sha256sum -c`), and for
people `MODEL_CARD.md`, `report.html`, `metrics.json` and `figures/`. One that was trained with `--int8` holds the
quantised network too: `model.int8.xml` and `model.int8.bin`, whose digests stand in `model.json`. Nothing in it is a
pickle.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from bcd_ray import storage
from bcd_ray.archives.images import SIZE
from bcd_ray.errors import ConfigError, NotFoundError
from bcd_ray.labels import CLASSES
from bcd_ray.model.backbones import BACKBONES, Backbone, field_backbone
from bcd_ray.model.cells import CELLS_VERSION, CROP, MOST, REGION
from bcd_ray.model.engines.int8 import Int8Graph
from bcd_ray.model.network import Tensors
from bcd_ray.model.triage import Triage
from bcd_ray.uris import to_json

EMBEDDING_SIZE = 1280  # of `field`
LAST_SIDE = 7  # of the maps of the last blocks, of either backbone those that may be unfrozen
Representation = Literal["field", "cells", "both"]
WeightsName = Literal["keras", "torchvision", "efficientnet_lite0"]

# Input scaling, on values 0..255, and padding: those with which each set of weights was trained.
PREPROCESSING: dict[WeightsName, dict[str, Any]] = {
    "keras": {"size": 224, "mean": [127.5] * 3, "std": [127.5] * 3, "padding": "same"},
    "torchvision": {
        "size": 224,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "padding": "symmetric",
    },
    "efficientnet_lite0": {
        "size": 224,
        **BACKBONES["efficientnet_lite0"].preprocessing,
        "backbone": "efficientnet_lite0",
    },
}
_OF_CROPS = "efficientnet_lite0"
_CROPS = {"backbone": _OF_CROPS, "size": CROP, "region": REGION, "most": MOST, "version": CELLS_VERSION}
_BUNDLE_FORMAT = 5  # 2 came with triage, 3 with its certainty, 4 with representations, 5 with a certainty each class
_READABLE_FORMATS = (3, 4, 5)  # of 3 all are `field`
_INT8 = "int8."  # begins the names of tensors that are of the quantised network alone
_DIGESTED = ("model.safetensors", "model.json")


@dataclass(frozen=True)
class Model:
    """A network as its tensors and what goes into it.

    `preprocessing` is the scaling and padding that the backbone was trained with, where the model looks at whole
    fields; else `representation`, which cells are looked at and how, `crops`, and of `both` the `field`'s backbone.
    """

    tensors: Tensors
    preprocessing: dict[str, Any]

    @property
    def representation(self) -> Representation:
        """What of a field the model looks at."""
        named: Representation = self.preprocessing.get("representation", "field")
        return named

    @property
    def backbone(self) -> Backbone:
        """Of a model that looks at whole fields."""
        return field_backbone(self.preprocessing)

    def trunk(self, unfrozen: int) -> "Model":
        """Of a model that looks at whole fields what is before its last blocks; an embedding is its map, (c, 7, 7)."""
        last = self.backbone.last - unfrozen
        layers = self.backbone.layers(0, last)
        kept = {name: value for name, value in self.tensors.items() if name.rpartition(".")[0] in set(chain(*layers))}
        size = len(kept[f"{layers[-1][1]}.weight"]) * LAST_SIDE**2
        head = np.zeros((len(CLASSES), size), np.float32)
        return Model(kept, {**self.preprocessing, "last": last}).with_head(head, head[:, 0].copy())

    @property
    def white(self) -> bool:
        """Whether the background of whole fields is mapped to one white first; cells always stand before one."""
        return bool(self.preprocessing.get("white"))

    @property
    def embedding_size(self) -> int:
        """Numbers an image."""
        return int(self.tensors["head.weight"].shape[1])

    def with_head(self, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> "Model":
        """The same backbone under a head of weight (4, d) and bias (4,)."""
        return Model({**self.tensors, "head.weight": weight, "head.bias": bias}, self.preprocessing)

    def logits(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the head says, (n, 4), of embeddings (n, d)."""
        said: npt.NDArray[np.float32] = embeddings @ self.tensors["head.weight"].T + self.tensors["head.bias"]
        return said


@dataclass(frozen=True)
class Bundle:
    """A trained model as read from disk: `info` is `model.json`, `version` the digest that names the model."""

    model: Model
    triage: Triage
    info: dict[str, Any]
    version: str
    int8: Int8Graph | None = None


def pretrained(weights: WeightsName, representation: Representation = "field", white: bool = False) -> Model:
    """The backbones of a representation with ImageNet weights under a zero head.

    Of `field` MobileNetV2: `keras`, the paper's, come with this package; `torchvision` downloads its own. Or
    EfficientNet-Lite0, whose weights come with this package too. With `white` fields get one background first.
    """
    if representation != "field":
        return _of_cells(representation)
    if weights != "torchvision":
        backbone = field_backbone(PREPROCESSING[weights]).weights()
    else:
        from bcd_ray.model.engines.torch import torchvision_backbone

        backbone = torchvision_backbone()
    head = np.zeros((len(CLASSES), EMBEDDING_SIZE), np.float32)
    preprocessing = PREPROCESSING[weights] | ({"white": True} if white else {})
    return Model(backbone, preprocessing).with_head(head, head[:, 0].copy())


def _of_cells(representation: Representation) -> Model:
    preprocessing: dict[str, Any] = {"representation": representation, "crops": dict(_CROPS)}
    if representation == "both":
        preprocessing["field"] = {"backbone": "mobilenet_v2", "size": SIZE}
    tensors, size = dict[str, npt.NDArray[np.float32]](), 0
    for part in ("crops", "field"):
        if part in preprocessing:
            backbone = BACKBONES[preprocessing[part]["backbone"]]
            tensors |= backbone.weights()
            size += sum(backbone.widths)
    head = np.zeros((len(CLASSES), size), np.float32)
    return Model(tensors, preprocessing).with_head(head, head[:, 0].copy())


def compared_size(representation: Representation) -> int | None:
    """By how many of an embedding's numbers, the first ones, triage compares images (`DistanceModel`); None for all."""
    return None if representation == "field" else sum(BACKBONES[_OF_CROPS].widths)


def save_bundle(
    uri: str,
    model: Model,
    triage: Triage,
    info: dict[str, Any],
    extras: dict[str, bytes],
    int8: Int8Graph | None = None,
) -> str:
    """Write a bundle and return its version; the digests go last, so a bundle that has them is whole.

    Args:
        info: the facts for `model.json`, JSON-ready.
        extras: further files by their names in the bundle.
    """
    facts: dict[str, Any] = {"format": _BUNDLE_FORMAT, "classes": list(CLASSES)}
    facts |= {"preprocessing": model.preprocessing, "triage": triage.settings, **info}
    tensors, graph = {**model.tensors, **triage.tensors}, dict[str, bytes]()
    if int8:
        for part, contents_of in int8.graphs.items():
            graph |= dict(zip(_int8_files(part), contents_of, strict=True))
        tensors |= {f"{_INT8}{name}": value for name, value in int8.head.items()}
        facts["int8_doubt"] = int8.doubt
        facts["int8_sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in graph.items()}
    contents = {
        "model.safetensors": save({name: np.ascontiguousarray(value) for name, value in tensors.items()}),
        "model.json": to_json(facts),
    }
    for name, data in {**extras, **graph, **contents}.items():
        storage.write_bytes(storage.join(uri, name), data)
    digests = "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in _DIGESTED)
    storage.write_bytes(storage.join(uri, "model.sha256"), digests.encode())
    return _version(contents)


def load_bundle(uri: str) -> Bundle:
    """Read a bundle and check it; ConfigError, naming the remedy, where it is not whole or not what was written."""
    try:
        digests = storage.read_bytes(storage.join(uri, "model.sha256")).decode(errors="replace")
        contents = {name: storage.read_bytes(storage.join(uri, name)) for name in _DIGESTED}
    except NotFoundError as error:
        raise ConfigError(f"{uri} is no model bundle ({error}): give the --output of jobs/train.py") from error
    for name in _DIGESTED:
        if f"{hashlib.sha256(contents[name]).hexdigest()}  {name}" not in digests.splitlines():
            raise _changed(uri, name, "model.sha256")
    info = json.loads(contents["model.json"])
    same_cells = info.get("preprocessing", {}).get("crops", _CROPS) == _CROPS
    if info.get("format") not in _READABLE_FORMATS or info.get("classes") != list(CLASSES) or not same_cells:
        raise ConfigError(f"{uri}: written by another release of bcd_ray: train anew, or use that release")
    tensors = load(contents["model.safetensors"])
    triage = Triage.of(tensors, info["triage"])
    head = {name.removeprefix(_INT8): value for name, value in tensors.items() if name.startswith(_INT8)}
    network = {name: value for name, value in tensors.items() if not name.startswith((_INT8, "triage."))}
    model = Model(network, info["preprocessing"])
    return Bundle(model, triage, info, _version(contents), _load_int8(uri, info, head))


def _int8_files(part: str) -> tuple[str, str]:
    stem = f"model.int8.{part}" if part else "model.int8"
    return f"{stem}.xml", f"{stem}.bin"


def _load_int8(uri: str, info: dict[str, Any], head: Tensors) -> Int8Graph | None:
    digests = info.get("int8_sha256", {})
    found = {}
    for name, digest in digests.items():
        try:
            found[name] = storage.read_bytes(storage.join(uri, name))
        except NotFoundError as error:
            raise _changed(uri, name, "model.json") from error
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise _changed(uri, name, "model.json")
    names = {part: _int8_files(part) for part in ("", "crops", "field")}
    graphs = {part: (found[xml], found[weights]) for part, (xml, weights) in names.items() if xml in found}
    return Int8Graph(graphs, info.get("int8_doubt", 0.0), head) if found else None


def _changed(uri: str, name: str, digests: str) -> ConfigError:
    return ConfigError(
        f"{uri}: {name} does not match {digests}: it was changed or copied in part; copy the bundle again"
    )


def _version(contents: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(contents[name] for name in _DIGESTED)).hexdigest()
