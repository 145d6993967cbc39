"""What Pillow opens: JPEGs out of the ordinary, PNG, BMP, GIF, WebP, JPEG 2000; TIFF comes here by way of `tiff`."""

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bcd_ray.archives.formats import bmp, colour, jpeg, jpeg2000, png, samples
from bcd_ray.archives.formats.base import Decoded, Limits, Rejected, check_pixels, failed
from bcd_ray.archives.magic import HEAD_BYTES, kind_not_read

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "JPEG2000")  # MPO opens as JPEG; Pillow has no opener of that name
_GIF = (b"GIF87a", b"GIF89a")
_MAGIC = (jpeg.MAGIC, png.MAGIC, *_GIF, *jpeg2000.MAGIC)  # BMP's "BM" alone says too little, and so does RIFF
_CHANNELS_8_BIT = ("L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "1")

Image.MAX_IMAGE_PIXELS = None  # Pillow's bound for the whole process would answer before `Limits.max_pixels`


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    """Decode what is neither a TIFF nor DICOM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's hints on odd metadata: nothing a user can act on
        if data.startswith(jpeg.MAGIC):
            return _decode_jpeg(data, limits)
        return _decode_other(data, limits)


def _decode_jpeg(data: bytes, limits: Limits) -> Decoded | Rejected:
    header = jpeg.read_header(data)
    try:
        unusual = jpeg.decode_unusual(data, header, limits)
        if unusual:
            return unusual
    except Exception as error:  # imagecodecs raises many types; each is this image's fault
        return failed(error, header.width, header.height)
    image = _open(data, ("JPEG",))
    if isinstance(image, Rejected):
        return image
    width, height = image.size
    if over := check_pixels(width, height, limits):
        return over
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 and (plain := jpeg.plain_jpeg(data, header, limits)):
            return jpeg.finish(plain, header.profile)
        try:
            image.load()
        except OSError:
            if arithmetic := jpeg.decode_arithmetic(data, header):
                return arithmetic
            raise
        return _finish(image, header.profile, jpeg.damage(data))
    except Exception as error:  # Pillow raises many types on hostile files; each is this image's fault
        return failed(error, width, height)


def _decode_other(data: bytes, limits: Limits) -> Decoded | Rejected:
    image = _open(data, _FORMATS)
    if isinstance(image, Rejected):
        masks = bmp.read_header(data)  # Pillow refuses masks that it does not know
        return image if masks is None else _decode_masked(data, masks, limits)
    width, height = image.size
    if over := check_pixels(width, height, limits):
        return over
    try:
        if getattr(image, "is_animated", False):
            text = "holds more than one picture: split it into one file each"
            return Rejected("multiple_pictures", text, width, height)
        if image.format == "PNG":
            return _decode_png(data, image)
        if image.format == "JPEG2000":
            return _decode_jpeg2000(data, image)
        return _finish(image, bmp.profile(data) if image.format == "BMP" else image.info.get("icc_profile"))
    except Exception as error:  # as above
        return failed(error, width, height)


def _decode_masked(data: bytes, header: bmp.Header, limits: Limits) -> Decoded | Rejected:
    if over := check_pixels(header.width, header.height, limits):
        return over
    try:
        return _finish(bmp.decode(data, header), bmp.profile(data))
    except ValueError as error:
        return failed(error, header.width, header.height)


def _decode_png(data: bytes, image: Image.Image) -> Decoded | Rejected:
    chunks = png.read_chunks(data)
    space = colour.of_png(chunks.found)
    shown = png.deep_picture(data, chunks) if chunks.depth == 16 else image
    for unsupported in (space, shown):
        if isinstance(unsupported, str):
            return Rejected("unsupported_mode", unsupported, *image.size)
    assert not isinstance(shown, str)
    assert not isinstance(space, str)
    if shown is image:
        image.load()
        shown = png.scale_transparent_grey(image, chunks)
    else:
        shown.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return _finish(shown, space or image.info.get("icc_profile"), chunks.damage)


def _decode_jpeg2000(data: bytes, image: Image.Image) -> Decoded | Rejected:
    header = jpeg2000.read_header(data)
    shown = image if header.is_plain or not header.depths else jpeg2000.deep_picture(data, header)
    return (
        Rejected("unsupported_mode", shown, *image.size) if isinstance(shown, str) else _finish(shown, header.profile)
    )


def _open(data: bytes, formats: tuple[str, ...]) -> Image.Image | Rejected:
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        if data.startswith(_MAGIC):
            return Rejected("corrupt_image", "the header is damaged or cut off")
        if kind := kind_not_read(data[:HEAD_BYTES]):
            return Rejected("unsupported_mode", f"{kind}, which is not read: export as TIFF, PNG or JPEG")
        return Rejected("not_an_image", f"not a JPEG, PNG, TIFF, BMP or DICOM (begins with {data[:8]!r})")
    except Exception as error:  # as above
        return failed(error)


def _finish(image: Image.Image, profile: colour.Profile, damage: str | None = None) -> Decoded | Rejected:
    size = image.size
    return to_rgb_and_finish(image, profile, damage) or Rejected(
        "unsupported_mode", f"pixels of type {image.mode}: save with 8 bits a channel", *size
    )


def to_rgb_and_finish(
    image: Image.Image, profile: colour.Profile, damage: str | None = None, alpha: bool = True
) -> Decoded | None:
    """The upright image at the size of the network's input, or None where the type of its pixels has no defined range.

    Without `alpha`, what Pillow takes for alpha is none. Where the image itself will do it is not copied: copies made a
    TIFF of 5 megapixels take 91 ms, not 28.
    """
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _CHANNELS_8_BIT:
        return None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image, odd = samples.opaque(image) if alpha else (image.convert("RGBA").convert("RGB"), None)
        damage = damage or odd
    elif image.mode == "LAB":
        image, profile = image.convert("RGB"), None
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    return colour.finish(image, profile, damage)
