"""Where in the files of earlier runs the rows and embeddings of a shard are."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import JobError
from bcd_ray.ledger.plan import Unit
from bcd_ray.model.quality import MEASURES
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.storage.parquet_rows import ParquetRows

# Columns that neither head nor limits change.
CARRIED = (
    *("image_id", "image_uri", "shard_uri", "shard_etag", "image_sha256", "width", "height", "status", "error"),
    *(*MEASURES, "cells"),
)
_ROWS_AT_A_TIME = 4096
_REMEDY = "restore it from a copy, or move it away, and its images are read again"


class _Run:
    """The rows that a run published, their embeddings, and which of them are of which shards."""

    def __init__(self, output: str, run_id: str, uris: Sequence[str], stack: ExitStack) -> None:
        """`uris` are the printable URIs of the shards that will be asked for, by their numbers."""
        predictions = storage.join(output, "predictions", f"{run_id}.parquet")
        self._features = storage.join(output, "features", f"{run_id}.parquet")
        self._rows = stack.enter_context(ParquetRows(predictions, "restore it from a copy", CARRIED))
        self._kept = stack.enter_context(ParquetRows(self._features, _REMEDY, ["image_id", "embedding"]))
        uri = storage.join(output, "manifests", f"{run_id}.inputs.parquet")
        inputs = parquet.read(uri, "restore it from a copy", ["uri", "unit_id", "rows", "left_out"])
        places = pc.index_in(pa.array(uris, pa.string()), inputs["uri"].combine_chunks())
        # The rows of a unit stand together, in the order of the inputs. Which are whose within it, they say themselves.
        units, counts = inputs["unit_id"].combine_chunks(), inputs["rows"].to_numpy()
        begins = np.concatenate([[True], pc.not_equal(units[1:], units[:-1]).to_numpy(zero_copy_only=False)])
        stops = np.cumsum(np.add.reduceat(counts, np.flatnonzero(begins)))
        unit = (np.cumsum(begins) - 1)[places.to_numpy()]
        self._starts, self._stops = np.concatenate([[0], stops[:-1]])[unit], stops[unit]
        self._counts, self._left_out = counts[places.to_numpy()], inputs["left_out"].take(places)

    def left_out(self, numbers: range) -> Counter[str]:
        """Members of some shards that are no images, by suffix."""
        texts = self._left_out.slice(numbers.start, len(numbers)).unique().to_pylist()
        return sum((Counter(json.loads(text)) for text in texts), Counter[str]())

    def chunks(self, numbers: range, uris: Sequence[str]) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
        """Rows of shards, and their embeddings, in the order that they were published in."""
        wanted, found = pa.array(uris, pa.string()), 0
        for begin, end in dict.fromkeys((int(self._starts[each]), int(self._stops[each])) for each in numbers):
            for start in range(begin, end, _ROWS_AT_A_TIME):
                stop = min(start + _ROWS_AT_A_TIME, end)
                rows, kept = self._rows.slice(start, stop), self._kept.slice(start, stop)
                if not rows["image_id"].equals(kept["image_id"]):
                    raise JobError(f"{self._features} is not of the rows of its run: {_REMEDY}")
                of_shards = pc.is_in(rows["shard_uri"], wanted)
                if not pc.all(of_shards).as_py():  # else 5 kB a row would be copied
                    rows, kept = rows.filter(of_shards), kept.filter(of_shards)
                found += len(rows)
                if len(rows):
                    yield rows, kept["embedding"]
        if found != self._counts[numbers.start : numbers.stop].sum():
            raise JobError(f"{self._features} and its run do not agree: {_REMEDY}")


class _Part(NamedTuple):
    """Shards of a unit that follow each other and are of one run."""

    run_id: str
    numbers: range  # among all shards that are of the run
    shards: Sequence[StoredObject]


class Kept:
    """What earlier runs of an output kept of the shards of some units; for a `with` block, and several threads."""

    def __init__(self, output: str, units: Sequence[Unit]) -> None:
        self._output, self._parts = output, dict[str, list[_Part]]()
        self._uris: dict[str, list[str]] = {}
        for unit in units:
            parts = self._parts[unit.unit_id] = []
            for run_id, group in groupby(zip(unit.features, unit.shards, strict=True), key=lambda each: each[0]):
                uris, shards = self._uris.setdefault(run_id, []), [shard for _, shard in group]
                parts.append(_Part(run_id, range(len(uris), len(uris) + len(shards)), shards))
                uris += (storage.printable(shard.name) for shard in shards)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._runs = {run_id: _Run(self._output, run_id, uris, stack) for run_id, uris in self._uris.items()}
            self._stack = stack.pop_all()
        self._uris.clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def left_out(self, unit: Unit) -> Counter[str]:
        """Members of its shards that are no images, by suffix."""
        parts = (self._runs[part.run_id].left_out(part.numbers) for part in self._parts[unit.unit_id])
        return sum(parts, Counter[str]())

    def chunks(self, unit: Unit) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
        """The rows of a unit as they were published, with the tags of its shards as they are now, and embeddings."""
        for run_id, numbers, shards in self._parts[unit.unit_id]:
            tags = {storage.printable(shard.name): shard.etag for shard in shards}
            for rows, embeddings in self._runs[run_id].chunks(numbers, list(tags)):
                etags = pa.array([tags[uri] for uri in rows["shard_uri"].to_pylist()], pa.string())
                place = rows.schema.get_field_index("shard_etag")
                yield rows.set_column(place, "shard_etag", etags), embeddings
