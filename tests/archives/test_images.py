"""Decoding: what each kind of file becomes, and that no file, however damaged, raises."""

import errno
import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcd_ray.archives.formats import jpeg, tiff_directories
from bcd_ray.archives.images import Decoded, Limits, Rejected, decode, decode_plain
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.ledger.schema import STATUSES

SMEAR = Image.fromarray(draw_smear(1, seed=3))
SMALL = SMEAR.resize((48, 40))
LIMITS = Limits()
EXIF_ORIENTATION = 0x0112
LZW = {"compression": "tiff_lzw"}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def flat(mode: str, colour: Any, size: tuple[int, int] = (224, 224)) -> Image.Image:
    return Image.new(mode, size, colour)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG that Pillow would not write: 16-bit colour, or a header without the pixels it promises."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def accepted(data: bytes, limits: Limits = LIMITS) -> Decoded:
    result = decode(data, limits)
    assert isinstance(result, Decoded), result
    assert result.pixels.shape == (224, 224, 3)
    assert result.pixels.dtype == np.uint8
    return result


def rejected(data: bytes, limits: Limits = LIMITS) -> Rejected:
    result = decode(data, limits)
    assert isinstance(result, Rejected)
    assert result.status in STATUSES
    assert result.status != "scored"
    assert len(result.error.splitlines()) == 1
    return result


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_files_of_the_right_size_keep_every_pixel(kind: str) -> None:
    np.testing.assert_array_equal(accepted(encode(SMEAR, kind)).pixels, np.asarray(SMEAR))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_decoded(options: dict[str, Any]) -> None:
    pixels = accepted(encode(SMEAR, "JPEG", quality=95, **options)).pixels
    assert np.abs(pixels.astype(int) - np.asarray(SMEAR)).mean() < 5


@pytest.mark.parametrize("size", [(300, 200), (1, 1), (48, 500), (2560, 1920)])
def test_other_sizes_are_resized_and_the_original_size_is_told(size: tuple[int, int]) -> None:
    decoded = accepted(encode(SMEAR.resize(size), "PNG"))
    assert (decoded.width, decoded.height) == size


def test_greyscale_is_repeated_into_three_channels() -> None:
    grey = SMEAR.convert("L")
    pixels = accepted(encode(grey, "PNG")).pixels
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], np.asarray(grey))
    from_jpeg = accepted(encode(grey, "JPEG", quality=95)).pixels
    assert (from_jpeg[..., 0] == from_jpeg[..., 2]).all()
    assert from_jpeg.std() > 5


def test_black_and_white_becomes_0_and_255() -> None:
    pixels = accepted(encode(SMEAR.convert("1"), "PNG")).pixels
    assert set(np.unique(pixels)) == {0, 255}


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 224 * 224).astype(np.uint16).reshape(224, 224)
    image = Image.fromarray(values)
    big_endian = Image.frombytes("I;16B", (224, 224), values.astype(">u2").tobytes())
    for data in (encode(image, "PNG"), encode(image, "TIFF"), encode(big_endian, "TIFF")):
        pixels = accepted(data).pixels
        for channel in range(3):
            np.testing.assert_array_equal(pixels[..., channel], values >> 8)


def test_16_bit_colour_is_scaled_not_clipped() -> None:
    row = b"\0" + struct.pack(">HHH", 60000, 30000, 300) * 224
    pixels = accepted(png(224, 224, 16, 2, row * 224)).pixels
    assert (pixels == [60000 >> 8, 30000 >> 8, 300 >> 8]).all()


def test_cmyk_jpeg_becomes_the_colours_it_shows() -> None:
    cyan, magenta, yellow, black = 30, 120, 20, 10
    pixels = accepted(encode(flat("CMYK", (cyan, magenta, yellow, black)), "JPEG", quality=100)).pixels
    shown = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    assert np.abs(pixels - np.array(shown)).max() <= 4


def test_palette_becomes_its_colours() -> None:
    palette = SMEAR.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    expected = np.asarray(palette.convert("RGB"))
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(accepted(encode(palette, kind)).pixels, expected)


def test_the_transparent_colour_of_a_palette_becomes_white() -> None:
    image = flat("P", 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 224, 100))
    pixels = accepted(encode(image, "PNG", transparency=0)).pixels
    assert (pixels[:100] == [0, 0, 200]).all()
    assert (pixels[100:] == 255).all()


def test_the_transparent_colour_of_rgb_becomes_white() -> None:
    image = flat("RGB", (10, 20, 30))
    image.paste((90, 80, 70), (0, 0, 224, 100))
    pixels = accepted(encode(image, "PNG", transparency=(10, 20, 30))).pixels
    assert (pixels[:100] == [90, 80, 70]).all()
    assert (pixels[100:] == 255).all()


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (40, 80, 120)), ("LA", (40,))])
def test_alpha_is_laid_on_white(mode: str, colour: tuple[int, ...]) -> None:
    image = flat(mode, (*colour, 0))
    image.paste((*colour, 255), (0, 0, 224, 100))
    image.paste((*colour, 128), (0, 100, 224, 150))
    pixels = accepted(encode(image, "PNG")).pixels
    rgb = np.array(colour if len(colour) == 3 else colour * 3)
    assert (pixels[:100] == rgb).all()
    assert np.abs(pixels[100:150] - (rgb * 128 + 255 * 127) / 255).max() <= 1
    assert (pixels[150:] == 255).all()


def stored_as(upright: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """The pixels as a camera stores them for this EXIF orientation (EXIF 2.32, tag 0x0112)."""
    flipped = upright[:, ::-1]
    return np.ascontiguousarray(
        {
            1: upright,
            2: flipped,
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_pixels_and_size(kind: str, orientation: int) -> None:
    upright = np.asarray(SMEAR.resize((96, 64))).copy()
    upright[:24, :24] = (250, 20, 20)  # a corner that no flip or turn leaves where it is
    upright[:24, 72:] = (20, 20, 250)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    decoded = accepted(encode(Image.fromarray(stored_as(upright, orientation)), kind, exif=exif, **options))
    expected = accepted(encode(Image.fromarray(upright), "PNG"))
    assert (decoded.width, decoded.height) == (96, 64)
    difference = np.abs(decoded.pixels.astype(int) - expected.pixels)
    assert difference.mean() < (2 if kind == "JPEG" else 0.001)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(SMALL, "TIFF", save_all=True, append_images=[SMALL.rotate(9)]), id="pages"),
        pytest.param(encode(SMALL, "PNG", save_all=True, append_images=[SMALL.rotate(9)]), id="animation"),
    ],
)
def test_files_of_several_pictures_are_refused(data: bytes) -> None:
    result = rejected(data)
    assert result.status == "multiple_pictures"
    assert "split it into one file each" in result.error
    assert (result.width, result.height) == (48, 40)


def test_of_many_pages_two_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have a million, and asking Pillow how many walks over all of them."""
    read, looked_at = tiff_directories._read_tags, []

    def counted(data: bytes, offset: int, *others: Any) -> Any:
        looked_at.append(offset)
        return read(data, offset, *others)

    monkeypatch.setattr(tiff_directories, "_read_tags", counted)
    result = rejected(encode(SMALL, "TIFF", save_all=True, append_images=[SMALL] * 20))
    assert (result.status, result.error.partition(":")[0]) == ("multiple_pictures", "holds 2 pictures or more")
    assert len(looked_at) == 2


def test_the_first_picture_of_an_mpo_is_decoded() -> None:
    data = encode(SMEAR, "MPO", save_all=True, append_images=[flat("RGB", "black", (100, 100))], quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("MPO", 2)
    decoded = accepted(data)
    assert (decoded.width, decoded.height) == (224, 224)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(SMEAR)).mean() < 5


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_defined_range_are_refused(mode: str) -> None:
    assert rejected(encode(SMALL.convert("L").convert(mode), "TIFF")).status == "unsupported_mode"


def test_an_empty_file_is_refused() -> None:
    assert rejected(b"").status == "empty_file"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"patient;smear;date\n1;2;2024-05-01\n", id="text"),
        pytest.param(b"<html><body>404 not found</body></html>", id="page"),
        pytest.param(b"\0" * 1000, id="zeros"),
    ],
)
def test_what_is_no_image_of_a_known_kind_is_told_as_such(data: bytes) -> None:
    assert rejected(data).status == "not_an_image"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {}), ("TIFF", LZW)],
)
def test_an_image_cut_off_anywhere_is_corrupt(kind: str, options: dict[str, Any]) -> None:
    data = encode(SMEAR, kind, **options)
    for length in [8, 12, 40, *range(100, len(data) - 40, len(data) // 40)]:
        assert rejected(data[:length]).status == "corrupt_image", length


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_an_image_that_lacks_its_last_bytes_is_corrupt_or_whole(kind: str) -> None:
    """The last bytes of a PNG are checksums and an end mark: its pixels can all be there without them."""
    data = encode(SMEAR, kind)
    whole = accepted(data).pixels
    for missing in range(1, 40):
        result = decode(data[:-missing], LIMITS)
        if isinstance(result, Decoded):
            assert kind != "JPEG"
            np.testing.assert_array_equal(result.pixels, whole)
        else:
            assert result.status == "corrupt_image"


def test_a_bmp_cut_off_is_corrupt() -> None:
    data = encode(SMEAR, "BMP")
    for length in (20, 60, len(data) // 2, len(data) - 1):
        assert rejected(data[:length]).status == "corrupt_image", length


def test_a_damaged_png_header_is_corrupt() -> None:
    data = bytearray(encode(SMEAR, "PNG"))
    data[20] ^= 1  # in the size, which a checksum covers
    assert rejected(bytes(data)).status == "corrupt_image"


def test_bytes_are_bounded() -> None:
    data = encode(SMEAR, "JPEG")
    accepted(data, Limits(max_bytes=len(data)))
    result = rejected(data, Limits(max_bytes=len(data) - 1))
    assert result.status == "too_large"
    assert "--max-image-bytes" in result.error


def test_pixels_are_bounded() -> None:
    data = encode(SMEAR, "PNG")
    accepted(data, Limits(max_pixels=224 * 224))
    result = rejected(data, Limits(max_pixels=224 * 224 - 1))
    assert (result.status, result.width, result.height) == ("too_many_pixels", 224, 224)
    assert "--max-pixels" in result.error


def with_giant_header(kind: str, side: int) -> bytes:
    """A file of some hundred bytes that says it is side x side: only its header can be read at all."""
    if kind == "PNG":
        return png(side, side, 8, 2, b"")
    data = bytearray(encode(flat("RGB", "white", (16, 16)), kind))
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        for tag in (256, 257):
            at = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("side", [10_001, 60_000])
def test_a_tiny_file_with_a_giant_header_is_refused(kind: str, side: int) -> None:
    data = with_giant_header(kind, side)
    assert len(data) < 2000
    assert rejected(data).status == "too_many_pixels"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from Linux's /proc")
def test_a_bomb_is_refused_before_its_pixels_take_memory() -> None:
    """24 million pixels of a file of 24 kB: 24 MB grey, 96 MB as Pillow holds RGB."""
    program = """
import re, struct, zlib
from pathlib import Path
from bcd_ray.archives.images import Limits, Rejected, decode

def peak():  # of this process alone: ru_maxrss starts at that of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
packer = zlib.compressobj()
rows = b"".join(packer.compress(bytes(6001)) for _ in range(4000)) + packer.flush()
header = struct.pack(">IIBBBBB", 6000, 4000, 8, 0, 0, 0, 0)
bomb = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
assert len(bomb) < 30_000
decode(bomb[:100], Limits())
before = peak()
result = decode(bomb, Limits(max_pixels=20_000_000))
assert isinstance(result, Rejected) and result.status == "too_many_pixels", result
refused = peak()
result = decode(bomb, Limits())
assert (result.width, result.height) == (6000, 4000), result
print(refused - before, peak() - refused)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    refused, decoded = map(int, run.stdout.split())
    assert refused < 4, "MB taken to refuse"
    assert decoded > 80, "MB taken to decode: else the figure above says nothing"


def test_pillow_warnings_are_no_errors_where_warnings_are() -> None:
    maker_tag_out_of_file = b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xff\0\0\0\0\0\0\0"
    data = encode(SMEAR, "JPEG", exif=b"Exif\0\0" + maker_tag_out_of_file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="larger than file"):
            Image.open(io.BytesIO(data)).getexif()
        accepted(data)


def test_the_bound_on_pixels_may_be_above_that_of_pillow() -> None:
    large = png(14_000, 14_000, 8, 0, b"")  # Pillow of itself refuses 179 million pixels and more
    assert rejected(large).status == "too_many_pixels"
    above = decode(large, Limits(max_pixels=200_000_000))
    assert isinstance(above, Rejected)
    assert above.status == "corrupt_image"  # for want of pixels, not for their number


def valid_files() -> list[bytes]:
    """Small files of all kinds that are decoded or have a status of their own."""
    grey, palette = SMALL.convert("L"), SMALL.convert("P")
    deep = Image.fromarray(np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    files = [encode(image, "JPEG") for image in (SMALL, grey, SMALL.convert("CMYK"))]
    files += [encode(SMALL, "JPEG", progressive=True), encode(SMALL, "JPEG", exif=exif)]
    files += [encode(SMALL, "MPO", save_all=True, append_images=[SMALL])]
    files += [encode(image, "PNG") for image in (SMALL, grey, deep)]
    files += [encode(SMALL.convert(mode), "PNG") for mode in ("1", "LA", "RGBA")]
    files += [encode(palette, "PNG", transparency=3)]
    files += [encode(SMALL, "PNG", save_all=True, append_images=[SMALL.rotate(9)])]
    files += [encode(image, "BMP") for image in (SMALL, palette, SMALL.convert("1"))]
    files += [encode(image, "TIFF") for image in (SMALL, deep, grey.convert("F"), SMALL.convert("RGBA"))]
    compressions = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files += [encode(SMALL, "TIFF", compression=name) for name in compressions]
    return [*files, encode(SMALL, "TIFF", save_all=True, append_images=[SMALL])]


FILES = valid_files()
edits = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "delete"]),
    st.one_of(st.integers(0, 63), st.integers(0, 10_000)),  # often in the header
    st.binary(min_size=1, max_size=8),
)


def damaged(data: bytes, edit: tuple[str, int, bytes]) -> bytes:
    kind, position, new = edit
    at = position % (len(data) + 1)
    if kind == "flip":
        flipped = bytes(old ^ (byte or 1) for old, byte in zip(data[at:], new, strict=False))
        return data[:at] + flipped + data[at + len(new) :]
    if kind == "cut":
        return data[:at]
    return data[:at] + (new + data[at:] if kind == "insert" else data[at + len(new) :])


def check_any_outcome(data: bytes) -> None:
    limits = Limits(max_pixels=1_000_000)  # a damaged header must not make the test take minutes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = decode(data, limits)
    if isinstance(result, Decoded):
        accepted(data, limits)
        assert result.width > 0
        assert result.height > 0
    else:
        rejected(data, limits)


def test_the_files_to_damage_are_sound() -> None:
    outcomes = [decode(data, LIMITS) for data in FILES]
    statuses = [result.status for result in outcomes if isinstance(result, Rejected)]
    assert sorted(statuses) == ["multiple_pictures", "multiple_pictures", "unsupported_mode"]


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(FILES), st.lists(edits, min_size=1, max_size=4))
def test_a_damaged_file_never_raises(data: bytes, changes: list[tuple[str, int, bytes]]) -> None:
    for change in changes:
        data = damaged(data, change)
    check_any_outcome(data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM"]),
    st.binary(max_size=400),
)
def test_arbitrary_bytes_never_raise(magic: bytes, data: bytes) -> None:
    check_any_outcome(magic + data)


def decoded_by_pillow(data: bytes) -> Decoded | Rejected:
    """`decode` without its fast path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "plain_jpeg", lambda *_: None)
        return decode(data, LIMITS)


def assert_same_result(found: Decoded | Rejected, expected: Decoded | Rejected) -> None:
    if isinstance(found, Decoded) and isinstance(expected, Decoded):
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert (found.width, found.height) == (expected.width, expected.height)
    else:
        assert found == expected


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
@pytest.mark.parametrize("size", [(224, 224), (225, 223), (48, 500), (671, 672)])
def test_the_fast_path_of_jpegs_gives_the_pixels_of_pillow(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = encode(SMEAR.resize(size), "JPEG", **options)
    assert jpeg.is_plain(jpeg.read_header(data)) != ("progressive" in options)
    assert jpeg.plain_jpeg(data, jpeg.read_header(data), LIMITS) is not None
    assert_same_result(accepted(data), decoded_by_pillow(data))


@given(st.binary(min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_damaged_jpegs_end_as_with_pillow_alone(noise: bytes, place: float, end: float) -> None:
    data = bytearray(encode(SMALL, "JPEG", quality=95))
    start = int(place * (len(data) - len(noise)))
    data[start : start + len(noise)] = noise
    damaged = bytes(data[: max(1, int((0.5 + end) * len(data)))])
    assert_same_result(decode(damaged, LIMITS), decoded_by_pillow(damaged))


def test_rotated_jpegs_take_the_way_through_pillow() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF><rdf:Description tiff:Orientation='6'/></rdf:RDF></x:xmpmeta>"
    for options in ({"exif": exif}, {"xmp": xmp.replace(b"'", b'"')}):
        data = encode(SMEAR.resize((300, 100)), "JPEG", **options)
        assert not jpeg.is_plain(jpeg.read_header(data))
        assert (accepted(data).width, accepted(data).height) == (100, 300)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def exif_of_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return segment(0xE1, exif.tobytes())


@given(
    st.lists(
        st.builds(segment, st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.binary(max_size=40))
        | st.sampled_from([1, 3, 6]).map(exif_of_orientation)
        | st.sampled_from([b"\xff", b"\xff\xff\xff", b"\0", b"\xff\x01", b"\xff\xd0"]),  # fill, junk, bare markers
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_stands_before_the_picture_of_a_jpeg_it_ends_as_with_pillow_alone(before: list[bytes]) -> None:
    sound = encode(SMEAR.resize((60, 40)), "JPEG")
    data = sound[:2] + b"".join(before) + sound[2:]
    assert_same_result(decode(data, LIMITS), decoded_by_pillow(data))


@pytest.mark.parametrize("size", [(896, 672), (1024, 768), (1280, 960), (2592, 1944), (4000, 1800)])
def test_large_jpegs_decoded_to_a_fraction_look_the_same(size: tuple[int, int]) -> None:
    smear = Image.fromarray(draw_smear(2, seed=5, size=960)).resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 4, (size[1], size[0], 3))
    noisy = Image.fromarray((np.asarray(smear) + noise).clip(0, 255).astype(np.uint8))
    data = encode(noisy, "JPEG", quality=90)
    scaled = jpeg.plain_jpeg(data, jpeg.read_header(data), LIMITS)
    assert scaled is not None
    assert 1.5 * 224 <= min(scaled[0].shape[:2]) < min(size)
    found, expected = accepted(data), decoded_by_pillow(data)
    assert isinstance(expected, Decoded)
    assert (found.width, found.height) == size
    difference = np.abs(found.pixels.astype(int) - expected.pixels)
    assert difference.mean() < 0.5
    assert difference.max() <= 12


def test_a_lossless_jpeg_is_not_scaled_by_a_decoder_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_LEAST_SCALED", 28)  # in place of 336
    plain, lossless = encode(SMEAR, "JPEG"), imagecodecs.jpeg8_encode(np.asarray(SMEAR), lossless=True)
    for data, size in ((plain, 28), (lossless, 224), (lossless[:2] + b"\xff" + lossless[2:], 224)):
        found = jpeg.plain_jpeg(data, jpeg.read_header(data), LIMITS)
        assert found is not None
        assert found[0].shape == (size, size, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, min_factor, **__: factors.append(min_factor))
    factors: list[int] = []
    assert jpeg.damage(plain) is jpeg.damage(lossless) is None
    assert factors == [8, 1]


def test_a_jpeg_with_4_4_1_sampling_is_read() -> None:
    """A 4:1:1 picture is of that sampling once it is turned without loss; of one colour its blocks are the same."""
    colour = np.array([200, 120, 181], np.uint8)
    upright = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8) + colour, colorsubsampling="411")
    place = upright.index(b"\xff\xc0") + 11
    assert upright[place] == 0x41
    found = decode(upright[:place] + b"\x14" + upright[place + 1 :], Limits())
    assert isinstance(found, Decoded)
    assert np.abs(found.pixels.astype(int) - colour).max() <= 2


def drawn(kind: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(draw_smear(0, seed=1)).save(sink, kind)
    return sink.getvalue()


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize("part", ["jpeg.plain_jpeg", "pillow.decode"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError(6), "corrupt_image"),
        (SyntaxError("not a TIFF file"), "corrupt_image"),
        (RecursionError(), "corrupt_image"),
        (Panic("index out of bounds"), "corrupt_image"),
        (OSError("image file is truncated"), "corrupt_image"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.EMFILE, "Too many open files"), "resource_error"),
    ],
)
def test_nothing_that_a_library_raises_gets_out(
    monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException, status: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"bcd_ray.archives.formats.{part}", fail)
    found = decode(drawn("JPEG" if part.startswith("jpeg") else "PNG"), Limits())
    assert isinstance(found, Rejected)
    assert found.status == status
    assert "\n" not in found.error
    assert found.error


@pytest.mark.parametrize("cut", range(30))
def test_a_jpeg_that_ends_inside_its_frame_is_one_for_a_process_apart(cut: int) -> None:
    data = drawn("JPEG")
    found = decode_plain(data[: data.index(b"\xff\xc0") + cut], Limits())
    assert found is None


def test_who_interrupts_the_job_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bcd_ray.archives.formats.pillow.decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(drawn("PNG"), Limits())


@pytest.mark.parametrize("quality", [95, 75, 40])
def test_what_a_jpeg_lost_stands_in_its_table(quality: int) -> None:
    """In a picture of its own size all frequencies count, in a smaller one the lowest alone."""
    sink = io.BytesIO()
    Image.new("RGB", (224, 224)).save(sink, "JPEG", quality=quality)
    data = sink.getvalue()
    table = np.array(Image.open(io.BytesIO(data)).quantization[0]).reshape(8, 8)
    assert jpeg.coarseness(data, 224, 224) == pytest.approx(np.sqrt((table**2).mean() / 12))
    assert jpeg.coarseness(data, 8 * 224, 4 * 224) == pytest.approx(np.sqrt((table[:2, :1] ** 2).sum() / 12 / 64))
    assert (
        jpeg.coarseness(data[:40], 224, 224)
        == jpeg.coarseness(b"", 224, 224)
        == jpeg.coarseness(b"\x89PNG", 224, 224)
        == 0
    )


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_a_flipped_bit_of_a_fax_is_seen_by_a_second_decoder(compression: str) -> None:
    sink = io.BytesIO()
    Image.fromarray(draw_smear(1, seed=3)).convert("1").save(sink, "TIFF", compression=compression)
    data, chance, seen = sink.getvalue(), random.Random(1), 0
    for _ in range(40):
        spoilt = bytearray(data)
        spoilt[chance.randrange(len(data) // 4, len(data) // 2)] ^= 1 << chance.randrange(8)
        found = decode(bytes(spoilt), Limits())
        seen += isinstance(found, Rejected) or found.damage is not None
    assert seen >= 30, seen  # libtiff skips what it cannot read; of a few both decoders make the same
