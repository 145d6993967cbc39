"""Local paths and `s3://` behind one small surface: list, read, open, write whole, create if absent.

A URI is `s3://bucket/key` or a local path; local ones are kept as absolute paths. On a cluster a local path must be
on a file system that every node mounts. S3 takes its endpoint, region and credentials from the standard AWS settings
(environment, profile or instance role; `AWS_ENDPOINT_URL` for another store than Amazon's).
"""

import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from bcd_ray import s3
from bcd_ray.errors import ChangedError, ConfigError, NotFoundError, StorageError

_PROBE = ".write-check-"
_BROKEN_OFF = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|" + re.escape(_PROBE) + "[0-9a-f]{32}")
READ_AHEAD_BYTES = 8 << 20  # one ranged GET; 8 MiB keeps 200 images of 40 kB per round trip


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was listed: its size in bytes and a tag that changes with its content."""

    uri: str
    size: int
    etag: str


def is_s3(uri: str) -> bool:
    """Whether the URI names an object of an S3 store."""
    return uri.startswith("s3://")


def normalize(uri: str) -> str:
    """The one spelling of a URI: no trailing slash, local paths absolute; ConfigError for other schemes."""
    if is_s3(uri):
        if not uri[5:].split("/")[0]:
            raise ConfigError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        return uri.rstrip("/")
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    elif "://" in uri:
        raise ConfigError(f"{uri!r}: only local paths and s3:// are supported")
    if not uri:
        raise ConfigError("an empty path was given: name a folder, a file or s3://BUCKET/PREFIX")
    return os.path.abspath(uri)


def join(uri: str, *names: str) -> str:
    """The URI of a name below another."""
    return "/".join((uri.rstrip("/"), *names))


def printable(uri: str) -> str:
    """The URI as text that Parquet can hold: bytes of a file name that are no UTF-8 are shown as \\udcXX."""
    return uri.encode("utf-8", "backslashreplace").decode("utf-8")


def list_objects(uri: str) -> Iterator[StoredObject]:
    """Every object at or below a normalized URI, sorted by URI; NotFoundError if there is nothing there.

    Names that begin with a dot are left out, as every reader of data sets does.
    """
    # Not every store lists in byte order as Amazon's does: SeaweedFS gives a/x before a-b.
    found = sorted(_list_s3(uri) if is_s3(uri) else _list_local(uri), key=lambda listed: listed.uri)
    if not found:
        raise NotFoundError(f"nothing found at {uri}: check the path")
    yield from found


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    if is_s3(uri):
        return s3.get(uri)
    with _translated(uri):
        return Path(uri).read_bytes()


@contextmanager
def open_stream(listed: StoredObject) -> Iterator[BinaryIO]:
    """A seekable reader of an object in bounded memory; ChangedError if it is not the listed version."""
    if is_s3(listed.uri):
        yield io.BufferedReader(s3.Reader(listed.uri, listed.size, listed.etag), READ_AHEAD_BYTES)
        return
    with _translated(listed.uri), open(listed.uri, "rb", buffering=1 << 20) as stream:
        if _local_etag(os.fstat(stream.fileno())) != listed.etag:
            raise ChangedError(f"{listed.uri} changed since it was listed: run the same command again")
        yield stream


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole: a reader sees the old one or all of the new one."""
    if is_s3(uri):
        s3.put(uri, data)
        return
    with _translated(uri):
        os.replace(_write_beside(uri, io.BytesIO(data)), uri)


def create(uri: str, data: bytes) -> bool:
    """Write an object whole unless it exists; False, and nothing changed, if it does."""
    return s3.create(uri, data) if is_s3(uri) else _create_local(uri, io.BytesIO(data))


def create_from_file(uri: str, path: Path) -> bool:
    """`create` from a local file of any size, in bounded memory; it appears as one object at the end."""
    if is_s3(uri):
        return s3.create_from_file(uri, path)
    with path.open("rb") as source:
        return _create_local(uri, source)


def exists(uri: str) -> bool:
    """Whether there is an object of exactly this URI."""
    return s3.exists(uri) if is_s3(uri) else os.path.isfile(uri)


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    if is_s3(uri):
        s3.delete(uri)
        return
    with _translated(uri):
        Path(uri).unlink(missing_ok=True)


def list_names(uri: str) -> list[str]:
    """Names of the objects below a folder, relative to it; empty if there is none."""
    try:
        return [listed.uri[len(uri) + 1 :] for listed in list_objects(uri)]
    except NotFoundError:
        return []


def delete_broken_off(uri: str) -> int:
    """Delete what writers that were killed left below a URI, and return how many pieces; none may be at work.

    No listing shows them: hidden files on disk, parts of uploads that never ended on S3; and probes on both.
    """
    if is_s3(uri):
        bucket = "/".join(uri.split("/", 3)[:3])
        found = [join(bucket, item["Key"]) for item in s3.list_keys(join(uri, _PROBE))]
    else:
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(uri) for name in names]
        found = [path for path in paths if _BROKEN_OFF.fullmatch(os.path.basename(path))]
    for piece in found:
        delete(piece)
    return len(found) + (s3.abort_uploads(f"{uri}/") if is_s3(uri) else 0)


def check_writable(uri: str) -> None:
    """ConfigError, in one line, if nothing can be written below this URI."""
    probe = join(uri, f"{_PROBE}{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except StorageError as error:
        raise ConfigError(f"cannot write to the output: {error}") from error


def _list_local(uri: str) -> Iterator[StoredObject]:
    with _translated(uri):
        if os.path.isfile(uri):
            stat = os.stat(uri)
            yield StoredObject(uri, stat.st_size, _local_etag(stat))
            return
        paths, seen = [], set()
        for folder, folders, files in os.walk(uri, onerror=_refuse, followlinks=True):
            place = os.path.realpath(folder)
            folders[:] = [name for name in folders if not name.startswith(".") and place not in seen]
            if place in seen:  # a link back: without this one loop lists an image 40 times
                continue
            seen.add(place)
            paths += [os.path.join(folder, name) for name in files if not name.startswith(".")]
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError:  # a dangling link, or gone since: a row says so when it is read
                yield StoredObject(path, 0, "missing")
            else:
                yield StoredObject(path, stat.st_size, _local_etag(stat))


def _refuse(error: OSError) -> NoReturn:
    """Without this, os.walk leaves a folder that it cannot list out in silence, with every image in it."""
    if isinstance(error, PermissionError):
        raise StorageError(f"{error.filename}: {error.strerror}: make every folder readable") from error
    raise error


def _list_s3(uri: str) -> Iterator[StoredObject]:
    prefix = f"{uri}/".split("/", 3)[3]  # of the keys below the URI
    for item in s3.list_keys(uri):
        name: str = item["Key"]
        inside = name == prefix.rstrip("/") or name.startswith(prefix)
        hidden = any(part.startswith(".") for part in name.removeprefix(prefix).split("/"))
        if inside and not hidden and not name.endswith("/"):
            yield StoredObject(f"{'/'.join(uri.split('/', 3)[:3])}/{name}", item["Size"], item["ETag"].strip('"'))


def _local_etag(stat: os.stat_result) -> str:
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _create_local(uri: str, source: BinaryIO) -> bool:
    with _translated(uri):
        beside = _write_beside(uri, source)
        try:
            os.link(beside, uri)  # fails if the name exists, where a rename would replace it
        except FileExistsError:
            return False
        finally:
            os.unlink(beside)
        return True


def _write_beside(uri: str, source: BinaryIO) -> str:
    """Write to a hidden file in the folder of `uri` and return its path."""
    folder, name = os.path.split(uri)
    os.makedirs(folder, exist_ok=True)
    beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "xb") as stream:
            shutil.copyfileobj(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    return beside


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Errors of the system as StorageErrors that name the remedy."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"nothing found at {uri}: check the path") from error
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror or error}") from error
