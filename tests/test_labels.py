"""Folder names of both public releases mean the four classes; other names mean none."""

import pytest

from bcd_ray.labels import CLASSES, DISPLAY_NAMES, class_of_folder, class_of_path


def test_the_order_of_the_classes_is_fixed() -> None:
    """Bundles and published columns depend on it."""
    assert CLASSES == ("benign", "early_pre_b", "pre_b", "pro_b")
    assert len(DISPLAY_NAMES) == len(CLASSES)


@pytest.mark.parametrize(
    "names",
    [
        ("Benign", "Early", "Pre", "Pro"),
        ("Benign", "[Malignant] early Pre-B", "[Malignant] Pre-B", "[Malignant] Pro-B"),
        ("01 Benign", "2_early", "3. Pre-B", "04-Pro"),
        ("BENIGN", "[malignant] Early Pre-B", "[MALIGNANT]Pre-B", "pro b"),
        CLASSES,
        DISPLAY_NAMES,
    ],
)
def test_the_folders_of_a_release_mean_the_classes(names: tuple[str, ...]) -> None:
    assert tuple(map(class_of_folder, names)) == CLASSES


@pytest.mark.parametrize(
    "name", ["", "Original", "Segmented", "[Malignant]", "unlabelled", "Precursor", "PRE-07", "Pro_2", "12"]
)
def test_other_folders_mean_no_class(name: str) -> None:
    assert class_of_folder(name) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Benign/1.jpg", "benign"),
        ("Original/Pre/slide 3/1.jpg", "pre_b"),
        ("Benign/benign/1.jpg", "benign"),
        ("Benign/Pro/1.jpg", None),
        ("Benign/pre/1.jpg", None),
        ("Pro/normal/1.jpg", None),
        ("Pro/PRE-07/1.jpg", "pro_b"),
        ("Benign/post/1.jpg", "benign"),
        ("Pro.jpg", None),
        ("other/Pro.jpg", None),
        ("Benign/Pro", "benign"),
        ("", None),
    ],
)
def test_a_path_has_the_class_of_its_folders_where_they_name_one(path: str, expected: str | None) -> None:
    assert class_of_path(path) == expected
