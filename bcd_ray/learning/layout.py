"""From what is listed and what could be read to what splits go by: duplicates are found here."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bcd_ray.errors import JobError
from bcd_ray.labels import CLASSES
from bcd_ray.learning.embedding import Identified
from bcd_ray.learning.groups import merged
from bcd_ray.learning.near_duplicates import near_duplicate_groups
from bcd_ray.learning.splits import Labels, Layout


def lay_out(listed: Layout, identified: Identified) -> tuple[Labels, Layout]:
    """Indices of the images that could be read, and what their splits go by; JobError if a class has under two."""
    readable = np.array([error is None for error in identified.errors])
    usable, layout = np.flatnonzero(readable), listed.of(readable)
    counts = np.bincount(layout.labels, minlength=len(CLASSES))
    if (counts[np.unique(listed.labels)] < 2).any():
        raise JobError(
            f"too few readable images to split: {dict(zip(CLASSES, counts.tolist(), strict=True))}; "
            f"the first that failed says: {next(filter(None, identified.errors), 'none failed')}"
        )
    _, first, inverse = np.unique(layout.ties, return_index=True, return_inverse=True)
    ties = first[inverse]  # twins, by their places among those that could be read
    ties = near_duplicate_groups([identified.digests[index] for index in usable], identified.hashes[usable], ties)
    groups = None if layout.groups is None else merged(layout.groups, [identified.digests[i] for i in usable])
    return usable, replace(layout, ties=ties, groups=groups)


def duplicates(layout: Layout, digests: Sequence[str]) -> dict[str, int]:
    """How many images are copies of another, and how many have a near duplicate."""
    sizes = np.bincount(layout.ties)
    return {
        "byte_identical_copies": len(digests) - len(set(digests)),
        "images_with_near_duplicate": int(sizes[sizes > 1].sum()),
    }
