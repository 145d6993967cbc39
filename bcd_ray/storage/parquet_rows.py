"""Rows of large Parquet objects by their numbers, in bounded memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.storage import parquet

_GROUPS_KEPT = 4


class ParquetRows:
    """Rows of a Parquet object by their numbers, for a `with` block; several threads may ask for them.

    The row groups read last are kept: who goes on from there, or beside it, finds them.

    Attributes:
        count: how many rows there are.
        metadata: what the file says of itself.

    Raises:
        JobError: the object is damaged, or no Parquet file; with the remedy.
    """

    def __init__(self, uri: str, remedy: str, columns: Sequence[str]) -> None:
        self._uri, self._remedy, self._columns = uri, remedy, list(columns)
        self._one_at_a_time = Lock()
        self._read = lru_cache(_GROUPS_KEPT)(self._read_group)

    def __enter__(self) -> Self:
        (listed,) = storage.list_objects(self._uri)
        with ExitStack() as stack:
            stream = stack.enter_context(storage.open_stream(listed))
            with parquet.damage_told(self._uri, self._remedy):
                self._file = pq.ParquetFile(stream)
            self._stack = stack.pop_all()
        found = self._file.metadata
        self.count, self.metadata = found.num_rows, dict(found.metadata or {})
        groups = (found.row_group(number).num_rows for number in range(found.num_row_groups))
        self._starts = [0, *accumulate(groups)]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def slice(self, start: int, stop: int) -> pa.Table:
        """The rows from `start` to before `stop`: one or more."""
        first, last = bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop)
        with parquet.damage_told(self._uri, self._remedy), self._one_at_a_time:
            groups = [self._read(number) for number in range(first, last)]
        return pa.concat_tables(groups).slice(start - self._starts[first], stop - start)

    def _read_group(self, number: int) -> pa.Table:
        return self._file.read_row_group(number, self._columns, use_threads=False)
