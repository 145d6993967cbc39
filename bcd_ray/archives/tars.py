"""The images in a tar, compressed or not, in memory bounded by one image; it goes by once."""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from bcd_ray.archives.images import Limits, Rejected, too_large
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.streams import Source, UnreadableError, raise_if_of_the_disk
from bcd_ray.archives.suffixes import IMAGE_SUFFIXES
from bcd_ray.errors import StorageError
from bcd_ray.uris import hidden_part

# Before a member there may be headers of headers, and maps of holes, which tarfile keeps: names are at most some kB.
_HEADER_BYTES = 1 << 20


class _MarkedTarInfo(tarfile.TarInfo):
    """Remembers whether the end-of-archive marker was seen: tarfile stops in silence at bad headers too."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_MarkedTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.end_marker_seen = True  # type: ignore[attr-defined]
            raise


def read_tar(stream: BinaryIO, limits: Limits) -> Iterator[tuple[str, bytes | Rejected | None]]:
    """Names and bytes of the images, or what is wrong with them; None for a member that is no image.

    Raises:
        UnreadableError: it is damaged, is cut off, or holds far more than its own size.
    """
    try:
        source: Any = Source(stream)
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
            if not getattr(tar, "end_marker_seen", False):
                raise UnreadableError("the tar ends early or is damaged in the middle")
            source.until = float("inf")
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    raise UnreadableError("the tar goes on after zeros that mark its end: damaged, or two in one")
    except (StorageError, UnreadableError):
        raise
    except Exception as error:  # tarfile raises many types on hostile headers; each is this shard's fault
        raise_if_of_the_disk(error)
        raise UnreadableError(f"the tar cannot be read ({error})") from error


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
