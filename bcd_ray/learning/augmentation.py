"""Augmentation as in the paper: brightness, zoom into corners, horizontal flip, small shifts; and common harm.

A pure function of (image, view): the same on every worker, in every order, on every machine, and for every training
seed, so that all runs share the embeddings of the views.
"""

import hashlib
from functools import cached_property

import cv2
import numpy as np

from bcd_ray.archives.images import Pixels
from bcd_ray.learning.spoiling import noisy, recompressed

AUGMENTATION_VERSION = 3  # raise it when a view, here or in `shortcuts`, would have other pixels

# Chosen on validation images (five seeds, five epochs): macro F1 98.7 % with these, 98.0 % with ranges twice as wide.
BRIGHTNESS = (0.92, 1.08)  # factor on the pixel values
ZOOM = (0.92, 1.0)  # share of the side that is kept, anchored at one of the four corners
SHIFT = 0.03  # largest shift, as a share of the side; edge pixels fill what comes into view
# Shares of the views that are harmed: with twice as many 0.2 % fewer images are right in a random split.
RECOMPRESSED = 0.2  # saved as a JPEG of one of these qualities
QUALITIES = range(35, 91)
NOISY = 0.2  # with noise of a deviation between these, in levels; small ones as often as large
NOISE = (2.0, 22.0)


class Augmenter:
    """The augmented views of one image.

    Args:
        pixels: (H, W, 3) uint8.
        image_key: what identifies the image wherever it is read, its sha256.
    """

    def __init__(self, pixels: Pixels, image_key: str) -> None:
        self._pixels, self._key = pixels, image_key

    def view(self, number: int) -> Pixels:
        """(H, W, 3) uint8 of a view: 0 is the image itself, 1, 2, … are augmented."""
        if number == 0:
            return self._pixels
        digest = hashlib.sha256(f"{self._key}/{number}".encode()).digest()
        random = np.random.default_rng(np.frombuffer(digest, np.uint32))
        brightness = random.uniform(*BRIGHTNESS)
        zoom = random.uniform(*ZOOM)
        corner = random.integers(0, 2, size=2)  # 0: left or top, 1: right or bottom
        flip = random.random() < 0.5
        shift = random.uniform(-SHIFT, SHIFT, size=2)

        height, width = self._pixels.shape[:2]
        # Of whole pixels: OpenCV enlarges such a part in 0.2 ms, Pillow any part in 0.9.
        rows, columns = max(1, round(height * zoom)), max(1, round(width * zoom))
        padded, margin = self._padded
        left = margin + corner[0] * (width - columns) + round(width * shift[0])
        top = margin + corner[1] * (height - rows) + round(height * shift[1])
        part = padded[top : top + rows, left : left + columns]
        view = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)  # on any processor the same
        if flip:
            view = cv2.flip(view, 1)
        levels = np.clip(np.arange(256) * brightness, 0, 255).round().astype(np.uint8)
        return _harmed(np.asarray(cv2.LUT(view, levels), np.uint8), random)

    @cached_property
    def _padded(self) -> tuple[Pixels, int]:
        """The image in a margin of its edge pixels, and how wide that is."""
        margin = int(np.ceil(SHIFT * max(self._pixels.shape[:2]))) + 1
        padded = cv2.copyMakeBorder(self._pixels, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        return np.asarray(padded, np.uint8), margin


def _harmed(view: Pixels, random: np.random.Generator) -> Pixels:
    """A view as it might have been stored or taken: compressed, or with noise, or as it is."""
    chance = random.random()
    if chance < RECOMPRESSED:
        return recompressed(view, int(random.choice(QUALITIES)))
    if chance < RECOMPRESSED + NOISY:
        return noisy(view, float(np.exp(random.uniform(*np.log(NOISE)))), random)
    return view
