"""Twins: an image in several forms, as releases hold it, in folders of the same class and file names side by side.

The public release has `Original/Benign/X.jpg` and `Segmented/Benign/X.jpg`, the cells alone on black: no hash of the
pixels says that the two are one image. Names do, where folders are called after what was done to images, or where a
few folders that differ in one part of the path hold the same files. Patients and days whose images are numbered alike
are told from forms by how many there are, and by groups.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bcd_ray.labels import class_of_folder
from bcd_ray.progress import say

_FORMS = 4  # of an image, at most; more folders that hold the same names are patients or days
_SHARED = 0.9  # of the names in the larger folder that both hold
_LEAST_SHARED = 3
_OF_FORMS = re.compile(
    "(?<![a-z])(origin|raw|segment|mask|crop|augment|normali[sz]|resi[sz]|enhanc|denois|gr[ae]y|stain|process|overlay|"
    "annotat|image|flip|mirror|rotat)[a-z]*",
    re.IGNORECASE,
)
_Folder = tuple[str, ...]  # the parts of its path, "*" for the class
_Files = dict[tuple[int, str], int]  # by class and name without suffix, the index of the image


def twins(
    names: Sequence[str], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """(n,) the smallest index of an image that is another form of an image, or its own; says how many there are.

    Args:
        names: paths of n images below the data folder.
        labels: (n,).
        groups: (n,) of the patients or slides, or None: images of two are no twins.
    """
    found, told = np.arange(len(names)), set[str]()
    folders: dict[_Folder, _Files] = defaultdict(dict)
    for index, name in enumerate(names):
        *path, file = name.split("/")
        folder = tuple("*" if class_of_folder(part) else part for part in path)
        folders[folder].setdefault((int(labels[index]), file.rpartition(".")[0].lower()), index)
    for one, other in (*_by_name(folders), *_by_content(folders)):
        for same in folders[one].keys() & folders[other].keys():
            first, second = sorted((folders[one][same], folders[other][same]))
            if groups is None or groups[first] == groups[second]:
                found[second] = min(found[second], found[first])
                told |= {"/".join(one), "/".join(other)}
    if told:
        some = ", ".join(sorted(told)[:4])
        say(
            f"{int((found != np.arange(len(names))).sum()):,} images have a twin of the same class and file name in "
            f"another folder ({some}): twins stay on one side of a split; --group-pattern or --group-table tells apart "
            "what is none"
        )
    return found


def _by_name(folders: dict[_Folder, _Files]) -> Iterator[tuple[_Folder, _Folder]]:
    """Folders that differ in words for what was done to images alone, each with the first of its kind."""
    first: dict[_Folder, _Folder] = {}
    for folder in sorted(folders):
        plain = (_OF_FORMS.sub("", part).strip("_-. ") for part in folder)
        kept = first.setdefault(tuple(part for part in plain if part), folder)
        if kept != folder:
            yield kept, folder


def _by_content(folders: dict[_Folder, _Files]) -> Iterator[tuple[_Folder, _Folder]]:
    """Of folders that differ in one part of their paths, a few that hold the same names."""
    parallel: dict[tuple[int, _Folder], list[_Folder]] = defaultdict(list)
    for folder in sorted(folders):
        for place, part in enumerate(folder):
            if part != "*":
                parallel[place, folder[:place] + folder[place + 1 :]].append(folder)
    for (_, rest), alike in parallel.items():
        alike += [rest] if rest in folders else []
        if len(alike) > _FORMS:
            continue
        alike.sort(key=lambda folder: -len(folders[folder]))
        for place, one in enumerate(alike):
            for other in alike[place + 1 :]:
                shared = len(folders[one].keys() & folders[other].keys())
                if shared >= max(_LEAST_SHARED, _SHARED * len(folders[one])):
                    yield one, other
