"""Large shards: read in parts, they give what they give when they are read whole, whatever is in them."""

import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.looking import parts_of
from bcd_ray.archives.parts import Part
from bcd_ray.archives.shards import Entry, read_shard
from bcd_ray.storage import StoredObject

LIMITS = Limits(max_bytes=3000)
fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Members = list[tuple[str, bytes]]
JPEG = b"\xff\xd8\xff"
NAMES = [*(f"{number}.jpg" for number in range(20)), *(f"{number}.json" for number in range(5))]
NAMES += ["looks/like/none", "of no kind", ".hidden.jpg", "../out.jpg", "folder/", "link.jpg", "n" * 5000 + ".jpg"]
members = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([b"", b"x", JPEG + b"y" * 1500, b"z" * 4000])), max_size=24
)


def tar(given: Members) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in given:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("/") or name == "link.jpg":
                info.type, info.size = (tarfile.DIRTYPE if name.endswith("/") else tarfile.SYMTYPE), 0
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def zipped(given: Members) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in given:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "link.jpg" else 0o100644) << 16
            archive.writestr(info, data)
    return sink.getvalue()


def parquet(given: Members, hugging_face: bool = False) -> bytes:
    names = [None if name.startswith("of") else name for name, _ in given]
    images: list[Any] = [None if name.startswith(".") else data for name, data in given]
    columns: dict[str, Any] = {"image_id": pa.array(names, pa.string()), "image": pa.array(images, pa.binary())}
    if hugging_face:
        both = [{"bytes": data, "path": name} for name, data in zip(names, images, strict=True)]
        columns = {"image": pa.array(both, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    sink = io.BytesIO()
    table = pa.table(columns)
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for start in range(0, len(table), 3):
            writer.write_table(table.slice(start, 3))
            writer.write_table(table.slice(0, 0))
    return sink.getvalue()


def of_hugging_face(given: Members) -> bytes:
    return parquet(given, hugging_face=True)


WRITERS = [("a.tar", tar), ("a.zip", zipped), ("a.parquet", parquet), ("a.parquet", of_hugging_face)]
PLAIN = [(f"{number}.jpg", JPEG + bytes([number]) * 900) for number in range(12)]
kinds = pytest.mark.parametrize(("name", "write"), WRITERS)


def listed(path: Path, data: bytes) -> StoredObject:
    path.write_bytes(data)
    (stored,) = storage.list_objects(str(path))
    return stored


def read(shard: StoredObject, parts: tuple[Part, ...] = ()) -> tuple[list[Entry], Counter[str]]:
    """Entries and what is left out, nothing from behind what cannot be read."""
    entries, left_out = list[Entry](), Counter[str]()
    for part in parts or (None,):
        entries += (found := list(read_shard(shard, LIMITS, left_out, part)))
        assert found, "a part without an image would have no row"
        if isinstance(found[-1].content, Rejected) and found[-1].image_uri == found[-1].shard_uri:
            break
    return entries, left_out


@kinds
def test_parts_are_found_and_each_is_read_alone(tmp_path: Path, name: str, write: Any) -> None:
    shard = listed(tmp_path / name, write(PLAIN))
    parts = parts_of(shard, shard.size // 5)
    assert 2 <= len(parts) <= 5
    assert [part.begin for part in parts[1:]] == [part.end for part in parts[:-1]]
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert read(shard, parts) == read(shard)
    assert sum(part.size for part in parts) <= shard.size


@fuzz
@given(st.sampled_from(WRITERS), members, st.integers(1, 4000))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_parts_give_what_the_whole_gives(tmp_path: Path, kind: Any, given: Members, least: int) -> None:
    shard = listed(tmp_path / kind[0], kind[1](given))
    assert read(shard, parts_of(shard, least)) == read(shard)


@fuzz
@given(
    st.sampled_from([(name, write(PLAIN)) for name, write in WRITERS]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=3),
)
def test_damaged_parts_give_what_the_damaged_whole_gives(
    tmp_path: Path, file: tuple[str, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    name, data = file
    for position, gone, new in edits:
        at = position % len(data)
        data = data[:at] + new + data[at + gone :]
    shard = listed(tmp_path / name, data)
    assert read(shard, parts_of(shard, 1500)) == read(shard)


@kinds
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_shard_that_repeats_a_name_or_is_cut_off_is_read_whole(tmp_path: Path, name: str, write: Any) -> None:
    """An id counts how often a name came before it."""
    assert parts_of(listed(tmp_path / name, write([*PLAIN, PLAIN[0]])), 1000) == ()
    assert parts_of(listed(tmp_path / name, (data := write(PLAIN))[: len(data) // 2]), 1000) == ()


def test_a_tar_of_one_header_for_all_members_or_compressed_is_read_whole(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", pax_headers={"comment": "of all"}) as archive:
        for name, data in PLAIN:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert parts_of(listed(tmp_path / "a.tar", sink.getvalue()), 1000) == ()


def test_a_member_whose_name_is_a_magic_number_begins_a_part(tmp_path: Path) -> None:
    shard = listed(tmp_path / "a.tar", tar([PLAIN[0], ("BZh9.jpg", b"x" * 2000), PLAIN[1]]))
    parts = parts_of(shard, 1000)
    assert len(parts) == 3
    assert read(shard, parts) == read(shard)


def test_on_a_store_what_takes_a_request_for_each_member_is_read_whole(s3: str) -> None:
    for number, (name, write) in enumerate(WRITERS):
        uri = f"{s3}/parts/{number}-{name}"
        storage.write_bytes(uri, write([(f"{number}.jpg", bytes(100)) for number in range(20)]))
        (shard,) = storage.list_objects(uri)
        parts = parts_of(shard, 200)
        assert bool(parts) == (name != "a.tar")
        assert read(shard, parts) == read(shard)
