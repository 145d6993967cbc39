"""Images spoilt on purpose, to see what a model makes of them, and whether triage sends them to an expert.

Each is a view of its own to the backbone and the cache, as the shortcuts are. Strengths run from what an eye hardly
sees to what no one could judge; nothing is fitted on them. Augmentation compresses images and adds noise as here.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image, ImageFilter

from bcd_ray.archives.images import Pixels

_BLUR = (1, 2, 3, 5, 8)  # standard deviation of a Gaussian, in pixels of 224
_LIGHT = (1.2, 1.5, 2.0, 3.0)  # factors on the pixel values
_DARK = (0.8, 0.6, 0.4, 0.2)
_QUALITY = (75, 60, 40)  # of a JPEG; 75 is what Pillow saves with, unless told
_NOISE = (5, 10, 20)  # standard deviation, in levels


def blurred(pixels: Pixels, radius: float) -> Pixels:
    """(H, W, 3) out of focus: a Gaussian of `radius` pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def exposed(pixels: Pixels, factor: float) -> Pixels:
    """(H, W, 3) with `factor` times the light; what passes 255 is lost."""
    lit: Pixels = np.clip(pixels * np.float32(factor), 0, 255).round().astype(np.uint8)
    return lit


def recompressed(pixels: Pixels, quality: int) -> Pixels:
    """(H, W, 3) saved as a JPEG of a quality, 1 to 100, and read again."""
    blue_first = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", blue_first, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def noisy(pixels: Pixels, deviation: float, random: np.random.Generator | None = None) -> Pixels:
    """(H, W, 3) with Gaussian noise of a standard deviation in levels, of its own in each colour."""
    noise = (random or np.random.default_rng(0)).standard_normal(pixels.shape, np.float32)
    added: Pixels = np.clip(pixels + noise * np.float32(deviation), 0, 255).round().astype(np.uint8)
    return added


def grey(pixels: Pixels) -> Pixels:
    """(H, W, 3) without colour."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


SPOILT: dict[str, Callable[[Pixels], Pixels]] = {
    **{f"blurred_{radius}": partial(blurred, radius=radius) for radius in _BLUR},
    **{f"overexposed_{factor}": partial(exposed, factor=factor) for factor in _LIGHT},
    **{f"underexposed_{factor}": partial(exposed, factor=factor) for factor in _DARK},
    **{f"recompressed_{quality}": partial(recompressed, quality=quality) for quality in _QUALITY},
    **{f"noisy_{deviation}": partial(noisy, deviation=deviation) for deviation in _NOISE},
    "grey": grey,
}
