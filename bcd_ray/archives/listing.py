"""What an archive holds: its shards, and, counted by suffix, what is left out of it. Nothing vanishes."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bcd_ray import storage
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.shards import Kind, kind_of
from bcd_ray.archives.suffixes import CLOSED, HIDDEN, is_sidecar, suffix_of
from bcd_ray.errors import StorageError, UnsafeError
from bcd_ray.storage import StoredObject
from bcd_ray.threads import map_ahead

_READERS = 16  # of the first bytes of files: a GET takes some 30 ms
_AT_A_TIME = 4096
_LEAST_BYTES = 2048  # of an image that bears the name of what lies beside images; labels are smaller, and many


@dataclass(frozen=True)
class Listing:
    """The shards of an archive, sorted by URI, and how many files are left out, by suffix."""

    shards: list[StoredObject]
    left_out: Counter[str]


def list_archive(uri: str, kinds: tuple[Kind, ...] = ("tar", "zip", "parquet", "image")) -> Listing:
    """The shards of these kinds at or below a URI. A file whose name says nothing is an image if it begins like one.

    Raises:
        NotFoundError: there is nothing.
    """
    left_out = Counter[str]()
    shards = sorted(walk_archive(uri, left_out, kinds), key=lambda shard: shard.uri)
    return Listing(shards, left_out)


def walk_archive(
    uri: str, left_out: Counter[str], kinds: tuple[Kind, ...] = ("tar", "zip", "parquet", "image")
) -> Iterator[StoredObject]:
    """As `list_archive`, in any order and in bounded memory; at the end `left_out` has what is left out."""
    unlisted, unknown = storage.Unlisted(), list[StoredObject]()
    for listed in storage.walk_objects(uri, unlisted):
        kind = kind_of(listed.uri)
        if kind in kinds:
            yield listed
        elif kind is None and "image" in kinds and (listed.size >= _LEAST_BYTES or not is_sidecar(listed.uri)):
            unknown.append(listed)
        else:
            left_out[suffix_of(listed.uri)] += 1
        if len(unknown) == _AT_A_TIME:
            yield from _images_of(unknown, left_out)
            unknown.clear()
    yield from _images_of(unknown, left_out)
    left_out += Counter({HIDDEN: len(unlisted.hidden), CLOSED: len(unlisted.closed)})


def _images_of(unknown: list[StoredObject], left_out: Counter[str]) -> Iterator[StoredObject]:
    """Those of some files that begin like images; the others are counted."""
    with ThreadPoolExecutor(_READERS) as pool:
        are_images = map_ahead(pool, _begins_like_an_image, unknown, 4 * _READERS)
        for listed, is_image in zip(unknown, are_images, strict=True):
            if is_image:
                yield listed
            else:
                left_out[suffix_of(listed.uri)] += 1


def _begins_like_an_image(listed: StoredObject) -> bool:
    try:
        with storage.open_stream(listed, HEAD_BYTES) as stream:
            return image_suffix(stream.read(HEAD_BYTES)) is not None
    except UnsafeError:  # a row says so
        return True
    except StorageError:  # left out, and counted
        return False
