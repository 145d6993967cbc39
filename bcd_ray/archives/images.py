"""Bytes to uint8 224x224x3 within limits; what is wrong with an image is a value, not an exception.

What each kind of image becomes: greyscale is repeated into three channels; 16-bit greyscale is scaled to 8 bits;
CMYK and palette are converted to RGB; transparent pixels are laid on white, the background of a smear; EXIF rotation
is applied. Files with several pictures (multi-page TIFF, animated PNG) are refused, since scoring the first alone
would lose the others in silence; the previews that cameras append to a JPEG (MPO) are not pictures of their own.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

SIZE = 224  # pixels a side of the network's input
DECODER_VERSION = 3  # raise it when the same bytes would give other pixels
Pixels = npt.NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")  # MPO opens as JPEG; Pillow has no opener of that name
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")  # BMP's "BM" alone says too little
_CHANNELS_8_BIT = ("L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "1")
_LEAST_SCALED = 3 * SIZE // 2  # of a side after scaling in the decoder: closer to SIZE, the resize would show it
# Of JPEG's markers those that begin a segment with a length, but APP1, which holds EXIF and XMP.
_MARKER, _START_OF_SCAN = 0xFF, 0xDA
_SEGMENTS = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xFF)}) - {0xE1}
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_BLACK_IS_ZERO = 258, 262, 1

Image.MAX_IMAGE_PIXELS = None  # Pillow's bound for the whole process would answer before `Limits.max_pixels`


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that an image must keep, checked before it is read or decoded."""

    max_bytes: int = 64 << 20
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for the network; width and height are those of the original, after EXIF rotation."""

    pixels: Pixels  # (224, 224, 3) uint8 RGB
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an image could not be used: a status of `scoring.schema.STATUSES` and one line of explanation."""

    status: str
    error: str
    width: int | None = None
    height: int | None = None


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    """Decode an encoded image and resize it to 224x224, whatever its aspect ratio, as the paper does."""
    if not data:
        return Rejected("empty_file", "the file has no content")
    if len(data) > limits.max_bytes:
        return too_large(len(data), limits)
    # Pillow takes 0.06 ms to open a JPEG, a sixth of what it takes to decode one of 224x224.
    plain = _plain_jpeg(data, limits) if _is_jpeg_without_exif(data) else None
    return _to_size(*plain) if plain else _decode_with_pillow(data, limits)


def _decode_with_pillow(data: bytes, limits: Limits) -> Decoded | Rejected:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's hints on odd metadata: nothing a user can act on
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            if data.startswith(_MAGIC):
                return Rejected("corrupt_image", "the header is damaged or cut off")
            return Rejected("not_an_image", f"not a JPEG, PNG, TIFF or BMP (begins with {data[:8]!r})")
        except Exception as error:  # Pillow raises many types on hostile headers; each is this image's fault
            return Rejected("corrupt_image", _one_line(error))
        width, height = image.size
        if width * height > limits.max_pixels:
            text = f"{width}x{height} pixels, over the limit of {limits.max_pixels:,}: see --max-pixels"
            return Rejected("too_many_pixels", text, width, height)
        try:
            pictures = getattr(image, "n_frames", 1)
            if image.format != "MPO" and pictures > 1:
                error_text = f"holds {pictures} pictures: split it into one file each"
                return Rejected("multiple_pictures", error_text, width, height)
            if image.format in ("JPEG", "MPO") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                plain = _plain_jpeg(data, limits)
                if plain:
                    return _to_size(*plain)
            rgb = _to_rgb(image)
            if rgb is None:
                return Rejected(
                    "unsupported_mode", f"pixels of type {image.mode}: save with 8 bits a channel", width, height
                )
            return Decoded(_resized(rgb), rgb.width, rgb.height)
        except Exception as error:  # as above
            return Rejected("corrupt_image", _one_line(error), width, height)


def too_large(size: int, limits: Limits) -> Rejected:
    """The rejection of a file that is over the bound on bytes."""
    return Rejected("too_large", f"{size:,} bytes, over the limit of {limits.max_bytes:,}: see --max-image-bytes")


def _is_jpeg_without_exif(data: bytes) -> bool:
    """Whether no segment before the picture of a JPEG holds EXIF or XMP, which could say that it lies on its side."""
    if not data.startswith(_MAGIC[0]):
        return False
    place = 2
    while len(data) > place + 3 and data[place] == _MARKER and data[place + 1] in _SEGMENTS:
        if data[place + 1] == _START_OF_SCAN:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _plain_jpeg(data: bytes, limits: Limits) -> tuple[Pixels, int, int] | None:
    """Pixels, of a large image at 1/2, 1/4 or 1/8, width and height of an undamaged colour JPEG, or None.

    libjpeg-turbo gives the very pixels that Pillow gives, at twice the speed (1,750 to 1,150 images of 224x224 a second
    and core), since nothing is copied. At the first irregularity it stops, and Pillow says what is wrong.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or width * height > limits.max_pixels:
            return None
        scale = next((scale for scale in (8, 4, 2) if min(width, height) >= scale * _LEAST_SCALED), 1)
        least = {"min_width": -(-width // scale), "min_height": -(-height // scale)} if scale > 1 else {}
        pixels: Pixels = simplejpeg.decode_jpeg(data, **least)
    except (ValueError, MemoryError):
        return None
    return pixels, width, height


def _to_size(pixels: Pixels, width: int, height: int) -> Decoded:
    as_it_is = pixels.shape[:2] == (SIZE, SIZE)  # copied twice, it would take half as long again
    return Decoded(pixels if as_it_is else _resized(Image.fromarray(pixels)), width, height)


def _resized(rgb: Image.Image) -> Pixels:
    return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image | None:
    """The upright RGB image, or None where the pixel type has no defined range.

    It is the image itself where that will do: copies made a TIFF of 5 megapixels take 91 ms, not 28.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        # Pillow gives 12-bit samples and inverted ones as they are: nearly black, or a negative.
        plain = (tags.get(_TIFF_BITS_PER_SAMPLE, (16,)), tags.get(_TIFF_PHOTOMETRIC, _TIFF_BLACK_IS_ZERO))
        if plain != ((16,), _TIFF_BLACK_IS_ZERO):
            return None
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode not in _CHANNELS_8_BIT:
        return None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
