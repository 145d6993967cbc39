"""Compressed files as streams of what is in them, in bounded memory, told by their first bytes, not by their names."""

import bz2
import gzip
import io
import lzma
import math
from typing import Any, BinaryIO

from bcd_ray.errors import StorageError

NAME_CHARS = 4096  # of a member at most: a path of Linux has no more
WINDOW_BYTES = 128 << 20  # of a decompressor: xz -9 takes 65 MB, a hostile header asks for 4 GB; zstd has this bound
_COMPRESSED_BYTES = 1 << 18  # read at a time
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
ROW_BYTES = 512  # that count for an image beside its own: a tar has a header of so many
_MOST_TIMES, _FREE_BYTES = 100, 256 << 20  # its own size that a file may hold, and more: images do not compress


class UnreadableError(Exception):
    """The rest of a shard cannot be read."""


def raise_if_of_the_disk(error: Exception) -> None:
    """A number of the system's means that reading failed, not that what was read is wrong."""
    if isinstance(error, OSError) and error.errno:
        raise StorageError(str(error)) from error


class Expansion:
    """Counts what comes out of a file, in bytes: a small one must not keep a job busy for days."""

    def __init__(self, size: int) -> None:
        self._left = _MOST_TIMES * size + _FREE_BYTES

    def add(self, size: int) -> None:
        """UnreadableError if with these it is too much."""
        self._left -= size
        if self._left < 0:
            raise UnreadableError(f"it holds more than {_MOST_TIMES} times its own size: write it without compression")


class Source:
    """What is read of a file that may be compressed, from its beginning; UnreadableError beyond `until`.

    Where `begin` and `end` are given, it is these bytes of a file that is not compressed.
    """

    def __init__(self, stream: BinaryIO, begin: int = 0, end: int | None = None) -> None:
        size = stream.seek(0, io.SEEK_END) if end is None else end - begin
        self._expansion, self._left = Expansion(size), math.inf if end is None else size
        stream.seek(begin)
        self._stream, self.position, self.until = _decompressed(stream) if end is None else stream, 0, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(int(min(size, self._left)))
        self._left -= len(data)
        self.position += len(data)
        self._expansion.add(len(data))
        if self.position > self.until:
            raise UnreadableError("the headers of one of its members are far too long")
        return data


def is_compressed(stream: BinaryIO) -> bool:
    """Whether a stream at its beginning is a gzip, bzip2, xz or Zstandard file."""
    found = stream.read(6).startswith((_GZIP, _BZIP2, _XZ, _ZSTD))
    stream.seek(0)
    return found


def _decompressed(stream: BinaryIO) -> BinaryIO:
    """The stream itself, or of a gzip, bzip2, xz or Zstandard file what it holds."""
    head = stream.read(6)
    stream.seek(0)
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    if head.startswith(_BZIP2):
        return io.BufferedReader(_Decompressed(stream, bz2.BZ2Decompressor))
    if head == _XZ:
        return io.BufferedReader(_Decompressed(stream, lambda: lzma.LZMADecompressor(memlimit=WINDOW_BYTES)))
    if head.startswith(_ZSTD):
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")  # type: ignore[no-any-return]
    return stream


class _Decompressed(io.RawIOBase):
    """What one compressed stream, or several in a row, hold. `bz2.open` and `lzma.open` set no bound on memory."""

    def __init__(self, stream: BinaryIO, decompressor: Any) -> None:
        self._stream, self._new = stream, decompressor
        self._decompressor = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = b""
        while not found:
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0")  # of the next stream, after padding
                while not data:
                    if not (read := self._stream.read(_COMPRESSED_BYTES)):
                        return 0
                    data = read.lstrip(b"\0")
                self._decompressor = self._new()
            else:
                data = self._stream.read(_COMPRESSED_BYTES) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not data:
                    raise EOFError("the compressed stream ends early")
            found = self._decompressor.decompress(data, len(buffer))
        buffer[: len(found)] = found
        return len(found)
