"""Near duplicates: 64-bit perceptual hashes of an image, also turned and mirrored, and groups of images by them."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from bcd_ray.archives.images import Pixels

NEAR_DUPLICATE_BITS = 6  # hashes that differ in at most so many of their 64 bits count as near duplicates
VARIANTS = 8  # of an image: as it is, mirrored, turned
_COSINE = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)  # the 8 lowest frequencies of 32 places
# What is mirrored has its odd frequencies with the other sign; what is turned has rows and columns changed besides.
_SIGNS = np.array([[1, -1] * 4, [1] * 8])
_MIRRORED = np.stack([down[:, None] * across for down in _SIGNS[::-1] for across in _SIGNS[::-1]])


def perceptual_hashes(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """DCT hashes (pHash; C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010).

    Args:
        pixels: (H, W, 3) uint8.

    Returns:
        (8,) of 64 bits each: which of the 8x8 lowest frequencies of the 32x32 grey image are above their median. The
        first is of the image as it is, the others as it would be mirrored or turned by quarters.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = _COSINE @ grey @ _COSINE.T
    variants = np.concatenate([low * _MIRRORED, low.T * _MIRRORED]).reshape(VARIANTS, 64)
    bits = variants > np.median(variants, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def near_duplicate_groups(
    digests: list[str], hashes: npt.NDArray[np.uint64], ties: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Number the groups of images that must stay on one side of a split.

    Images are tied where their bytes are the same (equal digests), where a hash of one (n, v) differs in at most
    `NEAR_DUPLICATE_BITS` bits from the first of the other, where `ties` (n,) names another for them, and through any
    chain of such ties. Compares all pairs.

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
    for index, other in enumerate(() if ties is None else ties.tolist()):
        tie(index, other)
    variants = np.ascontiguousarray(hashes.T)  # (v, n): each of them goes through memory in one line
    for index in range(len(hashes) - 1):
        distances = np.bitwise_count(variants[:, index + 1 :] ^ variants[0, index])
        for offset in np.flatnonzero(distances.min(axis=0) <= NEAR_DUPLICATE_BITS):
            tie(index, index + 1 + int(offset))
    return np.array([root(index) for index in range(len(hashes))], np.int64)
