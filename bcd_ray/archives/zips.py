"""The images in a zip file, in memory bounded by one image and the zip's own directory."""

import stat
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from bcd_ray.archives.images import Limits, Rejected, too_large
from bcd_ray.archives.magic import HEAD_BYTES, image_suffix
from bcd_ray.archives.parts import Part, Piece
from bcd_ray.archives.streams import ROW_BYTES, Expansion, UnreadableError
from bcd_ray.archives.suffixes import IMAGE_SUFFIXES
from bcd_ray.errors import StorageError
from bcd_ray.uris import hidden_part

_MOST_MEMBERS = (1 << 16) - 1  # more need another form of directory; zipfile holds it whole, some 1 kB a member
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END_BYTES = 22 + (1 << 16) - 1  # in which the end of a zip lies, with the longest comment


def read_zip(
    stream: BinaryIO, limits: Limits, part: Part | None = None
) -> Iterator[tuple[str, bytes | Rejected | None]]:
    """Names and bytes of the images, or what is wrong with them; None for a member that is no image.

    Raises:
        UnreadableError: it is damaged at its end, too large a directory, encrypted, or compressed by another method
            than deflate.
    """
    with _opened(stream) as archive:
        members = _in_order(archive)
        for member in members[part.begin : part.end] if part else members:
            if not member.is_dir():
                yield member.filename, _read_member(archive, member, limits)


def pieces_of_zip(stream: BinaryIO) -> Iterator[Piece]:
    """The members of a zip by its directory.

    Raises:
        UnreadableError: reading it to its end would find something wrong.
    """
    with _opened(stream) as archive:
        members = _in_order(archive)
    expansion = Expansion(stream.seek(0, 2))
    for number, member in enumerate(members):
        if member.flag_bits & 1 or member.compress_type not in _METHODS:
            raise UnreadableError("one of its members cannot be read")
        expansion.add(ROW_BYTES + member.file_size)
        may_be = not hidden_part(member.filename) and not member.is_dir()
        named = member.filename.lower().endswith(IMAGE_SUFFIXES)
        yield Piece(number, member.compress_size, member.filename if may_be else "", int(may_be and named))


def _in_order(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return sorted(archive.infolist(), key=lambda member: member.header_offset)


def _opened(stream: BinaryIO) -> zipfile.ZipFile:
    try:
        _check_directory(stream)
        return zipfile.ZipFile(stream)
    except StorageError:
        raise
    except Exception as error:  # zipfile raises many types on hostile headers; each is this shard's fault
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"the zip cannot be read ({error})") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: Limits) -> bytes | Rejected | None:
    named = member.filename.lower().endswith(IMAGE_SUFFIXES)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if hidden_part(member.filename) or (link and not named):
        return None
    if link:
        return Rejected("unsafe_member", "is a link, not a file: pack the image itself")
    if member.filename.startswith("/") or ".." in member.filename.split("/"):
        return Rejected("unsafe_member", "has an absolute name or one with '..': pack with relative names")
    if member.flag_bits & 1:
        raise UnreadableError("the zip is encrypted: pack it without a password")
    if member.compress_type not in _METHODS:
        raise UnreadableError(f"the zip is compressed by method {member.compress_type}: use deflate, or a tar")
    if named and member.file_size > limits.max_bytes:
        return too_large(member.file_size, limits)
    try:
        with archive.open(member) as reader:
            head = reader.read(HEAD_BYTES)
            if not (named or image_suffix(head)):
                return None
            return too_large(member.file_size, limits) if member.file_size > limits.max_bytes else head + reader.read()
    except StorageError:
        raise
    except Exception as error:  # as above; but the other members can be read
        return Rejected("corrupt_image", f"its place in the zip is damaged ({' '.join(str(error).split())[:150]})")


def _check_directory(stream: BinaryIO) -> None:
    """UnreadableError where the directory, which zipfile reads whole, is larger than that of so many members."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END_BYTES))
    end = stream.read(_END_BYTES)
    place = end.rfind(b"PK\5\6")
    end = end[place:] if place >= 0 else b""
    stream.seek(0)
    if int.from_bytes(end[12:16], "little") > 256 * _MOST_MEMBERS or end[8:10] == b"\xff\xff":
        raise UnreadableError(f"the zip has more than {_MOST_MEMBERS:,} members: split it, or pack a tar")
