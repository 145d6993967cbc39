"""How what is stored is named: local paths and `s3://bucket/key`, each in one spelling."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from bcd_ray.errors import ConfigError

_A_SLASH_TOO_FEW = re.compile(r"(s3|[a-z][a-z0-9+.-]+(?=:/)):", re.IGNORECASE)  # what pathlib makes of s3://lab/x


def is_s3(uri: str) -> bool:
    """Whether the URI names an object of an S3 store."""
    return uri.startswith("s3://")


def normalize(uri: str) -> str:
    """The one spelling of a URI: no trailing slash, local paths absolute, `~` the home folder.

    Raises:
        ConfigError: another scheme, or none that can be told from a path.
    """
    if is_s3(uri):
        if not uri[5:].split("/")[0]:
            raise ConfigError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        if printable(uri) != uri:
            raise ConfigError(f"{printable(uri)} is no UTF-8, as names of S3 are")
        return uri.rstrip("/")
    if uri.startswith("file:///") or uri == "file://":
        uri = uri.removeprefix("file://")
    elif "://" in uri:
        raise ConfigError(f"{uri!r}: only local paths and s3:// are supported")
    elif _A_SLASH_TOO_FEW.match(uri):
        raise ConfigError(f"{uri!r} is neither a path nor a URI: write s3://BUCKET/PREFIX, or ./{uri} for a local path")
    if not uri:
        raise ConfigError("an empty path was given: name a folder, a file or s3://BUCKET/PREFIX")
    return os.path.abspath(re.sub("^/+", "/", _expanded(uri)))  # Python lets two leading slashes stand


def _expanded(path: str) -> str:
    """The path with the home folder for `~`, which the shell leaves to the program in `--output=~/x`."""
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") or (re.match("~(/|$)", path) and not os.environ.get("HOME", "unset")):
        raise ConfigError(f"{path!r}: no such home folder: set HOME, or write the path out (./{path} for that name)")
    return expanded


def join(uri: str, *names: str) -> str:
    """The URI of a name below another."""
    return "/".join((uri.rstrip("/"), *names))


def printable(uri: str) -> str:
    """The URI as text that Parquet can hold: bytes of a file name that are no UTF-8 are shown as \\udcXX."""
    return uri.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(value: Any, indent: int | None = 2) -> bytes:
    """A JSON file of a value whose text is `printable`: strict readers refuse half of a surrogate pair."""
    return (json.dumps(_printable_all(value), indent=indent) + "\n").encode()


def _printable_all(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable_all(key): _printable_all(each) for key, each in value.items()}
    return [_printable_all(each) for each in value] if isinstance(value, list | tuple) else value
