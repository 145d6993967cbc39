"""Whether a picture is fit to be judged: focus, exposure and staining, as numbers from its 224x224 pixels.

The numbers say nothing by themselves: their limits come from quantiles of the training images (see
`learning.thresholds`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import SIZE, Pixels

QUALITY_VERSION = 1  # raise it when the same pixels would give other measures
MEASURES = ("focus", "brightness", "clipped", "contrast")
NEARLY_WHITE = 253
STEP = 4
_AT_A_TIME = 8  # images whose values a core's cache holds: 64 at a time take 1.4 times as long
_MARGIN = 0.25  # without it 3 % of images tested in blocks are sent to review for nothing, with it 0.3 %

Floats = npt.NDArray[np.floating[Any]]


def measure(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """(n, 4), in the order of `MEASURES`, of n >= 1 images (224, 224, 3) uint8.

    - focus: variance of the Laplacian of the green channel, where stain shows most
      (Pech-Pacheco et al., ICPR 2000), as natural logarithm;
    - brightness: mean of all values, 0 to 255: too dark or too light;
    - clipped: share of the red, green or blue values, whichever has most, that are nearly white: lost in the light;
    - contrast: largest standard deviation of the three colours: low where nothing is stained or the field is empty.
    """
    parts = [_measure_some(images[start : start + _AT_A_TIME]) for start in range(0, len(images), _AT_A_TIME)]
    return np.concatenate(parts)


def _measure_some(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    # Every fourth row says as much as all: 56 rows, whose sums in float32 are exact (56 x 255^2 < 2^24).
    rows = np.stack([image[1:-1:STEP] for image in images]).reshape(len(images), -1, 3 * SIZE)
    ones, each_colour = np.ones(rows.shape[1], np.float32), np.tile(np.eye(3), (SIZE, 1))
    values = rows.astype(np.float32)
    white = (rows >= NEARLY_WHITE).view(np.uint8).sum(axis=1, dtype=np.uint8)
    sums = np.stack([ones @ values, ones @ np.square(values), white]).astype(np.float64) @ each_colour
    means, squares, clipped = sums / (rows.shape[1] * SIZE)  # (n, 3)
    deviations = np.sqrt(np.maximum(squares - means**2, 0))

    here = rows[..., 1::3].astype(np.int16)
    laplacian = here[..., 2:] + here[..., :-2] - 4 * here[..., 1:-1]
    for first in (0, 2):  # the rows above, and those below
        laplacian += np.stack([image[first : SIZE - 2 + first : STEP, 1:-1, 1] for image in images])
    flat = laplacian.reshape(len(images), -1).astype(np.float32)
    variances = np.square(flat).mean(axis=1) - flat.mean(axis=1) ** 2
    focus = np.log(np.maximum(variances, 1e-3))
    return np.stack([focus, means.mean(axis=1), clipped.max(axis=1), deviations.max(axis=1)], axis=1, dtype=np.float32)


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
    """(n,) whether a measure of an image (n, 4) lies outside its limits, or is no finite number."""
    low = np.array([-np.inf if bounds[name][0] is None else bounds[name][0] for name in MEASURES], np.float64)
    high = np.array([np.inf if bounds[name][1] is None else bounds[name][1] for name in MEASURES], np.float64)
    return np.asarray(~((measures >= low) & (measures <= high) & np.isfinite(measures)).all(axis=1))
