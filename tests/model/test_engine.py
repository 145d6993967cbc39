"""The engine gives what the torch reference gives, batch by batch, in order; where the weights come from."""

import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from bcd_ray.archives.images import Decoded, Limits, Pixels, decode
from bcd_ray.errors import ConfigError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.bundle import EMBEDDING_SIZE, PREPROCESSING, Model, WeightsName, pretrained
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.engines.openvino import BATCH, OpenVinoEngine
from bcd_ray.model.engines.torch import SmearClassifier, torchvision_backbone
from bcd_ray.model.network import softmax

REAL_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "taleqani-all"


@lru_cache(maxsize=1)
def random_mobilenet() -> dict[str, torch.Tensor]:
    """Random tensors of torchvision's MobileNetV2, with BatchNorm statistics of smears that went through it.

    With statistics out of thin air the biases drown the image, and all images get the same embedding.
    """
    preprocessing = PREPROCESSING["torchvision"]
    smears = torch.from_numpy(np.stack([draw_smear(number % 4, 100 + number) for number in range(16)]))
    scaled = (smears - torch.tensor(preprocessing["mean"])) / torch.tensor(preprocessing["std"])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = mobilenet_v2().train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.3)
                module.momentum = None  # the statistics of all that it saw, not a moving average
        network.features(scaled.permute(0, 3, 1, 2))
    return dict(network.state_dict())


def with_random_head(model: Model) -> Model:
    random = np.random.default_rng(1)
    weight = random.normal(0, 0.1, (4, EMBEDDING_SIZE)).astype(np.float32)
    return model.with_head(weight, random.normal(0, 0.5, 4).astype(np.float32))


@pytest.fixture(scope="module", params=["keras", "efficientnet_lite0", "torchvision"])
def model(request: pytest.FixtureRequest) -> Model:
    """The packaged weights, or random ones with torchvision's scaling and padding, under a random head."""
    weights: WeightsName = request.param
    if weights != "torchvision":
        return with_random_head(pretrained(weights))
    backbone = {
        name: value.numpy()
        for name, value in random_mobilenet().items()
        if name.startswith("features.") and not name.endswith("num_batches_tracked")
    }
    return with_random_head(Model(backbone, PREPROCESSING[weights]))


@pytest.fixture(scope="module")
def engine(model: Model) -> OpenVinoEngine:
    return OpenVinoEngine(model.tensors, model.preprocessing, threads=2)


@pytest.fixture(scope="module")
def reference(model: Model) -> Callable[[Pixels], Outputs]:
    network = SmearClassifier(model.tensors, model.preprocessing)

    def run(images: Pixels) -> Outputs:
        with torch.inference_mode():
            embeddings, logits = network(torch.from_numpy(images))
        return Outputs(embeddings.numpy(), logits.numpy())

    return run


@pytest.fixture(scope="module")
def smears() -> Pixels:
    return np.stack([draw_smear(number % 4, number) for number in range(21)])


def assert_same(found: Outputs, expected: Outputs) -> None:
    assert found.embeddings.shape == expected.embeddings.shape == (len(expected.logits), EMBEDDING_SIZE)
    assert found.logits.shape == expected.logits.shape == (len(expected.logits), 4)
    assert found.embeddings.dtype == found.logits.dtype == np.float32
    error = np.linalg.norm(found.embeddings - expected.embeddings, axis=1)
    assert (error < 1e-3 * np.linalg.norm(expected.embeddings, axis=1)).all()
    assert np.abs(softmax(found.logits) - softmax(expected.logits)).max() < 1e-3
    np.testing.assert_array_equal(found.logits.argmax(1), expected.logits.argmax(1))


def test_the_engine_gives_what_torch_gives(
    engine: OpenVinoEngine, reference: Callable[[Pixels], Outputs], smears: Pixels
) -> None:
    expected = reference(smears)
    spread = np.linalg.norm(expected.embeddings - expected.embeddings.mean(0), axis=1)
    assert (spread > 0.01 * np.linalg.norm(expected.embeddings, axis=1)).all()  # images differ by far more
    assert_same(engine.infer(list(smears)), expected)


def test_extreme_pixels_give_what_torch_gives(engine: OpenVinoEngine, reference: Callable[[Pixels], Outputs]) -> None:
    """Constant images show the padding best: only the borders differ from the middle."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    images = np.concatenate([np.full((1, 224, 224, 3), level, np.uint8) for level in (0, 128, 255)])
    images = np.concatenate([images, noise])
    assert_same(engine.infer(list(images)), reference(images))


def test_real_smears_give_what_torch_gives(engine: OpenVinoEngine, reference: Callable[[Pixels], Outputs]) -> None:
    paths = [path for folder in sorted(REAL_IMAGES.glob("*/")) for path in sorted(folder.glob("*.jpg"))[:10]]
    if len(paths) < 40:
        pytest.skip("the real images are not here")
    decoded = [decode(path.read_bytes(), Limits()) for path in paths]
    images = np.stack([image.pixels for image in decoded if isinstance(image, Decoded)])
    assert len(images) == 40
    assert_same(engine.infer(list(images)), reference(images))


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1, 4 * BATCH + 1])
def test_any_number_of_images_keeps_its_order(engine: OpenVinoEngine, smears: Pixels, count: int) -> None:
    expected = engine.infer(list(smears))
    found = engine.infer(list(smears[:count]))
    np.testing.assert_allclose(found.logits, expected.logits[:count], atol=1e-4)
    np.testing.assert_allclose(found.embeddings, expected.embeddings[:count], atol=1e-4)


def test_threads_do_not_mix_their_images(engine: OpenVinoEngine, smears: Pixels) -> None:
    random = np.random.default_rng(2)
    parts = [list(smears[random.integers(0, len(smears), size)]) for size in random.integers(1, 9, 24)]
    alone = [engine.infer(part) for part in parts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(engine.infer, parts))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-4)


def test_softmax_gives_probabilities_however_large_the_logits() -> None:
    logits = np.array([[0, 0, 0, 0], [1e4, 0, 0, -1e4], [1, 2, 3, 4]], np.float32)
    expected = [[0.25] * 4, [1, 0, 0, 0], np.exp([1, 2, 3, 4]) / np.exp([1, 2, 3, 4]).sum()]
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-12)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, free_ports: Callable[[int], list[int]]) -> None:
    """Every request goes to a port of this machine that refuses it."""
    refusing = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, refusing)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use


def test_torchvision_weights_are_found_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = random_mobilenet()
    torch.save(state, cache / Path(MobileNet_V2_Weights.IMAGENET1K_V2.url).name)
    found = torchvision_backbone()
    expected = {name for name in state if name.startswith("features.") and "num_batches" not in name}
    assert set(found) == expected
    for name, value in found.items():
        np.testing.assert_array_equal(value, state[name].numpy())
    model = pretrained("torchvision")
    assert model.preprocessing == PREPROCESSING["torchvision"]
    SmearClassifier(model.tensors, model.preprocessing)  # takes exactly these tensors


def test_without_network_and_cache_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"could not be downloaded or read .*--weights keras"):
        torchvision_backbone()


def test_tensors_of_another_network_are_refused() -> None:
    tensors: dict[str, npt.NDArray[np.float32]] = dict(pretrained("keras").tensors)
    del tensors["features.18.0.weight"]
    with pytest.raises(ConfigError, match="not those of a MobileNetV2"):
        SmearClassifier(tensors, PREPROCESSING["keras"])
