"""The local side of `storage`: files that appear whole or not at all, and are never written over by accident."""

import ctypes
import errno
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from bcd_ray.errors import ChangedError, NotFoundError, StorageError
from bcd_ray.progress import say
from bcd_ray.storage.objects import StoredObject
from bcd_ray.uris import hidden_part

PROBE = ".write-check-"
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux' renameat2
_BROKEN_OFF = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|" + re.escape(PROBE) + "[0-9a-f]{32}")


def list_objects(uri: str, hidden: set[str]) -> Iterator[StoredObject]:
    """Every file at or below a path, in any order; hidden files and folders go to `hidden`.

    Folders that may not be listed, such as lost+found at the root of a disk, are left out with a line.
    """
    with _translated(uri):
        if os.path.isfile(uri):
            stat = os.stat(uri)
            yield StoredObject(uri, stat.st_size, _etag(stat))
            return
        paths = []
        for folder, files in _folders(uri, hidden):
            hidden.update(os.path.join(folder, name) for name in files if hidden_part(name))
            paths += [os.path.join(folder, name) for name in files if not hidden_part(name)]
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError:  # a dangling link, or gone since: a row says so when it is read
                yield StoredObject(path, 0, "missing")
            else:
                yield StoredObject(path, stat.st_size, _etag(stat))


def _folders(uri: str, hidden: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder at or below a path, each once, with its files; links to folders are followed after all real ones.

    So a folder goes by its own name, whatever links to it come and go: ids are made from names.
    """
    seen, waiting = set[str](), [uri]
    while waiting:
        links = []
        for folder, folders, files in os.walk(waiting.pop(0), onerror=partial(_leave_out, uri)):
            place = os.path.realpath(folder)
            if place in seen:  # a link back, or a second one
                folders.clear()
                continue
            seen.add(place)
            hidden.update(os.path.join(folder, name) for name in folders if hidden_part(name))
            inside = [name for name in folders if not hidden_part(name)]
            linked = {name for name in inside if os.path.islink(os.path.join(folder, name))}
            links += [os.path.join(folder, name) for name in linked]
            folders[:] = [name for name in inside if name not in linked]
            yield folder, files
        waiting += sorted(links)


def get(uri: str) -> bytes:
    """The file's bytes."""
    with _translated(uri):
        return Path(uri).read_bytes()


@contextmanager
def open_stream(listed: StoredObject) -> Iterator[BinaryIO]:
    """A reader of a file; ChangedError if it is not the listed version."""
    with _translated(listed.uri), open(listed.uri, "rb", buffering=1 << 20) as stream:
        if _etag(os.fstat(stream.fileno())) != listed.etag:
            raise ChangedError(f"{listed.uri} changed since it was listed: run the same command again")
        yield stream


def put(uri: str, data: bytes) -> None:
    """Write a file whole: a reader sees the old one or all of the new one."""
    with _translated(uri):
        os.replace(_write_beside(uri, io.BytesIO(data)), uri)


def create(uri: str, source: BinaryIO) -> bool:
    """Write a file whole unless it exists; False if it does."""
    with _translated(uri):
        beside = _write_beside(uri, source)
        try:
            _name(beside, uri)
        except FileExistsError:
            return False
        finally:
            Path(beside).unlink(missing_ok=True)
        return True


def delete(uri: str) -> None:
    """Delete a file; nothing happens if it is not there."""
    with _translated(uri):
        Path(uri).unlink(missing_ok=True)


def broken_off(uri: str) -> list[str]:
    """Paths of what writers that were killed left below a folder."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(uri) for name in names]
    return [path for path in paths if _BROKEN_OFF.fullmatch(os.path.basename(path))]


def _leave_out(root: str, error: OSError) -> None:
    """Without this, os.walk leaves a folder that it cannot list out in silence, with every image in it."""
    if not isinstance(error, PermissionError) or error.filename == root:
        raise error
    say(f"{error.filename} is left out with all that is in it: {error.strerror}")


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _name(beside: str, uri: str) -> None:
    """Give a file its name; FileExistsError if there is one of that name, which a plain rename would replace."""
    try:
        os.link(beside, uri)
    except FileExistsError:
        raise
    except OSError as error:  # exFAT, many SMB and FUSE mounts have no hard links
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename and not rename(_AT_FDCWD, os.fsencode(beside), _AT_FDCWD, os.fsencode(uri), _RENAME_NOREPLACE):
            return
        if rename and ctypes.get_errno() == errno.EEXIST:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), uri) from error
        raise


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
