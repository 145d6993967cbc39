"""Models that look at cells: what their engine gives, their bundles, their heat maps."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcd_ray.archives.images import Pixels
from bcd_ray.errors import ConfigError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model import bundle as bundles
from bcd_ray.model.bundle import Bundle, Model, load_bundle, pretrained, save_bundle
from bcd_ray.model.choice import open_engine, open_on_cpus
from bcd_ray.model.engines.base import Engine
from bcd_ray.model.heatmap import class_activation, randomised, similarity
from bcd_ray.model.quality import MEASURES
from bcd_ray.model.triage import Triage


@pytest.fixture(scope="module", params=["cells", "both"])
def model(request: pytest.FixtureRequest) -> Model:
    plain = pretrained("keras", request.param)
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (4, plain.embedding_size)).astype(np.float32)
    return plain.with_head(weight, random.normal(0, 1, 4).astype(np.float32))


@pytest.fixture(scope="module")
def engine(model: Model) -> Engine:
    return open_on_cpus(model, threads=1)


@pytest.fixture(scope="module")
def smears() -> list[Pixels]:
    empty = np.full((224, 224, 3), 240, np.uint8)
    return [*(draw_smear(number % 4, number) for number in range(9)), empty]


def test_torch_gives_what_openvino_gives(model: Model, engine: Engine, smears: list[Pixels]) -> None:
    bundle = Bundle(model, Triage.without_limits(model.embedding_size), {}, "test")
    found, expected = engine.infer(smears), open_engine("torch", bundle, threads=1).infer(smears)
    assert found.embeddings.shape == (len(smears), 552 if model.representation == "cells" else 552 + 512)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-4)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)
    np.testing.assert_allclose(found.logits, model.logits(found.embeddings), atol=1e-5)
    np.testing.assert_array_equal(found.cells, expected.cells)


def test_each_part_has_length_one_and_the_field_is_one_of_them(
    model: Model, engine: Engine, smears: list[Pixels]
) -> None:
    embeddings = engine.infer(smears).embeddings
    parts = [embeddings[:, :552], *([embeddings[:, 552:]] if model.representation == "both" else [])]
    for part in parts:
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("count", [1, 17])
def test_any_number_of_images_keeps_its_order(model: Model, engine: Engine, smears: list[Pixels], count: int) -> None:
    some, one_by_one = [*smears[:-1], *smears][-count:], open_on_cpus(model, threads=1, few=True)
    together, alone = engine.infer(some), [one_by_one.infer([image]) for image in some]
    np.testing.assert_allclose(together.embeddings, np.concatenate([each.embeddings for each in alone]), atol=1e-5)
    assert together.cells is not None
    assert together.cells[-1] == 0
    assert (together.cells[:-1] > 0).all()


def test_the_light_of_a_day_is_hardly_seen(engine: Engine, smears: list[Pixels]) -> None:
    dimmed = [(image * np.array([0.8, 0.9, 1.0])).astype(np.uint8) for image in smears[:-1]]
    first, second = engine.infer(smears[:-1]).embeddings, engine.infer(dimmed).embeddings
    alike = (first * second).sum(axis=1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    assert alike.min() > 0.98


def test_an_image_without_cells_goes_to_review(model: Model, engine: Engine, smears: list[Pixels]) -> None:
    found = engine.infer(smears)
    triage = Triage.without_limits(model.embedding_size)
    reasons = triage.decide(
        found.embeddings, found.logits, np.zeros((len(smears), len(MEASURES))), found.cells
    ).reason_names()
    assert ["no_cells" in given for given in reasons] == [False] * 9 + [True]
    whole_fields = triage.decide(found.embeddings, found.logits, np.zeros((len(smears), len(MEASURES)))).reason_names()
    assert not any("no_cells" in given for given in whole_fields)


def test_a_bundle_keeps_what_is_looked_at(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bundle(str(tmp_path), model, Triage.without_limits(model.embedding_size), {}, {})
    found = load_bundle(str(tmp_path)).model
    assert found.representation == model.representation
    assert found.preprocessing == model.preprocessing
    assert found.tensors.keys() == model.tensors.keys()
    monkeypatch.setitem(bundles._CROPS, "version", 99)  # another release finds other cells
    with pytest.raises(ConfigError, match="written by another release of bcd_ray: train anew"):
        load_bundle(str(tmp_path))


def test_a_bundle_of_before_is_one_of_whole_fields(tmp_path: Path) -> None:
    save_bundle(str(tmp_path), pretrained("keras"), Triage.without_limits(1280), {}, {})
    info = json.loads((tmp_path / "model.json").read_text()) | {"format": 3}
    (tmp_path / "model.json").write_text(json.dumps(info))
    names = ("model.safetensors", "model.json")
    digests = "".join(f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (tmp_path / "model.sha256").write_text(digests)
    found = load_bundle(str(tmp_path)).model
    assert found.representation == "field"
    assert open_on_cpus(found, threads=1).infer([draw_smear(0, 0)]).cells is None


def test_heat_maps_point_at_cells(model: Model, engine: Engine, smears: list[Pixels]) -> None:
    maps = next(class_activation(model, [np.stack(smears)]))
    assert maps.shape == (len(smears), 4, 28, 28)
    np.testing.assert_allclose(
        maps.mean(axis=(2, 3)) + model.tensors["head.bias"], engine.infer(smears).logits, atol=2e-3
    )
    for image, of_image in zip(smears[:-1], maps, strict=False):
        rest = np.median(of_image, axis=(1, 2), keepdims=True)
        looked_at = (np.abs(of_image - rest) > 1e-6).any(axis=0).repeat(8, axis=0).repeat(8, axis=1)
        stained = image[..., 1] < 110
        assert 0.02 < looked_at.mean() < 0.8
        assert stained[looked_at].mean() > 2 * stained[~looked_at].mean()


def test_maps_depend_on_the_weights(model: Model, smears: list[Pixels]) -> None:
    batch: Any = np.stack(smears[:-1])
    own = next(class_activation(model, [batch]))[:, 0]
    np.testing.assert_allclose(similarity(own, own), 1)
    for altered in randomised(model).values():
        assert similarity(own, next(class_activation(altered, [batch]))[:, 0]).mean() < 0.9
