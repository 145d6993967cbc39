"""Colour as an option: stain that varies in the views that are trained on, and one white for every field."""

from typing import Any

import numpy as np
import pytest

from bcd_ray.archives.images import Pixels
from bcd_ray.errors import ConfigError
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.stain import restained
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.bundle import Bundle, Model, pretrained
from bcd_ray.model.cells import whitened
from bcd_ray.model.choice import open_engine, open_on_cpus
from bcd_ray.model.heatmap import class_activation
from bcd_ray.model.triage import Triage

SMEAR = draw_smear(1, 5)


def test_stain_varies_and_the_picture_stays() -> None:
    views = [restained(SMEAR, "key", str(number)) for number in range(1, 5)]
    np.testing.assert_array_equal(views[0], restained(SMEAR, "key", "1"))
    assert not np.array_equal(views[0], restained(SMEAR, "another", "1"))
    for view in views:
        assert view.shape == SMEAR.shape
        assert view.dtype == np.uint8
        assert 0.3 < np.abs(view.astype(float) - SMEAR).mean() < 15
        assert np.corrcoef(view.ravel(), SMEAR.ravel())[0, 1] > 0.98
    colours = np.array([view.mean(axis=(0, 1)) for view in views])
    assert (np.ptp(colours - colours.mean(axis=1, keepdims=True), axis=0) > 0.2).any()  # not all as in other light


def in_light(pixels: Pixels, *factors: float) -> Pixels:
    lit: Pixels = (pixels * np.array(factors)).round().astype(np.uint8)
    return lit


def test_fields_of_any_light_get_one_background() -> None:
    for factors in ((1, 1, 1), (0.9, 0.95, 0.8), (0.7, 0.7, 0.75)):
        white = whitened(in_light(SMEAR, *factors))
        green = white[..., 1]
        light = np.median(white[green >= np.percentile(green, 75)], axis=0)
        np.testing.assert_allclose(light, 240, atol=2)


def test_a_model_of_one_white_sees_the_same_in_any_light() -> None:
    random = np.random.default_rng(0)
    model = pretrained("keras", white=True)
    model = model.with_head(random.normal(0, 0.1, (4, 1280)).astype(np.float32), np.zeros(4, np.float32))
    images = [SMEAR, in_light(SMEAR, 0.9, 0.95, 0.85)]
    bundle = Bundle(model, Triage.without_limits(1280), {}, "version")
    of_engines = [open_on_cpus(model, 1), open_engine("openvino", bundle, 1), open_engine("torch", bundle, 1)]
    logits = [engine.infer(images).logits for engine in of_engines]
    maps = next(class_activation(model, [np.stack(images)]))
    logits.append(maps.mean(axis=(2, 3)) + model.tensors["head.bias"])
    for each in logits:
        np.testing.assert_allclose(each, logits[0], atol=2e-3)
    plain = open_on_cpus(Model(model.tensors, {**model.preprocessing, "white": False}), 1).infer(images).logits
    assert np.abs(plain[0] - plain[1]).max() > 3 * np.abs(logits[0][0] - logits[0][1]).max()


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"white": True}, "--white goes with --representation field: both does it always"),
        ({"white": True, "int8": True, "representation": "field"}, "--int8 goes with neither --white nor --unfreeze"),
        ({"stain": True, "augmented_views": 0}, "--stain needs --augmented-views of 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        TrainConfig(data="d", output="o", **options)
