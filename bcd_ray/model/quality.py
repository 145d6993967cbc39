"""Whether a picture is fit to be judged: focus, exposure and staining, as numbers from its 224x224 pixels.

The numbers say nothing by themselves: their limits come from quantiles of the training images (see
`learning.thresholds`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import SIZE, Pixels

QUALITY_VERSION = 2  # raise it when the same pixels would give other measures
OF_PIXELS = ("focus", "brightness", "clipped", "contrast", "noise", "colour")
MEASURES = (*OF_PIXELS, "compression")  # what its file says of a JPEG: `archives.formats.jpeg.coarseness`
_BAD = {  # which values of a measure are those of a bad picture
    "focus": ("low",),
    "brightness": ("low", "high"),
    "clipped": ("high",),
    "contrast": ("low",),
    "noise": ("high",),
    "colour": ("low",),
    "compression": ("high",),
}
HARMLESS_COMPRESSION = 9.75  # a JPEG of quality 75 at 224x224, as Pillow saves; views of training images go to 35
NEARLY_WHITE = 253
STEP = 4
RESIDUE = 6 * 0.67449  # the kernel's deviation, and the median of a Gaussian's values without their signs
_AT_A_TIME = 8  # images whose values a core's cache holds: 64 at a time take 1.4 times as long
_MARGIN = 0.25  # without it 3 % of images tested in blocks are sent to review for nothing, with it 0.3 %

Floats = npt.NDArray[np.floating[Any]]
Bounds = Mapping[str, tuple[float | None, float | None]]


def measure(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """(n, 6), in the order of `OF_PIXELS`, of n >= 1 images (224, 224, 3) uint8.

    - focus: variance of the Laplacian of the green channel, where stain shows most
      (Pech-Pacheco et al., ICPR 2000), as natural logarithm;
    - brightness: mean of all values, 0 to 255: too dark or too light;
    - clipped: share of the red, green or blue values, whichever has most, that are nearly white: lost in the light;
    - contrast: largest standard deviation of the three colours: low where nothing is stained or the field is empty;
    - noise: standard deviation of what no edge explains in the green channel, in levels (the kernel of Immerkaer,
      Computer Vision and Image Understanding 64, 1996; the median in place of the mean: Donoho, IEEE Transactions on
      Information Theory 41, 1995);
    - colour: mean distance of red and of blue from green, together, as natural logarithm: low where a smear is grey.
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

    here, above, below = (_every_fourth(images, first) for first in (1, 0, 2))
    beside = above + below
    across, ends = here[..., 2:] + here[..., :-2], beside[..., 2:] + beside[..., :-2]
    cross = across + beside[..., 1:-1]
    flat = (cross - 4 * here[..., 1:-1]).reshape(len(images), -1).astype(np.float32)
    variances = np.square(flat).mean(axis=1) - flat.mean(axis=1) ** 2
    focus = np.log(np.maximum(variances, 1e-3))
    residues = np.abs(ends - 2 * cross + 4 * here[..., 1:-1]).reshape(len(images), -1)
    noise = np.array([_noise(each) for each in residues])
    apart = sum(np.abs(rows[..., colour::3] - here).mean(axis=(1, 2)) for colour in (0, 2))
    colour = np.log(np.maximum(apart, 1e-3))
    found = [focus, means.mean(axis=1), clipped.max(axis=1), deviations.max(axis=1), noise, colour]
    return np.stack(found, axis=1, dtype=np.float32)


def _every_fourth(images: Sequence[Pixels], first: int) -> npt.NDArray[np.int16]:
    """(n, 56, 224) every fourth row of green."""
    return np.stack([image[first : SIZE - 2 + first : STEP, :, 1] for image in images]).astype(np.int16)


def _noise(residues: npt.NDArray[np.int16]) -> float:
    """The noise that residues (n,), whole numbers >= 0, come from: of noise alone half are under 4.047 times it.

    The median is that of grouped data: each whole number stands for all within a half of it.
    """
    half = len(residues) / 2
    middle = int(np.partition(residues, len(residues) // 2)[len(residues) // 2])
    below, here = np.count_nonzero(residues < middle), np.count_nonzero(residues == middle)
    width, least = (1.0, middle - 0.5) if middle else (0.5, 0.0)
    return (least + width * (half - below) / here) / RESIDUE


def limits(measures: Floats, rate: float) -> Bounds:
    """Lower and upper limit of each measure of training images (n, 7).

    Each limit lies a quarter further from the median than the value that the share `rate` of them are beyond: good
    smears of another day are often a little darker or lighter than all that were trained on, and no worse for it.
    Compression that training images are given on purpose is none to refuse others for.
    """
    middle, *ends = np.quantile(measures, [0.5, rate, 1 - rate], axis=0)
    low, high = ((end + _MARGIN * (end - middle)).tolist() for end in ends)
    high[MEASURES.index("compression")] = max(high[MEASURES.index("compression")], HARMLESS_COMPRESSION)
    return {
        name: (low[index] if "low" in _BAD[name] else None, high[index] if "high" in _BAD[name] else None)
        for index, name in enumerate(MEASURES)
    }


def outside(measures: Floats, bounds: Bounds) -> npt.NDArray[np.bool_]:
    """(n,) whether a measure of an image (n, 7) lies outside its limits, or is no finite number.

    Bundles of earlier releases have no limits of noise, colour and compression.
    """
    pairs = [bounds.get(name, (None, None)) for name in MEASURES]
    low = np.array([-np.inf if pair[0] is None else pair[0] for pair in pairs], np.float64)
    high = np.array([np.inf if pair[1] is None else pair[1] for pair in pairs], np.float64)
    return np.asarray(~((measures >= low) & (measures <= high) & np.isfinite(measures)).all(axis=1))
