"""Bytes to uint8 224x224x3 within limits; what is wrong with an image is a value, not an exception.

What each kind of image becomes: greyscale is repeated into three channels; deep samples are scaled to 8 bits;
CMYK and palette are converted to RGB; transparent pixels are laid on white, the background of a smear; EXIF rotation
and colour profiles are applied. Files with several pictures (multi-page TIFF, animated PNG) are refused, since scoring
the first alone would lose the others in silence; the previews that cameras append to a JPEG (MPO) are not pictures of
their own. Where damage left pixels, `Decoded.damage` says so. The table in docs/score.md is made by the tests.
"""

from bcd_ray.archives.formats import dicom, jpeg, pillow, tiff
from bcd_ray.archives.formats.base import (
    PASSING_STATUSES,
    SIZE,
    Decoded,
    Limits,
    Pixels,
    Rejected,
    failed,
    too_large,
)

__all__ = [
    "DECODER_VERSION",
    "PASSING_STATUSES",
    "SIZE",
    "Decoded",
    "Limits",
    "Pixels",
    "Rejected",
    "decode",
    "too_large",
]

DECODER_VERSION = 7  # raise it when the same bytes would give other pixels


def decode_plain(data: bytes, limits: Limits) -> Decoded | Rejected | None:
    """What can be said of an image at once, in bounded time and memory: a plain JPEG's pixels; else None."""
    if not data:
        return Rejected("empty_file", "the file has no content")
    if len(data) > limits.max_bytes:
        return too_large(len(data), limits)
    try:
        header = jpeg.read_header(data)
        if not data.startswith(jpeg.MAGIC) or not jpeg.is_plain(header):
            return None
        # Pillow takes 0.06 ms to open a JPEG, a sixth of what it takes to decode one of 224x224.
        plain = jpeg.plain_jpeg(data, header, limits)
        return jpeg.finish(plain, None) if plain else None
    except MemoryError as error:
        return failed(error)
    except Exception:  # whoever decodes it apart says what is wrong
        return None


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    """Decode an encoded image and resize it to 224x224, whatever its aspect ratio, as the paper does.

    Nothing that a library raises gets out, of whatever type: what is wrong is a `Rejected`. Jobs call
    `isolation.decode`, which also survives an image that kills its process or takes for ever.
    """
    try:
        return decode_plain(data, limits) or _decode(data, limits)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return failed(error)


def _decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    if data.startswith(jpeg.MAGIC):
        header = jpeg.read_header(data)
        if header.complete and not header.app1 and (plain := jpeg.plain_jpeg(data, header, limits)):
            return jpeg.finish(plain, header.profile)
    if data.startswith(tiff.MAGICS):
        return tiff.decode(data, limits)
    return dicom.decode(data, limits) if dicom.is_dicom(data) else pillow.decode(data, limits)
