"""Near duplicates: a 64-bit perceptual hash of an image, and groups of images whose hashes are close."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from bcd_ray.archives.images import Pixels

NEAR_DUPLICATE_BITS = 6  # hashes that differ in at most so many of their 64 bits count as near duplicates
_COSINE = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)  # the 8 lowest frequencies of 32 places


def perceptual_hash(pixels: Pixels) -> int:
    """The DCT hash (pHash; C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010).

    Args:
        pixels: (H, W, 3) uint8.

    Returns:
        64 bits: which of the 8x8 lowest frequencies of the 32x32 grey image are above their median.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = _COSINE @ grey @ _COSINE.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicate_groups(digests: list[str], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Number the groups of images that must stay on one side of a split.

    Images are tied where their bytes are the same (equal digests) or their hashes differ in at most
    `NEAR_DUPLICATE_BITS` bits, and through any chain of such ties. Compares all pairs: 100,000 images take about a
    minute.

    Returns:
        (n,) the smallest index in the image's group.
    """
    group = np.arange(len(hashes))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = int(group[index])
        return index

    def tie(first: int, second: int) -> None:
        one, other = root(first), root(second)
        group[max(one, other)] = min(one, other)

    seen: dict[str, int] = {}
    for index, digest in enumerate(digests):
        tie(index, seen.setdefault(digest, index))
    for index in range(len(hashes) - 1):
        distance = np.bitwise_count(hashes[index + 1 :] ^ hashes[index])
        for offset in np.flatnonzero(distance <= NEAR_DUPLICATE_BITS):
            tie(index, index + 1 + int(offset))
    return np.array([root(index) for index in range(len(hashes))], np.int64)
