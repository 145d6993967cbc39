"""Tables in order of their first column, a text, and larger than memory: sorted, walked side by side, looked into.

Texts are in the order of their bytes in UTF-8, which is Python's own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray.storage import parquet

_NO_GROUP = (-1, pa.table({}))
_SPILLED_BYTES = 64 << 20  # are sorted in memory
GROUP_ROWS = 32_768  # of files that are looked into: to find one row is to read so many


class Part(NamedTuple):
    """Rows in order that follow each other, read when they are asked for."""

    first: str  # key
    last: str
    read: Callable[[], pa.Table]

    def changed(self, change: Callable[[pa.Table], pa.Table]) -> "Part":
        """The same keys, of other columns."""
        return self._replace(read=lambda: change(self.read()))


def part_of(rows: pa.Table) -> Part:
    """Some rows in order, at least one."""
    return Part(rows[0][0].as_py(), rows[0][-1].as_py(), lambda: rows)


class SortedFile:
    """The rows of a Parquet file in order of its first column; what is not in order in the file is sorted.

    Attributes:
        rows: how many there are.
        metadata: what the file says of itself.

    Raises:
        JobError: the file is damaged; with its name and the remedy.
    """

    def __init__(self, file: BinaryIO, uri: str, remedy: str, columns: Sequence[str] | None = None) -> None:
        """Of all columns, or of those of some that there are, by the first of them."""
        self._uri, self._remedy, self._last = uri, remedy, _NO_GROUP
        with parquet.damage_told(uri, remedy):
            self._file = pq.ParquetFile(file)
            there = self._file.schema_arrow.names
            self._columns = there if columns is None else [name for name in columns if name in there]
            self._nothing = self._file.schema_arrow.remove_metadata().empty_table().select(self._columns)
            self.metadata: dict[bytes, bytes] = dict(self._file.metadata.metadata or {})
            self.rows: int = self._file.metadata.num_rows
            groups = range(self._file.num_row_groups)
            self._numbers = [number for number in groups if self._file.metadata.row_group(number).num_rows]
            ends = [self._ends(number) for number in self._numbers]
            self._firsts, self._lasts = ([each[place] for each in ends] for place in (0, 1))
            self._whole: pa.Table | None = None
            if any(first < last for last, first in zip(self._lasts[:-1], self._firsts[1:], strict=True)):
                self._whole = in_order(self._file.read(self._columns, use_threads=False))

    @classmethod
    def temporary(cls, file: parquet.Appender) -> Self:
        """One that was written just now, and finished."""
        return cls(file.finished, "a temporary file", "look after the disk of TMPDIR")

    def parts(self, since: str = "") -> Iterator[Part]:
        """All rows; row groups that end before a key are left out."""
        if self._whole is not None:
            yield part_of(self._whole)
            return
        for place in range(bisect_left(self._lasts, since), len(self._numbers)):
            read = partial(self._read, self._numbers[place])
            yield Part(self._firsts[place], self._lasts[place], read)

    def of(self, keys: pa.Array) -> pa.Table:
        """The rows of some keys, which are in order; row groups that hold none are not read."""
        if not len(keys):
            return self._nothing
        if self._whole is not None:
            return _of(self._whole, keys)
        found, kept = [], _NO_GROUP
        begin, end = bisect_left(self._lasts, keys[0].as_py()), bisect_right(self._firsts, keys[-1].as_py())
        for place in range(begin, end):
            start, stop = _place(keys, self._firsts[place]), _place(keys, self._lasts[place], after=True)
            if start < stop:
                rows = self._read(self._numbers[place])
                found.append(_of(rows, keys[start:stop]))
                # Who goes on in order begins in the group where it ended.
                kept = (self._numbers[place], rows) if stop == len(keys) else _NO_GROUP
        self._last = kept
        return pa.concat_tables(found).combine_chunks() if found else self._nothing

    def _ends(self, number: int) -> tuple[str, str]:
        """The first and the last key of a row group."""
        column = self._file.metadata.row_group(number).column(0)
        told = column.statistics if column.path_in_schema == self._columns[0] else None
        if told is not None and told.has_min_max:
            return told.min, told.max
        keys = self._read(number)[0]  # of names of several thousand letters nothing is told
        return keys[0].as_py(), keys[-1].as_py()

    def _read(self, number: int) -> pa.Table:
        if self._last[0] == number:
            return self._last[1]
        with parquet.damage_told(self._uri, self._remedy):
            rows = self._file.read_row_group(number, self._columns, use_threads=False)
            return in_order(rows.replace_schema_metadata(None))


class Sorter:
    """Puts rows in order in bounded memory, by temporary files that go with this.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, schema: pa.Schema) -> None:
        """Of tables of this schema, by its first column."""
        self._schema, self._files = schema, list[SortedFile]()
        self._waiting, self._waiting_bytes, self.rows = list[pa.Table](), 0, 0

    def append(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        self.rows += len(table)
        if self._waiting_bytes >= _SPILLED_BYTES:
            self._spill()

    def tables(self) -> Iterator[pa.Table]:
        """All rows in order; those of one key stay together, in the order in which they were added."""
        sources = [*(file.parts() for file in self._files), map(part_of, _slices(self._sorted()))]
        for parts in side_by_side(sources):
            filled = [part for part in parts if len(part)]
            yield filled[0] if len(filled) == 1 else in_order(pa.concat_tables(filled))

    def _sorted(self) -> pa.Table:
        if len(self._waiting) > 1:
            self._waiting = [in_order(pa.concat_tables(self._waiting))]
        return in_order(self._waiting[0]) if self._waiting else self._schema.empty_table()

    def parts(self) -> Iterator[Part]:
        """The same, for `side_by_side`."""
        return map(part_of, self.tables())

    def _spill(self) -> None:
        file = parquet.Appender(self._schema, GROUP_ROWS, plain=self._schema.names)
        for rows in _slices(self._sorted()):
            file.append(rows)
        file.finish()
        self._files.append(SortedFile.temporary(file))
        self._waiting, self._waiting_bytes = [], 0


def side_by_side(sources: Sequence[Iterable[Part]]) -> Iterator[list[pa.Table]]:
    """Rows in order, by ranges of keys that follow each other: of each source what it has of a range.

    All rows of a key are in one range. Only what is in the range, or begins before its end, is in memory.
    """
    cursors = [_Cursor(iter(source)) for source in sources]
    while ends := [cursor.end for cursor in cursors if cursor.end is not None]:
        stop = min(ends)
        yield [cursor.take(stop) for cursor in cursors]


class _Cursor:
    """What is left of a source."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self._parts, self._nothing = parts, pa.table({})
        self._next()

    def _next(self) -> None:
        self._head: pa.Table | None = None
        self._part = next(self._parts, None)
        self.end = self._part.last if self._part else None

    def take(self, stop: str) -> pa.Table:
        """The rows up to a key."""
        taken = []
        while self._part and self._part.first <= stop:
            rows = self._part.read() if self._head is None else self._head
            count = len(rows) if self._part.last <= stop else _place(rows[0], stop, after=True)
            taken.append(rows.slice(0, count))
            if count == len(rows):
                self._next()
            else:
                self._head = rows.slice(count)
                self._part = self._part._replace(first=self._head[0][0].as_py())
            self._nothing = rows.schema.empty_table()  # a slice would hold all of them
        return pa.concat_tables(taken) if taken else self._nothing


def _place(keys: Any, key: str, after: bool = False) -> int:
    """Where a key stands in a column in order, or would; with `after` the place behind it."""
    bisect = bisect_right if after else bisect_left
    return bisect(range(len(keys)), key, key=lambda place: keys[place].as_py())


def in_order(rows: pa.Table) -> pa.Table:
    """The rows sorted by the first column; those of one key stay as they are to each other."""
    rows = rows.combine_chunks()
    keys = rows[0]
    if len(rows) < 2 or pc.all(pc.less_equal(keys[:-1], keys[1:])).as_py():
        return rows
    return rows.take(pc.sort_indices(keys)).combine_chunks()  # stable


def _slices(rows: pa.Table) -> Iterator[pa.Table]:
    return (rows.slice(start, GROUP_ROWS) for start in range(0, len(rows), GROUP_ROWS))


def _of(rows: pa.Table, keys: pa.Array) -> pa.Table:
    return rows.filter(pc.is_in(rows[0], value_set=keys))
