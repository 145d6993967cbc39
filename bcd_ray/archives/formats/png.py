"""What Pillow leaves out of a PNG: checksums, the space of its colours, and samples of 16 bits as such."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bcd_ray.archives.formats import samples

MAGIC = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"tRNS", b"sBIT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP")
_GREY, _RGB, _MODES = 0, 2, {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # by the number that IHDR has for them


@dataclass
class Chunks:
    """The chunks that tell how pixels are meant, and what is wrong with any chunk of the file."""

    found: Mapping[bytes, bytes]
    damage: str | None

    @property
    def depth(self) -> int:
        """Bits a sample; 0 without a header."""
        return self.found[b"IHDR"][8] if len(self.found.get(b"IHDR", b"")) == 13 else 0


def read_chunks(data: bytes) -> Chunks:
    """Walk over a PNG's chunks; Pillow does not look at the checksums of pixels. Takes 1 ms for some MB."""
    found, damage, place, view = dict[bytes, bytes](), None, len(MAGIC), memoryview(data)
    while place + 12 <= len(data):
        name, end = data[place + 4 : place + 8], place + 8 + int.from_bytes(data[place : place + 4], "big")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            damage = damage or f"the checksum of its chunk {ascii(name)[2:-1]} is wrong"
        if name == b"IEND":
            return Chunks(found, damage)
        if name in _KEPT:
            found.setdefault(name, data[place + 8 : end])
        place = end + 4
    return Chunks(found, damage or "it ends before its end mark")


def deep_picture(data: bytes, chunks: Chunks) -> Image.Image | str:
    """A PNG of 16 bits as an image of 8, or why it cannot be shown.

    Pillow takes the high bytes of colours, nearly black where a camera's 12 bits are in 16, and compares a transparent
    colour of 16 bits with them.

    Raises:
        Exception: of many types, if it is damaged.
    """
    import imagecodecs

    kind = chunks.found[b"IHDR"][9]
    bare = _without(data, b"tRNS") if b"tRNS" in chunks.found else data
    values = np.atleast_3d(imagecodecs.png_decode(bare))
    colours = 1 if kind in (_GREY, 4) else 3
    declared = max(chunks.found.get(b"sBIT", b"")[:colours], default=None)
    small = samples.to_8_bits(values[..., :colours], 16, declared)
    if isinstance(small, str):
        return small
    if kind in (4, 6):
        alpha = (values[..., colours:] >> 8).astype(np.uint8)
    elif b"tRNS" in chunks.found:
        transparent = np.frombuffer(chunks.found[b"tRNS"][: 2 * colours], ">u2")
        alpha = ((values != transparent).any(axis=2, keepdims=True) * 255).astype(np.uint8)
    else:
        return samples.picture(small, (_MODES[kind],))
    return samples.picture(np.concatenate([small, alpha], axis=2), ("LA" if colours == 1 else "RGBA",))


def scale_transparent_grey(image: Image.Image, chunks: Chunks) -> Image.Image:
    """Grey of fewer than 8 bits is scaled to 0..255 by Pillow, but not the value in it that is transparent."""
    value = image.info.get("transparency")
    if chunks.depth >= 8 or image.mode == "P" or not isinstance(value, int):
        return image
    most = (1 << chunks.depth) - 1
    grey = image.convert("L")
    grey.info["transparency"] = (value & most) * 255 // most
    return grey


def _without(data: bytes, unwanted: bytes) -> bytes:
    """A PNG without the chunks of one name."""
    kept, place = [MAGIC], len(MAGIC)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] != unwanted:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)
