"""Whether a picture is fit to be judged: focus, exposure and staining, as numbers from its 224x224 pixels.

The numbers say nothing by themselves: their limits come from quantiles of the training images (see `thresholds`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bcd_ray.images import Pixels

MEASURES = ("focus", "brightness", "clipped", "contrast")
_LEVELS = np.arange(256)
_NEARLY_WHITE = 253
_STEP = 4
_MARGIN = 0.25  # without it 3 % of images tested in blocks are sent to review for nothing, with it 0.3 %

Floats = npt.NDArray[np.floating[Any]]


def measure(pixels: Pixels) -> npt.NDArray[np.float32]:
    """(4,), in the order of `MEASURES`, of an image (H, W, 3) uint8.

    - focus: variance of the Laplacian of the green channel, where stain shows most
      (Pech-Pacheco et al., ICPR 2000), as natural logarithm;
    - brightness: mean of all values, 0 to 255: too dark or too light;
    - clipped: share of the red, green or blue values, whichever has most, that are nearly white: lost in the light;
    - contrast: largest standard deviation of the three colours: low where nothing is stained or the field is empty.
    """
    # Every fourth row: 13,000 pixels say as much as all, and an image takes 0.3 ms instead of 0.5.
    some = np.ascontiguousarray(pixels[1:-1:_STEP])
    shares = np.array(Image.fromarray(some).histogram(), np.float64).reshape(3, 256) / (some.shape[0] * some.shape[1])
    means = shares @ _LEVELS
    deviations = np.sqrt(np.maximum(shares @ _LEVELS**2 - means**2, 0))
    green = pixels[..., 1]
    above, here, below = (green[first : len(green) - 2 + first : _STEP].astype(np.int16) for first in (0, 1, 2))
    laplacian = (above + below)[:, 1:-1] + here[:, 2:] + here[:, :-2] - 4 * here[:, 1:-1]
    # A dot product of float32: numpy's var of int16 takes three times as long.
    flat = laplacian.ravel().astype(np.float32)
    focus = np.log(max(float(flat @ flat) / len(flat) - float(flat.mean()) ** 2, 1e-3))
    clipped = shares[:, _NEARLY_WHITE:].sum(axis=1).max()
    return np.array([focus, means.mean(), clipped, deviations.max()], np.float32)


def limits(measures: Floats, rate: float) -> dict[str, tuple[float | None, float | None]]:
    """Lower and upper limit of each measure of training images (n, 4).

    Each limit lies a quarter further from the median than the value that the share `rate` of them are beyond: good
    smears of another day are often a little darker or lighter than all that were trained on, and no worse for it.
    Focus and contrast can only be too low, clipping only too much: what has no limit on a side has None there.
    """
    middle, *ends = np.quantile(measures, [0.5, rate, 1 - rate], axis=0)
    low, high = ((end + _MARGIN * (end - middle)).tolist() for end in ends)
    sides = {"focus": (True, False), "brightness": (True, True), "clipped": (False, True), "contrast": (True, False)}
    return {
        name: (low[index] if sides[name][0] else None, high[index] if sides[name][1] else None)
        for index, name in enumerate(MEASURES)
    }


def outside(measures: Floats, bounds: dict[str, tuple[float | None, float | None]]) -> npt.NDArray[np.bool_]:
    """(n,) whether a measure of an image (n, 4) lies outside its limits."""
    low = np.array([-np.inf if bounds[name][0] is None else bounds[name][0] for name in MEASURES], np.float64)
    high = np.array([np.inf if bounds[name][1] is None else bounds[name][1] for name in MEASURES], np.float64)
    return np.asarray(((measures < low) | (measures > high)).any(axis=1))
