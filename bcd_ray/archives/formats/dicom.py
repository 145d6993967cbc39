"""DICOM of one frame, through pydicom: what hospitals archive. Nothing but pixels and size leaves this file."""

import io
import logging
import warnings
from typing import Any

import numpy as np
from PIL import Image

from bcd_ray.archives.formats import colour, samples
from bcd_ray.archives.formats.base import Decoded, Limits, Rejected, check_pixels

_MARK, _PLACE = b"DICM", 128
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")  # white is zero, black is zero


def is_dicom(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does."""
    return data.startswith(_MARK, _PLACE)


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
            dataset = pydicom.dcmread(io.BytesIO(data))
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
    try:
        values = np.atleast_3d(dataset.pixel_array)  # pydicom makes RGB of YBR
        if photometric == "PALETTE COLOR":
            values = _from_palette(dataset, values[..., 0])
            bits = 8
    except (NotImplementedError, RuntimeError):  # no decoder for it
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "an unknown transfer syntax")
        return Rejected("unsupported_mode", f"DICOM of {syntax[:80]}: export it uncompressed", width, height)
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
    return colour.finish(image, _profile(dataset))


def _undefined(dataset: Any, photometric: str, bits: int) -> str | None:
    """Why its colours are not defined, or None."""
    if int(dataset.get("PixelRepresentation") or 0):
        return "signed samples"
    if photometric not in (*_COLOURS, *_GREYS, "PALETTE COLOR"):
        return f"photometric interpretation {photometric[:20]}"
    if not 1 <= bits <= 16 or int(dataset.get("SamplesPerPixel") or 0) != (3 if photometric in _COLOURS else 1):
        return f"{bits} bits stored, {dataset.get('SamplesPerPixel')} samples a pixel"
    return None


def _from_palette(dataset: Any, indices: Any) -> Any:
    from pydicom.pixels.processing import apply_color_lut

    deep = int(dataset.RedPaletteColorLookupTableDescriptor[2]) > 8
    return apply_color_lut(indices, dataset)[..., :3] >> (8 if deep else 0)


def _profile(dataset: Any) -> bytes | None:
    """The ICC profile of the image, or of the light it was taken with."""
    paths = dataset.get("OpticalPathSequence") or [{}]
    profile = dataset.get("ICCProfile") or paths[0].get("ICCProfile")
    return bytes(profile) if profile else None
