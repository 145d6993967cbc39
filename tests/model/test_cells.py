"""White cells are found where they were drawn, whatever the light, and nothing is found where there are none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcd_ray.archives.images import Decoded, Limits, Pixels, decode
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.cells import CROP, MOST, find_cells, whitened

REAL_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "taleqani-all"
PALE, PINK, PURPLE = (238, 238, 232), (214, 186, 198), (120, 70, 165)


def field(cells: list[tuple[int, int]], radius: int = 12, red: bool = True, seed: int = 0) -> Pixels:
    """A pale field with red cells in rows and white cells at rows and columns."""
    pixels = np.full((224, 224, 3), PALE, np.uint8)
    if red:
        for row in range(12, 224, 26):
            for column in range(12, 224, 26):
                cv2.circle(pixels, (column, row), 9, PINK, -1)
    for row, column in cells:
        cv2.circle(pixels, (column, row), radius, PURPLE, -1)
    noise = np.random.default_rng(seed).normal(0, 3, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


FAR_APART = [(40, 40), (40, 150), (120, 90), (180, 180), (190, 40)]


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("lamp", [(1.0, 1.0, 1.0), (0.8, 0.9, 1.0), (1.0, 0.95, 0.8), (0.6, 0.6, 0.6)])
def test_cells_are_counted_in_any_light(count: int, lamp: tuple[float, float, float]) -> None:
    cells = find_cells((field(FAR_APART[:count]) * np.array(lamp)).astype(np.uint8))
    assert cells.found == count
    distance = np.abs(cells.centres[:, None] - np.array(FAR_APART[:count])[None]).max(axis=2)
    assert (distance.min(axis=1) <= 2).all()
    assert len(set(distance.argmin(axis=1))) == count


def test_cells_that_touch_are_two() -> None:
    assert find_cells(field([(100, 100), (100, 123)])).found == 2


def test_the_largest_cells_come_first_and_no_more_than_the_most() -> None:
    pixels = field([(30 + 55 * row, 30 + 55 * column) for row in range(4) for column in range(4)], 9)
    cv2.circle(pixels, (85, 140), 16, PURPLE, -1)
    cells = find_cells(pixels)
    assert cells.found == 16
    assert len(cells.centres) == MOST
    assert np.abs(cells.centres[0] - (140, 85)).max() <= 2


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_field_without_white_cells_has_none_and_is_looked_at_in_its_middle(level: int) -> None:
    for pixels in (field([]), field([], red=False), np.full((224, 224, 3), level, np.uint8)):
        cells = find_cells(pixels)
        assert cells.found == 0
        assert cells.centres.tolist() == [[112, 112]]
        assert len(cells.crops()) == 1


def test_platelets_and_the_scale_bar_are_no_cells() -> None:
    pixels = field([(100, 100)])
    for row, column in ((20, 60), (60, 20), (180, 90)):
        cv2.circle(pixels, (column, row), 3, PURPLE, -1)
    pixels[205:, 190:] = 255
    pixels[212:214, 195:220] = 0
    assert find_cells(pixels).found == 1


def test_the_background_becomes_one_white() -> None:
    plain = field(FAR_APART)
    for lamp in ((0.9, 1.0, 0.8), (0.7, 0.7, 0.75)):
        dimmed = find_cells((plain * np.array(lamp)).astype(np.uint8)).grey
        assert abs(np.percentile(dimmed, 90) - np.percentile(find_cells(plain).grey, 90)) < 4


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 60), st.integers(0, 255))
def test_the_background_is_the_median_of_the_quarter_that_is_lightest_in_green(
    seed: int, spread: float, level: int
) -> None:
    random = np.random.default_rng(seed)
    pixels = np.clip(random.normal(level, spread, (224, 224, 3)), 0, 255).astype(np.uint8)
    half = np.asarray(cv2.resize(pixels, (112, 112), interpolation=cv2.INTER_AREA))
    light = half[half[..., 1] >= np.percentile(half[..., 1], 75)]
    scale = 240 / np.maximum(np.median(light, axis=0), 1)
    np.testing.assert_array_equal(whitened(pixels), np.minimum(pixels * scale, 255).astype(np.uint8))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 60), st.integers(0, 255))
def test_any_pixels_give_crops(seed: int, spread: float, level: int) -> None:
    random = np.random.default_rng(seed)
    pixels = np.clip(random.normal(level, spread, (224, 224, 3)), 0, 255).astype(np.uint8)
    cells = find_cells(pixels)
    crops = cells.crops()
    assert len(crops) == len(cells.centres) == max(1, min(MOST, cells.found))
    assert {(each.shape, each.dtype) for each in crops} == {((CROP, CROP, 1), np.dtype(np.uint8))}
    assert ((cells.centres >= 0) & (cells.centres < 224)).all()


@pytest.mark.parametrize("class_index", range(4))
def test_drawn_smears_have_cells(class_index: int) -> None:
    assert all(find_cells(draw_smear(class_index, seed)).found for seed in range(10))


def test_nearly_every_real_field_has_cells() -> None:
    paths = [path for folder in sorted(REAL_IMAGES.glob("*/")) for path in sorted(folder.glob("*.jpg"))[::20]]
    if len(paths) < 100:
        pytest.skip("the real images are not here")
    decoded = [decode(path.read_bytes(), Limits()) for path in paths]
    counts = [find_cells(each.pixels).found for each in decoded if isinstance(each, Decoded)]
    assert np.mean(np.array(counts) > 0) > 0.98
    assert 2 <= np.median(counts) <= 15
