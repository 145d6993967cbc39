"""Tables come back from their bytes as they were, and reading leaves no thread behind that could end the process."""

import subprocess
import sys

import pyarrow as pa

from bcd_ray.storage.parquet import bytes_of, table_of

_PROGRAM = """
import os
import pyarrow as pa
from bcd_ray.storage.parquet import bytes_of, table_of
data = bytes_of(pa.table({"one": list(range(100_000)), "two": [str(number) for number in range(100_000)]}))
before = len(os.listdir("/proc/self/task"))
assert len(table_of(data)) == 100_000
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_a_table_comes_back() -> None:
    table = pa.table({"name": ["a", None], "values": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))})
    assert table_of(bytes_of(table, compression="zstd")) == table
    assert table_of(bytes_of(table), ["name"]) == table.select(["name"])


def test_reading_starts_no_thread() -> None:
    """One of Arrow's that still holds Python's bytes when the interpreter ends aborts the process."""
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert ended.stdout == "0\n"
