"""Embeddings kept between runs: a view of an image, found by the image's content, is embedded once.

The cache is a folder, local or `s3://`. Below it stands a folder for each way to compute an embedding (backbone,
preprocessing, decoder, augmentation), and in that Parquet objects named by the sha256 of their bytes. Objects
are only ever added, so that two runs at once are harmless; a damaged one counts as absent. Delete any of it at will.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray import parquet, storage
from bcd_ray.archive import map_ahead
from bcd_ray.augment import AUGMENTATION_VERSION
from bcd_ray.errors import StorageError
from bcd_ray.images import DECODER_VERSION
from bcd_ray.model import EMBEDDING_SIZE, Model
from bcd_ray.quality import MEASURES
from bcd_ray.runtime import say

ROWS_PER_OBJECT = 2048  # 10 MB; what an interrupted run loses at most
_READERS = 4  # objects read at a time

FORMAT = 2  # raise it when a column would hold something else

# `hash` is the perceptual hash, in rows of view 0; `error` says why the image could not be decoded, or is empty;
# `quality` is what `quality.measure` says of the view, NaN of augmented ones.
SCHEMA = pa.schema(
    [
        ("digest", pa.string()),
        ("view", pa.string()),
        ("hash", pa.uint64()),
        ("error", pa.string()),
        ("quality", pa.list_(pa.float32(), len(MEASURES))),
        ("embedding", pa.list_(pa.float32(), EMBEDDING_SIZE)),
    ]
)


class ViewTable:
    """The wanted views of u different images, filled from the cache and from what is computed."""

    def __init__(self, digests: list[str], views: list[str]) -> None:
        self.embeddings = np.zeros((len(views), len(digests), EMBEDDING_SIZE), np.float32)
        self.quality = np.full((len(views), len(digests), len(MEASURES)), np.nan, np.float32)
        self.hashes = np.zeros(len(digests), np.uint64)
        self.errors = [""] * len(digests)
        self.place = {digest: place for place, digest in enumerate(digests)}
        self._views = {view: place for place, view in enumerate(views)}
        self._present = np.zeros((len(views), len(digests)), bool)

    def put(self, rows: pa.Table) -> None:
        """Take over the rows that are wanted, of a table of `SCHEMA`."""
        digests, views = rows["digest"].to_pylist(), rows["view"].to_pylist()
        wanted = [row for row, key in enumerate(zip(digests, views, strict=True)) if self._wants(*key)]
        if not wanted:
            return
        kept = rows.take(wanted).combine_chunks()
        images = [self.place[digests[row]] for row in wanted]
        numbers = [self._views[views[row]] for row in wanted]
        self.embeddings[numbers, images] = _matrix(kept["embedding"])
        self.quality[numbers, images] = _matrix(kept["quality"])
        self._present[numbers, images] = True
        for image, value, error in zip(images, kept["hash"].to_pylist(), kept["error"].to_pylist(), strict=True):
            self.hashes[image] |= value  # 0 but in the row of view 0
            self.errors[image] = error

    def lacking(self) -> dict[str, list[str]]:
        """The views still to be computed, by the image's digest."""
        views = list(self._views)
        absent = {digest: np.flatnonzero(~self._present[:, place]) for digest, place in self.place.items()}
        return {digest: [views[number] for number in numbers] for digest, numbers in absent.items() if len(numbers)}

    def _wants(self, digest: str, view: str) -> bool:
        return digest in self.place and view in self._views


class EmbeddingCache:
    """The objects of one folder for one backbone; with an empty URI there is none, and nothing is kept."""

    def __init__(self, uri: str, model: Model) -> None:
        self._folder = storage.join(uri, _key(model)) if uri else ""
        self._waiting: list[pa.Table] = []

    def fill(self, table: ViewTable) -> None:
        """Put what the cache holds of it into a table."""
        if not self._folder:
            return
        try:
            objects = [name for name in storage.list_names(self._folder) if name.endswith(".parquet")]
            with ThreadPoolExecutor(_READERS) as pool:
                for rows in map_ahead(pool, self._read, objects, ahead=_READERS):
                    table.put(rows)
        except StorageError as error:
            say(f"the cache cannot be read, so that all is computed: {error}")

    def add(self, rows: pa.Table) -> None:
        """Keep further rows; they are written when there are enough of them, or by `flush`."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= ROWS_PER_OBJECT:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait; a cache that cannot be written is said, and done without."""
        rows, self._waiting = self._waiting, []
        if not rows or not self._folder:
            return
        data = parquet.bytes_of(pa.concat_tables(rows), compression="none", use_dictionary=["view", "error"])
        try:
            storage.create(storage.join(self._folder, f"{hashlib.sha256(data).hexdigest()}.parquet"), data)
        except StorageError as error:
            say(f"the cache cannot be written, so that the next run computes all again: {error}")
            self._folder = ""

    def _read(self, name: str) -> pa.Table:
        data = storage.read_bytes(storage.join(self._folder, name))
        if name != f"{hashlib.sha256(data).hexdigest()}.parquet":
            say(f"{storage.join(self._folder, name)} is damaged: what it held is computed again; delete it")
            return SCHEMA.empty_table()
        return parquet.table_of(data)


def to_rows(columns: dict[str, Any]) -> pa.Table:
    """A table of `SCHEMA` from its columns, `quality` as (n, 4) and `embedding` as (n, 1280) float32."""
    return pa.table({name: _column(columns[name]) for name in SCHEMA.names}, schema=SCHEMA)


def _column(values: Any) -> Any:
    if values.ndim == 1:
        return values
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = pa.concat_arrays(column.chunks).flatten().to_numpy()
    return flat.reshape(-1, column.type.list_size)


def _key(model: Model) -> str:
    """Names everything besides image and view that an embedding depends on; it is always computed in fp32."""
    backbone = hashlib.sha256()
    for name in sorted(name for name in model.tensors if not name.startswith("head.")):
        backbone.update(name.encode())
        backbone.update(np.ascontiguousarray(model.tensors[name]).tobytes())
    facts = [backbone.hexdigest(), model.preprocessing, DECODER_VERSION, AUGMENTATION_VERSION, FORMAT]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
