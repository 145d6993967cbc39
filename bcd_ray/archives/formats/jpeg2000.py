"""JPEG 2000: what Pillow does not tell, its colours, and samples of other than 8 bits, which it reads wrongly."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bcd_ray.archives.formats import samples

_FILE, _CODESTREAM = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
MAGIC = (_FILE, _CODESTREAM)
_SYCC, _CMYK, _LAB = 18, 12, 14  # by the number that the box of colours has for them
_NAMES = {_SYCC: "YCbCr", _LAB: "CIE Lab"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass
class Header:
    """Its size, bits of each channel, which may be signed or share samples, and what the file says of its colours."""

    width: int = 0
    height: int = 0
    depths: tuple[int, ...] = ()
    signed: bool = False
    shared: bool = False  # a sample of a channel stands for several pixels
    colours: int | None = None
    profile: bytes | None = None

    @property
    def is_plain(self) -> bool:
        """Whether Pillow reads the samples rightly."""
        return set(self.depths) == {8} and not self.signed


def read_header(data: bytes) -> Header:
    """What stands before the picture; without channels if the file is damaged."""
    found, codestream = Header(), data
    for name, content in _boxes(data) if data.startswith(_FILE) else ():
        if name == b"jp2h":
            for inner, told in _boxes(content):
                if inner == b"colr" and told[:1] == b"\1" and found.colours is None:
                    found.colours = int.from_bytes(told[3:7], "big")
                elif inner == b"colr" and told[:1] in (b"\2", b"\3"):
                    found.profile = found.profile or told[3:]
        elif name == b"jp2c":
            codestream = content
            break
    if codestream.startswith(_CODESTREAM) and len(codestream) >= 42:
        right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
        found.width, found.height = right - left, bottom - top
        (count,) = struct.unpack_from(">H", codestream, 40)
        channels = [codestream[42 + 3 * number : 45 + 3 * number] for number in range(min(count, 16))]
        if all(len(each) == 3 for each in channels):
            found.depths = tuple((each[0] & 0x7F) + 1 for each in channels)
            found.signed = any(each[0] & 0x80 for each in channels)
            found.shared = any(each[1:] != b"\1\1" for each in channels)
    return found


def deep_picture(data: bytes, header: Header) -> Image.Image | str:
    """A picture of other than 8 bits as an image of 8, or why it cannot be shown.

    Raises:
        Exception: of many types, if it is damaged.
    """
    import imagecodecs

    count, bits = len(header.depths), header.depths[0]
    if header.signed or header.shared or len(set(header.depths)) > 1 or count not in _MODES or bits > 16:
        kind = "signed samples" if header.signed else f"samples of {'/'.join(map(str, header.depths))} bits"
        return f"JPEG 2000 of {kind}{', some shared' if header.shared else ''}: save with 8 bits a channel"
    if header.colours in _NAMES:
        return f"JPEG 2000 of {_NAMES[header.colours]} with {bits} bits: save as RGB with 8 bits a channel"
    values = np.atleast_3d(imagecodecs.jpeg2k_decode(data))
    inks = header.colours == _CMYK and count == 4
    colours = count if inks or count % 2 else count - 1
    small = samples.to_8_bits(values[..., :colours], bits)
    if isinstance(small, str):
        return small
    if colours < count:
        small = np.dstack([small, (values[..., colours:] * (255 / ((1 << bits) - 1))).astype(np.uint8)])
    return samples.picture(small, ("CMYK" if inks else _MODES[count],))


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the boxes that follow each other."""
    place = 0
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        start = place + 8
        if length == 1 and place + 16 <= len(data):
            (length,), start = struct.unpack_from(">Q", data, place + 8), place + 16
        end = place + length if length else len(data)
        if end < start:
            return
        yield name, data[start:end]
        place = end
