"""DICOM of one frame, through pydicom: what hospitals archive. Nothing but pixels and size leaves this file."""

import io
import logging
import re
import warnings
from typing import Any

import numpy as np
from PIL import Image

from bcd_ray.archives.formats import colour, jpeg, jpeg2000, samples
from bcd_ray.archives.formats.base import Decoded, Limits, Rejected, check_pixels

_MARK, _PLACE = b"DICM", 128
_BARE = b"\2\0\0\0UL\4\0"  # what stands behind the mark, and in some files first
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")  # white is zero, black is zero
_JPEG = "1.2.840.10008.1.2.4."  # what the transfer syntaxes of its family begin with
_PLAIN_JPEG, _JPEG_2000 = (f"{_JPEG}50", f"{_JPEG}51"), (f"{_JPEG}90", f"{_JPEG}91")
_DECODERS = {
    **dict.fromkeys((f"{_JPEG}51", f"{_JPEG}57", f"{_JPEG}70"), "jpeg8_decode"),  # of 12 bits, and lossless
    **dict.fromkeys((f"{_JPEG}80", f"{_JPEG}81"), "jpegls_decode"),
    **dict.fromkeys((*_JPEG_2000, f"{_JPEG}201", f"{_JPEG}202", f"{_JPEG}203"), "jpeg2k_decode"),
}


def is_dicom(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does."""
    return data.startswith(_MARK, _PLACE) or data.startswith(_BARE)


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    """Decode a DICOM file. What pydicom says of a damaged one could hold a patient's name, and is not repeated."""
    try:
        import pydicom
    except ImportError:
        return Rejected("unsupported_mode", "DICOM needs pydicom: pip install 'bcd_ray[dicom]'")
    logger = logging.getLogger("pydicom")
    logger.propagate, logger.handlers = False, [logging.NullHandler()]  # it logs values it finds odd
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        try:
            before = b"" if data.startswith(_MARK, _PLACE) else bytes(_PLACE) + _MARK
            dataset = pydicom.dcmread(io.BytesIO(before + data))
            width, height = int(dataset.get("Columns", 0)), int(dataset.get("Rows", 0))
            frames = int(dataset.get("NumberOfFrames") or 1)
        except MemoryError:
            raise
        except Exception as error:  # pydicom raises many types; each is this image's fault
            return Rejected("corrupt_image", f"cannot be read as DICOM ({type(error).__name__})")
        if not width or not height or "PixelData" not in dataset:
            return Rejected("not_an_image", "DICOM without pixels: a report or a structure")
        if frames > 1:
            return Rejected("multiple_pictures", f"DICOM of {frames} frames: export one file each", width, height)
        return check_pixels(width, height, limits) or _decode_frame(dataset, width, height)


def _decode_frame(dataset: Any, width: int, height: int) -> Decoded | Rejected:
    photometric, bits = str(dataset.get("PhotometricInterpretation")), int(dataset.get("BitsStored") or 0)
    if reason := _undefined(dataset, photometric, bits):
        return Rejected("unsupported_mode", f"DICOM of {reason}: export as 8-bit RGB", width, height)
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    by_imagecodecs = _decoder_for(syntax, photometric, bits)
    if not (by_imagecodecs or _is_known(syntax)):
        name = _word(getattr(syntax, "name", "")) or "an unknown transfer syntax"
        return Rejected("unsupported_mode", f"DICOM of {name}: export it uncompressed", width, height)
    try:
        frame = _frame(dataset, width, height) if syntax.is_encapsulated else b""
        # pydicom makes RGB of YBR
        values = np.atleast_3d(_by_imagecodecs(by_imagecodecs, frame) if by_imagecodecs else dataset.pixel_array)
        if values.shape[:2] != (height, width):
            raise ValueError("has another size")
        if photometric == "PALETTE COLOR":
            values, bits = _from_palette(dataset, values[..., 0]), 8
        elif photometric in _GREYS and _has_window(dataset):
            values, bits = _by_window(dataset, values, bits), 8
    except MemoryError:
        raise
    except Exception as error:  # as above
        return Rejected("corrupt_image", f"its pixels cannot be read ({type(error).__name__})", width, height)
    small = samples.to_8_bits(values, bits)
    if isinstance(small, str):
        return Rejected("unsupported_mode", small, width, height)
    if photometric == "MONOCHROME1":
        small = 255 - small
    image: Image.Image = samples.picture(small, ("L",) if small.shape[2] == 1 else ("RGB",))
    return colour.finish(image, _profile(dataset), jpeg.damage(frame) if syntax in _PLAIN_JPEG else None)


def _is_known(syntax: Any) -> bool:
    """Whether pydicom has a decoder for a transfer syntax, and what that needs."""
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _decoder_for(syntax: str, photometric: str, bits: int) -> str | None:
    """The function of imagecodecs for what pydicom has no decoder for without further packages."""
    name = _DECODERS.get(str(syntax))
    if name == "jpeg2k_decode" and syntax in _JPEG_2000 and not (bits > 8 and photometric in _COLOURS):
        return None
    if photometric.startswith("YBR") and name != "jpeg2k_decode":  # nothing says whether it would be RGB by now
        return None
    return None if syntax in _PLAIN_JPEG and bits == 8 else name


def _word(text: str) -> str:
    """A name of the standard's own, empty for what stands in a damaged file."""
    return text if re.fullmatch("[A-Z][A-Za-z0-9_ .,:/()\\[\\]-]{0,99}", text) else ""


def _frame(dataset: Any, width: int, height: int) -> bytes:
    """The compressed picture; ValueError if it says to be of another size, which could be any."""
    from pydicom.encaps import get_frame

    frame = bytes(get_frame(dataset.PixelData, 0, number_of_frames=1))
    if frame.startswith((jpeg.MAGIC, *jpeg2000.MAGIC)):
        header = jpeg.read_header(frame) if frame.startswith(jpeg.MAGIC) else jpeg2000.read_header(frame)
        if (header.width, header.height) != (width, height):
            raise ValueError("has another size")
    return frame


def _by_imagecodecs(name: str, frame: bytes) -> Any:
    import imagecodecs

    if name == "jpeg8_decode" and jpeg.is_cut_off(frame, jpeg.read_header(frame)):
        raise ValueError("is cut off")
    return getattr(imagecodecs, name)(frame)


def _undefined(dataset: Any, photometric: str, bits: int) -> str | None:
    """Why its colours are not defined, or None."""
    if int(dataset.get("PixelRepresentation") or 0):
        return "signed samples"
    if photometric not in (*_COLOURS, *_GREYS, "PALETTE COLOR"):
        return f"photometric interpretation {_word(photometric) or 'unknown'}"
    if not 1 <= bits <= 16 or int(dataset.get("SamplesPerPixel") or 0) != (3 if photometric in _COLOURS else 1):
        return f"{bits} bits stored, {dataset.get('SamplesPerPixel')} samples a pixel"
    if int(dataset.get("HighBit") or 0) >= bits:
        return f"{bits} bits stored, of which the highest is bit {dataset.HighBit}"
    if photometric not in _GREYS:
        return None
    tables = [name for name in ("ModalityLUTSequence", "VOILUTSequence") if dataset.get(name)]
    if tables or (photometric == "MONOCHROME2" and dataset.get("PresentationLUTShape") == "INVERSE"):
        return f"grey that is shown by {' and '.join(tables) or 'an inverse presentation table'}"
    return None


def _has_window(dataset: Any) -> bool:
    """Whether it says which of its grey values are shown from black to white; of several such windows the first."""
    width, centre = (dataset.get(name) for name in ("WindowWidth", "WindowCenter"))
    return width is not None and centre is not None and float(np.atleast_1d(width)[0]) >= 1


def _by_window(dataset: Any, values: Any, bits: int) -> Any:
    """Grey samples of so many bits as they are shown, in 8 bits: all else is black or white."""
    from pydicom.pixels.processing import apply_rescale, apply_windowing

    slope, intercept = (
        float(dataset.get(f"Rescale{name}", default)) for name, default in (("Slope", 1), ("Intercept", 0))
    )
    if slope <= 0:
        raise ValueError("has a slope that is not positive")
    shown = (apply_windowing(apply_rescale(values, dataset), dataset) - intercept) / (slope * ((1 << bits) - 1))
    return (shown * 255).clip(0, 255).round().astype(np.uint8)


def _from_palette(dataset: Any, indices: Any) -> Any:
    from pydicom.pixels.processing import apply_color_lut

    deep = int(dataset.RedPaletteColorLookupTableDescriptor[2]) > 8
    return apply_color_lut(indices, dataset)[..., :3] >> (8 if deep else 0)


def _profile(dataset: Any) -> bytes | None:
    """The ICC profile of the image, or of the light it was taken with."""
    paths = dataset.get("OpticalPathSequence") or [{}]
    profile = dataset.get("ICCProfile") or paths[0].get("ICCProfile")
    return bytes(profile) if profile else None
