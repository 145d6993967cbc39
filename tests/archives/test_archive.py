"""Archives: every image of a shard gives one entry, whatever is wrong with it or with the shard."""

import gzip
import io
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bcd_ray import storage
from bcd_ray.archives import helpers, parquets
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.shards import Entry, kind_of, read_shard, read_shards
from bcd_ray.errors import StorageError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.ledger.schema import STATUSES
from bcd_ray.storage import StoredObject
from bcd_ray.threads import map_ahead

LIMITS = Limits()
Member = tuple[str, bytes] | tarfile.TarInfo
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def smear(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(draw_smear(seed % 4, seed, size=32 + 8 * seed)).save(sink, "JPEG")
    return sink.getvalue()


IMAGES = {f"smears/{number}.jpg": smear(number) for number in range(6)}
SIDECARS: list[Member] = [("smears/2.json", b"{}"), ("smears/2.cls", b"1"), ("notes.txt", b"x" * 700)]


def tar(members: list[Member], form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


PLAIN = tar(list(IMAGES.items()))
FOLDER = special("smears/dir.jpg", tarfile.DIRTYPE)
MIXED = tar([*list(IMAGES.items())[:3], *SIDECARS, FOLDER, *list(IMAGES.items())[3:]])


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def listed(path: Path) -> StoredObject:
    (stored,) = storage.list_objects(str(path))
    return stored


def read(path: Path, data: bytes, limits: Limits = LIMITS) -> list[Entry]:
    """Write a shard, list it and read it; what holds for every reading is checked here."""
    path.write_bytes(data)
    shard = listed(path)
    entries = list(read_shard(shard, limits))
    ids = [entry.image_id for entry in entries]
    assert len(set(ids)) == len(ids)
    for entry in entries:
        assert len(entry.image_id) == 32
        assert set(entry.image_id) <= set("0123456789abcdef")
        assert (entry.shard_uri, entry.shard_etag) == (shard.uri, shard.etag)
        assert entry.image_uri.startswith(str(path))
        pa.array([entry.image_uri], pa.string())  # as it goes into a row
        if isinstance(entry.content, Rejected):
            assert entry.content.status in STATUSES
            assert len(entry.content.error.splitlines()) == 1
    return entries


def name_of(entry: Entry) -> str:
    return entry.image_uri.removeprefix(entry.shard_uri).removeprefix("#")


def contents(entries: list[Entry]) -> dict[str, bytes]:
    """The images by name, of a shard that repeats none."""
    found = [(name_of(entry), entry.content) for entry in entries if isinstance(entry.content, bytes)]
    assert len(dict(found)) == len(found)
    return dict(found)


def statuses(entries: list[Entry]) -> list[str]:
    return [entry.content.status for entry in entries if isinstance(entry.content, Rejected)]


def status_of(entries: list[Entry], name: str) -> str:
    (status,) = [e.content.status for e in entries if name_of(e) == name and isinstance(e.content, Rejected)]
    return status


@pytest.mark.parametrize("name", ["a.tar", "A.TAR", "a.tar.gz", "a.tgz", "packed-but-not-named.tar"])
def test_a_tar_gives_every_image_in_order_byte_for_byte(tmp_path: Path, name: str) -> None:
    data = PLAIN if name.lower() == "a.tar" else gzip.compress(PLAIN)
    entries = read(tmp_path / name, data)
    assert contents(entries) == IMAGES
    assert list(map(name_of, entries)) == list(IMAGES)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_tar_format(tmp_path: Path, form: int) -> None:
    names = ["d" * 90 + "/" + "n" * 80 + ".jpg", "Präparat 1/血液 #3.jpg"]
    entries = read(tmp_path / "a.tar", tar([(name, IMAGES["smears/1.jpg"]) for name in names], form))
    assert list(map(name_of, entries)) == names
    assert not statuses(entries)


def test_names_that_are_no_utf8_or_hold_line_breaks_fit_into_a_row(tmp_path: Path) -> None:
    latin = "caf\udce9.jpg"  # as tarfile reads the byte E9
    entries = read(tmp_path / "a.tar", tar([(latin, b"1"), ("two\nlines.jpg", b"2")], tarfile.GNU_FORMAT))
    assert [entry.content for entry in entries] == [b"1", b"2"]


def test_folders_and_sidecars_are_no_images(tmp_path: Path) -> None:
    assert contents(read(tmp_path / "a.tar", MIXED)) == IMAGES


def test_a_shard_without_images_has_one_entry_that_says_so(tmp_path: Path) -> None:
    for members in ([], SIDECARS):
        assert statuses(read(tmp_path / "a.tar", tar(members))) == ["empty_shard"]
        assert statuses(read(tmp_path / "a.tar.gz", gzip.compress(tar(members)))) == ["empty_shard"]
    no_rows = {"image_id": pa.array([], "string"), "image": pa.array([], "binary")}
    assert statuses(read(tmp_path / "a.parquet", parquet(no_rows))) == ["empty_shard"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.parquet"])
def test_a_file_without_bytes_is_unreadable(tmp_path: Path, name: str) -> None:
    assert statuses(read(tmp_path / name, b"")) == ["unreadable_shard"]


def test_a_name_that_comes_twice_gives_two_entries(tmp_path: Path) -> None:
    entries = read(tmp_path / "a.tar", tar([("a.jpg", b"first"), ("b.jpg", b"other"), ("a.jpg", b"second")]))
    assert [entry.content for entry in entries] == [b"first", b"other", b"second"]
    assert len({entry.image_id for entry in entries}) == 3


@pytest.mark.parametrize(
    "member",
    [
        special("bad.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("bad.jpg", tarfile.LNKTYPE, "smears/0.jpg"),
        special("bad.jpg", tarfile.CHRTYPE),
        special("bad.jpg", tarfile.BLKTYPE),
        special("bad.jpg", tarfile.FIFOTYPE),
        ("/bad.jpg", b"x"),
        ("../bad.jpg", b"x"),
        ("smears/../../bad.jpg", b"x"),
    ],
    ids=["symlink", "hardlink", "character", "block", "fifo", "absolute", "parent", "parent-inside"],
)
def test_unsafe_members_are_told_and_leave_the_others_alone(tmp_path: Path, member: Member) -> None:
    first, *others = IMAGES.items()
    entries = read(tmp_path / "a.tar", tar([first, member, *others]))
    assert contents(entries) == IMAGES
    name = member.name if isinstance(member, tarfile.TarInfo) else member[0]
    assert status_of(entries, name) == "unsafe_member"
    assert os.listdir(tmp_path) == ["a.tar"]  # nothing is extracted


def test_two_dots_inside_a_name_are_harmless(tmp_path: Path) -> None:
    names = ["a..jpg", "a..b/b.jpg", "./c.jpg", "d../e.jpg"]
    assert list(contents(read(tmp_path / "a.tar", tar([(name, b"x") for name in names])))) == names


def test_a_member_over_the_bound_is_told_and_the_next_is_read(tmp_path: Path) -> None:
    bound = max(map(len, IMAGES.values()))
    entries = read(tmp_path / "a.tar", tar([("big.jpg", b"x" * (bound + 1)), *IMAGES.items()]), Limits(bound))
    assert contents(entries) == IMAGES
    assert status_of(entries, "big.jpg") == "too_large"


def bomb(header: tarfile.TarInfo, megabytes: int) -> bytes:
    """A gzip file with a member of zeros, and a sound tar after it."""
    header.size = megabytes << 20
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="w") as packed:
        packed.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(megabytes):
            packed.write(bytes(1 << 20))
        packed.write(PLAIN)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (tarfile.TarInfo("bomb.jpg"), ["too_large"]),
        (special("pax", tarfile.XHDTYPE), ["unreadable_shard"]),
        (special("pax", tarfile.XGLTYPE), ["unreadable_shard"]),
        (special("././@LongLink", tarfile.GNUTYPE_LONGNAME), ["unreadable_shard"]),
        (special("././@LongLink", tarfile.GNUTYPE_LONGLINK), ["unreadable_shard"]),
    ],
    ids=["image", "pax-header", "global-pax-header", "long-name", "long-link"],
)
def test_a_bomb_takes_no_memory(tmp_path: Path, header: tarfile.TarInfo, expected: list[str]) -> None:
    data = bomb(header, megabytes=64)
    assert len(data) < 100_000
    tracemalloc.start()
    try:
        entries = read(tmp_path / "a.tar.gz", data, Limits(max_bytes=1 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert statuses(entries) == expected
    assert contents(entries) == (IMAGES if expected == ["too_large"] else {})


def test_headers_that_announce_each_other_for_ever_are_unreadable(tmp_path: Path) -> None:
    header = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 4
    chain = (header.tobuf(tarfile.GNU_FORMAT) + b"name".ljust(512, b"\0")) * 2000
    assert statuses(read(tmp_path / "a.tar", chain + PLAIN)) == ["unreadable_shard"]


def test_a_map_of_holes_without_end_is_unreadable(tmp_path: Path) -> None:
    header = special("holes.jpg", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT)
    more = bytearray((b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7))  # 21 holes, and that more follow
    first = bytearray(header[:512])
    first[386:482], first[482] = b"00000000001\0" * 8, 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    entries = read(tmp_path / "a.tar", bytes(first) + bytes(more) * 3000 + PLAIN)
    assert statuses(entries) == ["unreadable_shard"]
    assert "headers of one of its members are far too long" in getattr(entries[0].content, "error", "")


def test_global_headers_without_end_are_unreadable(tmp_path: Path) -> None:
    headers = [tarfile.TarInfo.create_pax_global_header({f"comment.{n}": "x" * (600 << 10)}) for n in range(3)]
    images = [tarfile.TarInfo(f"{number}.jpg").tobuf() for number in range(3)]
    data = b"".join(header + image for header, image in zip(headers, images, strict=True)) + PLAIN
    entries = read(tmp_path / "a.tar", data)
    assert [entry.content for entry in entries[:-1]] == [b""]
    assert "its global headers are far too long" in getattr(entries[-1].content, "error", "")


LAST = members_of(MIXED)[-1]
END = LAST.offset_data + -(-LAST.size // 512) * 512  # where the end marker begins


def check_cut(path: Path, cut: int) -> None:
    """A tar cut off gives the images before the cut, under their ids, and one entry for the rest."""
    whole = read(path, MIXED)
    entries = read(path, MIXED[:cut])
    before = sum(m.name in IMAGES and m.offset_data + m.size <= cut for m in members_of(MIXED))
    for entry, expected in zip(entries[:before], whole[:before], strict=True):
        assert entry.image_id == expected.image_id
        assert entry.content == expected.content
    if cut >= END + 512:  # only padding is gone
        assert len(entries) == before == len(whole)
    else:
        assert len(entries) == before + 1
        assert statuses(entries) == ["unreadable_shard"]
        assert f"{before} images" in getattr(entries[-1].content, "error", "")


@fuzz
@given(cut=st.integers(0, len(MIXED) - 1))
def test_a_tar_cut_off_anywhere_keeps_what_comes_before(tmp_path: Path, cut: int) -> None:
    check_cut(tmp_path / "a.tar", cut)


def test_a_tar_cut_off_between_members_is_noticed(tmp_path: Path) -> None:
    """There is nothing odd at such a place but the missing end marker."""
    for member in members_of(MIXED):
        check_cut(tmp_path / "a.tar", member.offset)
        check_cut(tmp_path / "a.tar", member.offset_data)
    for cut in (END - 1, END, END + 1, END + 511, END + 512, END + 1023, END + 1024):
        check_cut(tmp_path / "a.tar", cut)


PACKED = gzip.compress(MIXED)


@fuzz
@given(cut=st.integers(0, len(PACKED) - 1))
def test_a_compressed_tar_cut_off_anywhere_is_noticed(tmp_path: Path, cut: int) -> None:
    entries = read(tmp_path / "a.tar.gz", PACKED[:cut])
    assert list(contents(entries).items()) == list(IMAGES.items())[: len(entries) - 1]
    assert statuses(entries) == ["unreadable_shard"]


@fuzz
@given(st.sampled_from(members_of(PLAIN)), st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_ends_the_tar_there(tmp_path: Path, member: tarfile.TarInfo, position: int, mask: int) -> None:
    data = bytearray(PLAIN)
    data[member.offset + position] ^= mask
    entries = read(tmp_path / "a.tar", bytes(data))
    found = contents(entries)
    if statuses(entries):
        assert statuses(entries) == ["unreadable_shard"]
        before = list(IMAGES).index(member.name)
        assert list(found.items()) == list(IMAGES.items())[:before]
    else:  # in the spare bytes of the checksum field
        assert found == IMAGES
        assert 148 <= position < 156


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_zeros_in_the_middle_do_not_pass_for_the_end(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """As a copy onto a full disk leaves them: tarfile takes a block of zeros for the end of the archive."""
    member = members_of(PLAIN)[3]
    data = PLAIN[: member.offset] + bytes(512) + PLAIN[member.offset_data :]
    entries = read(tmp_path / ("a.tar" if pack is bytes else "a.tar.gz"), pack(data))
    assert contents(entries) == dict(list(IMAGES.items())[:3])
    assert statuses(entries) == ["unreadable_shard"]


def test_a_second_tar_appended_to_the_first_is_not_lost_in_silence(tmp_path: Path) -> None:
    entries = read(tmp_path / "a.tar", PLAIN + tar([("more.jpg", b"x")]))
    assert contents(entries) == IMAGES
    assert statuses(entries) == ["unreadable_shard"]


def test_any_amount_of_zeros_may_follow_the_end(tmp_path: Path) -> None:
    entries = read(tmp_path / "a.tar", PLAIN + bytes(3 << 20))
    assert contents(entries) == IMAGES
    assert not statuses(entries)


def test_gzip_files_of_several_parts_are_read_whole(tmp_path: Path) -> None:
    """As parallel compressors write them."""
    half = len(PLAIN) // 2
    entries = read(tmp_path / "a.tar.gz", gzip.compress(PLAIN[:half]) + gzip.compress(PLAIN[half:]))
    assert contents(entries) == IMAGES
    assert not statuses(entries)


STORED = gzip.compress(PLAIN, 0)  # a flip in stored bytes decompresses well: only the checksum tells


@fuzz
@given(st.sampled_from([STORED, gzip.compress(PLAIN)]), st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_flip_in_a_compressed_tar_never_passes_unnoticed(
    tmp_path: Path, data: bytes, position: int, mask: int
) -> None:
    flipped = bytearray(data)
    flipped[position % len(data)] ^= mask
    entries = read(tmp_path / "a.tar.gz", bytes(flipped))
    if not statuses(entries):
        assert contents(entries) == IMAGES


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


COLUMNS = {"image_id": list(IMAGES), "image": list(IMAGES.values())}


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zstd", "row_group_size": 2}, {"use_dictionary": False, "compression": "none"}],
)
def test_parquet_gives_every_image_in_order(tmp_path: Path, options: dict[str, Any]) -> None:
    columns = {"label": ["benign"] * len(IMAGES), **COLUMNS, "number": range(len(IMAGES))}
    entries = read(tmp_path / "a.parquet", parquet(columns, **options))
    assert contents(entries) == IMAGES
    assert list(map(name_of, entries)) == list(IMAGES)


def test_parquet_of_more_rows_than_a_batch_gives_each_once(tmp_path: Path) -> None:
    images = {f"{number:03}": number.to_bytes(2, "big") for number in range(300)}
    data = parquet({"image_id": list(images), "image": list(images.values())}, row_group_size=70)
    assert contents(read(tmp_path / "a.parquet", data)) == images


@pytest.mark.parametrize("kills", [1, 2])
def test_a_reader_of_parquet_that_is_killed_from_outside_says_nothing_of_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    images = {f"{number}": bytes([number]) * (1 << 20) for number in range(8)}  # more than a pipe holds
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet({"image_id": list(images), "image": list(images.values())}))
    begun, real = list[helpers.Helper](), parquets._helper
    monkeypatch.setattr(parquets, "_helper", lambda limits: begun.append(real(limits)) or begun[-1])
    found = dict[str, Any]()
    for number, (name, data) in enumerate(reading := parquets.read_parquet(listed(path), LIMITS)):
        found[name] = data
        if number < kills:
            begun[-1].process.kill()
        if number + 1 == kills == 2:
            break
    if kills == 2:
        with pytest.raises(StorageError, match="killed from outside"):
            list(reading)
    else:
        assert found == images
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("id_type", "image_type"),
    [
        (pa.large_string(), pa.large_binary()),
        (pa.string_view(), pa.binary_view()),
        (pa.dictionary(pa.int32(), pa.string()), pa.binary()),
    ],
    ids=str,
)
def test_other_layouts_of_text_and_bytes_are_read(
    tmp_path: Path, id_type: pa.DataType, image_type: pa.DataType
) -> None:
    columns = {
        "image_id": pa.array(list(IMAGES)).cast(id_type),
        "image": pa.array(list(IMAGES.values())).cast(image_type),
    }
    assert contents(read(tmp_path / "a.parquet", parquet(columns))) == IMAGES


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"image_id": ["a"]}, "image (binary)"),
        ({"image": [b"x"]}, "image_id (string)"),
        ({"name": ["a"], "data": [b"x"]}, "name (string)"),
        ({"image_id": [1], "image": [b"x"]}, "image_id (int64)"),
        ({"image_id": ["a"], "image": ["x"]}, "image (string)"),
        ({"image_id": [["a"]], "image": [b"x"]}, "image_id (list"),
        ({"image_id": ["a"], "image": [[b"x"]]}, "image (list"),
        ({"image_id": ["a"], "image": [{"bytes": b"x", "part": "a"}]}, "image (struct"),
    ],
)
def test_parquet_without_the_columns_says_what_it_has(
    tmp_path: Path, columns: dict[str, list[Any]], named: str
) -> None:
    (entry,) = read(tmp_path / "a.parquet", parquet(columns))
    assert isinstance(entry.content, Rejected)
    assert entry.content.status == "unreadable_shard"
    assert named in entry.content.error


def test_parquet_nulls_and_repeated_ids_keep_their_rows(tmp_path: Path) -> None:
    ids, images = ["a", "a", None, None, "", "b"], [b"1", b"2", b"3", b"4", b"5", None]
    entries = read(tmp_path / "a.parquet", parquet({"image_id": ids, "image": images}))
    assert [entry.content for entry in entries] == [b"1", b"2", b"3", b"4", b"5", b""]


def test_parquet_images_over_the_bound_are_told(tmp_path: Path) -> None:
    data = parquet({"image_id": ["a", "b", "c"], "image": [b"12", b"123", b"12"]})
    entries = read(tmp_path / "a.parquet", data, Limits(max_bytes=2))
    assert status_of(entries, "b") == "too_large"
    assert list(contents(entries)) == ["a", "c"]


TABLE = parquet(COLUMNS, row_group_size=2)


@fuzz
@given(cut=st.integers(0, len(TABLE) - 1))
def test_parquet_cut_off_anywhere_is_unreadable(tmp_path: Path, cut: int) -> None:
    """Its footer, without which there is nothing to read, comes last."""
    assert statuses(read(tmp_path / "a.parquet", TABLE[:cut])) == ["unreadable_shard"]


def test_parquet_damaged_in_its_data_keeps_the_rows_before(tmp_path: Path) -> None:
    data = bytearray(parquet(COLUMNS, row_group_size=1, compression="zstd"))
    group = pq.read_metadata(io.BytesIO(data)).row_group(3).column(1)
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    entries = read(tmp_path / "a.parquet", bytes(data))
    found = contents(entries)
    assert list(found.items()) == list(IMAGES.items())[: len(found)]
    assert statuses(entries) == ["unreadable_shard"]


def test_loose_images_are_read_whatever_their_names(tmp_path: Path) -> None:
    names = ["plain.jpg", "with space.JPEG", "a#b.png", "血液 é.tif", "deep/er/100%.bmp", "'quoted\".jpg"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes([number]))
    entries = list(read_shards(storage.list_objects(str(tmp_path)), LIMITS))
    assert {entry.image_uri: entry.content for entry in entries} == {
        str(tmp_path / name): bytes([number]) for number, name in enumerate(names)
    }
    assert all(entry.shard_uri == entry.image_uri for entry in entries)


def test_what_is_wrong_with_loose_images_is_told(tmp_path: Path) -> None:
    for name in ("fine.jpg", "gone.jpg", "rewritten.jpg", "folder.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 1 << 40)  # a hole of 1 TiB: whoever reads it, ends here
    shards = list(storage.list_objects(str(tmp_path)))
    (tmp_path / "gone.jpg").unlink()
    (tmp_path / "rewritten.jpg").write_bytes(b"other")
    (tmp_path / "folder.jpg").unlink()
    (tmp_path / "folder.jpg").mkdir()
    found = {Path(entry.image_uri).name: entry.content for entry in read_shards(shards, LIMITS)}
    assert found.pop("fine.jpg") == b"x"
    assert {name: content.status for name, content in found.items() if isinstance(content, Rejected)} == {
        "gone.jpg": "missing",
        "link.jpg": "missing",
        "rewritten.jpg": "changed",
        "folder.jpg": "missing",
        "huge.jpg": "too_large",
    }


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_shard_that_is_gone_or_changed_has_one_entry_that_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PLAIN if name == "a.tar" else TABLE)
    shard = listed(path)
    path.write_bytes(path.read_bytes() + bytes(512))
    assert statuses(list(read_shard(shard, LIMITS))) == ["changed"]
    path.unlink()
    assert statuses(list(read_shard(shard, LIMITS))) == ["missing"]


def write_mixed_archive(folder: Path) -> list[StoredObject]:
    (folder / "a.tar").write_bytes(MIXED)
    (folder / "b.jpg").write_bytes(b"loose b")
    (folder / "c.parquet").write_bytes(TABLE)
    (folder / "d.tar.gz").write_bytes(PACKED[:-500])
    (folder / "e.png").write_bytes(b"loose e")
    (folder / "f.tar").write_bytes(tar([("smears/0.jpg", b"1"), ("smears/0.jpg", b"2")]))
    return list(storage.list_objects(str(folder)))


def test_shards_of_all_kinds_come_in_order(tmp_path: Path) -> None:
    shards = write_mixed_archive(tmp_path)
    entries = list(read_shards(shards, LIMITS))
    order = [entry.shard_uri for entry in entries]
    assert list(dict.fromkeys(order)) == [shard.uri for shard in shards]
    assert order == sorted(order)
    assert Counter(Path(uri).name for uri in order) == {
        "a.tar": 6,
        "b.jpg": 1,
        "c.parquet": 6,
        "d.tar.gz": order.count(str(tmp_path / "d.tar.gz")),
        "e.png": 1,
        "f.tar": 2,
    }
    assert statuses(entries) == ["unreadable_shard"]


def test_image_ids_are_stable_and_unique_in_an_archive(tmp_path: Path) -> None:
    shards = write_mixed_archive(tmp_path)
    first = [entry.image_id for entry in read_shards(shards, LIMITS)]
    again = [entry.image_id for entry in read_shards(storage.list_objects(str(tmp_path)), LIMITS)]
    assert first == again
    assert len(set(first)) == len(first)
    backwards = {entry.image_id for entry in read_shards(reversed(shards), LIMITS)}
    assert backwards == set(first)


@fuzz
@given(items=st.lists(st.integers(), max_size=30), ahead=st.integers(1, 8), threads=st.integers(1, 4))
def test_map_ahead_keeps_the_order_and_its_bound(items: list[int], ahead: int, threads: int) -> None:
    drawn = 0

    def drawing() -> Iterator[int]:
        nonlocal drawn
        for item in items:
            drawn += 1
            yield item

    results: list[int] = []
    with ThreadPoolExecutor(threads) as pool:
        for result in map_ahead(pool, lambda item: 2 * item, drawing(), ahead):
            assert drawn - len(results) <= ahead
            results.append(result)
    assert results == [2 * item for item in items]


def test_map_ahead_draws_as_far_as_it_may() -> None:
    """Else there would be nothing to run in parallel."""
    source = iter(range(100))
    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, str, source, ahead=8)
        assert next(results) == "0"
        assert next(source) == 8
        results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "image"),
        ("A.TIFF", "image"),
        ("a.b.bmp", "image"),
        ("a.tar", "tar"),
        ("a.TGZ", "tar"),
        ("a.tar.gz", "tar"),
        ("a.parquet", "parquet"),
        ("a.tar.zst", "tar"),
        ("a.tbz2", "tar"),
        ("a.zip", "zip"),
        ("a.JFIF", "image"),
        ("a.jpe", "image"),
        ("a.gz", None),
        ("a.jpg.txt", None),
        ("jpg", None),
        ("a.gif", None),
    ],
)
def test_a_name_promises_a_kind(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


MAGICS = [b"", b"\x1f\x8b\x08", b"BZh91AY&SY", b"\xfd7zXZ\0", b"PAR1", PLAIN[:512], PACKED[:20]]


@fuzz
@given(st.sampled_from(["a.tar", "a.tar.gz", "a.parquet"]), st.sampled_from(MAGICS), st.binary(max_size=1500))
def test_arbitrary_bytes_never_raise(tmp_path: Path, name: str, magic: bytes, data: bytes) -> None:
    data = magic + data + (b"PAR1" if magic == b"PAR1" else b"")
    entries = read(tmp_path / name, data)
    assert entries
    assert statuses(entries).count("unreadable_shard") <= 1


@fuzz
@given(
    st.sampled_from([("a.tar", MIXED), ("a.tar.gz", PACKED), ("a.parquet", TABLE)]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=3),
)
def test_damaged_shards_never_raise(
    tmp_path: Path, shard: tuple[str, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    name, data = shard
    for position, gone, new in edits:
        at = position % len(data)
        data = data[:at] + new + data[at + gone :]
    entries = read(tmp_path / name, data)
    assert entries
    assert statuses(entries).count("unreadable_shard") <= 1
