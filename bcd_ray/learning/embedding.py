"""Labelled images to embeddings: what the cache lacks is read, decoded, augmented and embedded through Ray Data."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.archives.formats.jpeg import coarseness
from bcd_ray.archives.images import PASSING_STATUSES, Decoded, Limits, Pixels, Rejected, too_large
from bcd_ray.archives.isolation import decode
from bcd_ray.errors import JobError, StorageError
from bcd_ray.hearing import be_heard
from bcd_ray.labels import CLASSES
from bcd_ray.learning.augmentation import Augmenter
from bcd_ray.learning.cache import MOST_BYTES, EmbeddingCache, ImageFacts, ViewTable, none_of, to_rows
from bcd_ray.learning.config import STAINED
from bcd_ray.learning.dataset import LabelledImage
from bcd_ray.learning.near_duplicates import VARIANTS, perceptual_hashes
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS, Reducer
from bcd_ray.learning.spoiling import SPOILT
from bcd_ray.learning.stain import restained
from bcd_ray.model.bundle import Model
from bcd_ray.model.choice import open_on_cpus
from bcd_ray.model.engines.openvino import BATCH
from bcd_ray.model.quality import measure
from bcd_ray.progress import Progress, say
from bcd_ray.runtime import actor_pool, ray_session
from bcd_ray.storage import StoredObject
from bcd_ray.threads import EngineThreads, in_chunks, keep_blas_to_its_thread, map_ahead

_VIEWS_PER_TASK = 256  # a second of two cores
_TASKS_AT_A_TIME = 2  # of an actor: while one reads its first images, the other keeps the cores busy
_READERS = 16  # threads of the driver that read images
_DECODERS = 2  # that decode them: more wait for the lock of Python
_IMAGES_AT_A_TIME = 16  # that each takes: one by one takes a quarter longer
_BYTES_AT_A_TIME = 1 << 20  # after which it takes no more, so that large images are one at a time
_MOST_BYTES = 256 << 20  # of encoded images in an actor
_MEASURED = {"0", *SPOILT}  # views whose quality somebody asks for
_LIMITS = Limits()
_Content = bytes | Rejected | StorageError  # of an image, or why there is none
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Identified:
    """What is known of n images before they are embedded."""

    digests: list[str]  # sha256 of each image's bytes, "" where it could not be read
    hashes: npt.NDArray[np.uint64]  # (n, 8) perceptual hashes, of the image first as it is
    errors: list[str | None]  # why an image could not be read or decoded, else None


@dataclass(frozen=True)
class Embedded:
    """Of n images in v views: zeros and NaN of images with an error, nothing to go by where a view was not wanted."""

    embeddings: Embeddings  # (v, n, d)
    quality: npt.NDArray[np.float32]  # (v, n, 7) see `quality.MEASURES`; NaN of augmented views
    backgrounds: npt.NDArray[np.uint8]  # (v, n, 3) red, green and blue of the background; of view 0 alone
    cells: npt.NDArray[np.int32] | None  # (v, n) white cells found, where the model looks at them


class Embedder:
    """Embeds views of images, each view of each content once: `cache` is a folder that the next run finds them in, of
    `cache_bytes` at most.

    To be used in a `with` block, which begins with reading and identifying the images. Ray starts with the first view
    that has to be computed, and ends with the block.

    Attributes:
        identified: what is known of the images.
    """

    identified: Identified

    def __init__(
        self, images: Sequence[LabelledImage], model: Model, cache: str, cache_bytes: int = MOST_BYTES
    ) -> None:
        self._images, self._model, self._cache = images, model, EmbeddingCache(cache, model, cache_bytes)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        known = self._cache.images()
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_DECODERS) as decoders:
            chunks = in_chunks(self._images, _IMAGES_AT_A_TIME, lambda image: image.stored.size, _BYTES_AT_A_TIME)
            window = _LIMITS.window
            contents = map_ahead(readers, _read, chunks, _READERS, lambda some: sum(map(_size, some)), window)
            identify = partial(_identify, known)
            found = map_ahead(decoders, identify, contents, 2 * _DECODERS, lambda some: sum(map(_held, some)), window)
            digests, facts = zip(*chain.from_iterable(found), strict=True)
        self._cache.add_images(
            {digest: each for digest, each in zip(digests, facts, strict=True) if digest and digest not in known}
        )
        self.identified = Identified(
            list(digests),
            np.frombuffer(b"".join(each.hashes for each in facts), np.uint64).reshape(len(facts), VARIANTS),
            _without_contradictions(self._images, digests, [each.error or None for each in facts]),
        )
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def embed(self, views: Sequence[int | str], wanted: npt.NDArray[np.bool_] | None = None) -> Embedded:
        """Embed views of the images.

        Args:
            views: numbers of the views, 0 for the image itself (see `augmentation.Augmenter`), those after `STAINED`
                (see `stain.restained`), or names in `SHORTCUT_VIEWS` or `SPOILT`.
            wanted: (v, n) which views of which images; all if None.

        Raises:
            JobError: an image is no longer what it was when the `with` block began.
        """
        usable = [index for index, error in enumerate(self.identified.errors) if error is None]
        sources = {self.identified.digests[index]: self._images[index] for index in usable}
        table = ViewTable(list(sources), [str(view) for view in views], self._model.embedding_size)
        places = np.full(len(self._images), len(sources))
        for index in usable:
            place = places[index] = table.place[self.identified.digests[index]]
            # Some images may have the same content.
            table.lacking[:, place] |= True if wanted is None else wanted[:, index]
        total = int(table.lacking.sum())
        self._cache.fill(table)
        rest = int(table.lacking.sum())
        if rest < total:
            say(f"embedding  {total - rest:,} of {total:,} {_unit(views)} are in the cache")
        if rest:
            self._stack.enter_context(ray_session())
            self._compute(table, sources, Progress("embedding", rest, _unit(views)))
        found = {name: values[:, places] for name, values in table.numbers.items()}
        cells = found["cells"][..., 0] if self._model.representation != "field" else None
        return Embedded(found["embedding"], found["quality"], found["background"], cells)

    def _compute(self, table: ViewTable, sources: dict[str, LabelledImage], progress: Progress) -> None:
        """Embed the views that are lacking, distributed over the cluster."""
        import ray

        pool = actor_pool()
        rows = [
            {"uri": sources[digest].stored.uri, "size": sources[digest].stored.size, "digest": digest, "views": views}
            for digest, views in table.views_lacking().items()
        ]
        blocks = -(-int(table.lacking.sum()) // _VIEWS_PER_TASK)
        results = ray.data.from_items(rows, override_num_blocks=min(blocks, len(rows))).map_batches(
            _EmbeddingActor,
            batch_size=None,
            fn_constructor_args=(ray.put(self._model), pool.threads),
            **pool.options(calls=_TASKS_AT_A_TIME),
        )
        try:
            for batch in results.iter_batches(batch_size=None):
                if not np.isfinite(batch["embedding"]).all():
                    raise JobError("the network gave numbers that are not finite: look at the weights and the machine")
                computed = to_rows(batch)
                table.put(computed)
                self._cache.add(computed)
                progress.add(len(computed))
        finally:
            self._cache.flush()
        progress.finish()


def _without_contradictions(
    images: Sequence[LabelledImage], digests: Sequence[str], errors: list[str | None]
) -> list[str | None]:
    """The errors, with one for each image whose bytes stand in two classes: nobody knows which of them is right."""
    labels: dict[str, set[int]] = {}
    for image, digest in zip(images, digests, strict=True):
        labels.setdefault(digest, set()).add(image.label)
    found = [index for index, digest in enumerate(digests) if errors[index] is None and len(labels[digest]) > 1]
    for index in found:
        names = " and ".join(CLASSES[label] for label in sorted(labels[digests[index]]))
        errors[index] = f"two_classes: the same image stands in {names}: keep it in one"
    if found:
        some = ", ".join(images[index].name for index in found[:4])
        say(
            f"{len(found):,} images are left out: the same bytes stand in two classes, such as {some}; keep one of each"
        )
    return errors


def _unit(views: Sequence[int | str]) -> str:
    return "views" if len(views) > 1 else "images"


def _size(image: LabelledImage) -> int:
    return min(image.stored.size, _LIMITS.max_bytes)


def _held(content: _Content) -> int:
    return len(content) if isinstance(content, bytes) else 0


def _read(images: Sequence[LabelledImage]) -> list[_Content]:
    return [_content(image.stored) for image in images]


def _content(stored: StoredObject) -> _Content:
    if stored.size > _LIMITS.max_bytes:
        return too_large(stored.size, _LIMITS)
    try:
        return storage.read_bytes(stored.uri)
    except StorageError as error:
        return error


def _identify(known: Mapping[str, ImageFacts], contents: Sequence[_Content]) -> list[tuple[str, ImageFacts]]:
    """Of each image the sha256 of its bytes, "" if it could not be read, and what is known of it."""
    return [_facts(known, content) for content in contents]


def _facts(known: Mapping[str, ImageFacts], data: _Content) -> tuple[str, ImageFacts]:
    if isinstance(data, StorageError):
        return "", ImageFacts(error=str(data))
    if isinstance(data, Rejected):
        return "", ImageFacts(error=f"{data.status}: {data.error}")
    digest = hashlib.sha256(data).hexdigest()
    if digest in known:
        return digest, known[digest]
    decoded = decode(data, _LIMITS)
    if isinstance(decoded, Rejected):
        facts = ImageFacts(error=f"{decoded.status}: {decoded.error}")
        kept = decoded.status not in (*PASSING_STATUSES, "crashed", "timed_out", "out_of_memory")
        return (digest if kept else ""), facts  # without a digest it is not kept
    if decoded.damage:  # good enough for a person to look at, not to learn from
        return digest, ImageFacts(error=f"damaged: {decoded.damage}")
    return digest, ImageFacts(perceptual_hashes(decoded.pixels).tobytes())


class _EmbeddingActor:
    """Ray Data actor: rows of (uri, digest, views) to a row of `cache.VIEWS` for every view."""

    def __init__(self, model_ref: Any, threads: int) -> None:
        """`model_ref` refers to a `Model`: the arguments themselves are printed by Ray Data, tensors in 2.4 s."""
        import ray

        be_heard()
        model: Model = ray.get(model_ref)
        keep_blas_to_its_thread()
        cv2.setNumThreads(1)  # as BLAS: the actor's own threads fill its cores
        self._engine, self._size = open_on_cpus(model, threads), model.embedding_size
        self._threads = EngineThreads(threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        sources = zip(batch["uri"], batch["digest"], batch["views"], batch["size"], strict=True)
        # Of an even number of images, whatever their number of views, no request is left half full.
        chunks = in_chunks(sources, BATCH)
        # Each thread holds one image at a time, whose bytes count.
        parts = list(self._threads.map(self._embed, chunks, lambda chunk: max(each[3] for each in chunk), _MOST_BYTES))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _embed(self, sources: list[tuple[str, str, Sequence[str], int]]) -> dict[str, Any]:
        rendered = chain.from_iterable(_render(*source[:3]) for source in sources)
        digests, views, pixels, backgrounds, compression = zip(*rendered, strict=True)
        numbers = none_of((len(views),), self._size)
        if measured := [row for row, view in enumerate(views) if view in _MEASURED]:
            of_pixels = measure([pixels[row] for row in measured])
            numbers["quality"][measured] = np.column_stack([of_pixels, [compression[row] for row in measured]])
        numbers["background"][:] = backgrounds
        outputs = self._engine.infer(pixels)
        numbers["embedding"] = outputs.embeddings
        if outputs.cells is not None:
            numbers["cells"] = outputs.cells[:, None]
        return numbers | {"digest": np.array(digests, object), "view": np.array(views, object)}


def _render(uri: str, digest: str, views: Sequence[str]) -> Iterator[tuple[str, str, Pixels, tuple[int, ...], float]]:
    """Of each view of an image that was identified before its digest, view, pixels, background and compression.

    The background is that of view 0 alone; the compression is the file's, whatever a view did to the pixels since.
    """
    try:
        data = storage.read_bytes(uri)
    except StorageError as error:
        raise JobError(f"{uri} changed while the job ran ({error})") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise JobError(f"{uri} changed while the job ran (other bytes)")
    decoded = decode(data, _LIMITS)
    if not isinstance(decoded, Decoded):
        raise JobError(f"{uri} could be decoded before, and now not ({decoded.error}): run the same command again")
    compression = coarseness(data, decoded.width, decoded.height)
    augmenter, reducer = Augmenter(decoded.pixels, digest), Reducer(decoded.pixels)
    for view in views:
        if view in SHORTCUT_VIEWS:
            pixels = SHORTCUT_VIEWS[view](reducer)
        elif view in SPOILT:
            pixels = SPOILT[view](decoded.pixels)
        else:
            number = view.removeprefix(STAINED)
            pixels = augmenter.view(int(number))
            if view != number:
                pixels = restained(pixels, digest, number)
        yield digest, view, pixels, reducer.background if view == "0" else (0, 0, 0), compression
