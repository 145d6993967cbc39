"""Quality measures tell spoilt smears from good ones, and limits let through the share that they were set for."""

import numpy as np
import numpy.typing as npt
import pytest

from bcd_ray.archives.images import Pixels
from bcd_ray.learning.spoiling import SPOILT, blurred, exposed, noisy
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.quality import HARMLESS_COMPRESSION, MEASURES, OF_PIXELS, limits, measure, outside


@pytest.fixture(scope="module")
def smears() -> list[Pixels]:
    return [draw_smear(number % 4, 300 + number) for number in range(24)]


def spoilt(pixels: Pixels, how: str) -> Pixels:
    if how == "empty":
        return np.full_like(pixels, 235)
    if how in SPOILT:
        return SPOILT[how](pixels)
    return blurred(pixels, 4) if how == "blurred" else exposed(pixels, {"dark": 0.3, "light": 1.6}[how])


def measured(images: list[Pixels], compression: float = 0.0) -> npt.NDArray[np.float64]:
    return np.column_stack([measure(images), np.full(len(images), compression)])


@pytest.mark.parametrize("how", ["blurred", "dark", "light", "empty", "noisy_5", "noisy_20", "grey"])
def test_spoilt_smears_are_outside_the_limits_of_good_ones(smears: list[Pixels], how: str) -> None:
    bounds = limits(measured(smears), rate=0.0)
    assert not outside(measured(smears), bounds).any()
    assert outside(measured([spoilt(each, how) for each in smears]), bounds).all()


def test_compression_beyond_what_was_trained_on_is_outside(smears: list[Pixels]) -> None:
    few, many = limits(measured(smears, 1.9), rate=0.0), limits(measured(smears, 40.0), rate=0.0)
    assert [outside(measured(smears, each), few).all() for each in (0, HARMLESS_COMPRESSION, 30)] == [
        False,
        False,
        True,
    ]
    assert not outside(measured(smears, 40.0), many).any()


def test_noise_is_told_in_levels(smears: list[Pixels]) -> None:
    flat = np.full((224, 224, 3), 128, np.uint8)
    for level in (2, 5, 10, 20):
        assert measure([noisy(flat, level)])[0, OF_PIXELS.index("noise")] == pytest.approx(level, rel=0.05)


def test_limits_of_an_earlier_release_say_nothing_of_noise_and_colour(smears: list[Pixels]) -> None:
    bounds = {name: pair for name, pair in limits(measured(smears), 0.0).items() if name in OF_PIXELS[:4]}
    assert not outside(measured([SPOILT["noisy_20"](smears[0])]), bounds).any()


def test_each_limit_lies_a_quarter_beyond_its_share_of_the_training_images() -> None:
    measures = np.random.default_rng(0).normal(size=(10_000, 7))
    measures[:, -1] *= HARMLESS_COMPRESSION
    bounds = limits(measures, rate=0.005)
    assert list(bounds) == list(MEASURES)
    assert sum(limit is not None for pair in bounds.values() for limit in pair) == 8
    assert outside(measures, bounds).mean() < 0.016
    assert outside(measures * 1.25, bounds).mean() == pytest.approx(8 * 0.005, rel=0.1)


def test_flat_pictures_have_finite_measures() -> None:
    for level in (0, 255):
        (found,) = measure([np.full((224, 224, 3), level, np.uint8)])
        assert np.isfinite(found).all()
        assert dict(zip(OF_PIXELS, found.tolist(), strict=True))["brightness"] == level


def test_an_image_has_the_same_measures_whatever_it_is_measured_with(smears: list[Pixels]) -> None:
    assert np.array_equal(measure(smears), np.concatenate([measure([each]) for each in smears]))
