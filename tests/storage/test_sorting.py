"""Tables larger than memory: whatever the order of arrival, they come in order, and any part of them is found."""

import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcd_ray.errors import JobError
from bcd_ray.storage import sorting
from bcd_ray.storage.sorting import SortedFile, Sorter, side_by_side

SCHEMA = pa.schema([("key", pa.string()), ("number", pa.int64())])
keys = st.lists(st.sampled_from(["", "a", "a-b", "a/x", "b", "é", "\U00010000", "\uffff"]), max_size=12)


def table(some: list[str], start: int = 0) -> pa.Table:
    return pa.table([some, list(range(start, start + len(some)))], schema=SCHEMA)


def file_of(some: list[str], rows: int) -> SortedFile:
    sink = io.BytesIO()
    pq.write_table(table(some), sink, row_group_size=rows)
    return SortedFile(sink, "somewhere", "restore it")


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(keys, max_size=5), spilled=st.sampled_from([1, 1 << 20]))
def test_rows_come_in_order_and_those_of_a_key_as_they_were_added(parts: list[list[str]], spilled: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_SPILLED_BYTES", spilled)
        patch.setattr(sorting, "GROUP_ROWS", 3)
        sorter, rows = Sorter(SCHEMA), list[tuple[str, int]]()
        for part in parts:
            sorter.append(table(part, len(rows)))
            rows += zip(part, range(len(rows), len(rows) + len(part)), strict=True)
        found = [tuple(row.values()) for part in sorter.tables() for row in part.to_pylist()]
        assert found == sorted(rows, key=lambda row: row[0])
        assert sorter.rows == len(rows)


@settings(max_examples=60, deadline=None)
@given(some=keys, wanted=keys, rows=st.integers(1, 4), in_order=st.booleans())
def test_rows_of_some_keys_are_found_also_where_the_file_is_in_no_order(
    some: list[str], wanted: list[str], rows: int, in_order: bool
) -> None:
    file = file_of(sorted(some) if in_order else some, rows)
    found = file.of(pa.array(sorted(set(wanted)), pa.string()))
    assert Counter(found["key"].to_pylist()) == Counter(key for key in some if key in wanted)
    since = [key for part in file.parts("b") for key in part.read()["key"].to_pylist()]
    assert [key for key in since if key >= "b"] == sorted(key for key in some if key >= "b")


@settings(max_examples=60, deadline=None)
@given(sources=st.lists(keys, max_size=4), rows=st.integers(1, 4))
def test_side_by_side_each_range_has_all_rows_of_its_keys(sources: list[list[str]], rows: int) -> None:
    ends, found = list[str](), [Counter[str]() for _ in sources]
    for parts in side_by_side([file_of(sorted(source), rows).parts() for source in sources]):
        seen = [part["key"].to_pylist() if len(part) else [] for part in parts]
        assert any(seen)
        assert not ends or all(key > ends[-1] for each in seen for key in each)
        ends.append(max(key for each in seen for key in each))
        for count, each in zip(found, seen, strict=True):
            count.update(each)
    assert found == [Counter(source) for source in sources]


def test_a_damaged_file_is_told_with_its_remedy() -> None:
    with pytest.raises(JobError, match=r"somewhere is damaged .*: restore it"):
        SortedFile(io.BytesIO(b"PAR1, cut off"), "somewhere", "restore it")
