"""What a shard is (tar, zip, Parquet, or a loose image), and the images inside it, one entry each, whatever is wrong.

Nothing is ever extracted to disk. An entry that cannot be scored carries its status from here on; a shard that cannot
be read to its end adds one entry that stands for the part that is missing. Members that are no image, by name and by
their first bytes, are counted.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected, too_large
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.streams import UnreadableError, decompressed
from bcd_ray.archives.suffixes import HIDDEN, IMAGE_SUFFIXES, left_out_words, suffix_of
from bcd_ray.archives.zips import read_zip
from bcd_ray.errors import ChangedError, NotFoundError, StorageError, UnsafeError
from bcd_ray.storage import StoredObject
from bcd_ray.threads import map_ahead
from bcd_ray.uris import hidden_part

TAR_SUFFIXES = (".tar", *(f".tar.{each}" for each in ("gz", "bz2", "xz", "zst")), ".tgz", ".tbz2", ".txz", ".tzst")
PARQUET_COLUMNS = {"image_id": "string", "image": "binary"}  # what a Parquet shard must have

Kind = Literal["tar", "zip", "parquet", "image"]
_HEADERS_OF_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_CONCURRENT_READS = 16  # of loose images: a GET takes some 30 ms, and the cores must not wait for it
_MAX_HEADER_BYTES = 1 << 20  # tarfile reads these whole; names are at most some kB


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an archive: its bytes, or why there are none.

    `image_id` is 32 hexadecimal digits made from the shard's name, the name inside it and, where a shard repeats a
    name, the number of the occurrence: the same image in the same shard always gets the same.
    """

    image_id: str
    image_uri: str
    shard_uri: str
    shard_etag: str
    content: bytes | Rejected


def kind_of(name: str) -> Kind | None:
    """What kind of shard a name promises, or None for a file that is none."""
    lower = name.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        return "image"
    if lower.endswith(TAR_SUFFIXES):
        return "tar"
    if lower.endswith(".zip"):
        return "zip"
    return "parquet" if lower.endswith(".parquet") else None


def is_loose(uri: str) -> bool:
    """Whether a shard is an image itself, and holds none: all that is listed and no tar, zip or Parquet file."""
    return kind_of(uri) in ("image", None)


def read_shards(
    shards: Iterable[StoredObject], limits: Limits, left_out: Counter[str] | None = None
) -> Iterator[Entry]:
    """The entries of several shards in order; loose images are read many at a time.

    Members that are no images are counted in `left_out`, by suffix.
    """

    def fetch(shard: StoredObject) -> Iterator[Entry]:
        return iter([_read_loose(shard, limits)]) if is_loose(shard.uri) else read_shard(shard, limits, left_out)

    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        for entries in map_ahead(pool, fetch, shards, ahead=_CONCURRENT_READS):
            yield from entries


def image_id(shard_uri: str, name: str, occurrence: int) -> str:
    """The id of an image: 32 hexadecimal digits; a loose image has an empty name, and an occurrence counts from 1."""
    return hashlib.sha256(json.dumps([shard_uri, name, occurrence]).encode()).hexdigest()[:32]


def digest(content: bytes) -> str:
    """The id of an image by its content, whatever its name and its shard: the SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()


def given_up(shards: Iterable[StoredObject], why: Rejected) -> Iterator[Entry]:
    """One entry for each shard, or for what is left of it, that is not read."""
    for shard in shards:
        yield _entry(shard, "", 1, why)


def read_shard(shard: StoredObject, limits: Limits, left_out: Counter[str] | None = None) -> Iterator[Entry]:
    """The entries of one tar, zip or Parquet shard, in memory bounded by one image or one row group of Parquet."""
    occurrences, others = Counter[str](), Counter[str]()
    try:
        with storage.open_stream(shard) as stream:
            read = _READERS[kind_of(shard.uri) or "tar"]
            for name, content in read(stream, limits):
                if content is None:
                    others[HIDDEN if hidden_part(name) else suffix_of(name)] += 1
                    continue
                occurrences[name] += 1
                yield _entry(shard, name, occurrences[name], content)
        if not occurrences:
            instead = f", but {left_out_words(others)}" if others else ""
            yield _entry(shard, "", 1, Rejected("empty_shard", f"holds no image{instead}"))
    except StorageError as error:
        yield _entry(shard, "", 1, _not_delivered(error))
    except UnreadableError as error:
        count = occurrences.total()
        text = f"{error}; {count} images were read before that: write the shard again"
        yield _entry(shard, "", 1, Rejected("unreadable_shard", text))
    finally:
        if left_out is not None:
            left_out.update(others)


def _read_loose(shard: StoredObject, limits: Limits) -> Entry:
    content: bytes | Rejected
    if shard.size > limits.max_bytes:
        content = too_large(shard.size, limits)
    else:
        try:
            with storage.open_stream(shard) as stream:
                content = stream.read(shard.size)
        except StorageError as error:
            content = _not_delivered(error)
    return _entry(shard, "", 1, content)


class _MarkedTarInfo(tarfile.TarInfo):
    """Remembers whether the end-of-archive marker was seen: tarfile stops in silence at bad headers too."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_MarkedTarInfo":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS_OF_HEADERS and member.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_MarkedTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.end_marker_seen = True  # type: ignore[attr-defined]
            raise


def _read_tar(stream: BinaryIO, limits: Limits) -> Iterator[tuple[str, bytes | Rejected | None]]:
    try:
        # tarfile's own gzip checks no checksum.
        with tarfile.open(fileobj=decompressed(stream), mode="r|", tarinfo=_MarkedTarInfo) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all that it saw: 2 kB each
                if not member.isdir():
                    yield member.name, _read_member(tar, member, limits)
            if not getattr(tar, "end_marker_seen", False):
                raise UnreadableError("the tar ends early or is damaged in the middle")
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    raise UnreadableError("the tar goes on after zeros that mark its end: damaged, or two in one")
    except (StorageError, UnreadableError):
        raise
    except Exception as error:  # tarfile raises many types on hostile headers; each is this shard's fault
        _raise_if_of_the_disk(error)
        raise UnreadableError(f"the tar cannot be read ({error})") from error


def _raise_if_of_the_disk(error: Exception) -> None:
    """A number of the system's means that reading failed, not that what was read is wrong."""
    if isinstance(error, OSError) and error.errno:
        raise StorageError(str(error)) from error


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, limits: Limits) -> bytes | Rejected | None:
    """The bytes of a member, or what is wrong with it, or None where it is no image."""
    named, head = kind_of(member.name) == "image", b""
    if hidden_part(member.name) or not (named or member.isreg()):
        return None
    reader = tar.extractfile(member) if member.isreg() else None
    if reader and not named:
        head = reader.read(HEAD_BYTES)
        if not image_suffix(head):
            return None
    if not reader:
        kind = "link" if member.issym() or member.islnk() else "device"
        return Rejected("unsafe_member", f"is a {kind}, not a file: pack the image itself")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return Rejected("unsafe_member", "has an absolute name or one with '..': pack with relative names")
    if member.size > limits.max_bytes:
        return too_large(member.size, limits)
    data = head + reader.read()
    if len(data) != member.size:
        raise UnreadableError(f"the tar ends inside {member.name!r}")
    return data


def _read_parquet(stream: BinaryIO, limits: Limits) -> Iterator[tuple[str, bytes | Rejected]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(stream)
        schema = parquet.schema_arrow
        columns = ["image"] if _is_of_hugging_face(schema) else list(PARQUET_COLUMNS)
        for name, wanted in PARQUET_COLUMNS.items():
            index = schema.get_field_index(name)
            if len(columns) > 1 and (index < 0 or not _holds(schema.field(index).type, wanted)):
                found = ", ".join(f"{field.name} ({field.type})" for field in schema)
                raise UnreadableError(f"no column {name} ({wanted}) in it, but {found}")
        row = 0
        for batch in parquet.iter_batches(batch_size=16, columns=columns):
            names, images = (batch["image_id"], batch["image"]) if len(columns) > 1 else _flat(batch["image"])
            for name, image in zip(names, images, strict=True):
                row += 1
                data = image.as_py() or b""
                over = too_large(len(data), limits) if len(data) > limits.max_bytes else None
                yield name.as_py() or f"row-{row}", over or data
    except (pa.ArrowException, OSError, ValueError) as error:
        _raise_if_of_the_disk(error)
        raise UnreadableError(f"the Parquet file cannot be read ({' '.join(str(error).split())[:200]})") from error


_READERS = {"tar": _read_tar, "zip": read_zip, "parquet": _read_parquet}


def _is_of_hugging_face(schema: Any) -> bool:
    """Whether a Parquet file is of the form of Hugging Face's `datasets`: `image` as a struct of bytes and path."""
    import pyarrow as pa

    index = schema.get_field_index("image")
    if index < 0 or not pa.types.is_struct(image := schema.field(index).type):
        return False
    parts = {part.name: part.type for part in image}
    return {"bytes", "path"} <= parts.keys() and _holds(parts["bytes"], "binary") and _holds(parts["path"], "string")


def _flat(image: Any) -> tuple[Any, Any]:
    """Paths and bytes of a column of such structs."""
    import pyarrow.compute as pc

    return pc.struct_field(image, "path"), pc.struct_field(image, "bytes")


def _holds(column_type: Any, wanted: str) -> bool:
    """Whether a column is of the wanted type in any of Arrow's layouts; a struct or list of it is not."""
    import pyarrow as pa

    plain = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    return str(plain) in (wanted, f"large_{wanted}", f"{wanted}_view")


def _entry(shard: StoredObject, name: str, occurrence: int, content: bytes | Rejected) -> Entry:
    image_uri = f"{shard.name}#{name}" if name else shard.name
    return Entry(
        image_id(shard.name, name, occurrence),
        storage.printable(image_uri),
        storage.printable(shard.name),
        shard.etag,
        content,
    )


def _not_delivered(error: StorageError) -> Rejected:
    """Failures of storage, which the next run tries again."""
    if isinstance(error, NotFoundError):
        return Rejected("missing", "was listed but is gone")
    if isinstance(error, UnsafeError):
        return Rejected("unsafe_member", str(error))
    return Rejected("changed" if isinstance(error, ChangedError) else "read_error", str(error))
