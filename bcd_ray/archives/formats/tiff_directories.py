"""The directories of a TIFF: which pictures it holds, and what their tags say.

Read here, since Pillow counts directories alone, not what they are of, and stops at a mask.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF's
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_TYPES |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_SUBFILE, _OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_DESCRIPTION, STRIPS, SAMPLES, STRIP_BYTES, LARGEST, PLANAR, ORIENTATION = 270, 273, 277, 279, 281, 284, 274
ROWS_A_STRIP, PREDICTOR, COLOUR_MAP, TILES, TILE_BYTES, _SUBDIRECTORIES, INKS = 278, 317, 320, 324, 325, 330, 332
EXTRA, FORMAT, JPEG_TABLES, COEFFICIENTS, SUBSAMPLING, REFERENCE = 338, 339, 347, 529, 530, 532
_DEPTH, _STK_PLANES, PROFILE = 32997, 33629, 34675
_WANTED = frozenset(
    [
        *(_SUBFILE, _OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, _DESCRIPTION, STRIPS, SAMPLES),
        *(STRIP_BYTES, LARGEST, PLANAR, ORIENTATION, ROWS_A_STRIP, PREDICTOR, COLOUR_MAP, TILES),
        *(TILE_BYTES, _SUBDIRECTORIES, INKS, EXTRA, FORMAT, JPEG_TABLES, COEFFICIENTS, SUBSAMPLING, REFERENCE),
        *(_DEPTH, _STK_PLANES, PROFILE),
    ]
)
_MOST_DIRECTORIES = 1000
_REDUCED, _MASK, _OLD_REDUCED, _PHOTOMETRIC_MASK = 1, 4, 2, 4


@dataclass(frozen=True)
class Directory:
    """One directory: where it stands, and the wanted tags with all their values, texts as bytes."""

    offset: int
    tags: dict[int, Any]

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag as a number."""
        values = self.tags.get(tag)
        return int(values[0]) if values else default

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.number(WIDTH, 0) * self.number(HEIGHT, 0)

    @property
    def is_full_picture(self) -> bool:
        """Whether it is neither a smaller copy of another nor a mask."""
        reduced = self.number(_SUBFILE, 0) & _REDUCED or self.number(_OLD_SUBFILE, 0) == _OLD_REDUCED
        mask = self.number(_SUBFILE, 0) & _MASK or self.number(PHOTOMETRIC, 0) == _PHOTOMETRIC_MASK
        return self.pixels > 0 and not reduced and not mask

    def planes(self, file_size: int) -> int:
        """Pictures in this one directory, of which its tags describe the first.

        Programs copy the text of a stack to one picture of it: a file without room for two is none.
        """
        in_tags = max(self.number(_DEPTH, 1), len(self.tags.get(_STK_PLANES, ())) // 2, 1)
        in_text = _planes_in_text(bytes(self.tags.get(_DESCRIPTION, b"")), self.number(SAMPLES, 1), self.pixels)
        room = sum(length for _, length in self.segments)
        if self.number(COMPRESSION, 1) == 1 and file_size < 2 * room:
            return in_tags
        return max(in_tags, in_text)

    @property
    def declared_bits(self) -> int | None:
        """The bits of the range of samples that something besides BitsPerSample tells."""
        text = bytes(self.tags.get(_DESCRIPTION, b""))
        if found := re.search(rb"\bSignificantBits=\"(\d{1,2})\"", text):
            return int(found[1])
        largest = max(self.tags.get(LARGEST, (0,)))
        if text.startswith(b"ImageJ=") and (shown := re.search(rb"\nmax=(\d{1,5})(?:\.|\n|$)", text)):
            largest = max(largest, int(shown[1]))
        return int(largest).bit_length() if 1 <= largest < 1 << 16 else None

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Where each strip or tile begins, and its length, in bytes."""
        tiled = TILES in self.tags
        starts, lengths = (
            self.tags.get(TILES if tiled else STRIPS, ()),
            self.tags.get(TILE_BYTES if tiled else STRIP_BYTES),
        )
        return [(int(start), int(length)) for start, length in zip(starts, lengths or (), strict=False)]


def _planes_in_text(text: bytes, samples: int, pixels: int) -> int:
    """Planes that ImageJ, tifffile or OME's XML tell of."""
    if text.startswith(b"ImageJ="):
        found = re.search(rb"\nimages=(\d{1,9})", text)
        return int(found[1]) if found else 1
    if text.startswith(b'{"shape":'):
        try:
            return int(math.prod(json.loads(text.rstrip(b"\0"))["shape"])) // max(1, pixels * samples)
        except (ValueError, TypeError, KeyError):
            return 1
    if b"<OME" in text:
        sizes = [re.search(rb"\bSize%s=\"(\d{1,6})\"" % axis, text) for axis in (b"C", b"Z", b"T")]
        return math.prod(int(size[1]) for size in sizes if size) // samples
    return 1


def read_directories(data: bytes) -> tuple[list[Directory], str | None]:
    """All directories of a TIFF in order, each followed by its own, and what is wrong with the chain of them.

    Stops after the second full picture: then the file is refused. The first directory is damaged if the list is empty.
    """
    found, seen = list[Directory](), set[int]()
    try:
        for directory in _walk(data, seen):
            found.append(directory)
            if sum(each.is_full_picture for each in found) > 1:
                break
    except (struct.error, ValueError, OverflowError):
        return found, "a directory of further pictures cannot be read"
    return found, None


def _walk(data: bytes, seen: set[int]) -> Iterator[Directory]:
    order, big = ("<" if data[:1] == b"I" else ">"), data[:4] in MAGICS[2:]
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    ahead = [offset]
    while ahead:
        offset = ahead.pop()
        if not offset or offset in seen:  # those below a picture are listed, and point to each other as well
            continue
        if len(seen) >= _MOST_DIRECTORIES:
            raise ValueError("more directories than a picture has")
        seen.add(offset)
        tags, following = _read_tags(data, offset, order, big)
        yield Directory(offset, tags)
        ahead += [following, *reversed(tags.get(_SUBDIRECTORIES, ()))]


def _read_tags(data: bytes, offset: int, order: str, big: bool) -> tuple[dict[int, Any], int]:
    word, counter, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (count,) = struct.unpack_from(order + counter, data, offset)
    start, room = offset + struct.calcsize(order + counter), struct.calcsize(order + word)
    if start + count * entry > len(data):
        raise ValueError("it ends inside a directory")
    tags: dict[int, Any] = {}
    for place in range(start, start + count * entry, entry):
        tag, kind, number = struct.unpack_from(order + "HH" + word, data, place)
        if tag not in _WANTED or kind not in _TYPES or tag in tags:
            continue
        code = _TYPES[kind]
        size = number * struct.calcsize(order + code)
        at = place + 4 + room
        if size > room:
            (at,) = struct.unpack_from(order + word, data, at)
        if size <= len(data) - at:
            tags[tag] = _values(data, at, order, code, number)
    following = start + count * entry
    # Some writers leave the last one's pointer away.
    return tags, struct.unpack_from(order + word, data, following)[0] if following + room <= len(data) else 0


def _values(data: bytes, at: int, order: str, code: str, number: int) -> Any:
    if code == "s":
        return data[at : at + number]
    numbers = struct.unpack_from(f"{order}{number * len(code)}{code[0]}", data, at)
    if len(code) == 1:
        return numbers
    return tuple(top / bottom if bottom else 0.0 for top, bottom in zip(numbers[::2], numbers[1::2], strict=True))
