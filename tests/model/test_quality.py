"""Quality measures tell spoilt smears from good ones, and limits let through the share that they were set for."""

import numpy as np
import pytest

from bcd_ray.archives.images import Pixels
from bcd_ray.learning.spoiling import blurred, exposed
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.quality import MEASURES, limits, measure, outside


@pytest.fixture(scope="module")
def smears() -> list[Pixels]:
    return [draw_smear(number % 4, 300 + number) for number in range(24)]


def spoilt(pixels: Pixels, how: str) -> Pixels:
    if how == "empty":
        return np.full_like(pixels, 235)
    return blurred(pixels, 4) if how == "blurred" else exposed(pixels, {"dark": 0.3, "light": 1.6}[how])


@pytest.mark.parametrize("how", ["blurred", "dark", "light", "empty"])
def test_spoilt_smears_are_outside_the_limits_of_good_ones(smears: list[Pixels], how: str) -> None:
    bounds = limits(measure(smears), rate=0.0)
    assert not outside(measure(smears), bounds).any()
    assert outside(measure([spoilt(each, how) for each in smears]), bounds).all()


def test_each_limit_lies_a_quarter_beyond_its_share_of_the_training_images() -> None:
    measures = np.random.default_rng(0).normal(size=(10_000, 4))
    bounds = limits(measures, rate=0.005)
    assert list(bounds) == list(MEASURES)
    assert sum(limit is not None for pair in bounds.values() for limit in pair) == 5
    assert outside(measures, bounds).mean() < 0.01
    assert outside(measures * 1.25, bounds).mean() == pytest.approx(5 * 0.005, rel=0.1)


def test_flat_pictures_have_finite_measures() -> None:
    for level in (0, 255):
        (found,) = measure([np.full((224, 224, 3), level, np.uint8)])
        assert np.isfinite(found).all()
        assert dict(zip(MEASURES, found.tolist(), strict=True))["brightness"] == level


def test_an_image_has_the_same_measures_whatever_it_is_measured_with(smears: list[Pixels]) -> None:
    assert np.array_equal(measure(smears), np.concatenate([measure([each]) for each in smears]))
