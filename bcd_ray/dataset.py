"""Labelled images: a folder per class becomes a list, and the list a training part and a part kept aside."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.archive import kind_of
from bcd_ray.errors import ConfigError, NotFoundError
from bcd_ray.labels import CLASSES, class_of_path
from bcd_ray.storage import StoredObject

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SYNTHETIC_MARK = "SYNTHETIC.txt"  # a file of this name in a data folder says that its images are drawn


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and its class; `name` is its path below the data folder."""

    name: str
    label: int
    stored: StoredObject


def list_labelled(uri: str) -> list[LabelledImage]:
    """The images below a normalized URI whose folders name a class, sorted by name.

    Raises:
        ConfigError: there is nothing, or images of fewer than two classes.
    """
    found = []
    try:
        for stored in storage.list_objects(uri):
            name = stored.uri[len(uri) + 1 :]
            label = class_of_path(name)
            if label is not None and kind_of(name) == "image":
                found.append(LabelledImage(name, CLASSES.index(label), stored))
    except NotFoundError as error:
        raise ConfigError(f"--data: {error}") from error
    if len({image.label for image in found}) < 2:
        raise ConfigError(
            f"--data {uri} holds {len(found)} labelled images of fewer than two classes: it needs a folder per class, "
            "such as Benign, Early, Pre and Pro, with JPEG, PNG, TIFF or BMP files"
        )
    return found


def hold_out(labels: Labels, groups: Labels, fraction: float, seed: int) -> Mask:
    """Choose the images to keep aside: stratified by class, seeded, no group on both sides.

    Args:
        labels: (n,) class of each image.
        groups: (n,) group of each image, such as its near duplicates; a group goes whole to one side.
        fraction: share of each class to keep aside.
        seed: of the choice.

    Returns:
        (n,) True where the image is kept aside; the count of a class is at most one group off its share.
    """
    random = np.random.default_rng(seed)
    aside = np.zeros(len(labels), bool)
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    for label in np.unique(labels):
        wanted = round(fraction * int((labels == label).sum()))
        for group in random.permutation(np.flatnonzero(labels[first] == label)):
            if sizes[group] <= wanted:
                aside[groups == groups[first[group]]] = True
                wanted -= int(sizes[group])
    return aside


def says_synthetic(uri: str) -> bool:
    """Whether a data folder says that its images are drawn (see `synthetic.write_synthetic_archive`)."""
    return storage.exists(storage.join(uri, SYNTHETIC_MARK))
