"""What Pillow leaves out of BMP: masks of its own for red, green and blue, and the profile of its colours."""

import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bcd_ray.archives.formats import samples

_BITFIELDS, _ALPHA_BITFIELDS = 3, 6
_WITH_PROFILE, _EMBEDDED = 124, b"DEBM"  # bytes of the fifth header; what it says of a profile that is in the file


@dataclass(frozen=True)
class Header:
    """What the header of such a BMP says."""

    width: int
    height: int
    upside_down: bool  # the rows go from the top down, unlike most
    bits: int
    start: int  # of the pixels
    masks: tuple[int, int, int]


def read_header(data: bytes) -> Header | None:
    """The header, or None where it is no BMP with masks."""
    if not data.startswith(b"BM") or len(data) < 66:
        return None
    start, size, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    masks = struct.unpack_from("<III", data, 54)
    sound = width > 0 and height and size >= 40 and bits in (16, 32) and all(mask >> bits == 0 < mask for mask in masks)
    if compression not in (_BITFIELDS, _ALPHA_BITFIELDS) or not sound:
        return None
    return Header(width, abs(height), height < 0, bits, start, masks)


def decode(data: bytes, header: Header) -> Image.Image:
    """The picture without alpha, each channel scaled to 8 bits.

    Raises:
        ValueError: rows are missing.
    """
    stride = -(-header.width * header.bits // 32) * 4
    rows = np.frombuffer(data, np.uint8, stride * header.height, header.start).reshape(header.height, stride)
    pixels = rows[:, : header.width * header.bits // 8].copy().view(f"<u{header.bits // 8}").astype(np.uint32)
    channels = []
    for mask in header.masks:
        shift = (mask & -mask).bit_length() - 1
        values, largest = (pixels & mask) >> shift, mask >> shift
        channels.append((values.astype(np.uint64) * 255 // largest).astype(np.uint8))
    upright = np.stack(channels, axis=-1)
    return samples.picture(upright if header.upside_down else upright[::-1], ("RGB",))


def profile(data: bytes) -> bytes | None:
    """The ICC profile that is in the file, if there is one."""
    if len(data) < 14 + _WITH_PROFILE or data[14:18] != struct.pack("<I", _WITH_PROFILE) or data[70:74] != _EMBEDDED:
        return None
    start, size = struct.unpack_from("<II", data, 14 + 112)
    return data[14 + start : 14 + start + size] or None
