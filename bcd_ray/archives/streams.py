"""Compressed files as streams of what is in them, in bounded memory, told by their first bytes, not by their names."""

import bz2
import gzip
import io
import lzma
from typing import Any, BinaryIO

_WINDOW_BYTES = 128 << 20  # of a decompressor: xz -9 takes 65 MB, a hostile header asks for 4 GB; zstd has this bound
_COMPRESSED_BYTES = 1 << 18  # read at a time
_ZSTD = b"\x28\xb5\x2f\xfd"


class UnreadableError(Exception):
    """The rest of a shard cannot be read."""


def decompressed(stream: BinaryIO) -> BinaryIO:
    """The stream itself, or of a gzip, bzip2, xz or Zstandard file what it holds; from its beginning."""
    head = stream.read(6)
    stream.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return io.BufferedReader(_Decompressed(stream, bz2.BZ2Decompressor))
    if head == b"\xfd7zXZ\0":
        return io.BufferedReader(_Decompressed(stream, lambda: lzma.LZMADecompressor(memlimit=_WINDOW_BYTES)))
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
