"""The local side of `storage`: files that appear whole or not at all, and are never written over by accident."""

import ctypes
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from bcd_ray.errors import ChangedError, NotFoundError, StorageError, UnsafeError
from bcd_ray.progress import say
from bcd_ray.storage.objects import StoredObject, Unlisted
from bcd_ray.uris import hidden_part

LINK_OUT, NO_FILE = "link-out", "no-file"  # etags of what is listed and not read
_UNSAFE = {
    LINK_OUT: "is a link that leads out of the folder: copy or hard-link what it leads to, or name that folder itself",
    NO_FILE: "is a pipe, a device or a socket, not a file: take it out of the folder",
}
PROBE = ".write-check-"
_READ_AHEAD_BYTES = 1 << 20
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux' renameat2
_BROKEN_OFF = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|" + re.escape(PROBE) + "[0-9a-f]{32}")


def list_objects(uri: str, unlisted: Unlisted) -> Iterator[StoredObject]:
    """Every file at or below a path, in any order; folders that may not be listed are left out with a line.

    A link to what is listed under its own name adds nothing; one that leads out of the path, and what is no regular
    file, is listed and never read.
    """
    with _translated(uri):
        if os.path.isfile(uri):
            yield from _list_file(uri)
            return
        yield from _walk(uri, os.path.realpath(uri), unlisted, frozenset())


def _walk(top: str, root: str, unlisted: Unlisted, followed: frozenset[str]) -> Iterator[StoredObject]:
    """Links go by their targets' own names where those are listed: ids are made from names."""
    for folder, folders, files in os.walk(top, onerror=partial(_leave_out, root, unlisted)):
        unlisted.hidden.update(os.path.join(folder, name) for name in folders + files if hidden_part(name))
        folders[:] = [name for name in folders if not hidden_part(name)]
        for path in (os.path.join(folder, name) for name in folders):
            if os.path.islink(path):
                yield from _list_link(path, root, unlisted, followed)
        for path in (os.path.join(folder, name) for name in files if not hidden_part(name)):
            yield from _list_link(path, root, unlisted, followed) if os.path.islink(path) else _list_file(path)


def _list_link(path: str, root: str, unlisted: Unlisted, followed: frozenset[str]) -> Iterator[StoredObject]:
    target = os.path.realpath(path)
    inside = os.path.relpath(target, root)
    if not os.path.exists(path):
        yield StoredObject(path, 0, "missing")  # a row says so when it is read
    elif inside == ".." or inside.startswith("../"):
        yield StoredObject(path, 0, LINK_OUT)
    elif inside == "." or not hidden_part(inside):
        return  # it is listed under its own name
    elif not os.path.isdir(path):
        yield from _list_file(path)
    elif target not in followed:
        yield from _walk(path, root, unlisted, followed | {target})


def _list_file(path: str) -> Iterator[StoredObject]:
    try:
        found = os.stat(path)
    except OSError:  # gone since
        yield StoredObject(path, 0, "missing")
    else:
        etag = _etag(found) if stat.S_ISREG(found.st_mode) else NO_FILE
        yield StoredObject(path, found.st_size, etag, found.st_mtime)


def get(uri: str) -> bytes:
    """The file's bytes."""
    with _translated(uri), _open_regular(uri) as stream:
        return stream.read()


def opened(uri: str) -> BinaryIO:
    """A file to read, as it is now."""
    with _translated(uri):
        return _open_regular(uri)


@contextmanager
def open_stream(listed: StoredObject, read_ahead: int = _READ_AHEAD_BYTES) -> Iterator[BinaryIO]:
    """A reader of a file; ChangedError if it is not the listed version."""
    refuse_unsafe(listed)
    with _translated(listed.uri), _open_regular(listed.uri, read_ahead) as stream:
        if _etag(os.fstat(stream.fileno())) != listed.etag:
            raise ChangedError(f"{listed.uri} changed since it was listed: run the same command again")
        yield stream


def refuse_unsafe(listed: StoredObject) -> None:
    """UnsafeError for what a listing found to be no regular file of its folder."""
    if listed.etag in _UNSAFE:
        raise UnsafeError(f"{listed.uri} {_UNSAFE[listed.etag]}")


def _open_regular(path: str, read_ahead: int = _READ_AHEAD_BYTES) -> BinaryIO:
    """A regular file to read; to open a pipe would wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):  # of a name that was a file's when it was listed
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise UnsafeError(f"{path} {_UNSAFE[NO_FILE]}")
    return open(descriptor, "rb", buffering=min(read_ahead, _READ_AHEAD_BYTES))


def put(uri: str, source: BinaryIO) -> None:
    """Write a file whole: a reader sees the old one or all of the new one."""
    with _translated(uri):
        os.replace(_write_beside(uri, source), uri)


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


def modified_at(uri: str) -> float:
    """When a file was written, in seconds since the epoch."""
    with _translated(uri):
        return os.stat(uri).st_mtime


def delete(uri: str) -> None:
    """Delete a file; nothing happens if it is not there."""
    with _translated(uri):
        Path(uri).unlink(missing_ok=True)


def broken_off(uri: str) -> list[str]:
    """Paths of what writers that were killed left below a folder."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(uri) for name in names]
    return [path for path in paths if _BROKEN_OFF.fullmatch(os.path.basename(path))]


def _leave_out(root: str, unlisted: Unlisted, error: OSError) -> None:
    """Without this, os.walk leaves a folder that it cannot list out in silence, with every image in it."""
    if not isinstance(error, PermissionError) or error.filename == root:
        raise error
    unlisted.closed.add(error.filename)
    say(f"{error.filename} is left out with all that is in it ({error.strerror}): let this user read it, or move it")


def _etag(found: os.stat_result) -> str:
    """Size, time of the content, and time of the last change of any kind: programs can set all but the last."""
    return f"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


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
    except IsADirectoryError as error:
        raise NotFoundError(f"no file at {uri}, but a folder: check the path") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # nothing can be there
            raise NotFoundError(f"nothing found at {uri} ({error.strerror}): check the path") from error
        raise StorageError(f"{uri}: {error.strerror or error}") from error
