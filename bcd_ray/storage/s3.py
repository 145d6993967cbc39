"""The S3 side of `storage`: each operation as one call that is retried while the fault may pass.

A fault may pass if the connection failed or broke off, also in the middle of a body, if the store answers 500 or 503,
if credentials expired (they may have been renewed in the environment or a profile since), and if a conditional write
met another writer. botocore's own retries are off: without a throttle its backoff begins at 50 ms, and eight attempts
were over 4 s after a store went down, before it could be up again.
"""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import count
from typing import Any, BinaryIO, TypeVar

from bcd_ray.errors import ChangedError, ConfigError, NotFoundError, StorageError
from bcd_ray.storage.patience import Patience
from bcd_ray.storage.temporary import temporary_files_told

_CONNECT_S = 10  # botocore's 60, twelve times, are a quarter of an hour
_PART_BYTES = 16 << 20  # of memory, of each who writes; S3 takes 10,000 parts: 156 GiB
_FETCHED_BYTES = 8 << 20  # at a time; smaller objects need no file
_PASSING_STATUSES = (429, 500, 502, 503, 504)
_PASSING_CODES = ("ConditionalRequestConflict", "RequestTimeout", "SlowDown")
# The answer to a HEAD has no body that could say why: 400 is all that is heard of credentials that expired.
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "400")
_ENDPOINT = re.compile(r"https?://(\[[0-9a-f:]+\]|[^/\s:?#]+)(:(\d{1,5}))?(/[^\s?#]*)?", re.IGNORECASE)
_FILES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE")  # read once a request needs them
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_Result = TypeVar("_Result")


def list_keys(uri: str) -> Iterator[dict[str, Any]]:
    """The listed objects whose keys begin with the URI's, page by page: `Key`, `Size`, `ETag`."""
    token: dict[str, str] = {}
    while True:
        page = list_page(uri, **token)
        yield from page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        token["ContinuationToken"] = page["NextContinuationToken"]


def list_page(uri: str, **options: str) -> dict[str, Any]:
    """A page of the objects whose keys begin with the URI's, with options of S3's ListObjectsV2."""
    bucket, key = _bucket_and_key(uri)
    page: dict[str, Any] = _call(uri, lambda client: client.list_objects_v2(Bucket=bucket, Prefix=key, **options))
    return page


def get(uri: str, **conditions: str) -> bytes:
    """The object's bytes; `Range` and `IfMatch` as for S3's GetObject."""
    bucket, key = _bucket_and_key(uri)
    data: bytes = _call(uri, lambda client: client.get_object(Bucket=bucket, Key=key, **conditions)["Body"].read())
    return data


def fetch(uri: str) -> BinaryIO:
    """The object's bytes, in bounded memory, in a temporary file that goes when it is closed."""
    bucket, key = _bucket_and_key(uri)
    file: Any = tempfile.SpooledTemporaryFile(_FETCHED_BYTES)  # noqa: SIM115 (the caller closes it)

    def copy(client: Any) -> None:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        file.seek(0)
        file.truncate()
        while part := body.read(_FETCHED_BYTES):
            with temporary_files_told():
                file.write(part)

    _call(uri, copy)
    file.seek(0)
    found: BinaryIO = file
    return found


def put(uri: str, data: bytes, **conditions: str) -> None:
    """Write an object; `IfNoneMatch` as for S3's PutObject."""
    bucket, key = _bucket_and_key(uri)
    _call(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data, **conditions))


def create(uri: str, data: bytes) -> bool:
    """Write an object unless it exists; False if it does."""
    try:
        put(uri, data, IfNoneMatch="*")
    except ChangedError:
        return False
    return True


def put_from_file(uri: str, file: BinaryIO, **conditions: str) -> None:
    """`put` for a file of any size; a large one goes in parts that appear as one object at the end."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size <= _PART_BYTES:
        put(uri, file.read(), **conditions)
        return
    bucket, key = _bucket_and_key(uri)
    upload = {"Bucket": bucket, "Key": key}
    upload["UploadId"] = _call(uri, lambda client: client.create_multipart_upload(**upload))["UploadId"]
    try:
        parts = {"Parts": list(_upload_parts(uri, file, upload))}
        # boto3's own upload_file cannot pass conditions on to the end of an upload.
        end = {**upload, "MultipartUpload": parts, **conditions}
        _call(uri, lambda client: client.complete_multipart_upload(**end))
    except BaseException:
        with suppress(NotFoundError):
            _call(uri, lambda client: client.abort_multipart_upload(**upload))  # else its parts stay, unseen and billed
        raise


def create_from_file(uri: str, file: BinaryIO) -> bool:
    """`create` for a file of any size, as `put_from_file`."""
    try:
        if file.seek(0, io.SEEK_END) > _PART_BYTES and exists(uri):
            return False
        put_from_file(uri, file, IfNoneMatch="*")
    except ChangedError:
        return False
    except NotFoundError:
        # The upload is gone if its end was heard and the answer lost: then there is an object.
        if exists(uri):
            return False
        raise
    return True


def exists(uri: str) -> bool:
    """Whether there is an object of exactly this URI."""
    return head(uri) is not None


def head(uri: str) -> dict[str, Any] | None:
    """`ContentLength`, `ETag` and more of an object, None if there is none."""
    bucket, key = _bucket_and_key(uri)
    try:
        found: dict[str, Any] = _call(uri, lambda client: client.head_object(Bucket=bucket, Key=key))
    except NotFoundError:
        return None
    return found


def modified(found: dict[str, Any]) -> float:
    """When an object that was found was written, in seconds since 1970; 0 where the store does not say."""
    return float(found["LastModified"].timestamp()) if "LastModified" in found else 0.0


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    bucket, key = _bucket_and_key(uri)
    _call(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))


def object_store_options() -> dict[str, str]:
    """What this process's client goes by, in the words of Rust's object_store, on which other readers of S3 rest."""
    credentials = client()._request_signer._credentials.get_frozen_credentials()
    endpoint, region = client().meta.endpoint_url, client().meta.region_name
    found = {"aws_access_key_id": credentials.access_key, "aws_secret_access_key": credentials.secret_key}
    found |= {"aws_session_token": credentials.token, "aws_endpoint_url": endpoint, "aws_region": region}
    found |= {"aws_conditional_put": "etag", "aws_allow_http": str(endpoint.startswith("http:")).lower()}
    return {name: value for name, value in found.items() if value}


def abort_uploads(uri: str) -> int:
    """End the uploads in parts that were begun and never finished for keys that begin with the URI's; count them."""
    bucket, key = _bucket_and_key(uri)
    count = 0
    while True:
        page = _call(uri, lambda client: client.list_multipart_uploads(Bucket=bucket, Prefix=key))
        uploads = page.get("Uploads", [])
        for upload in uploads:
            end = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            _call(uri, lambda client: client.abort_multipart_upload(**end))  # noqa: B023
        count += len(uploads)
        if not uploads or not page.get("IsTruncated"):
            return count


class Reader(io.RawIOBase):
    """Ranged GETs of one version of an object: each is retried alone, and none mixes two versions."""

    def __init__(self, uri: str, size: int, etag: str) -> None:
        self._uri, self._size, self._etag = uri, size, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readall(self) -> bytes:
        """All that is left in one request; the base class asks for 8 KiB at a time."""
        return self.read(max(0, self._size - self._position)) or b""

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = get(self._uri, Range=f"bytes={self._position}-{end - 1}", IfMatch=self._etag)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@lru_cache(maxsize=1)
def client() -> Any:
    """One client a process: botocore's clients are safe to share between threads, and slow to make."""
    from botocore.exceptions import BotoCoreError

    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]  # as a scheduler passes on what is not set; botocore would take it for a value
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        endpoint = _ENDPOINT.fullmatch(os.environ.get(name, "http://unset"))
        if not endpoint or int(endpoint[3] or 0) > 65535:
            raise ConfigError(f"{name}={os.environ[name]}: write it with its scheme, as in http://HOST:PORT")
    for name in _FILES:
        if name in os.environ and not os.path.exists(os.environ[name]):
            raise ConfigError(f"{name}={os.environ[name]}: no such file: correct or unset it")
    _check_credentials()
    try:
        return _new_client()
    except (BotoCoreError, OSError, ValueError) as error:
        suspects = [name for name in os.environ if name.startswith("AWS_")]
        found = [name for name in suspects if _works_without(name)] or suspects
        settings = ", ".join(found) or "the AWS settings in ~/.aws"
        raise ConfigError(f"S3 cannot be used ({error}): correct {settings}") from error


def _check_credentials() -> None:
    """ConfigError for what stores answer with "forbidden", or botocore with a part of it."""
    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in (*pair, "AWS_SESSION_TOKEN"):
        if re.search(r"\s", os.environ.get(name, "")):
            raise ConfigError(f"{name} holds white space, such as a line's end from a file: take it out")
    lacking = [name for name in pair if name not in os.environ]
    if len(lacking) == 1:
        raise ConfigError(f"{lacking[0]} is not set, and the other of {' and '.join(pair)} is: set both or none")


def _new_client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, max_pool_connections=32, connect_timeout=_CONNECT_S)
    # AWS_REGION is what all SDKs but boto3 read; AWS_DEFAULT_REGION boto3 reads itself.
    region = os.environ.get("AWS_REGION")
    # A session of its own: boto3's shared one remembers credentials that were read when it was made.
    return boto3.session.Session().client("s3", region_name=region, config=config)


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Arrow's S3 at the same endpoint and in the same region, and bucket and key; it finds credentials itself."""
    from pyarrow import fs

    meta = client().meta
    scheme, _, host = meta.endpoint_url.partition("://")
    return fs.S3FileSystem(endpoint_override=host, scheme=scheme, region=meta.region_name), uri.removeprefix("s3://")


def _works_without(name: str) -> bool:
    """Whether a client can be made where a variable of the environment is not set."""
    from botocore.exceptions import BotoCoreError

    value = os.environ.pop(name)
    try:
        _new_client()
    except (BotoCoreError, OSError, ValueError):
        return False
    finally:
        os.environ[name] = value
    return True


def _upload_parts(uri: str, file: BinaryIO, upload: dict[str, str]) -> Iterator[dict[str, Any]]:
    for number in count(1):
        if not (data := file.read(_PART_BYTES)):
            return
        part = {**upload, "PartNumber": number, "Body": data}
        etag = _call(uri, lambda client: client.upload_part(**part))["ETag"]  # noqa: B023
        yield {"PartNumber": number, "ETag": etag}


def _call(uri: str, operation: Callable[[Any], _Result]) -> _Result:
    """The result of an operation on the client; errors as StorageErrors that name the remedy."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    patience = Patience()
    while True:
        try:
            return operation(client())
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _EXPIRED:
                client.cache_clear()
            elif code not in _PASSING_CODES and status not in _PASSING_STATUSES:
                raise _translated(uri, code, status) from error
            failure: Exception = error
        except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
            failure = error
        except (BotoCoreError, OSError, ValueError) as error:
            raise StorageError(f"{uri}: {error}; check AWS_ENDPOINT_URL, region and credentials") from error
        if patience.is_over(client().meta.endpoint_url, failure):
            proxies = "".join(f"{name}, " for name in os.environ if name.upper() in _PROXIES)
            remedy = f"check AWS_ENDPOINT_URL, {proxies}credentials and network"
            raise StorageError(f"{uri}: {failure}, {patience.failed} times; {remedy}") from failure


def _translated(uri: str, code: str, status: int) -> StorageError:
    if status == 404:
        return NotFoundError(f"nothing found at {uri} ({code}): check bucket and key")
    if status == 412:
        return ChangedError(f"{uri} changed since it was listed: run the same command again")
    if status in (401, 403):
        return StorageError(f"{uri}: the store refuses ({code}): check credentials and policy")
    return StorageError(f"{uri}: the store answers {code or status}")


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
