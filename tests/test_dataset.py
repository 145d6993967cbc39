"""A folder per class becomes a list of labelled images, and the list is split without taking groups apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.dataset import SYNTHETIC_MARK, Labels, hold_out, list_labelled, says_synthetic
from bcd_ray.errors import ConfigError
from bcd_ray.labels import CLASSES
from bcd_ray.synthetic import write_synthetic_archive


def make_files(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    "folders",
    [
        ("Benign", "Early", "Pre", "Pro"),
        ("Benign", "[Malignant] early Pre-B", "[Malignant] Pre-B", "[Malignant] Pro-B"),
    ],
)
def test_both_public_releases_are_listed(tmp_path: Path, folders: tuple[str, ...]) -> None:
    make_files(tmp_path, [f"{folder}/WBC-{number:03}.jpg" for folder in folders for number in (2, 1)])
    images = list_labelled(str(tmp_path))
    assert [image.name for image in images] == sorted(image.name for image in images)
    assert {(image.name.split("/")[0], CLASSES[image.label]) for image in images} == set(
        zip(folders, CLASSES, strict=True)
    )
    assert len(images) == 8
    for image in images:
        assert Path(image.stored.uri) == tmp_path / image.name


def test_a_drawn_archive_is_listed(tmp_path: Path) -> None:
    assert write_synthetic_archive(tmp_path, images_per_class=2) == 8
    assert Counter(image.label for image in list_labelled(str(tmp_path))) == dict.fromkeys(range(4), 2)


def test_nested_folders_count_and_other_files_do_not(tmp_path: Path) -> None:
    images = {
        "deep/Benign/slide 1/a.JPG": "benign",
        "Benign/Pro/inner.png": "pro_b",
        "Early/b.tiff": "early_pre_b",
        "Early/patient#7/ä.bmp": "early_pre_b",
    }
    others = ["Benign/notes.txt", "Benign/Thumbs.db", "Pre/a.gif", "a.jpg", "elsewhere/a.jpg"]
    hidden = ["Benign/.hidden.jpg", "Benign/.cache/a.jpg"]
    make_files(tmp_path, [*images, *others, *hidden])
    assert {image.name: CLASSES[image.label] for image in list_labelled(str(tmp_path))} == images


def test_one_class_alone_is_refused_with_the_remedy(tmp_path: Path) -> None:
    make_files(tmp_path, ["Benign/a.jpg", "Benign/b.jpg", "other/c.jpg"])
    with pytest.raises(ConfigError, match="2 labelled images of fewer than two classes: it needs a folder"):
        list_labelled(str(tmp_path))


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.raises(ConfigError, match="folder per class"):
        list_labelled(str(tmp_path))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_missing_or_empty_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"--data: nothing found at .*{name}: check the path"):
        list_labelled(str(tmp_path / name))


def test_a_folder_says_whether_its_images_are_drawn(tmp_path: Path) -> None:
    assert not says_synthetic(str(tmp_path))
    make_files(tmp_path, [SYNTHETIC_MARK])
    assert says_synthetic(str(tmp_path))


LABELS = np.repeat(np.arange(4), [100, 200, 150, 50])
ALONE = np.arange(len(LABELS))


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_each_class_gives_its_share(fraction: float) -> None:
    aside = hold_out(LABELS, ALONE, fraction, seed=0)
    assert aside.dtype == bool
    assert [int(aside[label == LABELS].sum()) for label in range(4)] == [
        round(fraction * size) for size in (100, 200, 150, 50)
    ]


def test_the_seed_and_it_alone_decides() -> None:
    first = hold_out(LABELS, ALONE, 0.3, seed=0)
    np.random.seed(5)  # the global state must not matter
    np.testing.assert_array_equal(hold_out(LABELS, ALONE, 0.3, seed=0), first)
    assert (hold_out(LABELS, ALONE, 0.3, seed=1) != first).any()


def smallest_index(groups: list[int]) -> Labels:
    """As `near_duplicate_groups` numbers them: by the smallest index in each."""
    return np.array([groups.index(group) for group in groups], np.int64)


fractions = st.floats(0.01, 0.99)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80),
    fractions,
    st.integers(0, 2**32),
)
def test_no_group_is_taken_apart(images: list[tuple[int, int]], fraction: float, seed: int) -> None:
    """Even where near duplicates carry different labels."""
    labels = np.array([label for label, _ in images])
    groups = smallest_index([group for _, group in images])
    aside = hold_out(labels, groups, fraction, seed)
    assert aside.shape == labels.shape
    for group in groups:
        assert len(set(aside[groups == group])) == 1
    np.testing.assert_array_equal(hold_out(labels, groups, fraction, seed), aside)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=15), min_size=1, max_size=4), fractions)
def test_a_class_misses_its_share_by_less_than_any_group_left(sizes: list[list[int]], fraction: float) -> None:
    labels, group_numbers = [], []
    for label, groups_of_class in enumerate(sizes):
        for number, size in enumerate(groups_of_class):
            labels += [label] * size
            group_numbers += [100 * label + number] * size
    all_labels = np.array(labels)
    aside = hold_out(all_labels, smallest_index(group_numbers), fraction, seed=3)
    left = Counter(number for number, kept in zip(group_numbers, aside, strict=True) if not kept)
    for label, groups_of_class in enumerate(sizes):
        missing = round(fraction * sum(groups_of_class)) - int(aside[all_labels == label].sum())
        left_of_class = [size for number, size in left.items() if number // 100 == label]
        assert 0 <= missing < min(left_of_class, default=1)
