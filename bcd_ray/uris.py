"""How what is stored is named: local paths and `s3://bucket/key`, each in one spelling."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from bcd_ray.errors import ConfigError

_A_SLASH_TOO_FEW = re.compile(r"(s3|[a-z][a-z0-9+.-]+(?=:/)):", re.IGNORECASE)  # what pathlib makes of s3://lab/x
_LIKE_ESCAPES = re.compile(r"\\+(?=ud[89a-f][0-9a-f]{2}|[\ud800-\udfff])")
_ESCAPES = re.compile(r"(\\+)u(d[89a-f][0-9a-f]{2})")
# What systems lay beside people's files: thumbnails of Synology, copies of QNAP, attributes of macOS, Windows' bin,
# what a check of a disk found.
_OF_SYSTEMS = (
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
_OF_FOLDERS = ("thumbs.db", "ehthumbs.db", "desktop.ini")


def is_s3(uri: str) -> bool:
    """Whether the URI names an object of an S3 store."""
    return uri.startswith("s3://")


def normalize(uri: str) -> str:
    """The one spelling of a URI: no trailing slash, local paths absolute, `~` the home folder.

    Raises:
        ConfigError: another scheme, or none that can be told from a path, or no name at all.
    """
    if "\0" in uri:  # of a list in UTF-16
        raise ConfigError(f"{uri[:100]!r} holds bytes that are 0, as no name does: write lists in UTF-8")
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


def hidden_part(name: str) -> str | None:
    """The name down to its first part that is no part of the data, or None: it begins with a dot, or is a system's own.

    So are `.ipynb_checkpoints`, `._NAME` and `@eaDir`, loose and in shards alike. `name` is a path below what the user
    named.
    """
    parts = name.split("/")
    for place, part in enumerate(parts):
        if (part.startswith(".") and part not in (".", "..")) or part.lower() in (*_OF_SYSTEMS, *_OF_FOLDERS):
            return "/".join(parts[: place + 1])
    return None


def real(uri: str) -> str:
    """The URI of a local folder or file under its folder's own name, whatever links lead there; others as they are.

    The last part stays where it names a file: a link to one may say by its suffix what the file is.
    """
    if is_s3(uri) or os.path.isdir(uri):
        return uri if is_s3(uri) else os.path.realpath(uri)
    return os.path.join(os.path.realpath(os.path.dirname(uri)), os.path.basename(uri))


def printable(uri: str) -> str:
    """The URI as text that Parquet can hold: bytes of a file name that are no UTF-8 are shown as \\udcXX.

    No two URIs give the same text: backslashes before such a byte, or before letters that look like one, are doubled.
    """
    if "\\" not in uri and uri.isascii():
        return uri
    doubled = _LIKE_ESCAPES.sub(lambda backslashes: 2 * backslashes[0], uri)
    return doubled.encode("utf-8", "backslashreplace").decode("utf-8")


def from_printable(text: str) -> str:
    """The URI that `printable` gave a text of."""
    if "\\" not in text:
        return text

    def original(found: re.Match[str]) -> str:
        backslashes, code = found[1], found[2]
        byte = chr(int(code, 16)) if len(backslashes) % 2 else f"u{code}"
        return "\\" * (len(backslashes) // 2) + byte

    return _ESCAPES.sub(original, text)


def to_json(value: Any, indent: int | None = 2) -> bytes:
    """A JSON file of a value whose text is `printable`: strict readers refuse half of a surrogate pair."""
    return (json.dumps(_printable_all(value), indent=indent) + "\n").encode()


def _printable_all(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable_all(key): _printable_all(each) for key, each in value.items()}
    return [_printable_all(each) for each in value] if isinstance(value, list | tuple) else value
