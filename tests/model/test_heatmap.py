"""Heat maps are exact, depend on the weights, and are written for the images that were asked for."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcd_ray.archives.images import Pixels
from bcd_ray.errors import ConfigError
from bcd_ray.evaluation.config import ExplainConfig
from bcd_ray.evaluation.explaining import explain
from bcd_ray.labels import CLASSES
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.bundle import Model, pretrained, save_bundle
from bcd_ray.model.engines.openvino import OpenVinoEngine
from bcd_ray.model.heatmap import class_activation, draw, randomised, similarity
from bcd_ray.model.triage import Triage


@pytest.fixture(scope="module", params=["keras", "efficientnet_lite0"])
def model(request: pytest.FixtureRequest) -> Model:
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.1, (4, 1280)).astype(np.float32)
    return pretrained(request.param).with_head(weight, random.normal(0, 1, 4).astype(np.float32))


@pytest.fixture(scope="module")
def smears() -> Pixels:
    return np.stack([draw_smear(number, 70 + number) for number in range(4)])


def test_the_mean_of_a_map_and_the_bias_are_the_logit_of_the_engine(model: Model, smears: Pixels) -> None:
    logits = OpenVinoEngine(model.tensors, model.preprocessing, threads=1).infer(list(smears)).logits
    maps = next(class_activation(model, [smears]))
    assert maps.shape == (4, 4, 7, 7)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)) + model.tensors["head.bias"], logits, atol=2e-3)


def test_maps_depend_on_the_weights(model: Model, smears: Pixels) -> None:
    own = next(class_activation(model, [smears]))[:, 0]
    np.testing.assert_allclose(similarity(own, own), 1)
    for altered in randomised(model).values():
        assert np.abs(similarity(own, next(class_activation(altered, [smears]))[:, 0])).mean() < 0.6


def test_a_map_is_drawn_where_its_evidence_is() -> None:
    pixels = np.full((224, 224, 3), 200, np.uint8)
    hot = np.zeros((7, 7), np.float32)
    hot[0, 0], hot[6, 6] = 1, -1
    sheet = np.asarray(Image.open(io.BytesIO(draw(pixels, hot, "ümlaut"))).convert("RGB")).astype(int)
    np.testing.assert_array_equal(sheet[:224, :224], pixels)
    overlay = sheet[:224, -224:]
    assert overlay[5, 5, 0] > overlay[5, 5, 2] + 20
    assert overlay[218, 218, 2] > overlay[218, 218, 0] + 20


def test_images_of_an_archive_are_explained(model: Model, smears: Pixels, tmp_path: Path) -> None:
    save_bundle(str(tmp_path / "model"), model, Triage.without_limits(1280), {}, {})
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(smears):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    config = ExplainConfig(
        model=str(tmp_path / "model"), input=(str(tmp_path / "images"),), output=str(tmp_path / "maps")
    )
    found = explain(config)
    assert json.loads((tmp_path / "maps" / "explanations.json").read_text()) == found
    assert [image["image_uri"] for image in found["images"]] == [f"{tmp_path}/images/{n}.png" for n in range(4)]
    assert list(found["left_out"]) == [f"{tmp_path}/images/broken.png"]
    for image in found["images"]:
        label = CLASSES.index(image["predicted_class"])
        logit = np.mean(image["map"]) + model.tensors["head.bias"][label]
        assert logit == pytest.approx(max(image["logits"]), abs=1e-4)
        assert (tmp_path / "maps" / image["file"]).is_file()
    with pytest.raises(ConfigError, match="choose another folder"):
        explain(config)


def test_either_scores_or_images() -> None:
    for given in ({}, {"scores": "scores", "input": ("images",)}):
        with pytest.raises(ConfigError, match="either --scores"):
            ExplainConfig(model="model", output="maps", **given)  # type: ignore[arg-type]
