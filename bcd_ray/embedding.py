"""Labelled images to embeddings through Ray Data: read, decode, augment and run the frozen backbone in one stage."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.archive import map_ahead
from bcd_ray.augment import augment
from bcd_ray.dataset import LabelledImage
from bcd_ray.engine import BATCH, OpenVinoEngine
from bcd_ray.errors import StorageError
from bcd_ray.images import Limits, Pixels, Rejected, decode
from bcd_ray.model import EMBEDDING_SIZE, Model
from bcd_ray.perceptual import perceptual_hash
from bcd_ray.runtime import Progress, actor_pool

_IMAGES_PER_TASK = 64
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """What was computed of n images in v views; row i belongs to image i of the list that was given."""

    embeddings: Embeddings  # (v, n, 1280)
    digests: list[str]  # sha256 of each image's bytes, "" where it could not be read
    hashes: npt.NDArray[np.uint64]  # (n,) perceptual hashes
    errors: list[str | None]  # why an image could not be used, else None


def embed(images: Sequence[LabelledImage], model: Model, views: Sequence[int], seed: int, verb: str) -> Embedded:
    """Embed the given views of each image, distributed over the cluster.

    Args:
        views: numbers of the views, 0 for the image itself (see `augment.augment`).
        seed: of the augmentations.
        verb: what the progress line says.
    """
    import ray

    pool = actor_pool()
    rows = [{"index": index, "uri": image.stored.uri} for index, image in enumerate(images)]
    results = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // _IMAGES_PER_TASK)).map_batches(
        _Embedder,
        batch_size=_IMAGES_PER_TASK,
        fn_constructor_args=(model, tuple(views), seed, pool.threads),
        **pool.options(),
    )
    embeddings = np.zeros((len(views), len(images), EMBEDDING_SIZE), np.float32)
    digests, hashes = [""] * len(images), np.zeros(len(images), np.uint64)
    errors: list[str | None] = [None] * len(images)
    progress = Progress(verb, len(images) * len(views), "views" if len(views) > 1 else "images")
    for batch in results.iter_batches(batch_size=None):
        for row, index in enumerate(batch["index"]):
            embeddings[:, index] = batch["embeddings"][row]
            digests[index] = str(batch["digest"][row])
            hashes[index] = batch["hash"][row]
            errors[index] = str(batch["error"][row]) or None
        progress.add(len(batch["index"]) * len(views))
    progress.finish()
    return Embedded(embeddings, digests, hashes, errors)


@dataclass(frozen=True)
class _Loaded:
    pixels: Pixels | None
    digest: str
    error: str


class _Embedder:
    """Ray Data actor: rows of (index, uri) to rows with the embeddings of every view."""

    def __init__(self, model: Model, views: tuple[int, ...], seed: int, threads: int) -> None:
        self._engine = OpenVinoEngine(model.tensors, model.preprocessing, threads)
        self._views, self._seed = views, seed
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        loaded = list(map_ahead(self._pool, _load, batch["uri"], ahead=len(batch["uri"])))
        usable = [(row, image) for row, image in enumerate(loaded) if image.pixels is not None]
        outputs = self._engine.run(in_batches(self._augmented([image for _, image in usable])))
        computed = np.concatenate([np.zeros((0, EMBEDDING_SIZE), np.float32), *(out.embeddings for out in outputs)])
        embeddings = np.zeros((len(loaded), len(self._views), EMBEDDING_SIZE), np.float32)
        embeddings[[row for row, _ in usable]] = computed.reshape(-1, len(self._views), EMBEDDING_SIZE)
        hashes = [0 if image.pixels is None else perceptual_hash(image.pixels) for image in loaded]
        return {
            "index": batch["index"],
            "embeddings": embeddings,
            "digest": np.array([image.digest for image in loaded], object),
            "hash": np.array(hashes, np.uint64),
            "error": np.array([image.error for image in loaded], object),
        }

    def _augmented(self, images: list[_Loaded]) -> Iterator[Pixels]:
        tasks = [(image, view) for image in images for view in self._views]
        return map_ahead(self._pool, self._augment, tasks, ahead=4 * BATCH)

    def _augment(self, task: tuple[_Loaded, int]) -> Pixels:
        image, view = task
        assert image.pixels is not None
        return augment(image.pixels, self._seed, image.digest, view)


def in_batches(images: Iterator[Pixels], most: int = BATCH) -> Iterator[Pixels]:
    """Stack images (224, 224, 3) into batches (n, 224, 224, 3) of at most `most`."""
    batch: list[Pixels] = []
    for pixels in images:
        batch.append(pixels)
        if len(batch) == most:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _load(uri: str) -> _Loaded:
    try:
        data = storage.read_bytes(uri)
    except StorageError as error:
        return _Loaded(None, "", str(error))
    decoded = decode(data, Limits())
    digest = hashlib.sha256(data).hexdigest()
    if isinstance(decoded, Rejected):
        return _Loaded(None, digest, f"{decoded.status}: {decoded.error}")
    return _Loaded(decoded.pixels, digest, "")
