"""A folder per class becomes a list of labelled images, with their order of file numbers and their groups."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from bcd_ray.errors import ConfigError
from bcd_ray.labels import CLASSES
from bcd_ray.learning.dataset import (
    SYNTHETIC_MARK,
    LabelledImage,
    file_order,
    groups_of,
    list_folder,
    list_labelled,
    says_synthetic,
)
from bcd_ray.learning.synthetic import write_synthetic_archive


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


def test_nested_folders_count_and_other_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {
        "deep/Benign/slide 1/a.JPG": "benign",
        "Pro/PRE-07/inner.png": "pro_b",
        "Early/b.tiff": "early_pre_b",
        "Early/patient#7/ä.bmp": "early_pre_b",
    }
    others = ["Benign/notes.txt", "Benign/Thumbs.db", "Pre/a.gif", "a.jpg", "elsewhere/a.jpg"]
    hidden = ["Benign/.hidden.jpg", "Benign/.cache/a.jpg"]
    make_files(tmp_path, [*images, *others, *hidden])
    folder = list_folder(str(tmp_path), allow_missing=True)
    assert {image.name: CLASSES[image.label] for image in folder.images} == images
    assert folder.folders == {".": 1, "elsewhere": 1}
    assert folder.files == {".txt": 1, "hidden": 3, ".gif": 1}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("no image of pre_b")
    assert lines[1].startswith("2 images lie in folders that name no class (.: 1, elsewhere: 1): they are left out")
    assert lines[2] == "5 files that are no images are left out: 1 .gif, 3 hidden, 1 .txt"


def test_a_class_folder_with_a_typing_error_is_refused_by_name(tmp_path: Path) -> None:
    make_files(tmp_path, ["Benign/a.jpg", "Early/a.jpg", "Pre/a.jpg", "Pro-B ALL/a.jpg", "Pro-B ALL/b.jpg"])
    with pytest.raises(ConfigError, match=r"no image of pro_b, and 2 images .* \(Pro-B ALL: 2\): call .* its name"):
        list_folder(str(tmp_path))
    assert len(list_folder(str(tmp_path), allow_missing=True).images) == 3


@pytest.mark.parametrize("name", ["Pro/normal/x.jpg", "Benign/Pre/x.jpg", "Original/Benign/post/pre/x.jpg"])
def test_folders_of_two_classes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    make_files(tmp_path, ["Benign/a.jpg", "Early/a.jpg", "Pre/a.jpg", "Pro/a.jpg", name])
    with pytest.raises(ConfigError, match=rf"1 images lie in folders of two classes, such as {name} \(\w+ and \w+\)"):
        list_folder(str(tmp_path))


def test_one_class_alone_is_refused_with_the_remedy(tmp_path: Path) -> None:
    make_files(tmp_path, ["Benign/a.jpg", "Benign/b.jpg", "other/c.jpg"])
    with pytest.raises(
        ConfigError, match=r"2 labelled images of fewer than two classes, and 1 .* \(other: 1\): it needs a folder"
    ):
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


def labelled(tmp_path: Path, names: list[str]) -> list[LabelledImage]:
    make_files(tmp_path / "data", names)
    return list_labelled(str(tmp_path / "data"))


def test_file_order_is_by_number_within_each_class(tmp_path: Path) -> None:
    images = labelled(tmp_path, [f"Benign/WBC-{n}.jpg" for n in (10, 9, 100, 1)] + ["Pro/b-2.jpg", "Pro/b-1.jpg"])
    order = file_order(images)
    by_class: dict[int, list[str]] = {0: [], 3: []}
    for index in np.argsort(order, kind="stable"):
        by_class[images[index].label].append(images[index].name)
    assert by_class[0] == [f"Benign/WBC-{n}.jpg" for n in (1, 9, 10, 100)]
    assert by_class[3] == ["Pro/b-1.jpg", "Pro/b-2.jpg"]
    assert sorted(order) == [0, 0, 1, 1, 2, 3]


PATIENTS = ["Benign/p07/1.jpg", "Benign/p7/2.jpg", "Pro/p07/3.jpg"]


def test_a_pattern_finds_the_groups_in_the_path(tmp_path: Path) -> None:
    images = labelled(tmp_path, PATIENTS)
    assert groups_of(images, r"/p(\d+)/", "")[0].tolist() == [0, 1, 0]  # type: ignore[union-attr]
    assert groups_of(images, r"\d\.jpg", "")[0].tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert groups_of(images, "", "") == (None, ())
    with pytest.raises(ConfigError, match=r"gives no group for 2 images of 3, such as Benign/p07/1\.jpg"):
        groups_of(images, r"/p7/", "")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_gives_the_groups(tmp_path: Path, suffix: str) -> None:
    images = labelled(tmp_path, PATIENTS)
    table = pa.table({"image": PATIENTS, "group": ["007", "7", "007"]})
    uri = str(tmp_path / f"groups.{suffix}")
    (pq.write_table if suffix == "parquet" else csv.write_csv)(table, uri)
    assert groups_of(images, "", uri)[0].tolist() == [0, 1, 0]  # type: ignore[union-attr]
    (pq.write_table if suffix == "parquet" else csv.write_csv)(table.rename_columns(["image", "sitting"]), uri)
    assert groups_of(images, "", uri, "sitting")[1] == ("007", "7")


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ("image,group\nBenign/p07/1.jpg,1\n", "gives no group for 2 images of 3, such as Benign/p7/2.jpg"),
        ("image,group\nBenign/p07/1.jpg,1\nBenign/p07/1.jpg,2\n", "gives Benign/p07/1.jpg two groups, '1' and '2'"),
        ("name,group\na,1\n", "with the columns image and group"),
        ("", "with the columns image and group"),
        (None, "nothing found at"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None, remedy: str) -> None:
    images = labelled(tmp_path, PATIENTS)
    if content is not None:
        (tmp_path / "groups.csv").write_text(content)
    with pytest.raises(ConfigError, match=remedy):
        groups_of(images, "", str(tmp_path / "groups.csv"))
