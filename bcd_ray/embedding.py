"""Labelled images to embeddings: what the cache lacks is read, decoded, augmented and embedded through Ray Data."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.archive import in_chunks, map_ahead
from bcd_ray.augment import augment
from bcd_ray.cache import EmbeddingCache, ViewTable, to_rows
from bcd_ray.dataset import LabelledImage
from bcd_ray.engine import BATCH, THREADS_A_CORE, OpenVinoEngine
from bcd_ray.errors import JobError, StorageError
from bcd_ray.images import Limits, Pixels, Rejected, decode
from bcd_ray.model import EMBEDDING_SIZE, Model
from bcd_ray.perceptual import perceptual_hash
from bcd_ray.quality import MEASURES, measure
from bcd_ray.runtime import Progress, actor_pool, ray_session, say
from bcd_ray.shortcuts import SHORTCUTS
from bcd_ray.spoiling import SPOILT

_IMAGES_PER_TASK = 64
_TASKS_AT_A_TIME = 2  # of an actor: while one reads its first images, the other keeps the cores busy
_READERS = 16  # images whose bytes the driver reads at a time
_ALTERED = {**SHORTCUTS, **SPOILT}
_MEASURED = {"0", *SPOILT}  # views whose quality somebody asks for
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """What was computed of n images in v views; row i belongs to image i of those that were asked for."""

    embeddings: Embeddings  # (v, n, 1280)
    quality: npt.NDArray[np.float32]  # (v, n, 4) see `quality.measure`; NaN of augmented views
    digests: list[str]  # sha256 of each image's bytes, "" where it could not be read
    hashes: npt.NDArray[np.uint64]  # (n,) perceptual hashes, where view 0 was asked for
    errors: list[str | None]  # why an image could not be used, else None


class Embedder:
    """Embeds views of images, each view of each content once: `cache` is a folder that the next run finds them in.

    To be used in a `with` block. Ray starts with the first view that has to be computed, and ends with the block.
    """

    def __init__(self, images: Sequence[LabelledImage], model: Model, cache: str) -> None:
        self._images, self._model, self._cache = images, model, EmbeddingCache(cache, model)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ThreadPoolExecutor(_READERS) as pool:
            self._identified = list(map_ahead(pool, _identify, self._images, ahead=4 * _READERS))
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def embed(self, indices: Sequence[int], views: Sequence[int | str], verb: str) -> Embedded:
        """Embed views of the images with these indices.

        Args:
            views: numbers of the views, 0 for the image itself (see `augment.augment`), or names in `SHORTCUTS`.
            verb: what the progress line says.

        Raises:
            JobError: an image is no longer what it was when the `with` block began.
        """
        digests = [self._identified[index][0] for index in indices]
        sources = {digest: self._images[index] for digest, index in zip(digests, indices, strict=True) if digest}
        table = ViewTable(list(sources), [str(view) for view in views])
        self._cache.fill(table)
        lacking = table.lacking()
        total, rest = len(sources) * len(views), sum(map(len, lacking.values()))
        if rest < total:
            say(f"{verb}  {total - rest:,} of {total:,} {_unit(views)} are in the cache")
        if lacking:
            self._stack.enter_context(ray_session())
            self._compute(table, lacking, sources, Progress(verb, rest, _unit(views)))
        places = np.array([table.place.get(digest, -1) for digest in digests], np.int64)
        known = places >= 0
        embeddings = np.zeros((len(views), len(digests), EMBEDDING_SIZE), np.float32)
        embeddings[:, known] = table.embeddings[:, places[known]]
        quality = np.full((len(views), len(digests), len(MEASURES)), np.nan, np.float32)
        quality[:, known] = table.quality[:, places[known]]
        hashes = np.zeros(len(digests), np.uint64)
        hashes[known] = table.hashes[places[known]]
        errors = [
            (table.errors[place] if place >= 0 else self._identified[index][1]) or None
            for place, index in zip(places, indices, strict=True)
        ]
        return Embedded(embeddings, quality, digests, hashes, errors)

    def _compute(
        self, table: ViewTable, lacking: dict[str, list[str]], sources: dict[str, LabelledImage], progress: Progress
    ) -> None:
        """Embed the views that are lacking, distributed over the cluster."""
        import ray

        pool = actor_pool()
        rows = [
            {"uri": sources[digest].stored.uri, "digest": digest, "views": views} for digest, views in lacking.items()
        ]
        results = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // _IMAGES_PER_TASK)).map_batches(
            _EmbeddingActor,
            batch_size=_IMAGES_PER_TASK,
            fn_constructor_args=(self._model, pool.threads),
            **pool.options(calls=_TASKS_AT_A_TIME),
        )
        try:
            for batch in results.iter_batches(batch_size=None):
                computed = to_rows(batch)
                table.put(computed)
                self._cache.add(computed)
                progress.add(len(computed))
        finally:
            self._cache.flush()
        progress.finish()


def _unit(views: Sequence[int | str]) -> str:
    return "views" if len(views) > 1 else "images"


def _identify(image: LabelledImage) -> tuple[str, str]:
    """The sha256 of an image's bytes and "", or "" and why they could not be read."""
    try:
        return hashlib.sha256(storage.read_bytes(image.stored.uri)).hexdigest(), ""
    except StorageError as error:
        return "", str(error)


class _EmbeddingActor:
    """Ray Data actor: rows of (uri, digest, views) to a row of `cache.SCHEMA` for every view."""

    def __init__(self, model: Model, threads: int) -> None:
        self._engine = OpenVinoEngine(model.tensors, model.preprocessing, threads)
        self._pool, self._ahead = ThreadPoolExecutor(THREADS_A_CORE * threads), 2 * THREADS_A_CORE * threads

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        sources = zip(batch["uri"], batch["digest"], batch["views"], strict=True)
        # Of an even number of images, whatever their number of views, no request is left half full.
        parts = list(map_ahead(self._pool, self._embed, in_chunks(sources, BATCH), self._ahead))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _embed(self, sources: list[tuple[str, str, Sequence[str]]]) -> dict[str, Any]:
        tasks = [(image, view) for image in map(_load, sources) for view in image.views]
        usable = [row for row, (image, _) in enumerate(tasks) if image.pixels is not None]
        embeddings = np.zeros((len(tasks), EMBEDDING_SIZE), np.float32)
        quality = np.full((len(tasks), len(MEASURES)), np.nan, np.float32)
        if usable:
            pixels = [_render(*tasks[row]) for row in usable]
            embeddings[usable] = self._engine.infer(pixels).embeddings
            measured = {row: each for row, each in zip(usable, pixels, strict=True) if tasks[row][1] in _MEASURED}
            if measured:
                quality[list(measured)] = measure(list(measured.values()))
        return {
            "digest": np.array([image.digest for image, _ in tasks], object),
            "view": np.array([view for _, view in tasks], object),
            "hash": np.array([image.hash if view == "0" else 0 for image, view in tasks], np.uint64),
            "error": np.array([image.error for image, _ in tasks], object),
            "quality": quality,
            "embedding": embeddings,
        }


@dataclass(frozen=True)
class _Loaded:
    digest: str
    views: list[str]
    pixels: Pixels | None = None
    hash: int = 0
    error: str = ""


def _load(source: tuple[str, str, Sequence[str]]) -> _Loaded:
    uri, digest, views = source[0], source[1], list(source[2])
    try:
        data = storage.read_bytes(uri)
    except StorageError as error:
        raise JobError(f"{uri} changed while the job ran ({error})") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise JobError(f"{uri} changed while the job ran (other bytes)")
    decoded = decode(data, Limits())
    if isinstance(decoded, Rejected):
        return _Loaded(digest, views, error=f"{decoded.status}: {decoded.error}")
    return _Loaded(digest, views, decoded.pixels, perceptual_hash(decoded.pixels) if "0" in views else 0)


def _render(image: _Loaded, view: str) -> Pixels:
    assert image.pixels is not None
    return _ALTERED[view](image.pixels) if view in _ALTERED else augment(image.pixels, image.digest, int(view))
