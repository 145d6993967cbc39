"""What a shard is (tar, zip, Parquet, or a loose image), and the images inside it, one entry each, whatever is wrong.

Nothing is ever extracted to disk. An entry that cannot be scored carries its status from here on; a shard that cannot
be read to its end adds one entry that stands for the part that is missing. Members that are no image, by name and by
their first bytes, are counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected, too_large
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.occurrences import Occurrences
from bcd_ray.archives.parquets import read_parquet
from bcd_ray.archives.parts import Part
from bcd_ray.archives.streams import NAME_CHARS, ROW_BYTES, Expansion, UnreadableError
from bcd_ray.archives.suffixes import IMAGE_SUFFIXES, count_left_out, left_out_words
from bcd_ray.archives.tars import read_tar
from bcd_ray.archives.zips import read_zip
from bcd_ray.errors import ChangedError, NotFoundError, StorageError, UnsafeError
from bcd_ray.storage import StoredObject
from bcd_ray.threads import map_ahead

TAR_SUFFIXES = (".tar", *(f".tar.{each}" for each in ("gz", "bz2", "xz", "zst")), ".tgz", ".tbz2", ".txz", ".tzst")

Kind = Literal["tar", "zip", "parquet", "image"]
_CONCURRENT_READS = 16  # of loose images: a GET takes some 30 ms, and the cores must not wait for it


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
    sha256: str | None = None  # the `digest` of the content, where it was asked for


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
    shards: Iterable[StoredObject], limits: Limits, left_out: Counter[str] | None = None, part: Part | None = None
) -> Iterator[Entry]:
    """The entries of several shards in order, or of a part of one; loose images are read many at a time.

    Members that are no images are counted in `left_out`, by suffix.
    """

    def fetch(shard: StoredObject) -> Iterator[Entry]:
        return iter([_read_loose(shard, limits)]) if is_loose(shard.uri) else read_shard(shard, limits, left_out, part)

    def held(shard: StoredObject) -> int:
        return min(shard.size, limits.max_bytes) if is_loose(shard.uri) else 0

    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        for entries in map_ahead(pool, fetch, shards, _CONCURRENT_READS, held, limits.window):
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
        yield _entry(shard, "", why)


def read_shard(
    shard: StoredObject, limits: Limits, left_out: Counter[str] | None = None, part: Part | None = None
) -> Iterator[Entry]:
    """The entries of one tar, zip or Parquet shard, or a part of it, in memory bounded by one image."""
    others, before = Counter[str](), part.images_before if part else 0
    with Occurrences() as names:
        try:
            expansion = Expansion(part.size if part else shard.size)
            for name, content in _read(shard, limits, part):
                if content is None:
                    count_left_out(others, name)
                    continue
                expansion.add(ROW_BYTES + (len(content) if isinstance(content, bytes) else 0))
                name, content = _short(name, content)
                yield _entry(shard, name, content, names.add(name))
            if not names.total:
                instead = f", but {left_out_words(others)}" if others else ""
                yield _entry(shard, "", Rejected("empty_shard", f"holds no image{instead}"))
        except StorageError as error:
            yield _entry(shard, "", _not_delivered(error))
        except UnreadableError as error:
            text = f"{error}; {before + names.total} images were read before that: write the shard again"
            yield _entry(shard, "", Rejected("unreadable_shard", _named_wrongly(shard) or text))
        finally:
            if left_out is not None:
                left_out.update(others)


def _named_wrongly(shard: StoredObject) -> str | None:
    """What to do with an image that bears the name of a shard."""
    try:
        with storage.open_stream(shard, HEAD_BYTES) as stream:
            suffix = image_suffix(stream.read(HEAD_BYTES))
    except StorageError:
        return None
    return f"begins like an image, whatever its name says: name it .{suffix}" if suffix else None


def _read(shard: StoredObject, limits: Limits, part: Part | None) -> Iterator[tuple[str, bytes | Rejected | None]]:
    """Names and contents of a shard's members; None for those that are no image."""
    kind = kind_of(shard.uri)
    if kind == "parquet":
        yield from read_parquet(shard, limits, part)
        return
    with storage.open_stream(shard) as stream:
        yield from (read_zip if kind == "zip" else read_tar)(stream, limits, part)


def _short(name: str, content: bytes | Rejected) -> tuple[str, bytes | Rejected]:
    """A name that fits into a row, and the image of that name."""
    if len(name) <= NAME_CHARS:
        return name, content
    return f"{name[:200]}…", Rejected("unsafe_member", f"has a name of more than {NAME_CHARS:,} characters")


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
    return _entry(shard, "", content)


def _entry(shard: StoredObject, name: str, content: bytes | Rejected, occurrence: int = 1) -> Entry:
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
