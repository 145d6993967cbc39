"""JPEG: by libjpeg-turbo without Pillow where nothing about the file is unusual, by imagecodecs where Pillow cannot."""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from bcd_ray.archives.formats import colour, samples
from bcd_ray.archives.formats.base import SIZE, Decoded, Limits, Pixels, Rejected, check_pixels, one_line

MAGIC = b"\xff\xd8\xff"
_LEAST_SCALED = 3 * SIZE // 2  # of a side after scaling in the decoder: closer to SIZE, the resize would show it
_END = b"\xff\xd9"
_MARKER, _START_OF_SCAN, _TABLES, _APP1, _APP2, _JPEG_LS = 0xFF, 0xDA, 0xDB, 0xE1, 0xE2, 0xF7
_SEGMENTS = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xFF)})  # markers that begin a segment with a length
_FRAMES = frozenset({*range(0xC0, 0xD0), _JPEG_LS}) - {0xC4, 0xC8, 0xCC}
_HIERARCHICAL, _ARITHMETIC = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), (0xC9, 0xCA, 0xCB)
_ICC = b"ICC_PROFILE\0"
_SEQUENTIAL, LOSSLESS = (0xC0, 0xC1), 0xC3
_SCALED = (*_SEQUENTIAL, 0xC2, *_ARITHMETIC[:2])  # no other is asked to be scaled: one killed its decoder
# Row and column of each step: diagonals, one after the other, every second of them upwards.
_ZIGZAG = tuple(np.array(sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))).T)
_MOST_PIXELS = 2_000_000  # of a plain one after scaling, 14 MB a thread: larger ones are very long


@dataclass
class Header:
    """What stands before the picture of a JPEG; `complete` if every segment up to it is as it should be."""

    complete: bool = False
    app1: bytes = b""  # EXIF or XMP, which could say that it lies on its side
    frame: int = 0  # the marker that tells the kind of coding
    precision: int = 8  # bits a sample
    width: int = 0
    height: int = 0
    components: int = 0
    profile: bytes | None = None
    one_scan: bool = False  # the first scan holds all components
    scan: int = 0  # where it begins
    steps: bytes = b""  # the first quantisation table of 8 bits, in the order of the zigzag


def read_header(data: bytes) -> Header:
    """Walk over the segments; takes some microseconds, Pillow 0.06 ms to open a JPEG of 224x224."""
    found, profile, place = Header(), list[bytes](), 2
    while len(data) > place + 3 and data[place] == _MARKER and (marker := data[place + 1]) in _SEGMENTS:
        if marker == _START_OF_SCAN:
            found.complete, found.one_scan = True, data[place + 4 : place + 5] == bytes([found.components])
            found.scan = place
            break
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _FRAMES and len(data) >= end >= place + 10:
            found.frame, found.precision = marker, data[place + 4]
            found.height = int.from_bytes(data[place + 5 : place + 7], "big")
            found.width = int.from_bytes(data[place + 7 : place + 9], "big")
            found.components = data[place + 9]
        elif marker == _TABLES and not found.steps and data[place + 4] == 0 and min(end, len(data)) >= place + 69:
            found.steps = data[place + 5 : place + 69]
        elif marker == _APP1:
            found.app1 = found.app1 or data[place + 4 : end]
        elif marker == _APP2 and data.startswith(_ICC, place + 4):
            profile.append(data[place + 16 : end])
        place = end
    # Each part begins with its number, and how many there are.
    found.profile = b"".join(part[2:] for part in sorted(profile)) or None
    return found


def is_plain(header: Header) -> bool:
    """Whether a JPEG can be decoded in time and memory that its size bounds, and lies as it is written.

    That is one of a single scan (of many, a small file can take minutes), of few pixels once scaled, and without EXIF,
    XMP or profile.
    """
    usual = header.complete and header.one_scan and header.frame in _SEQUENTIAL and header.precision == 8
    fits = header.width * header.height <= _MOST_PIXELS * _scale(header) ** 2
    return usual and fits and not header.app1 and header.profile is None


def _scale(header: Header) -> int:
    """By how much the decoder makes a large image smaller, at once."""
    shorter = min(header.width, header.height) if header.frame in _SCALED else 0
    return next((scale for scale in (8, 4, 2) if shorter >= scale * _LEAST_SCALED), 1)


def coarseness(data: bytes, width: int, height: int) -> float:
    """What rounding its brightness can leave wrong in a picture of 224x224 made of it, in levels; 0 of other files.

    That is the root mean square of rounding errors evenly spread over each step of the first quantisation table, of the
    frequencies that the smaller picture still holds. At 224x224 libjpeg's quality 95 gives 1.9, 75 9.7, 40 24.
    """
    steps = read_header(data).steps if data.startswith(MAGIC) else b""
    if not steps:
        return 0.0
    table = np.zeros((8, 8))
    table[_ZIGZAG] = np.frombuffer(steps, np.uint8)
    rows, columns = (-(-8 * SIZE // max(side, SIZE)) for side in (height, width))
    return float(np.sqrt(np.square(table[:rows, :columns]).sum() / 12) / 8)


def plain_jpeg(data: bytes, header: Header, limits: Limits) -> tuple[Pixels, int, int] | None:
    """Pixels, of a large image at 1/2, 1/4 or 1/8, width and height of an undamaged colour JPEG, or None.

    libjpeg-turbo gives the very pixels that Pillow gives, at twice the speed (1,750 to 1,150 images of 224x224 a second
    and core), since nothing is copied. At the first irregularity it stops, and Pillow says what is wrong.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or width * height > limits.max_pixels:
            return None
        scale = _scale(header)
        least = {"min_width": -(-width // scale), "min_height": -(-height // scale)} if scale > 1 else {}
        pixels: Pixels = simplejpeg.decode_jpeg(data, **least)
    except Exception:  # KeyError too, for samplings that its list lacks: Pillow says what it is, if anything
        return None
    return pixels, width, height


def finish(plain: tuple[Pixels, int, int], profile: bytes | None) -> Decoded:
    """What `plain_jpeg` gave, at the size of the network's input."""
    pixels, width, height = plain
    if profile is None and pixels.shape[:2] == (SIZE, SIZE):
        return Decoded(pixels, width, height)  # copied twice, it would take half as long again
    decoded = colour.finish(Image.fromarray(pixels), profile)
    return Decoded(decoded.pixels, width, height, decoded.damage)


def damage(data: bytes) -> str | None:
    """What libjpeg-turbo finds wrong in a JPEG that Pillow decodes without a word, or None.

    Surplus bytes before a marker count: of 1,000 real JPEGs with one flipped bit each they are all that it says of 237,
    and of 3,114 real ones as they are it says nothing.
    """
    header = read_header(data)
    colours, factor = "CMYK" if header.components == 4 else "RGB", 8 if header.frame in _SCALED else 1
    try:
        simplejpeg.decode_jpeg(data, colours, min_factor=factor)
    except (ValueError, KeyError) as error:
        found = one_line(error)
    else:
        return None
    try:
        simplejpeg.decode_jpeg(data, colours, min_factor=factor, strict=False)
    except (ValueError, KeyError):  # it cannot read this kind at all
        return None
    return found


def is_cut_off(data: bytes, header: Header) -> bool:
    """Whether its end mark is missing."""
    return data.find(_END, header.scan) < 0


def decode_unusual(data: bytes, header: Header, limits: Limits) -> Decoded | Rejected | None:
    """JPEGs that Pillow has no decoder for: more than 8 bits, JPEG-LS, hierarchical; None for all others.

    Raises:
        Exception: of many types, if it is damaged.
    """
    if header.frame in _HIERARCHICAL:
        return Rejected("unsupported_mode", "a hierarchical JPEG: save as plain JPEG", header.width, header.height)
    if header.precision == 8 and header.frame != _JPEG_LS:
        return None
    return check_pixels(header.width, header.height, limits) or _by_imagecodecs(data, header)


def decode_arithmetic(data: bytes, header: Header) -> Decoded | Rejected | None:
    """A JPEG with arithmetic coding, of which Pillow decodes up to 64 kB; None for all others. Raises as above."""
    return _by_imagecodecs(data, header, damage(data)) if header.frame in _ARITHMETIC else None


def _by_imagecodecs(data: bytes, header: Header, damaged: str | None = None) -> Decoded | Rejected:
    import imagecodecs

    if is_cut_off(data, header):  # what is missing it makes grey, without a word
        return Rejected("corrupt_image", "it is cut off", header.width, header.height)
    decode = imagecodecs.jpegls_decode if header.frame == _JPEG_LS else imagecodecs.jpeg8_decode
    values = np.atleast_3d(decode(data))
    if values.shape[2] not in (1, 3):
        text = f"a JPEG of {values.shape[2]} components and {header.precision} bits: save as RGB"
        return Rejected("unsupported_mode", text, header.width, header.height)
    small = samples.to_8_bits(values, header.precision)
    if isinstance(small, str):
        return Rejected("unsupported_mode", small, header.width, header.height)
    image = samples.picture(small, ("L",) if small.shape[2] == 1 else ("RGB",))
    if header.app1:
        image.getexif().load(header.app1)
        ImageOps.exif_transpose(image, in_place=True)
    return colour.finish(image, header.profile, damaged)
