"""A patient is on one side of a split, however its id is written and whoever else holds its image."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcd_ray.errors import ConfigError
from bcd_ray.learning.groups import group_numbers, merged

NAMES = ["Benign/a.jpg", "Benign/b.jpg", "Pro/c.jpg"]


def numbers(path: Path, rows: list[str]) -> list[int]:
    (path / "groups.csv").write_text("\n".join(["image,group", *rows, ""]))
    found, _ = group_numbers(NAMES, "", str(path / "groups.csv"))
    assert found is not None
    return found.tolist()


@pytest.mark.parametrize("other", ["P07", "p07", "P07 ", " P07", "P07\u00a0", "\uff3007"])
def test_an_id_has_one_spelling(tmp_path: Path, other: str) -> None:
    assert numbers(tmp_path, ["Benign/a.jpg,P07", f"Benign/b.jpg,{other}", "Pro/c.jpg,P08"]) == [0, 0, 1]
    found, names = group_numbers(["P07 /a.jpg", "p07/b.jpg", "P7/c.jpg"], "^[^/]+", "")
    assert found is not None
    assert found.tolist() == [0, 0, 1]
    assert len(names) == 2


def test_an_image_with_two_groups_is_refused_and_one_named_twice_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["Benign/a.jpg,1", "Benign/b.jpg,2", "Pro/c.jpg,3"]
    with pytest.raises(ConfigError, match=r"gives Benign/a\.jpg two groups, '1' and '2': leave one"):
        numbers(tmp_path, [*rows, "Benign/a.jpg,2"])
    assert numbers(tmp_path, [*rows, "Benign/a.jpg,1 "]) == [0, 1, 2]
    assert "1 rows name an image again, with the same group" in capsys.readouterr().err


def test_what_is_no_number_is_no_group(tmp_path: Path) -> None:
    table = pa.table({"image": NAMES, "group": [float("nan"), *map(float, range(1, len(NAMES)))]})
    pq.write_table(table, tmp_path / "groups.parquet")
    with pytest.raises(ConfigError, match="gives no group for 1 images"):
        group_numbers(NAMES, "", str(tmp_path / "groups.parquet"))


def test_a_table_that_matches_few_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{name},1" for name in NAMES]
    assert numbers(tmp_path, [*rows, *(f"other/{number}.jpg,2" for number in range(40))]) == [0, 0, 0]
    assert "40 of its 43 images are not among those of --data, such as other/0.jpg" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"no group for 2 images of 3, such as Benign/b\.jpg: every image needs one"):
        numbers(tmp_path, rows[:1])


def test_groups_that_hold_the_same_image_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    groups = np.array([0, 1, 2, 3, 4, 2])
    assert merged(groups, list("abcdef")).tolist() == groups.tolist()
    assert not capsys.readouterr().err
    assert merged(groups, list("abcbfc")).tolist() == [0, 1, 2, 1, 4, 2]
    assert merged(groups, ["x", "y", "y", "z", "w", "z"]).tolist() == [0, 1, 1, 1, 4, 1]
    assert "3 groups hold an image of another group" in capsys.readouterr().err
