"""Where in the files of earlier runs the rows and embeddings of a shard are."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from threading import Lock
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import JobError
from bcd_ray.ledger.said import inputs_uri
from bcd_ray.ledger.units import Unit, Units
from bcd_ray.model.quality import MEASURES
from bcd_ray.storage import parquet
from bcd_ray.storage.parquet_rows import ParquetRows
from bcd_ray.storage.sorting import SortedFile

# Columns that neither head nor limits change.
CARRIED = (
    *("image_id", "image_uri", "shard_uri", "shard_etag", "image_sha256", "width", "height", "status", "error"),
    *(*MEASURES, "cells"),
)
_ROWS_AT_A_TIME = 4096
_OF_INPUTS = ("uri", "unit_id", "rows", "left_out")
_LOST = "restore it from a copy"
_REMEDY = "restore it from a copy, or move it away, and its images are read again"


class _Run:
    """The rows that a run published, their embeddings, and which of them are of which shards; threads may share it."""

    def __init__(self, output: str, run_id: str, stack: ExitStack) -> None:
        predictions = storage.join(output, "predictions", f"{run_id}.parquet")
        self._features = storage.join(output, "features", f"{run_id}.parquet")
        self._rows = stack.enter_context(ParquetRows(predictions, _LOST, CARRIED))
        self._kept = stack.enter_context(ParquetRows(self._features, _REMEDY, ["image_id", "embedding"]))
        uri = inputs_uri(output, run_id)
        self._inputs, self._one_at_a_time = SortedFile(storage.fetch(uri), uri, _LOST, _OF_INPUTS), Lock()
        self._places = _places_of_units(uri)

    def left_out(self, uris: Sequence[str]) -> Counter[str]:
        """Members of some shards that are no images, by suffix."""
        texts = self._of(uris)["left_out"].unique().to_pylist()
        return sum((Counter(json.loads(text)) for text in texts), Counter[str]())

    def _of(self, uris: Sequence[str]) -> pa.Table:
        """What the run says of some shards."""
        with self._one_at_a_time:
            return self._inputs.of(pa.array(sorted(uris), pa.string()))

    def chunks(self, uris: Sequence[str]) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
        """Rows of shards, and their embeddings, in the order that they were published in."""
        inputs, wanted, found = self._of(uris), pa.array(uris, pa.string()), 0
        # The rows of a unit stand together. Which are whose within it, they say themselves.
        for begin, end in sorted(self._places[unit] for unit in inputs["unit_id"].unique().to_pylist()):
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
        if found != pc.sum(inputs["rows"]).as_py():
            raise JobError(f"{self._features} and its run do not agree: {_REMEDY}")


def _places_of_units(uri: str) -> dict[str, tuple[int, int]]:
    """Where the rows of each unit of a run begin and end, by what it is known as: in the order of its inputs."""
    found, end = dict[str, tuple[int, int]](), 0
    for table in parquet.chunks_at(uri, _LOST, ["unit_id", "rows"]):
        units = pc.run_end_encode(table["unit_id"].combine_chunks())
        stops = np.cumsum(table["rows"].to_numpy())[units.run_ends.to_numpy() - 1] + end
        for unit, stop in zip(units.values.to_pylist(), stops.tolist(), strict=True):
            found[unit], end = (found.get(unit, (end, 0))[0], stop), stop
    return found


class Kept:
    """What earlier runs of an output kept of the shards of some units; for a `with` block, and several threads."""

    def __init__(self, output: str, units: Units) -> None:
        tables = units.tables()
        self._output, self._ids = output, {run for table in tables for run in table["features"].unique().to_pylist()}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._runs = {run_id: _Run(self._output, run_id, stack) for run_id in sorted(self._ids)}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def left_out(self, unit: Unit) -> Counter[str]:
        """Members of its shards that are no images, by suffix."""
        return sum((self._runs[run_id].left_out(list(tags)) for run_id, tags in _parts(unit)), Counter[str]())

    def chunks(self, unit: Unit) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
        """The rows of a unit as they were published, with the tags of its shards as they are now, and embeddings."""
        for run_id, tags in _parts(unit):
            for rows, embeddings in self._runs[run_id].chunks(list(tags)):
                etags = pa.array([tags[uri] for uri in rows["shard_uri"].to_pylist()], pa.string())
                place = rows.schema.get_field_index("shard_etag")
                yield rows.set_column(place, "shard_etag", etags), embeddings


def _parts(unit: Unit) -> Iterator[tuple[str, dict[str, str]]]:
    """Of its shards that follow each other and are of one run that run, and their tags by printable URI."""
    for run_id, group in groupby(zip(unit.features, unit.shards, strict=True), key=lambda each: each[0]):
        yield run_id, {storage.printable(shard.name): shard.etag for _, shard in group}
