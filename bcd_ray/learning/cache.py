"""Embeddings kept between runs: a view of an image, found by the image's content, is embedded once.

The cache is a folder, local or `s3://`. Below it stands a folder for each way to compute an embedding (backbone,
preprocessing, decoder, augmentation), and in that `images` and `views`, Parquet objects named by the sha256 of their
bytes. Objects are only ever added, so that two runs at once are harmless; a damaged one counts as absent. Delete any
of it at will.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray import storage
from bcd_ray.archives.images import DECODER_VERSION
from bcd_ray.errors import StorageError
from bcd_ray.learning.augmentation import AUGMENTATION_VERSION
from bcd_ray.learning.near_duplicates import VARIANTS
from bcd_ray.model.bundle import Model
from bcd_ray.model.network import NETWORK_VERSION
from bcd_ray.model.quality import MEASURES, QUALITY_VERSION
from bcd_ray.progress import say
from bcd_ray.storage import parquet
from bcd_ray.threads import map_ahead

ROWS_PER_OBJECT = 2048  # 10 MB; what an interrupted run loses at most
_READERS = 4  # objects read at a time

FORMAT = 6  # raise it when a column would hold something else

IMAGES = pa.schema(
    [
        ("digest", pa.string()),
        ("hashes", pa.binary()),
        ("error", pa.string()),
    ]
)
# What a view has a row of numbers of: their type, how many, and what stands for none. `quality` is what
# `quality.MEASURES` are of it, none of augmented views; `background` what `shortcuts.Reducer` says of view 0; `cells`
# how many `cells.find_cells` found, where the model looks at them; `embedding` has as many numbers as the model says.
NUMBERS = {
    "quality": (np.float32, len(MEASURES), np.nan),
    "background": (np.uint8, 3, 0),
    "cells": (np.int32, 1, 0),
    "embedding": (np.float32, None, 0),
}
# As bytes: lists of floats take five times as long to write, and ten times to read.
VIEWS = ("digest", "view", *NUMBERS)


class ImageFacts(NamedTuple):
    """What is found out of an image before it is embedded."""

    hashes: bytes = bytes(8 * VARIANTS)  # `near_duplicates.perceptual_hashes`
    error: str = ""  # why the image could not be read or decoded, or empty


class ViewTable:
    """Views of u different images, filled from the cache and from what is computed.

    Attributes:
        numbers: (v, u + 1, count) of each of `NUMBERS`; the last place is that of an image that could not be read.
        lacking: (v, u) which views are wanted and not there yet; none at first.
    """

    def __init__(self, digests: list[str], views: list[str], size: int) -> None:
        self.numbers = none_of((len(views), len(digests) + 1), size)
        self.lacking = np.zeros((len(views), len(digests)), bool)
        self.place = {digest: place for place, digest in enumerate(digests)}
        self._views = {view: number for number, view in enumerate(views)}

    def put(self, rows: pa.Table) -> None:
        """Take over the rows that are lacking, of a table of `VIEWS`."""
        keys = zip(rows["view"].to_pylist(), rows["digest"].to_pylist(), strict=True)
        found = [(self._views.get(view, -1), self.place.get(digest, -1)) for view, digest in keys]
        number, place = np.array(found, np.int64).reshape(-1, 2).T
        kept = np.flatnonzero((number >= 0) & (place >= 0))
        kept = kept[self.lacking[number[kept], place[kept]]]
        if len(kept):
            at = number[kept], place[kept]
            for name, values in self.numbers.items():
                values[at] = _matrix(rows[name], values)[kept]
            self.lacking[at] = False

    def views_lacking(self) -> dict[str, list[str]]:
        """The views that are lacking, by the image's digest."""
        views = list(self._views)
        absent = {digest: np.flatnonzero(self.lacking[:, place]) for digest, place in self.place.items()}
        return {digest: [views[number] for number in numbers] for digest, numbers in absent.items() if len(numbers)}


class EmbeddingCache:
    """The objects of one folder for one backbone; with an empty URI there is none, and nothing is kept."""

    def __init__(self, uri: str, model: Model) -> None:
        self._folder = storage.join(uri, _key(model)) if uri else ""
        self._waiting: list[pa.Table] = []

    def images(self) -> dict[str, ImageFacts]:
        """What is known of each image that was seen before, by its digest."""
        rows = [row for table in self._tables("images") for row in table.to_pylist()]
        return {row.pop("digest"): ImageFacts(**row) for row in rows}

    def add_images(self, images: dict[str, ImageFacts]) -> None:
        """Keep further images."""
        rows = [{"digest": digest, **facts._asdict()} for digest, facts in images.items()]
        if rows:
            self._write("images", pa.Table.from_pylist(rows, schema=IMAGES))

    def fill(self, table: ViewTable) -> None:
        """Put what the cache holds of it into a table."""
        for rows in self._tables("views"):
            table.put(rows)

    def add(self, rows: pa.Table) -> None:
        """Keep further views; they are written when there are enough of them, or by `flush`."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= ROWS_PER_OBJECT:
            self.flush()

    def flush(self) -> None:
        """Write the views that wait."""
        rows, self._waiting = self._waiting, []
        if rows:
            self._write("views", pa.concat_tables(rows))

    def _write(self, kind: str, table: pa.Table) -> None:
        """A cache that cannot be written is said, and done without."""
        if not self._folder:
            return
        data = parquet.bytes_of(table, compression="none", use_dictionary=["view"])
        try:
            storage.create(storage.join(self._folder, kind, f"{hashlib.sha256(data).hexdigest()}.parquet"), data)
        except StorageError as error:
            say(f"the cache cannot be written, so that the next run computes all again: {error}")
            self._folder = ""

    def _tables(self, kind: str) -> Iterator[pa.Table]:
        if not self._folder:
            return
        folder = storage.join(self._folder, kind)
        try:
            objects = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
            with ThreadPoolExecutor(_READERS) as pool:
                for table in map_ahead(pool, partial(_read, folder), objects, ahead=_READERS):
                    if table is not None:
                        yield table
        except StorageError as error:
            say(f"the cache cannot be read, so that all is computed: {error}")


def _read(folder: str, name: str) -> pa.Table | None:
    data = storage.read_bytes(storage.join(folder, name))
    if name != f"{hashlib.sha256(data).hexdigest()}.parquet":
        say(f"{storage.join(folder, name)} is damaged: what it held is computed again; delete it")
        return None
    return parquet.table_of(data)


def none_of(shape: tuple[int, ...], size: int) -> dict[str, npt.NDArray[Any]]:
    """(*shape, count) of each of `NUMBERS`, filled with what stands for none; embeddings have `size` numbers."""
    return {
        # Zeros cost nothing before they are read: 100 MB of embeddings, written, took 0.2 s of a training run.
        name: np.full((*shape, count or size), none, kind) if none else np.zeros((*shape, count or size), kind)
        for name, (kind, count, none) in NUMBERS.items()
    }


def to_rows(columns: dict[str, Any]) -> pa.Table:
    """A table of `VIEWS` from its columns, each of `NUMBERS` as (n, count)."""
    return pa.table({name: _column(name, columns[name]) for name in VIEWS})


def _column(name: str, values: Any) -> Any:
    if name not in NUMBERS:
        return pa.array(values, pa.string())
    data = np.ascontiguousarray(values)
    kind = pa.binary(data.itemsize * data.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


def _matrix(column: pa.ChunkedArray, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n, count) of a column of n rows, in the type and with the count of `like`."""
    rows, count = pa.concat_arrays(column.chunks), like.shape[-1]
    start = rows.offset * rows.type.byte_width
    return np.frombuffer(rows.buffers()[1], like.dtype, len(rows) * count, start).reshape(-1, count)


def _key(model: Model) -> str:
    """Names everything besides image and view that an embedding depends on; it is always computed in fp32."""
    backbone = hashlib.sha256()
    for name in sorted(name for name in model.tensors if not name.startswith("head.")):
        backbone.update(name.encode())
        backbone.update(np.ascontiguousarray(model.tensors[name]).tobytes())
    versions = [DECODER_VERSION, AUGMENTATION_VERSION, NETWORK_VERSION, QUALITY_VERSION, FORMAT]
    facts = [backbone.hexdigest(), model.preprocessing, *versions]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
