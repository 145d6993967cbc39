"""TIFF: by Pillow what it reads rightly, by tifffile and imagecodecs the rest, by name what has no defined colours."""

import io
import warnings
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bcd_ray.archives.formats import colour, jpeg, pillow, samples
from bcd_ray.archives.formats import tiff_directories as tag
from bcd_ray.archives.formats.base import Decoded, Limits, Pixels, Rejected, check_pixels, failed
from bcd_ray.archives.formats.tiff_directories import Directory, read_directories

MAGICS = tag.MAGICS
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_NAMES = {
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "raw camera data",
    32844: "LogL",
    32845: "LogLuv",
    34892: "raw camera data",
}
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_ASSOCIATED, _UNASSOCIATED = 1, 2  # of a sample besides the colours: alpha that colours were multiplied with, or not
_DEFLATED, _JPEGS, _FAX, _PACKBITS = (8, 32946), (6, 7), (2, 3, 4), 32773
_READ_BY_PILLOW = (1, *_FAX, 5, *_JPEGS, *_DEFLATED, 32771, _PACKBITS)
_LOSSLESS = (1, 5, *_DEFLATED, _PACKBITS, 34887, 34925, 50000)  # of bytes, whatever they mean
_GIVEN_AS_RGB = (*_JPEGS, 50001, 50002, 52546)  # JPEG, WebP and JPEG XL, which tifffile gives in RGB
_JPEG_XR = (22610, 34934)  # damaged, it kills the one library that reads it
_MOST_SAMPLES = 8  # a pixel: colours, and what else a program keeps
_FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    """Decode the one full picture of a TIFF."""
    directories, broken = read_directories(data)
    pictures = [each for each in directories if each.is_full_picture]
    # A file of smaller copies alone: the largest is the picture.
    page = max(pictures[:1] or directories, key=lambda each: each.pixels, default=None)
    if page is None or not page.pixels:
        return Rejected("corrupt_image", "the header is damaged or cut off")
    size = page.number(tag.WIDTH, 0), page.number(tag.HEIGHT, 0)
    held = max(len(pictures), page.planes(len(data)))
    if held > 1:
        error = f"holds {held} pictures{' or more' if len(pictures) > 1 else ''}: split it into one file each"
        return Rejected("multiple_pictures", error, *size)
    if over := check_pixels(*size, limits):
        return over
    if reason := _undefined(page):
        return Rejected("unsupported_mode", f"{reason}: save with 8 bits a channel", *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's hints on odd metadata
        try:
            return _decode_page(data, page, first=page is directories[0], damage=broken)
        except Exception as error:  # the libraries raise many types on hostile files; each is this image's fault
            return failed(error, *size)


def _decode_page(data: bytes, page: Directory, first: bool, damage: str | None) -> Decoded | Rejected:
    damage = damage or _damage(data, page)
    if first and _is_plain(data, page):
        try:
            opened = Image.open(io.BytesIO(data), formats=("TIFF",))
        except UnidentifiedImageError:  # a mode that Pillow has no name for
            pass
        else:
            if page.number(tag.COMPRESSION, 1) in _FAX:
                damage = damage or _fax_damage(data, page, np.asarray(opened))
            found = pillow.to_rgb_and_finish(opened, opened.info.get("icc_profile"), damage, alpha=_has_alpha(page))
            text = f"pixels of type {opened.mode}: save with 8 bits a channel"
            return found or Rejected("unsupported_mode", text, *opened.size)
    if any(start + length > len(data) or not length for start, length in page.segments):
        return Rejected("corrupt_image", "it is cut off", page.number(tag.WIDTH, 0), page.number(tag.HEIGHT, 0))
    image_or_reason = _picture(data, page)
    if isinstance(image_or_reason, str):
        return Rejected("unsupported_mode", image_or_reason, page.number(tag.WIDTH, 0), page.number(tag.HEIGHT, 0))
    image, odd = image_or_reason
    image.getexif()[ExifTags.Base.Orientation] = page.number(tag.ORIENTATION, 1)
    ImageOps.exif_transpose(image, in_place=True)
    profile = page.tags.get(tag.PROFILE) if page.number(tag.PHOTOMETRIC, _BLACK_IS_ZERO) != _LAB else None
    return colour.finish(image, bytes(profile) if profile else None, damage or odd)


def _undefined(page: Directory) -> str | None:
    """Why the colours of a picture are not defined, in some words, or None."""
    bits, formats = page.tags.get(tag.BITS, (1,)), page.tags.get(tag.FORMAT, (_UNSIGNED,))
    photometric, count = page.number(tag.PHOTOMETRIC, _BLACK_IS_ZERO), page.number(tag.SAMPLES, 1)
    if set(formats) - {_UNSIGNED, _UNDEFINED}:
        kind = {_SIGNED: "signed", _FLOAT: "floating-point"}.get(formats[0], "complex")
        return f"{kind} samples of {bits[0]} bits"
    if len(set(bits)) > 1 or not 1 <= bits[0] <= 16:
        return f"samples of {'/'.join(map(str, bits[:_MOST_SAMPLES]))} bits"
    if page.number(tag.COMPRESSION, 1) in _JPEG_XR:
        return "JPEG XR"
    if photometric not in _COLOURS:
        return _NAMES.get(photometric, f"photometric interpretation {photometric}")
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and count - _has_alpha(page) > 1:
        return f"{count} grey channels in one picture, and nothing says which colour each is"
    if count < _COLOURS[photometric] or count > _MOST_SAMPLES:
        return f"{count} samples a pixel"
    if photometric == _CMYK and page.number(tag.INKS, 1) != 1:
        return "inks other than CMYK"
    return f"Lab of {bits[0]} bits" if photometric == _LAB and bits[0] != 8 else None


def _has_alpha(page: Directory) -> bool:
    """Whether the sample after the colours is said to be alpha; Pillow takes any fourth one for it."""
    return page.number(tag.EXTRA, 0) in (_ASSOCIATED, _UNASSOCIATED)


def _is_plain(data: bytes, page: Directory) -> bool:
    """Whether Pillow reads the picture rightly, if it reads it."""
    photometric = page.number(tag.PHOTOMETRIC, _BLACK_IS_ZERO)
    in_planes = page.number(tag.PLANAR, 1) == 2 and page.number(tag.SAMPLES, 1) != 3
    return (
        page.tags.get(tag.BITS, (1,))[0] <= 8
        and page.number(tag.COMPRESSION, 1) in _READ_BY_PILLOW
        and not data.startswith(b"MM\0+")
        and not in_planes
        and not (photometric == _PALETTE and max(page.tags.get(tag.COLOUR_MAP, (256,))) < 256)
        # Pillow knows of no differences there, and shows them as they are.
        and not (page.number(tag.COMPRESSION, 1) == _PACKBITS and page.number(tag.PREDICTOR, 1) != 1)
        and not (photometric == _YCBCR and _needs_conversion(page))
        and not (page.number(tag.COMPRESSION, 1) == 7 and _is_lossless_jpeg(data, page))
    )


def _is_lossless_jpeg(data: bytes, page: Directory) -> bool:
    start, length = next(iter(page.segments), (0, 0))
    return jpeg.read_header(data[start : start + length]).frame == jpeg.LOSSLESS


def _needs_conversion(page: Directory) -> bool:
    """Whether YCbCr is stored as such, and not at full range with colour at every pixel."""
    if page.number(tag.COMPRESSION, 1) in _JPEGS:
        return False
    subsampled = tuple(page.tags.get(tag.SUBSAMPLING, (2, 2))) != (1, 1)
    return (
        subsampled or tuple(page.tags.get(tag.REFERENCE, _FULL_RANGE)) != _FULL_RANGE or tag.COEFFICIENTS in page.tags
    )


def _damage(data: bytes, page: Directory) -> str | None:
    """What is wrong with a strip or tile that libtiff decodes without a word."""
    if page.number(tag.COMPRESSION, 1) in _DEFLATED:
        room = 4 * page.pixels * page.number(tag.SAMPLES, 1) + (1 << 16)
        wrong = any(_is_wrong(data[at : at + length], room) for at, length in page.segments)
        return "the checksum of its pixels is wrong" if wrong else None
    if page.number(tag.COMPRESSION, 1) != 7 or page.tags.get(tag.BITS, (8,))[0] != 8:
        return None
    tables = bytes(page.tags.get(tag.JPEG_TABLES, b""))[:-2]  # without their end mark
    found = (jpeg.damage(tables + data[at + 2 * bool(tables) : at + length]) for at, length in page.segments)
    return next(filter(None, found), None)


def _fax_damage(data: bytes, page: Directory, shown: npt.NDArray[np.bool_]) -> str | None:
    """Whether two decoders differ, as they do from a damaged code on, which libtiff skips without a word."""
    try:
        white = _read(data, page)[..., 0] != (page.number(tag.PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO)
    except Exception:  # imagecodecs raises many types on damaged files
        white = ~shown
    return None if np.array_equal(white, shown) else "two decoders read different pixels: a part of it is damaged"


def _is_wrong(deflated: bytes, room: int) -> bool:
    """Whether a stream's checksum is: where damage lengthened it, libtiff has its bytes and does not read that far."""
    try:
        zlib.decompressobj().decompress(deflated, room)
    except zlib.error:
        return True
    return False


def _picture(data: bytes, page: Directory) -> tuple[Image.Image, str | None] | str:
    """The opaque picture, not yet upright, and what is odd about its alpha; or why its colours are not defined."""
    photometric, bits = page.number(tag.PHOTOMETRIC, _BLACK_IS_ZERO), page.tags.get(tag.BITS, (1,))[0]
    if photometric == _YCBCR and page.number(tag.COMPRESSION, 1) not in _GIVEN_AS_RGB:
        return _ycbcr_picture(data, page)
    values = _read(data, page)
    if photometric == _PALETTE:
        return samples.picture(_from_palette(values[..., 0], page), ("RGB",)), None
    colours = _COLOURS[photometric]
    small = samples.to_8_bits(values[..., :colours], bits, page.declared_bits if photometric != _CMYK else None)
    if isinstance(small, str) and photometric == _CMYK:  # little ink is a light picture
        small = (values[..., :colours] >> 8).astype(np.uint8)
    if isinstance(small, str):
        return small
    if photometric == _WHITE_IS_ZERO:
        small = 255 - small
    if colours in (1, 3) and photometric != _LAB and _has_alpha(page):
        alpha = (values[..., colours : colours + 1] * (255 / ((1 << bits) - 1))).astype(np.uint8)
        straight, multiplied = (("LA",), ("La", "LA")) if colours == 1 else (("RGBA",), ("RGBa", "RGBA"))
        modes = multiplied if page.number(tag.EXTRA, 0) == _ASSOCIATED else straight
        return samples.opaque(samples.picture(np.concatenate([small, alpha], axis=2), modes))
    modes = ("LAB", "RGB") if photometric == _LAB else ({1: "L", 3: "RGB", 4: "CMYK"}[colours],)
    return samples.picture(small, modes), None


def _ycbcr_picture(data: bytes, page: Directory) -> tuple[Image.Image, None] | str:
    if page.number(tag.COMPRESSION, 1) not in _LOSSLESS or page.tags[tag.BITS][0] != 8:
        return f"YCbCr of {page.tags[tag.BITS][0]} bits in compression {page.number(tag.COMPRESSION, 1)}: save as RGB"
    whole = tuple(page.tags.get(tag.SUBSAMPLING, (2, 2))) == (1, 1)
    values = _read(data, page)[..., :3] if whole else _subsampled(data, page)
    return values if isinstance(values, str) else (samples.picture(_from_ycbcr(values, page), ("RGB",)), None)


def _read(data: bytes, page: Directory) -> npt.NDArray[Any]:
    """(h, w, s) samples as they are stored, by tifffile."""
    from tifffile import TiffFile, TiffPage

    with TiffFile(io.BytesIO(data)) as file:
        file.filehandle.seek(page.offset)
        values: npt.NDArray[Any] = TiffPage(file, 0).asarray(squeeze=False, maxworkers=1)
    if values.shape[1] != 1:
        raise ValueError("has a depth")
    return np.moveaxis(values[:, 0], 0, -1).reshape(*values.shape[2:4], -1)


def _from_palette(indices: npt.NDArray[Any], page: Directory) -> Pixels:
    colours = np.array(page.tags[tag.COLOUR_MAP], np.uint16).reshape(3, -1).T
    shown: Pixels = (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)[indices]
    return shown


def _subsampled(data: bytes, page: Directory) -> npt.NDArray[np.uint8] | str:
    """(h, w, 3) YCbCr of strips in which some luminances share their colour: units of all of those, Cb and Cr."""
    from tifffile import TIFF

    across, down = page.tags.get(tag.SUBSAMPLING, (2, 2))
    width, height, compression = page.number(tag.WIDTH, 0), page.number(tag.HEIGHT, 0), page.number(tag.COMPRESSION, 1)
    if tag.TILES in page.tags or page.number(tag.PLANAR, 1) != 1:
        return "subsampled YCbCr in tiles or planes: save as RGB"
    if across not in (1, 2, 4) or down not in (1, 2, 4):
        raise ValueError("the subsampling is damaged")
    rows_a_strip, strips = min(page.number(tag.ROWS_A_STRIP, height), height), []
    for number, (start, length) in enumerate(page.segments):
        rows = min(rows_a_strip, height - number * rows_a_strip)
        units = (-(-rows // down), -(-width // across), across * down + 2)
        packed = data[start : start + length]
        plain = packed if compression == 1 else TIFF.DECOMPRESSORS[compression](packed)
        unit = np.frombuffer(plain, np.uint8, units[0] * units[1] * units[2]).reshape(units)
        light = unit[..., :-2].reshape(*units[:2], down, across).swapaxes(1, 2).reshape(units[0] * down, -1)
        colours = unit[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        strips.append(np.dstack([light, colours])[:rows, :width])
    picture = np.concatenate(strips)
    if len(picture) != height:
        raise ValueError("strips are missing")
    return picture


def _from_ycbcr(values: npt.NDArray[Any], page: Directory) -> Pixels:
    """By the formulas of TIFF 6.0, section 21."""
    red, green, blue = page.tags.get(tag.COEFFICIENTS, (0.299, 0.587, 0.114))
    low_y, high_y, low_b, high_b, low_r, high_r = page.tags.get(tag.REFERENCE, _FULL_RANGE)
    light = (values[..., 0] - low_y) * 255 / (high_y - low_y)
    to_blue = (values[..., 1] - low_b) * 127 / (high_b - low_b)
    to_red = (values[..., 2] - low_r) * 127 / (high_r - low_r)
    r, b = light + to_red * (2 - 2 * red), light + to_blue * (2 - 2 * blue)
    g = (light - red * r - blue * b) / green
    pixels: Pixels = np.clip(np.stack([r, g, b], axis=-1).round(), 0, 255).astype(np.uint8)
    return pixels
