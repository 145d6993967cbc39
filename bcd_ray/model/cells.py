"""White cells found in a field by classical means, and the squares about them that a network looks at.

A field's background is mapped to one white first, so that the lamp of a day cannot tell. What is purple, blue and red
let through and green taken up, is chromatin: an Otsu threshold of its own parts it from each field's red cells, and
watersheds between the peaks of the distance to its edge part cells that touch. All of it on half the pixels: 0.5 ms a
field and core, a seventh of what MobileNetV2 takes for the field.
"""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from bcd_ray.archives.images import SIZE, Pixels

REGION = 48  # pixels of `SIZE` a side of the square about a cell: 40 does as well, 64 less so
CROP = 2 * REGION  # pixels a side of what the network gets: at 80 a left-out sitting loses 1.4 points of recall
MOST = 5  # cells of a field, the largest: 12 take twice the time and do no better
CELLS_VERSION = 1  # raise it when the same pixels would give other squares

_WHITE = 240  # what the background becomes
_LEAST_PURPLE = 18  # of 255: in a field without chromatin Otsu's threshold parts red cells
_HALF = SIZE // 2  # the side of what is searched
_AREAS = range(20, 1000)  # of its pixels: less are platelets, more are smudges and clumps
_LEAST_PEAK, _SMOOTH, _APART = 1.75, 1.25, 7  # of its pixels, of the distance to the edge
_LEVELS = np.arange(256)[:, None]

Grey = npt.NDArray[np.uint8]


class Cells(NamedTuple):
    """The white cells of a field, largest first.

    Attributes:
        grey: (224, 224) the field in grey, its background at one white.
        centres: (n, 2) row and column of each cell; of a field without any, one in the middle.
        found: how many there are in the field, more than n where there are many, 0 where there is none.
    """

    grey: Grey
    centres: npt.NDArray[np.int64]
    found: int

    def crops(self) -> list[Grey]:
        """Of each cell a square (96, 96, 1); what lies beyond the field is its mirror image."""
        margin = REGION // 2
        padded = cv2.copyMakeBorder(self.grey, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
        squares = [padded[row : row + REGION, column : column + REGION] for row, column in self.centres.tolist()]
        enlarged = [cv2.resize(each, (CROP, CROP), interpolation=cv2.INTER_LINEAR_EXACT) for each in squares]
        return [np.asarray(each, np.uint8)[..., None] for each in enlarged]


def find_cells(pixels: Pixels) -> Cells:
    """The white cells of a field (224, 224, 3)."""
    half = np.asarray(cv2.resize(pixels, (_HALF, _HALF), interpolation=cv2.INTER_AREA), np.uint8)
    levels = _whitening(half)
    half = np.asarray(cv2.LUT(half, levels), np.uint8)
    grey = cv2.cvtColor(cv2.LUT(pixels, levels), cv2.COLOR_RGB2GRAY)
    centres = _centres(half, _chromatin(half))
    found = len(centres)
    if not found:
        centres = np.full((1, 2), _HALF)
    return Cells(np.asarray(grey, np.uint8), centres[:MOST], found)


def whitened(pixels: Pixels) -> Pixels:
    """A field (224, 224, 3) with its background mapped to one white."""
    half = np.asarray(cv2.resize(pixels, (_HALF, _HALF), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.LUT(pixels, _whitening(half)), np.uint8)


def _whitening(half: Pixels) -> npt.NDArray[np.uint8]:
    """(256, 1, 3) what each level becomes where the background becomes white.

    The background is the median colour of the quarter that is lightest in green, which stain takes up most: by counts
    of levels in 0.07 ms, by sorting in 0.25.
    """
    up_to = np.cumsum(cv2.calcHist([half], [1], None, [256], [0, 256]))
    lightest = (half[..., 1] >= np.searchsorted(up_to, up_to[-1] * 3 / 4, "right")).view(np.uint8)
    counts = [cv2.calcHist([half], [colour], lightest, [256], [0, 256]) for colour in range(3)]
    up_to = np.cumsum(np.column_stack(counts), axis=0)
    # The median of an even number is the mean of the two in the middle.
    middles = [(up_to > rank).argmax(axis=0) for rank in ((up_to[-1, 0] - 1) // 2, up_to[-1, 0] // 2)]
    background = np.maximum(np.add(*middles) / 2, 1)
    return np.asarray(np.minimum(_LEVELS * (_WHITE / background), 255)[:, None], np.uint8)


def _chromatin(half: Pixels) -> npt.NDArray[np.uint8]:
    """(112, 112) 1 where there is chromatin of a white cell."""
    values = half.astype(np.int16)
    purple = np.clip((values[..., 0] + values[..., 2]) // 2 - values[..., 1], 0, 255).astype(np.uint8)
    purple = cv2.GaussianBlur(purple, (3, 3), 0)
    threshold, _ = cv2.threshold(purple, 0, 255, cv2.THRESH_OTSU)
    mask = (purple > max(threshold, _LEAST_PURPLE)).view(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), np.uint8)


def _centres(half: Pixels, chromatin: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(n, 2) row and column, in pixels of the field, of the middles of all cells, the largest first."""
    distance = cv2.GaussianBlur(cv2.distanceTransform(chromatin, cv2.DIST_L2, 5), (0, 0), _SMOOTH)
    highest = cv2.dilate(distance, np.ones((_APART, _APART), np.uint8))
    peaks = ((distance == highest) & (distance > _LEAST_PEAK)).view(np.uint8)
    background, numbers = cv2.connectedComponents(peaks, ltype=cv2.CV_32S)
    numbers[chromatin == 0] = background
    marked = cv2.watershed(half, numbers).ravel()
    inside = np.flatnonzero((marked > 0) & (marked < background))  # few: the rest is background and edges
    cells = marked[inside]
    areas = np.bincount(cells, minlength=background)
    middles = [np.bincount(cells, place, background) / np.maximum(areas, 1) for place in np.divmod(inside, _HALF)]
    kept = np.flatnonzero((areas >= _AREAS.start) & (areas < _AREAS.stop))
    kept = kept[np.argsort(-areas[kept], kind="stable")]
    return np.rint(2 * np.stack(middles, axis=1)[kept] + 0.5).astype(np.int64)
