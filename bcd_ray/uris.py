"""How what is stored is named: local paths and `s3://bucket/key`, each in one spelling."""

import os

from bcd_ray.errors import ConfigError


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
