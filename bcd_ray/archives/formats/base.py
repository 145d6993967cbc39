"""What all formats share: the limits, what comes out, and the size of the network's input."""

import errno
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.memory import window

SIZE = 224  # pixels a side of the network's input
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that an image must keep, checked before it is read or decoded."""

    max_bytes: int = 64 << 20
    max_pixels: int = 100_000_000
    max_seconds: float = 30.0  # of processor time, to decode it
    max_memory: int = 1536 << 20  # of the processes apart that decode, all together; see `archives.memory`
    max_parquet: int = 512 << 20  # of a process apart that reads Parquet

    @property
    def window(self) -> int:
        """Bytes of encoded images that each stage of reading may hold."""
        return window(self.max_bytes)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for the network; width and height are those of the original, after EXIF rotation.

    `damage` is what the decoder found wrong with it, in one line: there are pixels, but a person must look at them.
    """

    pixels: Pixels  # (224, 224, 3) uint8 RGB
    width: int
    height: int
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an image could not be used: a status of `scoring.schema.STATUSES` and one line of explanation."""

    status: str
    error: str
    width: int | None = None
    height: int | None = None


# Failures of the moment, not of the image: another try may do better, and nobody keeps them as a fact of the image.
PASSING_STATUSES = ("missing", "changed", "read_error", "resource_error", "interrupted")


def failed(error: BaseException, width: int | None = None, height: int | None = None) -> Rejected:
    """What an error of a decoder means: this image's fault, unless memory, the disk or open files ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return Rejected("out_of_memory", "takes more memory to decode than --actor-memory leaves", width, height)
    if isinstance(error, OSError) and error.errno:
        return Rejected("resource_error", f"the machine failed, not the image: {one_line(error)}", width, height)
    return Rejected("corrupt_image", one_line(error), width, height)


def too_large(size: int, limits: Limits) -> Rejected:
    """The rejection of a file that is over the bound on bytes."""
    return Rejected("too_large", f"{size:,} bytes, over the limit of {limits.max_bytes:,}: see --max-image-bytes")


def check_pixels(width: int, height: int, limits: Limits) -> Rejected | None:
    """The rejection of an image that is over the bound on pixels, before any is decoded."""
    if width * height <= limits.max_pixels:
        return None
    text = f"{width}x{height} pixels, over the limit of {limits.max_pixels:,}: see --max-pixels"
    return Rejected("too_many_pixels", text, width, height)


def one_line(error: BaseException) -> str:
    """What a library said, in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
