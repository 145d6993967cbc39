"""What Pillow opens: JPEGs out of the ordinary, PNG, TIFF and BMP."""

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bcd_ray.archives.formats import jpeg
from bcd_ray.archives.formats.base import Decoded, Limits, Rejected, failed, resized, to_size

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")  # MPO opens as JPEG; Pillow has no opener of that name
_MAGIC = (jpeg.MAGIC, b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")  # BMP's "BM" alone says too little
_CHANNELS_8_BIT = ("L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "1")
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_BLACK_IS_ZERO = 258, 262, 1

Image.MAX_IMAGE_PIXELS = None  # Pillow's bound for the whole process would answer before `Limits.max_pixels`


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's hints on odd metadata: nothing a user can act on
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            if data.startswith(_MAGIC):
                return Rejected("corrupt_image", "the header is damaged or cut off")
            return Rejected("not_an_image", f"not a JPEG, PNG, TIFF or BMP (begins with {data[:8]!r})")
        except Exception as error:  # Pillow raises many types on hostile headers
            return failed(error)
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
                plain = jpeg.plain_jpeg(data, limits)
                if plain:
                    return to_size(*plain)
            rgb = _to_rgb(image)
            if rgb is None:
                return Rejected(
                    "unsupported_mode", f"pixels of type {image.mode}: save with 8 bits a channel", width, height
                )
            return Decoded(resized(rgb), rgb.width, rgb.height)
        except Exception as error:  # as above
            return failed(error, width, height)


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
