"""Images spoilt on purpose, to see what a model makes of them, and whether triage sends them to an expert.

Each is a view of its own to the backbone and the cache, as the shortcuts are. Strengths run from what an eye hardly
sees to what no one could judge; nothing is fitted on them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from bcd_ray.archives.images import Pixels

_BLUR = (1, 2, 3, 5, 8)  # standard deviation of a Gaussian, in pixels of 224
_LIGHT = (1.2, 1.5, 2.0, 3.0)  # factors on the pixel values
_DARK = (0.8, 0.6, 0.4, 0.2)


def blurred(pixels: Pixels, radius: float) -> Pixels:
    """(H, W, 3) out of focus: a Gaussian of `radius` pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def exposed(pixels: Pixels, factor: float) -> Pixels:
    """(H, W, 3) with `factor` times the light; what passes 255 is lost."""
    lit: Pixels = np.clip(pixels * np.float32(factor), 0, 255).round().astype(np.uint8)
    return lit


SPOILT: dict[str, Callable[[Pixels], Pixels]] = {
    **{f"blurred_{radius}": partial(blurred, radius=radius) for radius in _BLUR},
    **{f"overexposed_{factor}": partial(exposed, factor=factor) for factor in _LIGHT},
    **{f"underexposed_{factor}": partial(exposed, factor=factor) for factor in _DARK},
}
