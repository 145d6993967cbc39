"""Samples of any depth to 8 bits, and pictures with transparency to opaque ones."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bcd_ray.archives.formats.base import Pixels

_LEAST_OF_16_BITS = 1 << 14  # the lightest sample of a smear in 16 bits is above, of a camera of 14 bits below
_MOST_DECLARED = 14  # bits: of more, the largest value of a picture says nothing of its range
INVISIBLE = "its alpha is zero everywhere: the colours are shown as they are"


def to_8_bits(values: npt.NDArray[Any], bits: int, declared: int | None = None) -> Pixels | str:
    """Unsigned samples of 1 to 16 bits as uint8, the high bits of deep ones; or why that cannot be said.

    Cameras of 10, 12 or 14 bits often store their samples in 16. `declared` is the number of bits that the file tells;
    where it tells none and the samples could be of fewer than 16 bits, a guess would be a picture nearly black or far
    too light.

    Raises:
        ValueError: a sample has more bits.
    """
    if 8 * values.itemsize > bits and int(values.max(initial=0)) >> bits:
        raise ValueError(f"samples of more than the {bits} bits that it says")
    if bits == 8:
        return values.astype(np.uint8)
    if bits < 8:
        return (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    if bits == 16 and (largest := int(values.max(initial=0))) < _LEAST_OF_16_BITS:
        if declared is None or declared > _MOST_DECLARED or largest >> declared:
            return f"16-bit samples of at most {largest:,}, and nothing says of how many bits: save with 8 bits"
        bits = declared
    return (values >> (bits - 8)).astype(np.uint8) if bits >= 8 else to_8_bits(values, bits)


def picture(values: Pixels, modes: tuple[str, ...]) -> Image.Image:
    """(h, w, s) samples as an image of Pillow's: of the first mode, converted to the next and so on."""
    image = Image.frombytes(modes[0], (values.shape[1], values.shape[0]), np.ascontiguousarray(values).tobytes())
    for mode in modes[1:]:
        image = image.convert(mode)
    return image


def opaque(image: Image.Image) -> tuple[Image.Image, str | None]:
    """An image with alpha laid on white, the background of a smear; with what is odd about its alpha, if anything.

    Alpha that is zero everywhere (0 or 1 of 255) shows an empty picture. Nobody stores one: some programs leave the
    fourth channel empty. Its colours are shown, and a person looks.
    """
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if int(np.asarray(rgba.getchannel("A")).max(initial=0)) <= 1:
        return rgba.convert("RGB"), INVISIBLE
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), None
