"""A model that looks at cells, from training to rows and heat maps, on drawn smears."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bcd_ray.errors import ConfigError
from bcd_ray.evaluation.config import EvaluateConfig, ExplainConfig
from bcd_ray.evaluation.explaining import explain
from bcd_ray.evaluation.job import evaluate
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.head import FitConfig, balanced_weights, fit
from bcd_ray.learning.job import train
from bcd_ray.ledger.verification import verify
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import score


@pytest.fixture(scope="module")
def trained(ray_cluster: None, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cells") / "model"
    data = {"data": str(synthetic_archive), "output": str(output)}
    metrics = train(TrainConfig(**data, representation="cells", augmented_views=1, group_pattern=r"\d\.jpg"))
    assert metrics["accuracy"] > 0.7
    return output


def test_a_bundle_says_what_is_looked_at(trained: Path) -> None:
    info = json.loads((trained / "model.json").read_text())
    assert info["preprocessing"]["representation"] == info["training"]["representation"] == "cells"
    assert info["preprocessing"]["crops"]["backbone"] == "efficientnet_lite0"
    card = (trained / "MODEL_CARD.md").read_text()
    assert "EfficientNet-Lite0" in card
    assert "The risk holds for images of the days that were trained on, and for no other." in card


def test_rows_count_cells_and_what_has_none_is_sent_to_review(
    trained: Path, synthetic_archive: Path, tmp_path: Path, without_ray: None
) -> None:
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted(synthetic_archive.glob("*/*.jpg"))[::12]):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(path.read_bytes())
    empty = np.random.default_rng(0).normal(235, 2, (224, 224, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(empty).save(tmp_path / "in" / "empty.png")
    score(ScoreConfig(model=str(trained), input=(str(tmp_path / "in"),), output=str(tmp_path / "out")))
    assert verify(str(tmp_path / "out")) == []
    rows = {row["image_uri"].rpartition("/")[2]: row for row in pq.read_table(tmp_path / "out/predictions").to_pylist()}
    without = rows.pop("empty.png")
    assert without["cells"] == 0
    assert without["status"] == "scored"
    assert "no_cells" in without["review_reasons"]
    assert all(row["cells"] > 0 and "no_cells" not in row["review_reasons"] for row in rows.values())
    maps = ExplainConfig(model=str(trained), input=(str(tmp_path / "in"),), output=str(tmp_path / "maps"))
    explained = {each["image_uri"].rpartition("/")[2]: each for each in explain(maps)["images"]}
    assert {name: each["predicted_class"] for name, each in explained.items() if name in rows} == {
        name: row["predicted_class"] for name, row in rows.items()
    }


def test_it_is_evaluated_as_it_scores(
    trained: Path, synthetic_archive: Path, tmp_path: Path, ray_cluster: None
) -> None:
    for path in synthetic_archive.glob("*/synthetic-00*[0369].jpg"):
        (tmp_path / "in" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "in" / path.parent.name)
    config = EvaluateConfig(data=str(tmp_path / "in"), output=str(tmp_path / "out"), model=str(trained), spoil=True)
    metrics = evaluate(config)
    assert metrics["accuracy"] > 0.8
    assert metrics["triage"]["evaluated"]["reasons"]["no_cells"] == 0
    assert metrics["spoilt"]["blurred_8"]["review"] > 0.9


def test_images_count_by_class_and_group() -> None:
    labels, groups = np.repeat([0, 1], [30, 60]), np.repeat([0, 1, 2], [30, 4, 56])
    weights = balanced_weights(labels, groups)
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum(), rel=1e-5)
    assert weights[groups == 1].sum() / weights[groups == 2].sum() == pytest.approx((4 / 56) ** 0.5, rel=1e-5)
    assert len(np.unique(balanced_weights(labels, None).round(6))) == 2


def test_a_balanced_head_takes_features_as_they_are() -> None:
    """Scales and shifts of single numbers of an embedding change nothing but the rounding."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    views = (random.normal(size=(1, 200, 12)) + np.eye(4, 12)[labels] * 2).astype(np.float32)
    config = FitConfig(5, 0.003, 0.1, 32, workers=0, seed=0, balanced=True)
    scale, shift = np.exp(random.normal(0, 2, 12)).astype(np.float32), random.normal(size=12).astype(np.float32)
    plain, other = fit(views, labels, config), fit(views * scale + shift, labels, config)
    np.testing.assert_allclose(other.logits(views[0] * scale + shift), plain.logits(views[0]), atol=2e-3)
    assert (plain.logits(views[0]).argmax(1) == labels).mean() > 0.7


def test_what_goes_with_whole_fields_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="--weights torchvision goes with"):
        TrainConfig(data="d", output="o", representation="cells", weights="torchvision")
