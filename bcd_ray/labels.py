"""The four classes in their one fixed order, and the folder names that mean them in both public releases."""

import re

CLASSES = ("benign", "early_pre_b", "pre_b", "pro_b")
DISPLAY_NAMES = ("Benign", "Early Pre-B", "Pre-B", "Pro-B")

# Folder names, reduced to their letters: the release with 3,256 images says "Early", the one with 3,242
# "[Malignant] early Pre-B"; the names in CLASSES work too.
_FOLDERS = {
    "benign": "benign",
    "normal": "benign",
    "early": "early_pre_b",
    "earlypreb": "early_pre_b",
    "pre": "pre_b",
    "preb": "pre_b",
    "pro": "pro_b",
    "prob": "pro_b",
}


def class_of_folder(name: str) -> str | None:
    """The class that a folder of this name holds, or None.

    Knows both public releases of the Taleqani images: `Benign`, `Early`, `Pre`, `Pro` and `Benign`,
    `[Malignant] early Pre-B`, `[Malignant] Pre-B`, `[Malignant] Pro-B`. A number may stand before the name, not after:
    PRE-07 is a patient.
    """
    letters = re.sub(r"[\W_]|^[\W\d_]+", "", name.lower().replace("[malignant]", ""))
    return _FOLDERS.get(letters)


def classes_of_path(relative_path: str) -> list[str]:
    """The different classes that the folders of a path relative to the input name, from the outermost."""
    found = (class_of_folder(folder) for folder in relative_path.split("/")[:-1])
    return list(dict.fromkeys(label for label in found if label is not None))


def class_of_path(relative_path: str) -> str | None:
    """The one class that the folders of a path relative to the input name; None where they name none, or several."""
    found = classes_of_path(relative_path)
    return found[0] if len(found) == 1 else None
