"""Forms of one image in parallel folders stay on one side of a split; patients with images numbered alike do not."""

import numpy as np
import pytest

from bcd_ray.labels import CLASSES, class_of_path
from bcd_ray.learning.splits import Layout, Rules, cross_validate, hold_out
from bcd_ray.learning.twins import twins

FOLDERS = ("Benign", "Early", "Pre", "Pro")


def tree(*patterns: str, count: int = 12) -> list[str]:
    """Names by pattern: `Original/{}/img-{:03}.jpg` takes the class's folder and a number."""
    names = [pattern.format(folder, number) for pattern in patterns for folder in FOLDERS for number in range(count)]
    return sorted(names)


def labels_of(names: list[str]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array([CLASSES.index(class_of_path(name) or "") for name in names])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Original/{}/img-{:03}.jpg", "Segmented/{}/img-{:03}.jpg"),
        ("Original/{}/img-{:03}.jpg", "Segmented/{}/img-{:03}.PNG"),
        ("{}/img-{:03}.jpg", "masked/{}/img-{:03}.jpg"),
        ("{}/raw/img-{:03}.jpg", "{}/cropped/img-{:03}.jpg"),
        ("x/{}/P7_original/img-{:03}.jpg", "x/{}/P7_segmented/img-{:03}.jpg"),
        ("a/{}/img-{:03}.jpg", "b/{}/img-{:03}.jpg"),
    ],
)
def test_forms_of_an_image_are_on_one_side_of_every_split(
    one: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tree(one, other)
    labels = labels_of(names)
    ties = twins(names, labels, None)
    assert len(set(ties.tolist())) == len(names) / 2
    assert "48 images have a twin of the same class and file name in another folder" in capsys.readouterr().err
    order = np.zeros(len(names), np.int64)
    for label in range(4):
        order[labels == label] = np.arange((labels == label).sum())
    layout, rules = Layout(labels, order, ties), Rules("random", 100, 40)
    for fold in (hold_out(layout, rules, 0.3, 0), *cross_validate(layout, rules, 3, 0.3, 0)):
        assert not set(ties[fold.train]) & set(ties[fold.test])


@pytest.mark.parametrize(
    "patterns",
    [
        [f"P{patient:02}/{{}}/img-{{:03}}.jpg" for patient in range(9)],
        [f"{{}}/P{patient:02}/img-{{:03}}.jpg" for patient in range(9)],
        ["{}/img-{:03}.jpg"],
        ["{}/a/img-{:03}.jpg", "{}/b/other-{:03}.jpg"],
    ],
)
def test_images_of_their_own_are_no_twins(patterns: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    names = tree(*patterns)
    assert twins(names, labels_of(names), None).tolist() == list(range(len(names)))
    assert not capsys.readouterr().err


def test_images_of_two_patients_are_no_twins() -> None:
    names = tree("a/{}/img-{:03}.jpg", "b/{}/img-{:03}.jpg")
    groups = np.array([name.startswith("a/") for name in names]).astype(np.int64)
    assert twins(names, labels_of(names), groups).tolist() == list(range(len(names)))


def test_forms_of_a_patients_images_are_twins_within_the_patient() -> None:
    names = tree(
        *(f"{form}/{{}}/P{patient}/img-{{:03}}.jpg" for form in ("Original", "Segmented") for patient in range(9))
    )
    ties = twins(names, labels_of(names), None)
    for index, name in enumerate(names):
        assert names[ties[index]] == name.replace("Segmented", "Original")
