"""Shards that were touched or restored, and found to be of the content that their rows are of.

OUTPUT/_work/equal/SHA256.parquet   a row for each, sorted by printable URI, so that it is not read again every night
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import NotFoundError
from bcd_ray.storage import parquet
from bcd_ray.storage.sorting import SortedFile, part_of, side_by_side

_FOLDER = ("_work", "equal")
_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("held", pa.string())])


class Equal(NamedTuple):
    """Two tags of a shard, of one content."""

    etag: str  # as it was listed
    held: str  # when the rows that hold were made


class Equals:
    """What is known to be equal, by printable URI."""

    def __init__(self, kept: Sequence[SortedFile] = ()) -> None:
        """What was kept, of which nothing is in memory."""
        self._kept, self._found = kept, _SCHEMA.empty_table()

    @classmethod
    def known(cls, output: str) -> Self:
        """What was found by earlier runs of an output."""
        kept = []
        for name in storage.list_names(storage.join(output, *_FOLDER)):
            uri = storage.join(output, *_FOLDER, name)
            try:
                kept.append(SortedFile(storage.fetch(uri), uri, "delete it", _SCHEMA.names))
            except NotFoundError:  # another run wrote a longer one
                continue
        return cls(kept)

    def add(self, found: Mapping[str, Equal]) -> None:
        """Take in what was found now."""
        rows = [{"uri": uri, **each._asdict()} for uri, each in sorted(found.items())]
        self._found = _first_of_each([pa.Table.from_pylist(rows, _SCHEMA), self._found]).sort_by("uri")

    def of(self, uris: pa.Array) -> pa.Table:
        """Of each of some shards, in order, the two tags; null where nothing is known."""
        found = _first_of_each([self._found, *(file.of(uris) for file in self._kept)])
        return found.take(pc.index_in(uris, value_set=found["uri"].combine_chunks()))

    def keep(self, output: str, standing: Callable[[pa.Array], pa.Table]) -> None:
        """Keep what still holds in one object; `standing` gives what stands of shards, as `State.of`."""
        folder = storage.join(output, *_FOLDER)
        before = storage.list_names(folder)
        found = [part_of(self._found)] if len(self._found) else []
        with parquet.Appender(_SCHEMA, plain=_SCHEMA.names) as file:
            for parts in side_by_side([found, *(kept.parts() for kept in self._kept)]):
                rows = _first_of_each(part for part in parts if len(part))
                now = standing(rows["uri"].combine_chunks())
                file.append(rows.filter(pc.equal(rows["held"], now["etag"])).sort_by("uri"))
            name = f"{file.finish()}.parquet"
            file.create(storage.join(folder, name))
        for old in before:
            if old != name:
                storage.delete(storage.join(folder, old))


def _first_of_each(tables: Iterable[pa.Table]) -> pa.Table:
    """The rows of all tables, of each shard those of the first that has it."""
    rows = pa.concat_tables(tables).combine_chunks()
    first = rows["uri"].dictionary_encode().combine_chunks()  # of the same length, numbered as they come
    return rows.take(pa.array(np.unique(first.indices.to_numpy(), return_index=True)[1]))
