"""Labelled images: a folder per class becomes a list, in order of file numbers, with groups where they are known."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bcd_ray import storage
from bcd_ray.archives.images import Decoded, Limits, Pixels
from bcd_ray.archives.isolation import decode
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.suffixes import left_out_words
from bcd_ray.errors import ConfigError, JobError, NotFoundError, UnsafeError
from bcd_ray.labels import CLASSES, classes_of_path
from bcd_ray.learning.groups import group_numbers
from bcd_ray.learning.splits import Labels, Layout
from bcd_ray.learning.twins import twins
from bcd_ray.progress import say
from bcd_ray.storage import StoredObject
from bcd_ray.uris import printable

_NAMES = "such as Benign, Early, Pre and Pro"
SYNTHETIC_MARK = "SYNTHETIC.txt"  # a file of this name in a data folder says that its images are drawn


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and its class; `name` is its path below the data folder."""

    name: str
    label: int
    stored: StoredObject


@dataclass(frozen=True)
class LabelledFolder:
    """The labelled images of a folder, sorted by name, and what is left out of it."""

    images: list[LabelledImage]
    files: dict[str, int]  # that are no images, by suffix
    folders: dict[str, int]  # images by their folder, which names no class

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """JSON-ready, for metrics."""
        return {"files": self.files, "images_of_no_class": {printable(name): n for name, n in self.folders.items()}}


def list_labelled(uri: str) -> list[LabelledImage]:
    """The images below a normalized URI whose folders name a class, sorted by name; a class may have none."""
    return list_folder(uri, allow_missing=True).images


def list_folder(uri: str, allow_missing: bool = False) -> LabelledFolder:
    """The images below a normalized URI whose folders name a class; says what is left out.

    Raises:
        ConfigError: there is nothing, a link leads out of the folder, an image's folders name two classes, a class has
            no image (unless `allow_missing`), or all but one have none.
    """
    found, folders, doubtful = [], Counter[str](), []
    try:
        listing = list_archive(uri, ("image",))
        for stored in listing.shards:
            storage.refuse_unsafe(stored)
    except (NotFoundError, UnsafeError) as error:
        raise ConfigError(f"--data: {error}") from error
    for stored in listing.shards:
        name = stored.uri[len(uri) + 1 :]
        classes = classes_of_path(name)
        if len(classes) == 1:
            found.append(LabelledImage(name, CLASSES.index(classes[0]), stored))
        elif classes:
            doubtful.append(f"{name} ({' and '.join(classes)})")
        else:
            folders[name.rpartition("/")[0] or "."] += 1
    if doubtful:
        raise ConfigError(
            f"--data {uri}: {len(doubtful)} images lie in folders of two classes, such as {doubtful[0]}: rename or "
            "move them, so that each path names one"
        )
    folder = LabelledFolder(found, dict(listing.left_out), dict(folders.most_common()))
    _check_classes(uri, folder, allow_missing)
    return folder


def _check_classes(uri: str, folder: LabelledFolder, allow_missing: bool) -> None:
    """ConfigError if a class is missing that should not; says which images and files are left out."""
    stray, first = sum(folder.folders.values()), list(folder.folders.items())[:5]
    strays = f"{stray:,} images lie in folders that name no class ({', '.join(f'{n}: {c:,}' for n, c in first)})"
    present = {image.label for image in folder.images}
    if len(present) < 2:
        raise ConfigError(
            f"--data {uri} holds {len(folder.images)} labelled images of fewer than two classes"
            f"{f', and {strays}' if stray else ''}: it needs a folder per class, {_NAMES}, with image files"
        )
    missing = [name for label, name in enumerate(CLASSES) if label not in present]
    if missing and not allow_missing:
        raise ConfigError(
            f"--data {uri} has no image of {', '.join(missing)}{f', and {strays}' if stray else ''}: call each class's "
            f"folder by its name, {_NAMES}, or go on with --allow-missing-classes"
        )
    if missing:
        say(f"no image of {', '.join(missing)}: the model is told nothing of what such images look like")
    if stray:
        say(f"{strays}: they are left out; for images of a class, call the folder by its name, {_NAMES}")
    if folder.files:
        total = sum(folder.files.values())
        say(f"{total:,} files that are no images are left out: {left_out_words(folder.files)}")


def file_order(images: Sequence[LabelledImage]) -> Labels:
    """(n,) position of each image among those of its class, in the natural order of names: the files' numbers count.

    Whether that is the order of capture, only who named the files can tell.
    """
    order = np.zeros(len(images), np.int64)
    position = Counter[int]()
    for index in sorted(range(len(images)), key=lambda index: _natural(images[index].name)):
        order[index] = position[images[index].label]
        position[images[index].label] += 1
    return order


def groups_of(
    images: Sequence[LabelledImage], pattern: str, table: str, column: str = "group"
) -> tuple[Labels | None, tuple[str, ...]]:
    """`groups.group_numbers` of the images."""
    return group_numbers([image.name for image in images], pattern, table, column)


def listed_layout(images: Sequence[LabelledImage], groups: Labels | None, names: tuple[str, ...] = ()) -> Layout:
    """What splits go by as far as a listing tells: as if every image could be read, and none but twins were copies."""
    labels = np.array([image.label for image in images])
    ties = twins([image.name for image in images], labels, groups)
    return Layout(labels, file_order(images), ties, groups, names)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key in which numbers count as such: 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def says_synthetic(uri: str) -> bool:
    """Whether a data folder says that its images are drawn (see `synthetic.write_synthetic_archive`)."""
    return storage.exists(storage.join(uri, SYNTHETIC_MARK))


def read_pixels(image: LabelledImage) -> Pixels:
    """The pixels of an image that could be read before; JobError if it no longer can."""
    decoded = decode(storage.read_bytes(image.stored.uri), Limits())
    if not isinstance(decoded, Decoded):
        raise JobError(f"{image.name} changed while the job ran ({decoded.error}): run the same command again")
    return decoded.pixels
