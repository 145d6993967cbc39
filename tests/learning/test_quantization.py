"""Engines and decoders against the reference: int8, torch, JPEGs at a fraction; what of it a bundle and a run keep."""

import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from PIL import Image

from bcd_ray.archives.formats import jpeg
from bcd_ray.archives.images import Decoded, Limits, Pixels, decode
from bcd_ray.errors import ConfigError
from bcd_ray.learning.dataset import LabelledImage, list_labelled
from bcd_ray.learning.quantization import compare, quantize
from bcd_ray.learning.synthetic import draw_smear, write_synthetic_archive
from bcd_ray.model.bundle import EMBEDDING_SIZE, Bundle, Model, load_bundle, pretrained, save_bundle
from bcd_ray.model.choice import choose_engine, open_engine, precision
from bcd_ray.model.engines.base import EngineName, Outputs
from bcd_ray.model.engines.int8 import Int8Graph, leads
from bcd_ray.model.network import softmax
from bcd_ray.model.triage import Triage
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import score

NO_LIMITS = Triage.without_limits(EMBEDDING_SIZE)


@dataclass(frozen=True)
class Quantized:
    """A network and its int8 form, made with half of some drawn smears."""

    bundle: Bundle
    graph: Int8Graph
    held_out: list[LabelledImage]


def pixels_of(labelled: list[LabelledImage]) -> Pixels:
    decoded = [decode(Path(image.stored.uri).read_bytes(), Limits()) for image in labelled]
    return np.stack([image.pixels for image in decoded if isinstance(image, Decoded)])


def run(name: EngineName, bundle: Bundle, pixels: Pixels) -> Outputs:
    return open_engine(name, bundle, threads=2).infer(list(pixels))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    folder = tmp_path_factory.mktemp("smears") / "smears"
    write_synthetic_archive(folder, 32)
    listed = list_labelled(str(folder))
    train, held_out = listed[::2], listed[1::2]
    backbone = pretrained("keras")
    embeddings = run("openvino", Bundle(backbone, NO_LIMITS, {}, ""), pixels_of(train)).embeddings.astype(np.float64)
    # A head that tells the drawn classes apart, by ridge regression of the centred embeddings.
    mean, wanted = embeddings.mean(axis=0), 6 * np.eye(4)[[image.label for image in train]] - 1.5
    square = (embeddings - mean).T @ (embeddings - mean) + 10 * np.eye(1280)
    weight = np.linalg.solve(square, (embeddings - mean).T @ wanted).T.astype(np.float32)
    model: Model = backbone.with_head(weight, (-weight @ mean).astype(np.float32))
    bundle = Bundle(model, NO_LIMITS, {}, "")
    graph = quantize(model, train, run("openvino", bundle, pixels_of(train)).logits)
    return Quantized(Bundle(model, NO_LIMITS, {}, "", graph), graph, held_out)


def test_int8_gives_nearly_what_fp32_gives(quantized: Quantized) -> None:
    pixels = pixels_of(quantized.held_out)
    expected, found = run("openvino", quantized.bundle, pixels), run("openvino-int8", quantized.bundle, pixels)
    difference = np.abs(softmax(found.logits) - softmax(expected.logits)).max(axis=1)
    assert 0 < np.median(difference) < 0.1  # it is another network, and a close one
    facts = compare(quantized.graph, quantized.bundle.model, quantized.held_out, expected.logits)
    assert facts["images"] == len(quantized.held_out) == 64
    assert facts["agreement"] >= 0.9  # few images calibrate it here; docs/measurements.md has the figure on real ones
    assert facts["agreement"] == (found.logits.argmax(1) == expected.logits.argmax(1)).mean()
    assert facts["probability_difference"]["largest"] == pytest.approx(difference.max(), abs=1e-4)
    low, high = facts["accuracy_fp32_interval"]
    assert 0.5 < low < facts["accuracy_fp32"] <= high <= 1


def test_int8_leaves_what_it_doubts_to_fp32(quantized: Quantized) -> None:
    pixels = pixels_of(quantized.held_out[:9])

    def with_doubt(doubt: float) -> Outputs:
        return run("openvino-int8", replace(quantized.bundle, int8=replace(quantized.graph, doubt=doubt)), pixels)

    full, quick = run("openvino", quantized.bundle, pixels), with_doubt(-1.0)
    assert np.abs(full.logits - quick.logits).max() > 0.01
    middle = float(np.median(leads(quick.logits)))
    redone = (leads(quick.logits) <= middle)[:, None]
    assert redone.sum() == 5
    for found, of_full, of_quick in zip(with_doubt(middle)[:2], full[:2], quick[:2], strict=True):
        np.testing.assert_allclose(found, np.where(redone, of_full, of_quick), atol=1e-3)


def test_cells_are_looked_at_in_int8_too(quantized: Quantized, tmp_path: Path) -> None:
    """A bundle that looks at cells keeps the quantised network of its crops, and a head for it."""
    train, held_out = quantized.held_out[::8], quantized.held_out[1::4]
    cells = pretrained("keras", "cells")
    head = np.random.default_rng(0).normal(0, 2, (4, cells.embedding_size)).astype(np.float32)
    model, limits = cells.with_head(head, np.zeros(4, np.float32)), Triage.without_limits(cells.embedding_size)
    graph = quantize(model, train, run("openvino", Bundle(model, limits, {}, ""), pixels_of(train)).logits)
    save_bundle(str(tmp_path), model, limits, {}, {}, graph)
    bundle = load_bundle(str(tmp_path))
    assert bundle.model.tensors.keys() == model.tensors.keys()
    pixels = pixels_of(held_out)
    full, quick = (run(name, bundle, pixels) for name in ("openvino", "openvino-int8"))
    np.testing.assert_array_equal(full.cells, quick.cells)  # type: ignore[arg-type]
    apart = np.abs(full.logits - quick.logits).max(axis=1)
    assert 0 < np.median(apart) < np.std(full.logits)
    facts = compare(graph, model, held_out, full.logits)
    assert facts["agreement"] == (full.logits.argmax(1) == quick.logits.argmax(1)).mean() >= 0.8


def test_torch_gives_what_openvino_gives(quantized: Quantized) -> None:
    pixels = pixels_of(quantized.held_out[:21])
    expected, found = run("openvino", quantized.bundle, pixels), run("torch", quantized.bundle, pixels)
    np.testing.assert_allclose(softmax(found.logits), softmax(expected.logits), atol=1e-3)
    np.testing.assert_array_equal(found.logits.argmax(1), expected.logits.argmax(1))
    assert found.embeddings.shape == expected.embeddings.shape


@pytest.mark.parametrize(("width", "height", "bound", "lead"), [(1280, 960, 0.05, 0), (1024, 768, 0.1, 0.1)])
def test_large_jpegs_decoded_to_a_fraction_get_nearly_the_same_probabilities(
    quantized: Quantized, monkeypatch: pytest.MonkeyPatch, width: int, height: int, bound: float, lead: float
) -> None:
    random = np.random.default_rng(0)
    encoded = []
    for number in range(8):
        smear = Image.fromarray(draw_smear(number % 4, 50 + number, size=960)).resize((width, height))
        noisy = (np.asarray(smear) + random.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(noisy).save(sink, "JPEG", quality=90)
        encoded.append(sink.getvalue())

    def probabilities() -> Any:
        decoded = [decode(data, Limits()) for data in encoded]
        pixels = np.stack([image.pixels for image in decoded if isinstance(image, Decoded)])
        return softmax(run("openvino", quantized.bundle, pixels).logits)

    scaled = probabilities()
    monkeypatch.setattr(jpeg, "plain_jpeg", lambda *_: None)
    whole = probabilities()
    assert 0 < np.abs(scaled - whole).max() < bound
    clear = leads(whole) > lead
    assert clear.sum() >= 6
    np.testing.assert_array_equal(scaled[clear].argmax(1), whole[clear].argmax(1))


def test_a_bundle_keeps_its_int8_network(quantized: Quantized, tmp_path: Path) -> None:
    version = save_bundle(str(tmp_path), quantized.bundle.model, NO_LIMITS, {}, {}, quantized.graph)
    bundle = load_bundle(str(tmp_path))
    assert bundle.int8 == quantized.graph
    assert bundle.version == version
    plain = save_bundle(str(tmp_path / "plain"), quantized.bundle.model, NO_LIMITS, {}, {})
    assert plain != version
    assert load_bundle(str(tmp_path / "plain")).int8 is None
    (tmp_path / "model.int8.bin").write_bytes(quantized.graph.graphs[""][1][:-1] + b"x")
    with pytest.raises(ConfigError, match=r"model\.int8\.bin does not match model\.json"):
        load_bundle(str(tmp_path))
    (tmp_path / "model.int8.bin").unlink()
    with pytest.raises(ConfigError, match=r"model\.int8\.bin does not match model\.json"):
        load_bundle(str(tmp_path))


def test_the_engine_is_chosen_by_name_or_by_what_the_cluster_has(quantized: Quantized) -> None:
    assert choose_engine("auto", gpus=0).name == "openvino"
    assert choose_engine("auto", gpus=2).name == "torch-cuda"
    assert str(choose_engine("auto", gpus=1)) == "engine torch-cuda: the cluster has 1 GPU"
    assert str(choose_engine("auto", gpus=2)) == "engine torch-cuda: the cluster has 2 GPUs"
    assert choose_engine("torch", gpus=2).name == "torch"
    with pytest.raises(ConfigError, match="has no GPU"):
        choose_engine("torch-cuda", gpus=0)
    assert precision("openvino-int8", quantized.bundle) == "int8"
    assert precision("auto", quantized.bundle) == precision("torch-cuda", quantized.bundle) == "float"


def test_scoring_in_int8_is_another_run_and_says_so(without_ray: None, quantized: Quantized, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for image in quantized.held_out[:16]:
        shutil.copy(image.stored.uri, archive)
    model, output = str(tmp_path / "model"), str(tmp_path / "output")
    save_bundle(model, quantized.bundle.model, NO_LIMITS, {}, {}, quantized.graph)
    published = []
    for engine in ("openvino", "openvino-int8"):
        config = ScoreConfig(model=model, input=(str(archive),), output=output, engine=engine, supersede=True)  # type: ignore[arg-type]
        manifest = score(config).manifest
        assert manifest is not None
        assert manifest["engine"] == {"name": engine, "reason": "as --engine says"}
        assert score(config).manifest is None
        published.append(manifest)
    assert [run["identity"]["precision"] for run in published] == ["float", "int8"]
    rows = (
        ds.dataset(Path(output, "predictions"))
        .to_table()
        .sort_by([("run_number", "ascending"), ("image_uri", "ascending")])
    )
    assert pc.unique(rows["run_number"]).to_pylist() == [1, 2]
    malignant = rows["p_malignant"].to_numpy().reshape(2, -1)
    assert 0 < np.abs(malignant[0] - malignant[1]).max() < 0.5


def test_int8_must_be_in_the_bundle(quantized: Quantized, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    model = str(tmp_path / "model")
    save_bundle(model, quantized.bundle.model, NO_LIMITS, {}, {})
    config = ScoreConfig(
        model=model, input=(str(tmp_path / "a.jpg"),), output=str(tmp_path / "output"), engine="openvino-int8"
    )
    with pytest.raises(ConfigError, match="train it with --int8"):
        score(config)
