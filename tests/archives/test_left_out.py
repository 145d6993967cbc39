"""Nothing vanishes: what is no image is counted, what begins like one is read, whatever its name and its container."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.shards import Entry, read_shard
from bcd_ray.archives.suffixes import is_sidecar, left_out_words, suffix_of, unexpected

Members = dict[str, bytes]


def encoded(form: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (20, 20), "pink").save(sink, form)
    return sink.getvalue()


JPEG = encoded("JPEG")
IMAGES = {
    "a.jpg": JPEG,
    "b.jfif": JPEG,
    "c.JPE": JPEG,
    "d.webp": encoded("WEBP"),
    "slide.svs": encoded("TIFF"),
    "mistaken.xml": JPEG + bytes(2048),
    "e": JPEG,
}
OTHERS = {
    "e.json": b"{}",
    "e.cls": b"1",
    "list.csv": b"a,b" * 1000,
    "film.mp4": b"\0\0\0\x18ftypmp42",
    "README": b"x",
    "f": b"",
}
HIDDEN = {
    ".ipynb_checkpoints/a-checkpoint.jpg": JPEG,
    "@eaDir/a.jpg/SYNOFILE_THUMB_M.jpg": JPEG,
    "__MACOSX/._a.jpg": b"\0\5\x16\7",
    "x/._b.jpg": b"\0\5\x16\7",
    "x/.DS_Store": b"x",
    "Thumbs.db": b"x",
}
LEFT_OUT = {".json": 1, ".cls": 1, ".csv": 1, ".mp4": 1, "readme": 1, "no suffix": 1, "hidden": 6}


def tar(members: Members) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def zipped(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def read(path: Path, data: bytes, limits: Limits | None = None) -> tuple[list[Entry], Counter[str]]:
    path.write_bytes(data)
    (shard,) = storage.list_objects(str(path))
    left_out = Counter[str]()
    return list(read_shard(shard, limits or Limits(), left_out)), left_out


def contents(entries: list[Entry]) -> Members:
    return {entry.image_uri.partition("#")[2]: entry.content for entry in entries if isinstance(entry.content, bytes)}


def statuses(entries: list[Entry]) -> list[str]:
    return [entry.content.status for entry in entries if isinstance(entry.content, Rejected)]


PACK: dict[str, Callable[[Members], bytes]] = {
    "a.tar": tar,
    "a.tar.gz": lambda members: gzip.compress(tar(members)),
    "a.tar.bz2": lambda members: bz2.compress(tar(members)),
    "a.tar.xz": lambda members: lzma.compress(tar(members)),
    "a.tar.zst": lambda members: zstd(tar(members)),
    "a.zip": zipped,
}


@pytest.mark.parametrize("name", PACK)
def test_what_begins_like_an_image_is_read_and_the_rest_is_counted(tmp_path: Path, name: str) -> None:
    entries, left_out = read(tmp_path / name, PACK[name](IMAGES | OTHERS | HIDDEN))
    assert contents(entries) == IMAGES
    assert not statuses(entries)
    assert left_out == LEFT_OUT


def test_loose_files_are_treated_alike(tmp_path: Path) -> None:
    for name, data in (IMAGES | OTHERS | HIDDEN | {"shards/x.tar": tar({}), "x/.more/deep/y.jpg": JPEG}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    listing = list_archive(str(tmp_path))
    assert [shard.uri[len(str(tmp_path)) + 1 :] for shard in listing.shards] == sorted([*IMAGES, "shards/x.tar"])
    # A hidden folder is not looked into, and counts as one.
    assert listing.left_out == LEFT_OUT | {"hidden": 7}
    images = list_archive(str(tmp_path), ("image",))
    assert len(images.shards) == len(IMAGES)
    assert images.left_out == listing.left_out + Counter({".tar": 1})


def test_a_store_leaves_the_same_out(s3: str) -> None:
    uri = f"{s3}/left-out"
    for name, data in (IMAGES | OTHERS | HIDDEN).items():
        storage.write_bytes(f"{uri}/{name}", data)
    listing = list_archive(uri)
    assert [shard.uri[len(uri) + 1 :] for shard in listing.shards] == sorted(IMAGES)
    assert listing.left_out == LEFT_OUT


@pytest.mark.parametrize("name", [name for name in PACK if name not in ("a.tar", "a.zip")])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_compressed_tar_that_is_cut_off_is_unreadable(tmp_path: Path, name: str, share: float) -> None:
    data = PACK[name]({f"{number}.jpg": JPEG + bytes([number]) for number in range(20)})
    entries, _ = read(tmp_path / name, data[: int(share * len(data))])
    assert statuses(entries) == ["unreadable_shard"]


@pytest.mark.parametrize("name", ["a.tar.bz2", "a.tar.xz", "a.tar.zst"])
def test_compressed_streams_in_a_row_are_read_whole(tmp_path: Path, name: str) -> None:
    data = tar(IMAGES)
    compress = {"a.tar.bz2": bz2.compress, "a.tar.xz": lzma.compress, "a.tar.zst": zstd}[name]
    entries, _ = read(tmp_path / name, compress(data[:2000]) + compress(data[2000:]))
    assert contents(entries) == IMAGES
    assert not statuses(entries)


def test_a_damaged_image_of_a_zip_costs_itself_alone(tmp_path: Path) -> None:
    data = bytearray(zipped(IMAGES))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place = archive.getinfo("b.jfif").header_offset
    data[place + 60] ^= 0xFF
    entries, _ = read(tmp_path / "a.zip", bytes(data))
    assert contents(entries) == {name: image for name, image in IMAGES.items() if name != "b.jfif"}
    assert statuses(entries) == ["corrupt_image"]


def test_a_zip_keeps_the_limits_and_its_members_apart_from_the_disk(tmp_path: Path) -> None:
    members = {
        "/a.jpg": JPEG,
        "../b.jpg": JPEG,
        "large.jpg": bytes(2 << 20),
        "large": JPEG + bytes(2 << 20),
        "c.jpg": JPEG,
    }
    entries, _ = read(tmp_path / "a.zip", zipped(members), Limits(max_bytes=1 << 20))
    assert contents(entries) == {"c.jpg": JPEG}
    assert Counter(statuses(entries)) == {"unsafe_member": 2, "too_large": 2}


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (zipped(IMAGES)[:-30], "the zip cannot be read"),
        (zipped(IMAGES, zipfile.ZIP_LZMA), "compressed by method 14: use deflate, or a tar"),
        (zipped(IMAGES).replace(b"\x14\0\0\0\x08\0", b"\x14\0\1\0\x08\0"), "encrypted: pack it without a password"),
        (zipped({str(number): b"" for number in range(1 << 16)}), "more than 65,535 members: split it, or pack a tar"),
    ],
    ids=["cut-off", "lzma", "encrypted", "large"],
)
def test_a_zip_that_cannot_be_read_says_why(tmp_path: Path, data: bytes, remedy: str) -> None:
    entries, _ = read(tmp_path / "a.zip", data)
    assert statuses(entries) == ["unreadable_shard"]
    assert remedy in getattr(entries[0].content, "error", "")


def test_a_parquet_file_of_hugging_face_is_read(tmp_path: Path) -> None:
    rows = [
        {"bytes": JPEG, "path": "a.jpg"},
        {"bytes": JPEG + b"2", "path": None},
        None,
        {"bytes": None, "path": "c.jpg"},
    ]
    for order in (("bytes", "path"), ("path", "bytes")):
        types = {"bytes": pa.binary(), "path": pa.string()}
        kind = pa.struct([(name, types[name]) for name in order])
        sink = io.BytesIO()
        pq.write_table(pa.table({"label": [0, 1, 2, 3], "image": pa.array(rows, kind)}), sink)
        entries, left_out = read(tmp_path / "train-00000-of-00001.parquet", sink.getvalue())
        assert contents(entries) == {"a.jpg": JPEG, "row-2": JPEG + b"2", "row-3": b""}
        assert statuses(entries) == ["unsafe_member"]  # c.jpg, which is elsewhere
        assert not left_out


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.parquet"])
def test_an_image_with_the_name_of_a_shard_is_told(tmp_path: Path, name: str) -> None:
    (entry,), _ = read(tmp_path / name, JPEG)
    assert isinstance(entry.content, Rejected)
    assert entry.content.status == "unreadable_shard"
    assert entry.content.error == "begins like an image, whatever its name says: name it .jpg"


def test_a_shard_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (entry,), left_out = read(tmp_path / "a.tar", tar(OTHERS))
    assert isinstance(entry.content, Rejected)
    assert entry.content.error == "holds no image, but 1 .mp4, 1 no suffix, 1 .cls, 1 .csv, 1 .json, 1 readme"
    assert unexpected(left_out) == 2


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("JPEG2000", "jp2"),
    ],
)
def test_images_are_known_by_their_first_bytes(form: str, suffix: str) -> None:
    assert image_suffix(encoded(form)[:HEAD_BYTES]) == suffix


def test_dicom_is_known_by_its_mark() -> None:
    assert image_suffix(bytes(128) + b"DICM\2\0\0\0") == "dcm"
    for data in (b"", b"BM says nothing", b"{}", b"\0\0\0\x18ftypmp42", bytes(136)):
        assert image_suffix(data) is None


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a/b.JSON", ".json"),
        ("a.b/c", "no suffix"),
        ("x/README", "readme"),
        ("1.2.840.113", "other suffixes"),
        (".x", "no suffix"),
    ],
)
def test_files_are_counted_by_suffix(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix
    assert is_sidecar(name) == (suffix in (".json", "readme"))


def test_what_nobody_expects_stands_first() -> None:
    assert left_out_words({".json": 2000, "hidden": 3, ".xyz": 1}) == "1 .xyz, 2,000 .json, 3 hidden"
    assert left_out_words({f".{letter}": 1 for letter in "abcdefghij"}).endswith(" and 2 further kinds")
