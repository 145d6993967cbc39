"""Drawn smears: repeatable pixels, and an archive that reads like a real one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcd_ray.learning.synthetic import draw_smear, write_synthetic_archive


@pytest.mark.parametrize("class_index", range(4))
def test_the_same_arguments_give_the_same_pixels(class_index: int) -> None:
    first, again = draw_smear(class_index, seed=7), draw_smear(class_index, seed=7)
    assert first.shape == (224, 224, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)


def test_class_and_seed_change_the_drawing() -> None:
    drawings = {draw_smear(class_index, seed).tobytes() for class_index in range(4) for seed in range(3)}
    assert len(drawings) == 12


@pytest.mark.parametrize("size", [32, 96, 301])
def test_every_class_draws_at_other_sizes(size: int) -> None:
    for class_index in range(4):
        drawing = draw_smear(class_index, seed=1, size=size)
        assert drawing.shape == (size, size, 3)
        assert drawing.std() > 5  # cells, not a blank sheet


@pytest.mark.parametrize(("class_index", "seed", "size"), [(4, 0, 224), (-1, 0, 224), (0, -1, 224), (0, 0, 8)])
def test_an_impossible_drawing_is_refused_with_the_remedy(class_index: int, seed: int, size: int) -> None:
    with pytest.raises(ValueError, match="give a class from 0 to 3"):
        draw_smear(class_index, seed, size)


def test_archive_has_a_folder_per_class_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "archive"
    assert write_synthetic_archive(folder, images_per_class=2) == 8
    assert "synthetic" in (folder / "SYNTHETIC.txt").read_text()
    written = sorted(folder.rglob("*.jpg"))
    names = ("Benign", "Early", "Pre", "Pro")
    assert written == [folder / name / f"synthetic-000{number}.jpg" for name in names for number in (1, 2)]
    for path in written:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224))
            assert image.info["comment"] == b"synthetic, drawn by bcd_ray; not a photograph"
            image.load()


def test_archive_depends_on_its_seed_alone(tmp_path: Path) -> None:
    def images(name: str, count: int, seed: int) -> list[bytes]:
        write_synthetic_archive(tmp_path / name, count, seed)
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jpg"))]

    first = images("first", 2, seed=0)
    assert images("again", 2, seed=0) == first
    assert not set(images("other", 2, seed=1)) & set(first)
    assert set(first) < set(images("longer", 3, seed=0))  # a larger archive begins with the same images
