"""Packing holds one image or one row group, whatever a shard holds; an image too large to hold is named."""

import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bcd_ray import storage
from bcd_ray.archives import packing
from bcd_ray.archives.images import Limits
from bcd_ray.archives.shards import read_shard

MB = 1 << 20


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_is_written_in_bounded_memory(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_GROUP_BYTES", 4 * MB)
    (tmp_path / "loose/Pre").mkdir(parents=True)
    for number in range(48):
        (tmp_path / f"loose/Pre/{number:02}.jpg").write_bytes(bytes([number]) * 2 * MB)
    with (tmp_path / "loose/Pre/large.tif").open("wb") as file:
        file.truncate((1 << 30) + 1)
    sources, _ = packing._list_sources(str(tmp_path / "loose"))
    uri = str(tmp_path / f"shards/a.{kind}")
    tracemalloc.start()
    try:
        written = packing._write_shard({"uri": uri, "sources": sources})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * MB  # of 96
    assert written["images"] == 48
    assert [failure.partition(": ")[0] for failure in written["failures"]] == [f"{tmp_path}/loose/Pre/large.tif"]
    entries = list(read_shard(next(iter(storage.list_objects(uri))), Limits()))
    assert [entry.content for entry in entries] == [bytes([number]) * 2 * MB for number in range(48)]
    if kind == "parquet":
        assert pq.read_metadata(uri).num_row_groups == 24
