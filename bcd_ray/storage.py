"""Local paths and `s3://` behind one small surface: list, read, open, write whole, create if absent.

A URI is `s3://bucket/key` or a local path; local ones are kept as absolute paths. On a cluster a local path must be
on a file system that every node mounts. S3 takes its endpoint, region and credentials from the standard AWS settings
(environment, profile or instance role; `AWS_ENDPOINT_URL` for another store than Amazon's).
"""

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from bcd_ray.errors import ChangedError, ConfigError, NotFoundError, StorageError

_PART_BYTES = 64 << 20  # S3 takes 10,000 parts: 625 GiB
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
    with _translated(uri):
        if is_s3(uri):
            bucket, key = _bucket_and_key(uri)
            body: bytes = _s3().get_object(Bucket=bucket, Key=key)["Body"].read()
            return body
        return Path(uri).read_bytes()


@contextmanager
def open_stream(listed: StoredObject) -> Iterator[BinaryIO]:
    """A seekable reader of an object in bounded memory; ChangedError if it is not the listed version."""
    if is_s3(listed.uri):
        yield io.BufferedReader(_S3Reader(listed), READ_AHEAD_BYTES)
        return
    with _translated(listed.uri), open(listed.uri, "rb", buffering=1 << 20) as stream:
        if _local_etag(os.fstat(stream.fileno())) != listed.etag:
            raise ChangedError(f"{listed.uri} changed since it was listed: run the same command again")
        yield stream


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole: a reader sees the old one or all of the new one."""
    with _translated(uri):
        if is_s3(uri):
            bucket, key = _bucket_and_key(uri)
            _s3().put_object(Bucket=bucket, Key=key, Body=data)
        else:
            os.replace(_write_beside(uri, data), uri)


def create(uri: str, data: bytes) -> bool:
    """Write an object whole unless it exists; False, and nothing changed, if it does."""
    if is_s3(uri):
        from botocore.exceptions import ClientError

        bucket, key = _bucket_and_key(uri)
        with _translated(uri):
            try:
                _s3().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if _status(error) in (409, 412):  # 412: it exists; 409: another writer is creating it
                    return False
                raise
            return True
    with _translated(uri):
        beside = _write_beside(uri, data)
        try:
            os.link(beside, uri)  # fails if the name exists, where a rename would replace it
        except FileExistsError:
            return False
        finally:
            os.unlink(beside)
        return True


def create_from_file(uri: str, path: Path) -> bool:
    """`create` from a local file of any size; on S3 in parts, which appear as one object at the end."""
    if not is_s3(uri) or path.stat().st_size <= _PART_BYTES:
        return create(uri, path.read_bytes())
    from botocore.exceptions import ClientError

    if exists(uri):
        return False
    with _translated(uri):
        try:
            _create_in_parts(uri, path)
        except ClientError as error:
            if _status(error) in (409, 412):
                return False
            raise
    return True


def exists(uri: str) -> bool:
    """Whether there is an object of exactly this URI."""
    with _translated(uri):
        if is_s3(uri):
            from botocore.exceptions import ClientError

            bucket, key = _bucket_and_key(uri)
            try:
                _s3().head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
            return True
        return os.path.isfile(uri)


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    with _translated(uri):
        if is_s3(uri):
            bucket, key = _bucket_and_key(uri)
            _s3().delete_object(Bucket=bucket, Key=key)
        else:
            Path(uri).unlink(missing_ok=True)


def list_names(uri: str) -> list[str]:
    """Names of the objects below a folder, relative to it; empty if there is none."""
    try:
        return [listed.uri[len(uri) + 1 :] for listed in list_objects(uri)]
    except NotFoundError:
        return []


def check_writable(uri: str) -> None:
    """ConfigError, in one line, if nothing can be written below this URI."""
    probe = join(uri, f".write-check-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (StorageError, OSError) as error:
        raise ConfigError(f"cannot write to the output: {error}") from error


def _list_local(uri: str) -> Iterator[StoredObject]:
    with _translated(uri):
        if os.path.isfile(uri):
            stat = os.stat(uri)
            yield StoredObject(uri, stat.st_size, _local_etag(stat))
            return
        paths = []
        for folder, folders, files in os.walk(uri, onerror=_refuse, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
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
    bucket, key = _bucket_and_key(uri)
    with _translated(uri):
        for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
            for item in page.get("Contents", []):
                name: str = item["Key"]
                inside = name == key or key == "" or name.startswith(key + "/")
                hidden = any(part.startswith(".") for part in name[len(key) :].split("/"))
                if inside and not hidden and not name.endswith("/"):
                    yield StoredObject(f"s3://{bucket}/{name}", item["Size"], item["ETag"].strip('"'))


def _local_etag(stat: os.stat_result) -> str:
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _write_beside(uri: str, data: bytes) -> str:
    """Write to a hidden file in the folder of `uri` and return its path."""
    folder, name = os.path.split(uri)
    os.makedirs(folder, exist_ok=True)
    beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    return beside


def _create_in_parts(uri: str, path: Path) -> None:
    """A multipart upload with the condition at its end, which boto3's own `upload_file` cannot pass on."""
    bucket, key = _bucket_and_key(uri)
    upload = {"Bucket": bucket, "Key": key}
    upload["UploadId"] = _s3().create_multipart_upload(**upload)["UploadId"]
    parts: list[dict[str, Any]] = []
    try:
        with path.open("rb") as stream:
            while data := stream.read(_PART_BYTES):
                number = len(parts) + 1
                part = _s3().upload_part(**upload, PartNumber=number, Body=data)
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
        _s3().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    except BaseException:
        _s3().abort_multipart_upload(**upload)  # else its parts stay, unseen and billed
        raise


class _S3Reader(io.RawIOBase):
    """Ranged GETs of one version of an object: each is retried alone, and none mixes two versions."""

    def __init__(self, listed: StoredObject) -> None:
        self._listed = listed
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._listed.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readall(self) -> bytes:
        """All that is left in one request; the base class asks for 8 KiB at a time."""
        return self.read(max(0, self._listed.size - self._position)) or b""

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._listed.size)
        if end <= self._position:
            return 0
        bucket, key = _bucket_and_key(self._listed.uri)
        with _translated(self._listed.uri):
            data = (
                _s3()
                .get_object(
                    Bucket=bucket,
                    Key=key,
                    Range=f"bytes={self._position}-{end - 1}",
                    IfMatch=self._listed.etag,
                )["Body"]
                .read()
            )
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@lru_cache(maxsize=1)
def _s3() -> Any:
    """One client a process: botocore's clients are safe to share between threads, and slow to make."""
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 8}
    return boto3.client("s3", config=Config(retries=retries, max_pool_connections=32))


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _status(error: Any) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Errors of the system and of S3 as StorageErrors that name the remedy."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"nothing found at {uri}: check the path") from error
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror or error}") from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if _status(error) == 404:
            raise NotFoundError(f"nothing found at {uri} ({code}): check bucket and key") from error
        if _status(error) == 412:
            raise ChangedError(f"{uri} changed since it was listed: run the same command again") from error
        if _status(error) in (401, 403):
            raise StorageError(f"{uri}: the store refuses ({code}): check credentials and policy") from error
        raise StorageError(f"{uri}: the store answers {code or error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}; check AWS_ENDPOINT_URL, region and credentials") from error
