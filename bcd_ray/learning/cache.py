"""Embeddings kept between runs: a view of an image, found by the image's content, is embedded once.

The cache is a folder, local or `s3://`. Below it stands a folder for each way to compute an embedding (backbone,
preprocessing, decoder, augmentation), and in that `images` and `views`, Parquet objects named by the sha256 of their
bytes. Objects are added, never changed, so that two runs at once are harmless; a damaged one counts as absent. Of each
object the digests are read first, and the rest where one is asked for. Where all together are larger than they may be,
the oldest go. Delete any of it at will.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.archives.images import DECODER_VERSION
from bcd_ray.errors import NotFoundError, StorageError
from bcd_ray.learning.augmentation import AUGMENTATION_VERSION
from bcd_ray.learning.near_duplicates import VARIANTS
from bcd_ray.model.bundle import Model
from bcd_ray.model.network import NETWORK_VERSION
from bcd_ray.model.quality import MEASURES, QUALITY_VERSION
from bcd_ray.progress import say
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.threads import map_ahead

ROWS_PER_OBJECT = 2048  # 10 MB; what an interrupted run loses at most
_READERS = 4  # objects read at a time
_DIGEST_BYTES = 64 << 10  # read at a time where the digests of an object are looked at: they are 1 % of it
MOST_BYTES = 20 << 30
_OBJECT = re.compile(r"[0-9a-f]{16}/(images|views)/[0-9a-f]{64}\.parquet")

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

    def __init__(self, uri: str, model: Model, most_bytes: int = MOST_BYTES) -> None:
        """`most_bytes` is how large all of the cache may be, also what other backbones keep there."""
        self._uri, self._most_bytes = uri, most_bytes
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
        wanted = pa.array(table.views_lacking(), pa.string())
        for rows in self._tables("views", wanted):
            table.put(rows)

    def add(self, rows: pa.Table) -> None:
        """Keep further views; they are written when there are enough of them, or by `flush`."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= ROWS_PER_OBJECT:
            self._write_waiting()

    def flush(self) -> None:
        """Write the views that wait, and let the oldest objects go where all are too large."""
        self._write_waiting()
        if self._folder:
            try:
                _shrink(self._uri, self._most_bytes)
            except StorageError as error:
                say(f"the cache stays larger than --max-cache-bytes: {error}")

    def _write_waiting(self) -> None:
        rows, self._waiting = self._waiting, []
        if rows:
            self._write("views", pa.concat_tables(rows))

    def _write(self, kind: str, table: pa.Table) -> None:
        """A cache that cannot be written is said, and done without."""
        if not self._folder:
            return
        data = parquet.bytes_of(table, compression="none", use_dictionary=["digest", "view"])
        try:
            storage.create(storage.join(self._folder, kind, f"{hashlib.sha256(data).hexdigest()}.parquet"), data)
        except StorageError as error:
            say(f"the cache cannot be written, so that the next run computes all again: {error}")
            self._folder = ""

    def _tables(self, kind: str, wanted: pa.Array | None = None) -> Iterator[pa.Table]:
        """The objects of a kind, of views those alone that hold one of the wanted digests."""
        if not self._folder:
            return
        try:
            listing = list(storage.list_objects(storage.join(self._folder, kind)))
            objects = [listed for listed in listing if listed.uri.endswith(".parquet")]
            with ThreadPoolExecutor(_READERS) as pool:
                for table in map_ahead(pool, partial(_read, wanted), objects, ahead=_READERS):
                    if table is not None:
                        yield table
        except NotFoundError:  # an empty cache
            return
        except StorageError as error:
            say(f"the cache cannot be read, so that all is computed: {error}")


def _read(wanted: pa.Array | None, listed: StoredObject) -> pa.Table | None:
    try:
        if wanted is not None and not _holds_any(listed, wanted):
            return None
        data = storage.read_bytes(listed.uri)
    except NotFoundError:  # another run made room
        return None
    if listed.uri.rpartition("/")[2] != f"{hashlib.sha256(data).hexdigest()}.parquet":
        say(f"{listed.uri} is damaged: what it held is computed again; delete it")
        return None
    return parquet.table_of(data)


def _holds_any(listed: StoredObject, wanted: pa.Array) -> bool:
    """Whether an object holds a view of these images, by its digests alone; one that is damaged may hold any."""
    try:
        with storage.open_stream(listed, _DIGEST_BYTES) as stream:
            digests = pq.ParquetFile(stream).read(["digest"], use_threads=False)["digest"]
    except (pa.ArrowException, OSError):
        return True
    return bool(pc.any(pc.is_in(digests, wanted)).as_py())


def _shrink(uri: str, most_bytes: int) -> None:
    """Delete the oldest objects of a cache until the others together are as large as they may be."""
    try:
        objects = [listed for listed in storage.list_objects(uri) if _OBJECT.fullmatch(listed.uri[len(uri) + 1 :])]
    except NotFoundError:
        return
    left = sum(listed.size for listed in objects)
    for listed in sorted(objects, key=lambda listed: listed.modified):
        if left <= most_bytes:
            return
        storage.delete(listed.uri)
        left -= listed.size


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
