"""The units of a plan: the smallest pieces of work, in order of their shards, gone through in bounded memory."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.archives.parts import Part
from bcd_ray.archives.shards import is_loose
from bcd_ray.ledger.listed import shards_of
from bcd_ray.ledger.roots import Roots
from bcd_ray.ledger.standing import Rows, mask_of
from bcd_ray.storage import StoredObject
from bcd_ray.storage.sorting import Sorter
from bcd_ray.threads import in_chunks

_PART = pa.struct([*((name, pa.int64()) for name in ("begin", "end", "size", "images_before")), ("last", pa.bool_())])
_EARLIER = pa.struct([("rows", pa.int64()), ("scored", pa.int64()), ("passing_failure", pa.bool_())])
PLANNED = pa.schema(
    [
        ("uri", pa.string()),  # printable
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("unit_id", pa.string()),
        ("images", pa.int64()),  # how many a tar or a Parquet shard holds is known once it is read
        ("earlier", _EARLIER),
        ("features", pa.string()),
        ("part", _PART),
        ("undivided", pa.string()),
    ]
)
_AT_A_TIME = 64  # units: of 240 loose images each in the mean


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work: one shard or a part of it, or some loose images in a row."""

    unit_id: str
    shards: tuple[StoredObject, ...]
    features: tuple[str, ...] = ()  # of each shard the run that kept its embeddings; empty where all are to be read
    part: Part | None = None
    undivided: str = ""  # id of the unit that all parts of the shard would be
    earlier: tuple[Rows | None, ...] = ()  # that hold of each shard; empty where there are none

    @property
    def size(self) -> int:
        """Bytes that are to be read."""
        return self.part.size if self.part else sum(shard.size for shard in self.shards)

    @property
    def known_as(self) -> str:
        """What the shards' record calls it: the parts of a shard have one."""
        return self.undivided or self.unit_id


class Place(NamedTuple):
    """Where a unit stands in the table of its plan."""

    unit_id: str
    row: int
    rows: int


class Numbers(NamedTuple):
    """What there is of some units."""

    units: int = 0
    shards: int = 0  # each once, whatever it was divided into
    loose: int = 0  # of these
    size: int = 0  # bytes that are to be read
    earlier_rows: int = 0  # that hold of these shards


class Units:
    """Units in the order of their shards, which can be gone through time and again.

    Those of a large plan are in a temporary file, which goes with this.
    """

    def __init__(self, planned: Callable[[], Iterable[pa.Table]], roots: Roots | None = None) -> None:
        """`planned` gives them as `PLANNED`, in order, each table whole thousands of rows or not."""
        self._planned, self._roots = planned, roots or {}

    @classmethod
    def of(cls, units: Iterable[Unit], roots: Roots | None = None) -> Self:
        """Some units, in order; shards below a root go by another name than their URI."""
        rows = Sorter(PLANNED)
        for some in in_chunks(units, _AT_A_TIME):
            rows.append(_table_of(some))
        return cls(rows.tables, roots)

    def tables(self) -> Iterator[pa.Table]:
        """A row for each shard of a unit, as `PLANNED`, some thousand at a time."""
        return iter(self._planned())

    def __iter__(self) -> Iterator[Unit]:
        rows = chain.from_iterable(_rows(table, self._roots) for table in self.tables())
        for unit_id, group in groupby(rows, key=itemgetter(0)):
            _, shards, features, earlier, parts, undivided = zip(*group, strict=True)
            kept, known = features if features[0] else (), earlier if any(earlier) else ()
            yield Unit(unit_id, shards, kept, Part(**parts[0]) if parts[0] else None, undivided[0] or "", known)

    def __len__(self) -> int:
        return self.numbers.units

    @property
    def to_read(self) -> "Units":
        """Those whose images are to be read."""
        return self._where(lambda table: pc.is_null(table["features"]))

    @property
    def kept(self) -> "Units":
        """Those of which embeddings are kept."""
        return self._where(lambda table: pc.is_valid(table["features"]))

    def without(self, ids: Collection[str]) -> "Units":
        """Those of other ids."""
        these = pa.array(ids, pa.string())
        return self._where(lambda table: pc.invert(pc.is_in(table["unit_id"], these)))

    def _where(self, which: Callable[[pa.Table], pa.ChunkedArray]) -> "Units":
        return Units(lambda: (table.filter(which(table)) for table in self.tables()), self._roots)

    def places(self, chosen: "Units") -> Iterator[Place]:
        """Where those of some of these units stand among all."""
        wanted = iter(chosen.ids())
        here, before = next(wanted, None), 0
        for unit_id, rows in self._runs():
            if unit_id == here:
                yield Place(unit_id, before, rows)
                here = next(wanted, None)
            before += rows

    def ids(self) -> Iterator[str]:
        """Of each unit."""
        return (unit_id for unit_id, _ in self._runs())

    def _runs(self) -> Iterator[tuple[str, int]]:
        """The id of each unit, and how many rows it has."""
        found = (pair for table in self.tables() for pair in _runs(table["unit_id"]))
        for unit_id, pairs in groupby(found, key=itemgetter(0)):
            yield unit_id, sum(rows for _, rows in pairs)

    @cached_property
    def numbers(self) -> Numbers:
        """How much there is of them."""
        found, last = Numbers(), (None, None)
        for table in self.tables():
            if not len(table):
                continue
            new = [_begins(table[name], before) for name, before in zip(("unit_id", "uri"), last, strict=True)]
            last = table["unit_id"][-1].as_py(), table["uri"][-1].as_py()
            shards = table.filter(pa.array(new[1]))
            sizes = pc.coalesce(pc.struct_field(table["part"], "size"), table["size"])
            rows = pc.sum(pc.struct_field(shards["earlier"], "rows")).as_py() or 0
            more = (int(new[0].sum()), len(shards), pc.count(shards["images"]).as_py(), pc.sum(sizes).as_py(), rows)
            found = Numbers(*map(sum, zip(found, more, strict=True)))
        return found


def _begins(column: pa.ChunkedArray, before: str | None) -> npt.NDArray[np.bool_]:
    """Where a value is another than the one before it."""
    column = column.combine_chunks()
    return np.concatenate([[column[0].as_py() != before], mask_of(pc.not_equal(column[1:], column[:-1]))])


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Values that follow each other, and how often."""
    found = pc.run_end_encode(column.combine_chunks())
    ends = found.run_ends.to_numpy()
    return zip(found.values.to_pylist(), np.diff(ends, prepend=0).tolist(), strict=True)


def _table_of(units: Sequence[Unit]) -> pa.Table:
    shards = [shard for unit in units for shard in unit.shards]
    counts = [len(unit.shards) for unit in units]

    def of_each(values: Iterable[Any]) -> list[Any]:
        return list(chain.from_iterable(map(repeat, values, counts)))

    def of_shards(values: Iterable[Sequence[Any]]) -> list[Any]:
        known = zip(values, counts, strict=True)
        return list(chain.from_iterable(each or repeat(None, count) for each, count in known))

    columns = {
        "uri": [storage.printable(shard.name) for shard in shards],
        "size": [shard.size for shard in shards],
        "etag": [shard.etag for shard in shards],
        "unit_id": of_each(unit.unit_id for unit in units),
        "images": of_each(1 if is_loose(unit.shards[0].uri) else None for unit in units),
        "earlier": [one and one._asdict() for one in of_shards(unit.earlier for unit in units)],
        "features": of_shards(unit.features for unit in units),
        "part": of_each(unit.part and unit.part._asdict() for unit in units),
        "undivided": of_each(unit.undivided or None for unit in units),
    }
    return pa.table(columns, schema=PLANNED)


def _rows(table: pa.Table, roots: Roots) -> Iterator[tuple[Any, ...]]:
    """Of each shard its unit, itself, its embeddings, its earlier rows, and which part of what it is."""
    names = ("unit_id", "features", "earlier", "part", "undivided")
    unit_ids, features, earlier, parts, undivided = (_values(table[name]) for name in names)
    held = (one and Rows(**one) for one in earlier)
    return zip(unit_ids, shards_of(table, roots), features, held, parts, undivided, strict=True)


def _values(column: pa.ChunkedArray) -> Iterable[Any]:
    """Mostly there are none, and then it is quick."""
    return repeat(None, len(column)) if column.null_count == len(column) else column.to_pylist()
