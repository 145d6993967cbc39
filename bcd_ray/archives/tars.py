"""The images in a tar, compressed or not, in memory bounded by one image; it goes by once."""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from bcd_ray.archives.images import Limits, Rejected, too_large
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.parts import Part, Piece
from bcd_ray.archives.streams import Source, UnreadableError, raise_if_of_the_disk
from bcd_ray.archives.suffixes import IMAGE_SUFFIXES
from bcd_ray.errors import StorageError
from bcd_ray.uris import hidden_part

# Before a member there may be headers of headers, and maps of holes, which tarfile keeps: names are at most some kB.
_HEADER_BYTES = 1 << 20
_TRIED = 16  # members, before their mean size is heeded
_ENDS_EARLY = "the tar ends early or is damaged in the middle"


class _MarkedTarInfo(tarfile.TarInfo):
    """Remembers whether the end-of-archive marker was seen: tarfile stops in silence at bad headers too."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_MarkedTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.end_marker_seen = True  # type: ignore[attr-defined]
            raise


def read_tar(
    stream: BinaryIO, limits: Limits, part: Part | None = None
) -> Iterator[tuple[str, bytes | Rejected | None]]:
    """Names and bytes of the images, or what is wrong with them; None for a member that is no image.

    Raises:
        UnreadableError: it is damaged, is cut off, or holds far more than its own size.
    """
    try:
        source: Any = Source(stream, part.begin, part.end) if part else Source(stream)
        source.until = _HEADER_BYTES
        # tarfile's own gzip checks no checksum.
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_MarkedTarInfo) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all that it saw: 2 kB each
                source.until = max(source.position, tar.offset) + _HEADER_BYTES
                if sum(len(name) + len(value) for name, value in tar.pax_headers.items()) > _HEADER_BYTES:
                    raise UnreadableError("its global headers are far too long")
                if not member.isdir():
                    yield member.name, _read_member(tar, member, limits)
            if part and not part.last:
                if tar.offset != part.end - part.begin:
                    raise UnreadableError(_ENDS_EARLY)
                return
            if not getattr(tar, "end_marker_seen", False):
                raise UnreadableError(_ENDS_EARLY)
            source.until = float("inf")
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    raise UnreadableError("the tar goes on after zeros that mark its end: damaged, or two in one")
    except (StorageError, UnreadableError):
        raise
    except Exception as error:  # tarfile raises many types on hostile headers; each is this shard's fault
        raise_if_of_the_disk(error)
        raise UnreadableError(f"the tar cannot be read ({error})") from error


def pieces_of_tar(stream: BinaryIO, least_bytes: int) -> Iterator[Piece]:
    """The members of a tar that is not compressed, by their headers: what lies between is not read.

    Raises:
        UnreadableError: reading it to its end would find something wrong, members have fewer than `least_bytes` in the
            mean, or what stands in it is not of one member alone.
    """
    source: Any = _Headers(stream)
    try:
        yield from _pieces(source, least_bytes)
    except (StorageError, UnreadableError):
        raise
    except Exception as error:  # as above
        raise UnreadableError(f"the tar cannot be read ({error})") from error


def _pieces(source: Any, least_bytes: int) -> Iterator[Piece]:
    with tarfile.open(fileobj=source, mode="r:", tarinfo=_MarkedTarInfo) as tar:
        for number, member in enumerate(tar, 1):
            tar.members.clear()  # type: ignore[attr-defined]
            if tar.pax_headers or (number > _TRIED and tar.offset < number * least_bytes):
                raise UnreadableError("a part of it cannot be read alone, or not for less than all of it")
            hidden, named = hidden_part(member.name), member.name.lower().endswith(IMAGE_SUFFIXES)
            may_be = not hidden and not member.isdir() and (named or member.isreg())
            size = tar.offset - member.offset
            yield Piece(member.offset, size, member.name if may_be else "", int(may_be and named))
        if not getattr(tar, "end_marker_seen", False):
            raise UnreadableError(_ENDS_EARLY)
        source.seek(tar.offset)
        if source.read(_HEADER_BYTES).strip(b"\0") or source.read(1):
            raise UnreadableError("the tar goes on after zeros that mark its end")


class _Headers:
    """A file of which only headers are to be read: they have at most some kB."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int) -> bytes:
        if size > _HEADER_BYTES:
            raise UnreadableError("the headers of one of its members are far too long")
        return self._stream.read(size)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, limits: Limits) -> bytes | Rejected | None:
    """The bytes of a member, or what is wrong with it, or None where it is no image."""
    named, head = member.name.lower().endswith(IMAGE_SUFFIXES), b""
    if hidden_part(member.name) or not (named or member.isreg()):
        return None
    reader = tar.extractfile(member) if member.isreg() else None
    if reader and not named:
        head = reader.read(HEAD_BYTES)
        if not image_suffix(head):
            return None
    if not reader:
        kind = "link" if member.issym() or member.islnk() else "device"
        return Rejected("unsafe_member", f"is a {kind}, not a file: pack the image itself")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return Rejected("unsafe_member", "has an absolute name or one with '..': pack with relative names")
    if member.size > limits.max_bytes:
        return too_large(member.size, limits)
    data = head + reader.read()
    if len(data) != member.size:
        raise UnreadableError(f"the tar ends inside {member.name!r}")
    return data
