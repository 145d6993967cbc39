"""Files of every format, made here, and what each becomes: read by the tests, and by docs/score.md's table.

`python tests/archives/format_cases.py` writes the table anew; with `--time` it prints how long each takes to decode.
"""

import base64
import io
import struct
import timeit
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import tifffile
import tyro
from PIL import ExifTags, Image, ImageCms
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import VLMicroscopicImageStorage

from bcd_ray.learning.synthetic import draw_smear

Array = npt.NDArray[Any]
SMEAR = draw_smear(1, seed=3)  # (224, 224, 3)
GREY = np.asarray(Image.fromarray(SMEAR).convert("L"))
DEEP, DEEP_GREY = SMEAR.astype(np.uint16) * 257, GREY.astype(np.uint16) * 257
TWELVE, TWELVE_GREY = DEEP >> 4, DEEP_GREY >> 4
DOCS = Path(__file__).parents[2] / "docs" / "score.md"
BEGIN, END = "<!-- generated: formats -->", "<!-- end -->"
PATIENT = "Doe^Jane"


@dataclass(frozen=True)
class Case:
    """A file: what it is, its bytes, what it becomes, and by what it is read if it is."""

    name: str
    make: Callable[[], bytes]
    becomes: str  # "scored", "damaged" (scored, with that review reason), or another status
    reader: str = "Pillow"
    shows: Array | None = None  # (224, 224, 3), or grey (224, 224); None: not checked
    tolerance: int = 0  # levels


def case(
    name: str,
    becomes: str,
    reader: str = "",
    shows: Array | None = None,
    tolerance: int = 0,
    *,
    make: Callable[[], bytes],
) -> Case:
    """A case of bytes that `make` makes when they are wanted."""
    return Case(name, make, becomes, reader, shows, tolerance)


def pil(image: Array | Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(sink, kind, **options)
    return sink.getvalue()


def tiff(values: Array, photometric: str = "rgb", **options: Any) -> bytes:
    sink = io.BytesIO()
    options.setdefault("metadata", None)
    tifffile.imwrite(sink, values, photometric=photometric, **options)
    return sink.getvalue()


def pages(*each: tuple[Array, int]) -> bytes:
    """A TIFF of pictures with their NewSubfileType."""
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        for values, kind in each:
            photometric = "rgb" if values.ndim == 3 else "minisblack"
            writer.write(values, photometric=photometric, subfiletype=kind, metadata=None)
    return sink.getvalue()


def packed(values: Array, bits: int) -> bytes:
    """A TIFF of grey samples without gaps between them."""
    strip = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :]
    return raw_tiff([(258, 3, bits), (262, 3, 1), (277, 3, 1)], np.packbits(strip).tobytes())


def raw_tiff(tags: list[tuple[int, int, Any]], strip: bytes, size: tuple[int, int] = (224, 224)) -> bytes:
    """A TIFF of one strip and the tags (number, type, value or values)."""
    tags = [(256, 3, size[0]), (257, 3, size[1]), (259, 3, 1), (278, 3, size[1]), (279, 4, len(strip)), *tags]
    tags = sorted([*tags, (273, 4, 0)])
    after = 8 + 2 + 12 * len(tags) + 4
    rest = b""
    entries = []
    for number, kind, value in tags:
        values = value if isinstance(value, tuple) else (value,)
        coded = b"".join(
            struct.pack({3: "<H", 4: "<I", 5: "<II"}[kind], *((v, 1) if kind == 5 else (v,))) for v in values
        )
        if len(coded) > 4:
            place = struct.pack("<I", after + len(rest))
            rest += coded
        else:
            place = coded.ljust(4, b"\0")
        entries.append((number, kind, len(values), place))
    start = after + len(rest)
    body = b"".join(
        struct.pack("<HHI", number, kind, count) + (struct.pack("<I", start) if number == 273 else place)
        for number, kind, count, place in entries
    )
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + b"\0\0\0\0" + rest + strip


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: Array, depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (h, w, s) samples, with chunks between its header and its pixels."""
    values = np.atleast_3d(values)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in values]
    else:
        bits = np.unpackbits(values.astype(np.uint8), axis=2)[:, :, 8 - depth :].reshape(len(values), -1)
        rows = [np.packbits(row).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    middle = b"".join(chunk(*each) for each in chunks)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + data + chunk(b"IEND", b"")


def with_alpha(values: Array, alpha: Array) -> Array:
    return np.dstack([values, alpha.astype(values.dtype)])


def halved(values: Array) -> Array:
    """The upper half opaque, the lower half not."""
    alpha = np.zeros(values.shape[:2], values.dtype)
    alpha[:112] = np.iinfo(values.dtype).max
    return alpha


def on_white(values: Array) -> Array:
    shown = values.copy()
    shown[112:] = 255
    return shown


def surplus(data: bytes) -> bytes:
    """A JPEG with bytes before its end mark that no pixel needs."""
    return data[:-2] + bytes(range(1, 41)) + data[-2:]


# Grey of 16x16, by a libjpeg-turbo that was told to code arithmetically, at quality 50.
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01yid4h#wq4h;?x5fBp?C>j_R78o%jB^@X_Gd(;xGdMRuNL)@pL{~*OI8bd-S6^ahXlFi6"
    "ad~iLcwA*?WB<tj3kU!Z01yEI5di<p00saM5C#9*00;pA002J#{u?I7CY~PTT^(AFfdAP"
)


def arithmetic() -> bytes:
    """A JPEG whose arithmetic code stands across its 65,536th byte, behind a long comment."""
    room = (1 << 16) - 4 - ARITHMETIC.index(b"\xff\xda") - 10
    return ARITHMETIC[:2] + b"\xff\xfe" + struct.pack(">H", room - 2) + bytes(room - 4) + ARITHMETIC[2:]


def arithmetic_shown() -> Array:
    """What it shows: the same picture in Huffman's code."""
    ramp = np.tile(np.linspace(60, 220, 16).astype(np.uint8), (16, 1))
    huffman = Image.open(io.BytesIO(pil(ramp, "JPEG", quality=50)))
    return np.asarray(huffman.resize((224, 224), Image.Resampling.BILINEAR))


def turned(data: bytes) -> bytes:
    """A JPEG that says that it lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    told = exif.tobytes()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(told) + 2) + told + data[2:]


def turned_411() -> bytes:
    """4:4:1, what 4:1:1 becomes when it is turned by 90 degrees; of one colour, which shows no order of blocks."""
    data = imagecodecs.jpeg8_encode(np.full((224, 224, 3), (200, 120, 181), np.uint8), level=95, subsampling="411")
    at = data.index(b"\xff\xc0") + 11
    return data[:at] + b"\x14" + data[at + 1 :]


def wide_profile() -> tuple[bytes, Array]:
    """An ICC profile with red and blue exchanged: sRGB's own, its two tags renamed; and what SMEAR then shows."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"xXYZ"), (b"bXYZ", b"rXYZ"), (b"xXYZ", b"bXYZ")):
        profile = profile.replace(old, new)
    return profile, SMEAR[..., ::-1]


ICC, SHOWN_BY_ICC = wide_profile()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def bitfields(bits: int, *masks: int) -> bytes:
    """A BMP of 16 or 32 bits whose masks of red, green and blue are its own."""
    pixels = np.zeros((224, 224), np.uint32)
    for mask, values in zip(masks, SMEAR[::-1].astype(np.uint32).transpose(2, 0, 1), strict=True):
        shift = (mask & -mask).bit_length() - 1
        pixels |= values * (mask >> shift) // 255 << shift
    body = pixels.astype(f"<u{bits // 8}").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 224, 224, 1, bits, 3, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 66 + len(body), 0, 0, 66) + header + struct.pack("<III", *masks) + body


def bmp_with_profile() -> bytes:
    """A BMP of the fifth header with an ICC profile behind its pixels."""
    body = SMEAR[::-1, :, ::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, 224, 224, 1, 24, 0, len(body), 0, 0, 0, 0) + bytes(16) + b"DEBM"
    header += bytes(48) + struct.pack("<IIII", 4, 124 + len(body), len(ICC), 0)
    return b"BM" + struct.pack("<IHHI", 138 + len(body) + len(ICC), 0, 0, 138) + header + body + ICC


def jp2_with_profile() -> bytes:
    """A JPEG 2000 file whose box of colours holds an ICC profile."""
    data = imagecodecs.jpeg2k_encode(SMEAR, level=0)
    at, outer = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    box = struct.pack(">I", 11 + len(ICC)) + b"colr\2\0\0" + ICC
    (length,) = struct.unpack_from(">I", data, outer)
    header = struct.pack(">I", length - 15 + len(box)) + data[outer + 4 : at] + box
    return data[:outer] + header + data[at + 15 :]


def ycbcr(subsampling: tuple[int, int], *tags: tuple[int, int, Any]) -> bytes:
    """A raw YCbCr TIFF of a grey ramp with one tint, whose colour is the same for all pixels that share it."""
    across, down = subsampling
    light = np.tile(np.arange(16, 240, dtype=np.uint8), (224, 1))
    units = (
        light.reshape(224 // down, down, 224 // across, across).swapaxes(1, 2).reshape(224 // down, -1, across * down)
    )
    tint = np.broadcast_to(np.array([120, 140], np.uint8), (*units.shape[:2], 2))
    strip = np.concatenate([units, tint], axis=2).tobytes()
    return raw_tiff([(258, 3, (8, 8, 8)), (262, 3, 6), (277, 3, 3), (530, 3, subsampling), *tags], strip)


def ycbcr_shown(low: float = 0, high: float = 255) -> Array:
    light = (np.tile(np.arange(16, 240, dtype=float), (224, 1)) - low) * 255 / (high - low)
    red, blue = light + 12 * 1.402, light - 8 * 1.772
    green = (light - 0.299 * red - 0.114 * blue) / 0.587
    return np.clip(np.stack([red, green, blue], -1), 0, 255).round().astype(np.uint8)


def dicom(
    values: Array,
    photometric: str = "RGB",
    syntax: str = pydicom.uid.ExplicitVRLittleEndian,
    frame: bytes | None = None,
    **elements: Any,
) -> bytes:
    """A DICOM file of a patient who does not exist; of values, or of them compressed to a frame."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = VLMicroscopicImageStorage, "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientName = VLMicroscopicImageStorage, "1.2.3", PATIENT
    dataset.Rows, dataset.Columns, dataset.PhotometricInterpretation = 224, 224, photometric
    dataset.SamplesPerPixel = 3 if values.ndim == 3 and values.shape[-1] == 3 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.PixelRepresentation = 0
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.HighBit = elements.get("HighBit", dataset.BitsStored - 1)
    dataset.PixelData = values.tobytes() if frame is None else pydicom.encaps.encapsulate([frame])
    sink = io.BytesIO()
    dataset.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def of_palette(bits: int) -> tuple[bytes, Array]:
    """A DICOM file whose samples are places in a palette of so many bits, and what it shows."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 256))
    told: dict[str, Any] = {}
    for name, values in zip(("Red", "Green", "Blue"), colours, strict=True):
        told[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        deep = values * 257 if bits == 16 else values
        told[f"{name}PaletteColorLookupTableData"] = deep.astype(f"<u{bits // 8}").tobytes()
    return dicom(GREY, "PALETTE COLOR", **told), colours.T[GREY].astype(np.uint8)


def to_ybr(values: Array) -> Array:
    return np.asarray(Image.fromarray(values).convert("YCbCr"))


def jpegs() -> Iterator[Case]:
    plain = pil(SMEAR, "JPEG", quality=95)
    yield case("JPEG", "scored", "libjpeg-turbo", SMEAR, 40, make=lambda: plain)
    yield case("JPEG, progressive", "scored", "libjpeg-turbo", make=lambda: pil(SMEAR, "JPEG", progressive=True))
    yield case("JPEG, grey", "scored", "Pillow", GREY, 40, make=lambda: pil(GREY, "JPEG", quality=95))
    yield case("JPEG, CMYK", "scored", "Pillow", make=lambda: pil(Image.fromarray(SMEAR).convert("CMYK"), "JPEG"))
    flat = np.full((224, 224, 3), (200, 120, 181), np.uint8)
    yield case("JPEG, 4:4:1", "scored", "Pillow", flat, 2, make=turned_411)
    icc = {"icc_profile": ICC, "quality": 95, "subsampling": 0}
    yield case(
        "JPEG with an ICC profile", "scored", "libjpeg-turbo", SHOWN_BY_ICC, 40, make=lambda: pil(SMEAR, "JPEG", **icc)
    )
    srgb = {"icc_profile": SRGB, "quality": 95}
    yield case(
        "JPEG, grey, with a profile of colours", "scored", "Pillow", GREY, 40, make=lambda: pil(GREY, "JPEG", **srgb)
    )
    broken = {"icc_profile": b"no profile", "quality": 95}
    yield case(
        "JPEG with a broken ICC profile",
        "damaged",
        "libjpeg-turbo",
        SMEAR,
        40,
        make=lambda: pil(SMEAR, "JPEG", **broken),
    )
    yield case(
        "JPEG, 12 bits",
        "scored",
        "imagecodecs",
        SMEAR,
        40,
        make=lambda: imagecodecs.jpeg8_encode(TWELVE, level=98, bitspersample=12),
    )
    yield case(
        "JPEG, lossless", "scored", "libjpeg-turbo", SMEAR, make=lambda: imagecodecs.jpeg8_encode(SMEAR, lossless=True)
    )
    yield case(
        "JPEG, lossless, 16 bits",
        "scored",
        "imagecodecs",
        SMEAR,
        make=lambda: imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=16),
    )
    yield case("JPEG-LS", "scored", "imagecodecs", SMEAR, make=lambda: imagecodecs.jpegls_encode(SMEAR))
    twelve = imagecodecs.jpeg8_encode(TWELVE, level=98, bitspersample=12)
    upright = np.rot90(SMEAR, -1)
    yield case("JPEG, 12 bits, on its side", "scored", "imagecodecs", upright, 40, make=lambda: turned(twelve))
    yield case("JPEG, 12 bits, cut off", "corrupt_image", make=lambda: twelve[: len(twelve) // 2])
    shown = arithmetic_shown()
    yield case("JPEG, arithmetic code, over 64 kB", "scored", "imagecodecs", shown, make=arithmetic)
    yield case("JPEG, arithmetic code, cut off", "corrupt_image", make=lambda: arithmetic()[:-2])
    yield case("JPEG with surplus bytes before its end", "damaged", "Pillow", SMEAR, 40, make=lambda: surplus(plain))
    yield case("JPEG, cut off", "corrupt_image", make=lambda: plain[: len(plain) // 2])


def pngs() -> Iterator[Case]:
    plain = pil(SMEAR, "PNG")
    both = with_alpha(SMEAR, halved(SMEAR))
    yield case("PNG", "scored", "Pillow", SMEAR, make=lambda: plain)
    yield case("PNG, alpha", "scored", "Pillow", on_white(SMEAR), make=lambda: pil(both, "PNG"))
    invisible = with_alpha(SMEAR, np.zeros((224, 224)))
    yield case("PNG, alpha that is zero everywhere", "damaged", "Pillow", SMEAR, make=lambda: pil(invisible, "PNG"))
    yield case("PNG, 16 bits", "scored", "imagecodecs", SMEAR, make=lambda: png(DEEP, 16, 2))
    yield case("PNG, 16 bits, grey", "scored", "imagecodecs", GREY, make=lambda: png(DEEP_GREY, 16, 0))
    deep = with_alpha(DEEP, halved(DEEP))
    yield case("PNG, 16 bits, alpha", "scored", "imagecodecs", on_white(SMEAR), make=lambda: png(deep, 16, 6))
    side = (b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    upright = np.rot90(SMEAR, -1)
    yield case("PNG, 16 bits, on its side", "scored", "imagecodecs", upright, make=lambda: png(DEEP, 16, 2, side))
    odd = DEEP.copy()
    odd[112:] = (40_001, 30_001, 20_001)
    key = (b"tRNS", struct.pack(">HHH", 40_001, 30_001, 20_001))
    near = odd.copy()
    near[:8] = (40_002, 30_001, 20_001)
    shown = on_white((near >> 8).astype(np.uint8))
    yield case(
        "PNG, 16 bits, one transparent colour", "scored", "imagecodecs", shown, make=lambda k=key: png(near, 16, 2, k)
    )
    said = (b"sBIT", bytes([12] * 3))
    yield case(
        "PNG, 12 bits in 16, as sBIT says", "scored", "imagecodecs", SMEAR, make=lambda: png(TWELVE, 16, 2, said)
    )
    yield case(
        "PNG, 12 bits in 16, grey, as sBIT says",
        "scored",
        "imagecodecs",
        GREY,
        make=lambda: png(TWELVE_GREY, 16, 0, (b"sBIT", b"\x0c")),
    )
    yield case("PNG, 12 bits in 16, and nothing says so", "unsupported_mode", make=lambda: png(TWELVE, 16, 2))
    yield case(
        "PNG, 12 bits in 16, grey, and nothing says so", "unsupported_mode", make=lambda: png(TWELVE_GREY, 16, 0)
    )
    two = (GREY >> 6).astype(np.uint8)
    key = (b"tRNS", struct.pack(">H", 3))
    expected = np.where(two == 3, 255, two * 85).astype(np.uint8)
    yield case("PNG, 2 bits, one transparent grey", "scored", "Pillow", expected, make=lambda k=key: png(two, 2, 0, k))
    halves = np.zeros((224, 224), np.uint8)
    halves[112:] = 1
    white = np.full((224, 224), 255, np.uint8)
    yield case(
        "PNG, 1 bit, its black transparent",
        "scored",
        "Pillow",
        white,
        make=lambda: png(halves, 1, 0, (b"tRNS", b"\0\0")),
    )
    yield case(
        "PNG with an ICC profile", "scored", "Pillow", SHOWN_BY_ICC, 4, make=lambda: pil(SMEAR, "PNG", icc_profile=ICC)
    )
    yield case(
        "PNG with the ICC profile of sRGB", "scored", "Pillow", SMEAR, make=lambda: pil(SMEAR, "PNG", icc_profile=SRGB)
    )
    linear = ((SMEAR / 255.0) ** (1 / 2.2) * 255).round().astype(np.uint8)
    gamma = struct.pack(">I", 100_000)
    yield case("PNG with gAMA", "scored", "Pillow", linear, 1, make=lambda: png(SMEAR, 8, 2, (b"gAMA", gamma)))
    usual = struct.pack(">I", 45_455)
    yield case("PNG with the gAMA of sRGB", "scored", "Pillow", SMEAR, make=lambda: png(SMEAR, 8, 2, (b"gAMA", usual)))
    zeros = (b"cHRM", bytes(32))
    yield case("PNG with a senseless cHRM", "damaged", "Pillow", SMEAR, make=lambda: png(SMEAR, 8, 2, zeros))
    tiny = (b"gAMA", struct.pack(">I", 1))
    yield case("PNG with a senseless gAMA", "damaged", "Pillow", SMEAR, make=lambda: png(SMEAR, 8, 2, tiny))
    exchanged = struct.pack(">8I", 31270, 32900, 15000, 6000, 30000, 60000, 64000, 33000)
    swapped = SMEAR[..., ::-1]
    yield case("PNG with cHRM", "scored", "Pillow", swapped, 2, make=lambda: png(SMEAR, 8, 2, (b"cHRM", exchanged)))
    yield case(
        "PNG with cICP, Display P3", "scored", "Pillow", make=lambda: png(SMEAR, 8, 2, (b"cICP", bytes([12, 13, 0, 1])))
    )
    yield case("PNG with cICP, HDR", "unsupported_mode", make=lambda: png(SMEAR, 8, 2, (b"cICP", bytes([9, 16, 0, 1]))))
    yield case(
        "PNG with a wrong checksum of its pixels",
        "damaged",
        "Pillow",
        SMEAR,
        make=lambda: plain[:-13] + bytes([plain[-13] ^ 1]) + plain[-12:],
    )
    animated = Image.fromarray(SMEAR)
    yield case(
        "PNG, animated",
        "multiple_pictures",
        make=lambda: pil(animated, "PNG", save_all=True, append_images=[animated.rotate(9)]),
    )


def simple_tiffs() -> Iterator[Case]:
    yield case("TIFF", "scored", "Pillow", SMEAR, make=lambda: tiff(SMEAR))
    for compression in ("lzw", "deflate", "packbits", "zstd"):
        reader = "imagecodecs" if compression == "zstd" else "Pillow"
        yield case(
            f"TIFF, {compression}", "scored", reader, SMEAR, make=lambda c=compression: tiff(SMEAR, compression=c)
        )
    differences = {"compression": "packbits", "predictor": True}
    name = "TIFF, packbits of differences"
    yield case(name, "scored", "tifffile", SMEAR, make=lambda: tiff(SMEAR, **differences))
    yield case("TIFF, JPEG", "scored", "Pillow", SMEAR, 60, make=lambda: tiff(SMEAR, compression="jpeg"))
    lossless = {"compression": "jpeg", "compressionargs": {"lossless": True}}
    yield case("TIFF, lossless JPEG", "scored", "imagecodecs", SMEAR, make=lambda: tiff(SMEAR, **lossless))
    for compression in ("jpeg2000", "webp", "jpegxl", "lerc", "png"):
        name = f"TIFF, {compression}"
        yield case(name, "scored", "imagecodecs", SMEAR, 60, make=lambda c=compression: tiff(SMEAR, compression=c))
    yield case("TIFF, JPEG XR", "unsupported_mode", make=lambda: tiff(SMEAR, compression="jpegxr"))
    yield case("TIFF, BigTIFF", "scored", "Pillow", SMEAR, make=lambda: tiff(SMEAR, bigtiff=True))
    yield case(
        "TIFF, BigTIFF, big-endian", "scored", "tifffile", SMEAR, make=lambda: tiff(SMEAR, bigtiff=True, byteorder=">")
    )
    planes = SMEAR.transpose(2, 0, 1)
    yield case("TIFF, planes", "scored", "Pillow", SMEAR, make=lambda: tiff(planes, planarconfig="separate"))
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    shown = colours.T.astype(np.uint8)[GREY]
    yield case("TIFF, palette", "scored", "Pillow", shown, make=lambda: tiff(GREY, "palette", colormap=colours * 257))
    yield case(
        "TIFF, palette of 0..255", "scored", "tifffile", shown, make=lambda: tiff(GREY, "palette", colormap=colours)
    )
    yield case("TIFF, white is zero", "scored", "Pillow", 255 - GREY, make=lambda: tiff(GREY, "miniswhite"))
    fourth = with_alpha(SMEAR, halved(SMEAR))
    yield case(
        "TIFF, alpha", "scored", "Pillow", on_white(SMEAR), make=lambda: tiff(fourth, extrasamples=["unassalpha"])
    )
    yield case(
        "TIFF, a fourth sample that is no alpha",
        "scored",
        "Pillow",
        SMEAR,
        make=lambda: tiff(fourth, extrasamples=["unspecified"]),
    )
    undeclared = [(258, 3, (8, 8, 8, 8)), (262, 3, 2), (277, 3, 4)]
    yield case(
        "TIFF, a fourth sample that is not declared",
        "scored",
        "Pillow",
        SMEAR,
        make=lambda: raw_tiff(undeclared, fourth.tobytes()),
    )
    invisible = with_alpha(SMEAR, np.zeros((224, 224)))
    yield case(
        "TIFF, alpha that is zero everywhere",
        "damaged",
        "Pillow",
        SMEAR,
        make=lambda: tiff(invisible, extrasamples=["unassalpha"]),
    )
    inks = np.dstack([255 - SMEAR, np.zeros((224, 224), np.uint8)])
    yield case("TIFF, CMYK", "scored", "Pillow", SMEAR, 1, make=lambda: tiff(inks, "separated"))
    yield case(
        "TIFF, CMYK, planes",
        "scored",
        "tifffile",
        SMEAR,
        1,
        make=lambda: tiff(inks.transpose(2, 0, 1), "separated", planarconfig="separate"),
    )
    dots = Image.fromarray(SMEAR).convert("1")
    for name, compression, side in (
        ("CCITT group 3", "group3", {}),
        ("CCITT group 3, two-dimensional", "group3", {292: 1}),
        ("CCITT group 4", "group4", {266: 2}),
        ("CCITT, a line at a time", "tiff_ccitt", {262: 0}),
    ):
        yield case(
            f"TIFF, {name}",
            "scored",
            "Pillow",
            np.asarray(dots.convert("L")),
            make=lambda c=compression, s=side: pil(dots, "TIFF", compression=c, tiffinfo=s),
        )
    yield case(
        "TIFF with an ICC profile", "scored", "Pillow", SHOWN_BY_ICC, 4, make=lambda: tiff(SMEAR, iccprofile=ICC)
    )
    yield case("TIFF, YCbCr 4:2:0, raw", "scored", "tifffile", ycbcr_shown(), 1, make=lambda: ycbcr((2, 2)))
    yield case("TIFF, YCbCr 4:2:2, raw", "scored", "tifffile", ycbcr_shown(), 1, make=lambda: ycbcr((2, 1)))
    full = Image.fromarray(SMEAR).convert("YCbCr")
    zstd = {"compression": "zstd"}
    yield case("TIFF, YCbCr, zstd", "scored", "tifffile", SMEAR, 3, make=lambda: pil(full, "TIFF", **zstd))
    video = (532, 5, (16, 235, 128, 255, 128, 255))
    shown = ycbcr_shown(16, 235)
    yield case(
        "TIFF, YCbCr with ReferenceBlackWhite", "scored", "tifffile", shown, 1, make=lambda: ycbcr((1, 1), video)
    )
    yield case(
        "TIFF, YCbCr 4:2:0 with ReferenceBlackWhite", "scored", "tifffile", shown, 1, make=lambda: ycbcr((2, 2), video)
    )
    lab = np.full((224, 224, 3), (137, 0, 0), np.uint8)
    yield case("TIFF, CIE Lab", "scored", "Pillow", np.full((224, 224), 128), 3, make=lambda p=lab: tiff(p, "cielab"))
    lab = Image.fromarray(SMEAR).convert("LAB")
    yield case("TIFF, CIE Lab, zstd", "scored", "tifffile", SMEAR, 6, make=lambda p=lab: pil(p, "TIFF", **zstd))
    deflated = tiff(SMEAR, compression="deflate")
    yield case("TIFF, deflate, with a wrong checksum", "corrupt_image", make=lambda: spoilt_strip(deflated, -2))
    longer = [(258, 3, (8, 8, 8)), (262, 3, 2), (277, 3, 3)]
    stream = zlib.compress(SMEAR.tobytes() + bytes(9))
    yield case(
        "TIFF, deflate, longer than it says, with a wrong checksum",
        "damaged",
        "Pillow",
        SMEAR,
        make=lambda: as_deflate(raw_tiff(longer, stream[:-1] + bytes([stream[-1] ^ 1]))),
    )
    jpeg = pil(SMEAR, "JPEG", quality=90, subsampling=0)
    tags = [(258, 3, (8, 8, 8)), (262, 3, 6), (277, 3, 3), (530, 3, (1, 1))]
    yield case(
        "TIFF, JPEG with surplus bytes",
        "damaged",
        "Pillow",
        make=lambda: raw_tiff(tags, surplus(jpeg)).replace(
            b"\x03\x01\x03\0\x01\0\0\0\x01\0", b"\x03\x01\x03\0\x01\0\0\0\x07\0", 1
        ),
    )
    yield case(
        "TIFF, cut off",
        "corrupt_image",
        make=lambda: raw_tiff([(258, 3, (8, 8, 8)), (262, 3, 2), (277, 3, 3)], SMEAR.tobytes())[:-1000],
    )


def as_deflate(data: bytes) -> bytes:
    """A TIFF of `raw_tiff` that says that its strip is deflated."""
    return data.replace(b"\x03\x01\x03\0\x01\0\0\0\x01\0", b"\x03\x01\x03\0\x01\0\0\0\x08\0", 1)


def spoilt_strip(data: bytes, place: int) -> bytes:
    """A byte changed near the end of a TIFF's last strip."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        at = page.dataoffsets[-1] + page.databytecounts[-1] + place  # type: ignore[union-attr]
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def deep_tiffs() -> Iterator[Case]:
    yield case("TIFF, 16 bits", "scored", "tifffile", SMEAR, make=lambda: tiff(DEEP))
    side = {"extratags": [(274, 3, 1, 6, True)]}
    upright = np.rot90(SMEAR, -1)
    yield case("TIFF, 16 bits, on its side", "scored", "tifffile", upright, make=lambda: tiff(DEEP, **side))
    yield case("TIFF, 16 bits, grey", "scored", "tifffile", GREY, make=lambda: tiff(DEEP_GREY, "minisblack"))
    for byteorder, name in (("<", "little-endian"), (">", "big-endian")):
        planes = DEEP.transpose(2, 0, 1)
        yield case(
            f"TIFF, 16 bits, planes, {name}",
            "scored",
            "tifffile",
            SMEAR,
            make=lambda b=byteorder, p=planes: tiff(p, planarconfig="separate", byteorder=b),
        )
    both = with_alpha(DEEP, halved(DEEP))
    alpha = {"extrasamples": ["unassalpha"]}
    yield case("TIFF, 16 bits, alpha", "scored", "tifffile", on_white(SMEAR), make=lambda: tiff(both, **alpha))
    yield case(
        "TIFF, 16 bits, alpha, planes",
        "scored",
        "tifffile",
        on_white(SMEAR),
        make=lambda: tiff(both.transpose(2, 0, 1), planarconfig="separate", **alpha),
    )
    half = with_alpha((GREY // 2)[..., None], np.full((224, 224), 128))
    multiplied = {"planarconfig": "contig", "extrasamples": ["assocalpha"]}
    shown = (GREY // 2 + 127).astype(np.uint8)
    yield case(
        "TIFF, grey multiplied with alpha",
        "scored",
        "Pillow",
        shown,
        2,
        make=lambda: tiff(half, "minisblack", **multiplied),
    )
    grey = with_alpha(DEEP_GREY[..., None], halved(DEEP_GREY))
    yield case(
        "TIFF, 16 bits, grey with alpha",
        "scored",
        "tifffile",
        on_white(GREY),
        make=lambda: tiff(grey, "minisblack", planarconfig="contig", **alpha),
    )
    inks = np.dstack([65535 - DEEP, np.zeros((224, 224), np.uint16)])
    yield case("TIFF, 16 bits, CMYK", "scored", "tifffile", SMEAR, 1, make=lambda: tiff(inks, "separated"))
    yield case(
        "TIFF, 16 bits, CMYK, planes",
        "scored",
        "tifffile",
        SMEAR,
        1,
        make=lambda: tiff(inks.transpose(2, 0, 1), "separated", planarconfig="separate"),
    )
    yield case(
        "TIFF, 16 bits, white is zero", "scored", "tifffile", 255 - GREY, make=lambda: tiff(DEEP_GREY, "miniswhite")
    )
    for bits in (10, 12, 14):
        values = DEEP_GREY >> (16 - bits)
        yield case(
            f"TIFF, {bits} bits, packed", "scored", "imagecodecs", GREY, make=lambda v=values, b=bits: packed(v, b)
        )
    ome = '<?xml version="1.0"?><OME><Image><Pixels SizeC="1" SizeT="1" SizeZ="1" SignificantBits="12"/></Image></OME>'
    imagej = "ImageJ=1.53\nimages=1\nmin=0.0\nmax=4095.0\n"
    yield case(
        "TIFF, 12 bits in 16, as MaxSampleValue says",
        "scored",
        "tifffile",
        GREY,
        make=lambda: tiff(TWELVE_GREY, "minisblack", extratags=[(281, 3, 1, 4095, True)]),
    )
    yield case(
        "TIFF, 12 bits in 16, colour, as MaxSampleValue says",
        "scored",
        "tifffile",
        SMEAR,
        make=lambda: tiff(TWELVE, extratags=[(281, 3, 3, (4095, 4095, 4095), True)]),
    )
    yield case(
        "TIFF, 12 bits in 16, as OME's SignificantBits says",
        "scored",
        "tifffile",
        GREY,
        make=lambda: tiff(TWELVE_GREY, "minisblack", description=ome),
    )
    yield case(
        "TIFF, 12 bits in 16, as ImageJ's max says",
        "scored",
        "tifffile",
        GREY,
        make=lambda: tiff(TWELVE_GREY, "minisblack", description=imagej),
    )
    yield case(
        "TIFF, 12 bits in 16, and nothing says so", "unsupported_mode", make=lambda: tiff(TWELVE_GREY, "minisblack")
    )
    yield case("TIFF, 12 bits in 16, colour, and nothing says so", "unsupported_mode", make=lambda: tiff(TWELVE))
    for kind in (np.int8, np.int16, np.uint32, np.int32, np.float16, np.float32, np.float64):
        yield case(
            f"TIFF, {np.dtype(kind).name}", "unsupported_mode", make=lambda k=kind: tiff(GREY.astype(k), "minisblack")
        )
    yield case(
        "TIFF, three grey channels", "unsupported_mode", make=lambda: tiff(SMEAR, "minisblack", planarconfig="contig")
    )


def stacks() -> Iterator[Case]:
    small = SMEAR[::4, ::4]
    mask = np.ones((224, 224), bool)
    reader = "tifffile"
    yield case("TIFF of several pages", "multiple_pictures", make=lambda: pages((SMEAR, 0), (SMEAR, 0)))
    yield case("TIFF, a preview first", "scored", reader, SMEAR, make=lambda: pages((small, 1), (SMEAR, 0)))
    yield case(
        "TIFF, smaller copies after the picture",
        "scored",
        "Pillow",
        SMEAR,
        make=lambda: pages((SMEAR, 0), (small, 1), (small[::2, ::2], 1)),
    )
    yield case("TIFF, a mask after the picture", "scored", "Pillow", SMEAR, make=lambda: pages((SMEAR, 0), (mask, 4)))
    yield case(
        "TIFF, pyramid below its picture", "scored", "Pillow", SMEAR, make=lambda: below(SMEAR, small, small[::2, ::2])
    )
    yield case("TIFF, the picture below its preview", "scored", reader, SMEAR, make=lambda: below(small, SMEAR))
    stack = np.stack([GREY] * 3)
    depth = {"volumetric": True, "tile": (16, 64, 64)}
    yield case("TIFF with a depth", "multiple_pictures", make=lambda: tiff(stack, "minisblack", **depth))
    description = "ImageJ=1.53\nimages=3\nslices=3\n"
    tags = [(258, 3, 8), (262, 3, 1), (277, 3, 1)]
    yield case(
        "TIFF, ImageJ stack in one page",
        "multiple_pictures",
        make=lambda: described(tags, stack.tobytes(), description),
    )
    yield case(
        "TIFF, one picture that says it was of an ImageJ stack",
        "scored",
        "Pillow",
        GREY,
        make=lambda: described(tags, GREY.tobytes(), description, GREY.size),
    )
    ome = '<?xml version="1.0"?><OME><Image><Pixels SizeC="3" SizeT="1" SizeZ="1"/></Image></OME>'
    yield case(
        "TIFF, OME channels in one page", "multiple_pictures", make=lambda: described(tags, stack.tobytes(), ome)
    )
    shaped = '{"shape": [3, 224, 224]}'
    yield case(
        "TIFF, tifffile's stack in one page", "multiple_pictures", make=lambda: described(tags, stack.tobytes(), shaped)
    )


def below(first: Array, *others: Array) -> bytes:
    """A TIFF of one picture with others in directories below it; the largest is the full one."""
    sink = io.BytesIO()
    largest = max(map(len, (first, *others)))
    with tifffile.TiffWriter(sink) as writer:
        for values in (first, *others):
            more = {"subifds": len(others)} if values is first else {}
            writer.write(values, photometric="rgb", subfiletype=int(len(values) < largest), metadata=None, **more)
    return sink.getvalue()


def described(tags: list[tuple[int, int, Any]], pixels: bytes, text: str, strip: int = 224 * 224) -> bytes:
    """A TIFF whose description tells of more planes than its one strip, with those planes behind it."""
    data = raw_tiff([*tags, (270, 3, (0, 0, 0))], pixels[:strip])
    at = data.index(struct.pack("<HHI", 270, 3, 3))
    coded = text.encode() + b"\0"
    data = data[:at] + struct.pack("<HHII", 270, 2, len(coded), 0) + data[at + 12 :]
    rest = pixels[strip:]
    placed = data[: at + 8] + struct.pack("<I", len(data) + len(rest)) + data[at + 12 :]
    return placed + rest + coded


def others() -> Iterator[Case]:
    yield case("BMP", "scored", "Pillow", SMEAR, make=lambda: pil(SMEAR, "BMP"))
    own = bitfields(32, 0xFF << 2, 0xFF << 12, 0xFF << 22)
    yield case("BMP, masks of its own", "scored", "the package", SMEAR, make=lambda: own)
    yield case("BMP, 16 bits, 5-6-5", "scored", "Pillow", SMEAR, 9, make=lambda: bitfields(16, 0xF800, 0x7E0, 0x1F))
    four = bitfields(16, 0xF00, 0xF0, 0xF)
    yield case("BMP, 16 bits, masks of 4 bits", "scored", "the package", SMEAR, 17, make=lambda: four)
    yield case("BMP with an ICC profile", "scored", "Pillow", SHOWN_BY_ICC, 4, make=bmp_with_profile)
    yield case("GIF", "scored", "Pillow", GREY, make=lambda: pil(GREY, "GIF"))
    both = {"save_all": True, "append_images": [Image.fromarray(255 - GREY)]}
    yield case("GIF, animated", "multiple_pictures", make=lambda: pil(GREY, "GIF", **both))
    yield case("GIF, cut off", "corrupt_image", make=lambda: pil(GREY, "GIF")[:-5000])
    yield case("WebP, lossless", "scored", "Pillow", SMEAR, make=lambda: pil(SMEAR, "WEBP", lossless=True))
    webp = {"lossless": True, "icc_profile": ICC}
    yield case("WebP with an ICC profile", "scored", "Pillow", SHOWN_BY_ICC, 4, make=lambda: pil(SMEAR, "WEBP", **webp))
    yield case("WebP, cut off", "corrupt_image", make=lambda: pil(SMEAR, "WEBP", lossless=True)[:-200])
    yield from jpegs_2000()
    for kind, begin in (
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("AVIF", b"\0\0\0\x18ftypavif\0\0\0\0"),
        ("JPEG XL", b"\xff\x0a"),
        ("JPEG XR", b"II\xbc\x01"),
        ("Photoshop", b"8BPS\0\1"),
        ("Zeiss CZI", b"ZISSRAWFILE\0"),
        ("Nikon ND2", b"\xda\xce\xbe\n\0\0\0\0"),
    ):
        yield case(kind, "unsupported_mode", make=lambda start=begin: start + bytes(500))
    yield case("other files", "not_an_image", make=lambda: b"%PDF-1.7" + bytes(500))


def jpegs_2000() -> Iterator[Case]:
    yield case("JPEG 2000", "scored", "Pillow", SMEAR, make=lambda: pil(SMEAR, "JPEG2000"))
    yield case("JPEG 2000 with an ICC profile", "scored", "Pillow", SHOWN_BY_ICC, 4, make=jp2_with_profile)
    for name, values, shown in (("16 bits", DEEP, SMEAR), ("16 bits, grey", DEEP_GREY, GREY)):
        yield case(
            f"JPEG 2000, {name}",
            "scored",
            "imagecodecs",
            shown,
            make=lambda v=values: imagecodecs.jpeg2k_encode(v, level=0),
        )
    both = with_alpha(DEEP, halved(DEEP))
    yield case(
        "JPEG 2000, 16 bits, alpha",
        "scored",
        "imagecodecs",
        on_white(SMEAR),
        make=lambda: imagecodecs.jpeg2k_encode(both, level=0),
    )
    twelve = {"level": 0, "bitspersample": 12}
    yield case(
        "JPEG 2000, 12 bits",
        "scored",
        "imagecodecs",
        SMEAR,
        make=lambda: imagecodecs.jpeg2k_encode(TWELVE, **twelve),
    )
    yield case(
        "JPEG 2000, 12 bits in 16, and nothing says so",
        "unsupported_mode",
        make=lambda: imagecodecs.jpeg2k_encode(TWELVE, level=0),
    )
    signed = DEEP_GREY.view(np.int16)
    yield case("JPEG 2000, signed", "unsupported_mode", make=lambda: imagecodecs.jpeg2k_encode(signed, level=0))
    yield case("JPEG 2000, cut off", "corrupt_image", make=lambda: pil(SMEAR, "JPEG2000")[:-200])
    yield case(
        "JPEG 2000, 16 bits, cut off",
        "corrupt_image",
        make=lambda: imagecodecs.jpeg2k_encode(DEEP_GREY, level=0)[:-2000],
    )


def dicoms() -> Iterator[Case]:
    yield case("DICOM, RGB", "scored", "pydicom", SMEAR, make=lambda: dicom(SMEAR))
    yield case("DICOM without its preamble", "scored", "pydicom", SMEAR, make=lambda: dicom(SMEAR)[132:])
    yield case("DICOM, YBR_FULL", "scored", "pydicom", SMEAR, 3, make=lambda: dicom(to_ybr(SMEAR), "YBR_FULL"))
    yield case("DICOM, MONOCHROME2", "scored", "pydicom", GREY, make=lambda: dicom(GREY, "MONOCHROME2"))
    yield case("DICOM, MONOCHROME1", "scored", "pydicom", 255 - GREY, make=lambda: dicom(GREY, "MONOCHROME1"))
    twelve = {"BitsStored": 12}
    yield case("DICOM, 12 bits", "scored", "pydicom", GREY, make=lambda: dicom(TWELVE_GREY, "MONOCHROME2", **twelve))
    window = {"WindowCenter": ["1000", "2048"], "WindowWidth": ["1500", "4096"]}
    shown = np.clip((TWELVE_GREY - 999.5) / 1499 + 0.5, 0, 1) * 255
    yield case(
        "DICOM, 12 bits and a window",
        "scored",
        "pydicom",
        shown.round().astype(np.uint8),
        make=lambda: dicom(TWELVE_GREY, "MONOCHROME2", **twelve, **window),
    )
    inverse = {"PresentationLUTShape": "INVERSE"}
    yield case(
        "DICOM, shown by a table of its own", "unsupported_mode", make=lambda: dicom(GREY, "MONOCHROME2", **inverse)
    )
    yield case(
        "DICOM, 12 bits at the upper end of 16",
        "unsupported_mode",
        make=lambda: dicom(TWELVE_GREY << 4, "MONOCHROME2", HighBit=15, **twelve),
    )
    for bits in (8, 16):
        data, shown = of_palette(bits)
        yield case(f"DICOM, palette of {bits} bits", "scored", "pydicom", shown, make=lambda d=data: d)
    icc = {"ICCProfile": ICC}
    yield case("DICOM with an ICC profile", "scored", "pydicom", SHOWN_BY_ICC, 4, make=lambda: dicom(SMEAR, **icc))
    uid = pydicom.uid
    baseline = pil(SMEAR, "JPEG", quality=95)
    for name, becomes, frame in (
        ("baseline JPEG", "scored", baseline),
        ("baseline JPEG with surplus bytes", "damaged", surplus(baseline)),
        ("baseline JPEG, cut off", "corrupt_image", baseline[: len(baseline) // 2]),
    ):
        yield case(
            f"DICOM, {name}",
            becomes,
            "pydicom" if becomes != "corrupt_image" else "",
            SMEAR,
            40,
            make=lambda f=frame: dicom(SMEAR, "YBR_FULL_422", uid.JPEGBaseline8Bit, f),
        )
    lossless = imagecodecs.jpeg8_encode(SMEAR, lossless=True, predictor=1)
    deep = imagecodecs.jpeg8_encode(TWELVE_GREY, level=98, bitspersample=12)
    options = {"level": 0, "codecformat": "J2K"}
    for name, syntax, photometric, values, frame in (
        ("JPEG of 12 bits", uid.JPEGExtended12Bit, "MONOCHROME2", TWELVE_GREY, deep),
        ("lossless JPEG", uid.JPEGLosslessSV1, "RGB", SMEAR, lossless),
        ("JPEG-LS", uid.JPEGLSLossless, "RGB", SMEAR, imagecodecs.jpegls_encode(SMEAR)),
        ("JPEG 2000", uid.JPEG2000Lossless, "YBR_RCT", SMEAR, imagecodecs.jpeg2k_encode(SMEAR, **options)),
        ("JPEG 2000 of 16 bits", uid.JPEG2000Lossless, "YBR_RCT", DEEP, imagecodecs.jpeg2k_encode(DEEP, **options)),
        ("HTJ2K", uid.HTJ2KLossless, "YBR_RCT", SMEAR, imagecodecs.htj2k_encode(SMEAR, reversible=True)),
    ):
        reader = "pydicom" if name == "JPEG 2000" else "imagecodecs"
        shown, elements = (GREY, twelve) if values is TWELVE_GREY else (SMEAR, {})
        yield case(
            f"DICOM, {name}",
            "scored",
            reader,
            shown,
            1,
            make=lambda v=values, p=photometric, s=syntax, f=frame, e=elements: dicom(v, p, s, f, **e),
        )
    yield case("DICOM, MPEG-4", "unsupported_mode", make=lambda: dicom(SMEAR, "RGB", uid.MPEG4HP41, b"film"))
    yield case(
        "DICOM, several frames",
        "multiple_pictures",
        make=lambda: dicom(np.concatenate([GREY, GREY]), "MONOCHROME2", NumberOfFrames=2),
    )
    yield case(
        "DICOM, JPEG-LS of more bits than are stored",
        "corrupt_image",
        make=lambda: dicom(GREY, "MONOCHROME2", uid.JPEGLSLossless, imagecodecs.jpegls_encode(TWELVE_GREY)),
    )
    yield case("DICOM, signed", "unsupported_mode", make=lambda: dicom(GREY, "MONOCHROME2", PixelRepresentation=1))
    yield case("DICOM, cut off", "corrupt_image", make=lambda: dicom(SMEAR)[:-1000])


CASES = [*jpegs(), *pngs(), *simple_tiffs(), *deep_tiffs(), *stacks(), *others(), *dicoms()]


def table() -> str:
    """The table of docs/score.md, of its marks and what is between them."""
    lines = [BEGIN, "| file | becomes | read by |", "| --- | --- | --- |"]
    for each in CASES:
        becomes = "scored, review reason `damaged`" if each.becomes == "damaged" else f"`{each.becomes}`"
        lines.append(f"| {each.name} | {becomes} | {each.reader or '-'} |")
    return "\n".join([*lines, END])


def time_all() -> None:
    """Print the median milliseconds of each case that shows a picture."""
    from bcd_ray.archives.images import Decoded, Limits, decode

    for each in CASES:
        data, limits = each.make(), Limits()
        if isinstance(decode(data, limits), Decoded):
            times = timeit.repeat(lambda: decode(data, limits), number=1, repeat=50)  # noqa: B023
            print(f"{1000 * float(np.median(times)):7.2f}  {each.name}")


@dataclass(frozen=True)
class Options:
    """What to do with the cases."""

    time: bool = False
    """Time them, in place of writing the table."""


def main(options: Options) -> None:
    if options.time:
        time_all()
        return
    text = DOCS.read_text()
    start = text.index(BEGIN)
    end = text.index(END, start) + len(END)
    DOCS.write_text(text[:start] + table() + text[end:])


if __name__ == "__main__":
    main(tyro.cli(Options))
