"""Local paths and `s3://` behind one small surface: list, read, open, write whole, create if absent.

A URI is `s3://bucket/key` or a local path; local ones are kept as absolute paths. On a cluster a local path must be
on a file system that every node mounts. S3 takes its endpoint, region and credentials from the standard AWS settings
(environment, profile or instance role; `AWS_ENDPOINT_URL` for another store than Amazon's).
"""

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from bcd_ray.errors import ConfigError, NotFoundError, StorageError
from bcd_ray.storage import local, s3, s3_walk
from bcd_ray.storage.objects import StoredObject, Unlisted, same_version
from bcd_ray.storage.patience import count_retries, say_waiting, take_retries
from bcd_ray.uris import hidden_part, is_s3, join, normalize, printable

__all__ = [
    "READ_AHEAD_BYTES",
    "StoredObject",
    "Unlisted",
    "arrow_filesystem",
    "check_creates",
    "check_writable",
    "count_retries",
    "create",
    "create_from_file",
    "delete",
    "delete_broken_off",
    "exists",
    "fetch",
    "is_s3",
    "join",
    "list_names",
    "list_objects",
    "modified_at",
    "normalize",
    "open_stream",
    "printable",
    "read_bytes",
    "refuse_unsafe",
    "same_version",
    "say_waiting",
    "sha256",
    "take_retries",
    "walk_objects",
    "write_bytes",
    "write_from_file",
]

_DIGESTED_BYTES = 1 << 20  # at a time
READ_AHEAD_BYTES = 8 << 20  # one ranged GET; 8 MiB keeps 200 images of 40 kB per round trip


def list_objects(uri: str, unlisted: Unlisted | None = None) -> Iterator[StoredObject]:
    """Every object at or below a normalized URI, sorted by URI; NotFoundError if there is nothing there.

    What is hidden, and folders that may not be listed, go to `unlisted`, the latter with a line.
    """
    # Not every store lists in byte order as Amazon's does: SeaweedFS gives a/x before a-b.
    yield from sorted(walk_objects(uri, unlisted), key=lambda listed: listed.uri)


def walk_objects(uri: str, unlisted: Unlisted | None = None) -> Iterator[StoredObject]:
    """`list_objects` in any order and in bounded memory."""
    unlisted, nothing = unlisted or Unlisted(), True
    for listed in _list_s3(uri, unlisted) if is_s3(uri) else local.list_objects(uri, unlisted):
        nothing = False
        yield listed
    if nothing:
        raise NotFoundError(f"nothing found at {uri}: check the path")


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    if is_s3(uri):
        return s3.get(uri)
    return local.get(uri)


def fetch(uri: str) -> BinaryIO:
    """A seekable file with an object's bytes: a local one itself, one of S3 as a temporary copy, fetched in one go."""
    return s3.fetch(uri) if is_s3(uri) else local.opened(uri)


def refuse_unsafe(listed: StoredObject) -> None:
    """UnsafeError for what is listed and is not to be read: no regular file, or a link that leads elsewhere."""
    if not is_s3(listed.uri):
        local.refuse_unsafe(listed)


@contextmanager
def open_stream(listed: StoredObject, read_ahead: int = READ_AHEAD_BYTES) -> Iterator[BinaryIO]:
    """A seekable reader of an object in bounded memory; ChangedError if it is not the listed version."""
    if is_s3(listed.uri):
        yield io.BufferedReader(s3.Reader(listed.uri, listed.size, listed.etag), read_ahead)
        return
    with local.open_stream(listed, read_ahead) as stream:
        yield stream


def sha256(uri: str) -> str:
    """Digest of an object's bytes, in bounded memory."""
    (listed,) = list_objects(uri)
    digest = hashlib.sha256()
    with open_stream(listed) as stream:
        while part := stream.read(_DIGESTED_BYTES):
            digest.update(part)
    return digest.hexdigest()


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole: a reader sees the old one or all of the new one."""
    if is_s3(uri):
        s3.put(uri, data)
    else:
        local.put(uri, io.BytesIO(data))


def write_from_file(uri: str, file: BinaryIO) -> None:
    """`write_bytes` from a seekable file of any size, in bounded memory."""
    file.seek(0)
    if is_s3(uri):
        s3.put_from_file(uri, file)
    else:
        local.put(uri, file)


def create(uri: str, data: bytes) -> bool:
    """Write an object whole unless it exists; False, and nothing changed, if it does."""
    return s3.create(uri, data) if is_s3(uri) else local.create(uri, io.BytesIO(data))


def create_from_file(uri: str, file: BinaryIO) -> bool:
    """`create` from a seekable file of any size, in bounded memory; it appears as one object at the end."""
    file.seek(0)
    return s3.create_from_file(uri, file) if is_s3(uri) else local.create(uri, file)


def exists(uri: str) -> bool:
    """Whether there is an object of exactly this URI."""
    return s3.exists(uri) if is_s3(uri) else os.path.isfile(uri)


def modified_at(uri: str) -> float:
    """When an object was written by the clock of its store, in seconds since the epoch; NotFoundError without one."""
    if not is_s3(uri):
        return local.modified_at(uri)
    if (found := s3.head(uri)) is None:
        raise NotFoundError(f"nothing found at {uri}: check the path")
    return float(found["LastModified"].timestamp())


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        local.delete(uri)


def list_names(uri: str) -> list[str]:
    """Names of the objects below a folder, relative to it; empty if there is none, or a file in its place."""
    try:
        return [name for listed in list_objects(uri) if (name := listed.uri[len(uri) + 1 :])]
    except NotFoundError:
        return []


def delete_broken_off(uri: str) -> int:
    """Delete what writers that were killed left below a URI, and return how many pieces; none may be at work.

    No listing shows them: hidden files on disk, parts of uploads that never ended on S3; and probes on both.
    """
    if is_s3(uri):
        bucket = "/".join(uri.split("/", 3)[:3])
        found = [join(bucket, item["Key"]) for item in s3.list_keys(join(uri, local.PROBE))]
    else:
        found = local.broken_off(uri)
    for piece in found:
        delete(piece)
    return len(found) + (s3.abort_uploads(f"{uri}/") if is_s3(uri) else 0)


def check_writable(uri: str) -> None:
    """ConfigError, in one line, if nothing can be written below this URI."""
    probe = join(uri, f"{local.PROBE}{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except StorageError as error:
        raise ConfigError(f"cannot write to the output: {error}") from error


def check_creates(uri: str) -> None:
    """ConfigError, in one line, if `create` cannot be trusted below this URI: two runs could then publish as one."""
    probe = join(uri, f"{local.PROBE}{uuid.uuid4().hex}")
    needs = "conditional writes (If-None-Match)" if is_s3(uri) else "hard links or renameat2"
    try:
        create(probe, b"")
        replaced = create(probe, b"")
        delete(probe)
    except StorageError as error:
        check_writable(uri)  # ends here where nothing can be written at all
        raise ConfigError(f"--output needs a store with {needs}, and this one fails: {error}") from error
    if replaced:
        raise ConfigError(f"--output needs a store with {needs}, and the one of {uri} ignores them: use another")


def _list_s3(uri: str, unlisted: Unlisted) -> Iterator[StoredObject]:
    bucket, prefix = "/".join(uri.split("/", 3)[:3]), f"{uri}/".split("/", 3)[3]
    nothing = True
    for item in s3_walk.walk_keys(
        f"{uri}/"
    ):  # with the slash, or all of archive-old/ would be paged through for archive
        nothing = False
        name: str = item["Key"]
        if name.endswith("/"):
            continue
        if part := hidden_part(name[len(prefix) :]):
            unlisted.hidden.add(part)
        else:
            yield StoredObject(f"{bucket}/{name}", item["Size"], item["ETag"].strip('"'), s3.modified(item))
    if nothing and prefix and (found := s3.head(uri)):
        yield StoredObject(uri, found["ContentLength"], found["ETag"].strip('"'), s3.modified(found))


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """For a library that takes no URI of ours: the Arrow file system of a normalized URI, and the path in it."""
    from pyarrow import fs

    return s3.arrow_filesystem(uri) if is_s3(uri) else (fs.LocalFileSystem(), uri)
