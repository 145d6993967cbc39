"""The last blocks trained further: over workers as alone, resumed as if nothing had died, followed by what scores."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bcd_ray import storage
from bcd_ray.errors import ConfigError
from bcd_ray.learning import unfreezing
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.dataset import list_labelled, read_pixels
from bcd_ray.learning.head import FitConfig, Floats, Workers, run_with_ray_train
from bcd_ray.learning.job import train
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.learning.unfreezing import Task, Unfreezer
from bcd_ray.model.bundle import Model, load_bundle, pretrained
from bcd_ray.model.choice import open_engine
from bcd_ray.model.engines.openvino import OpenVinoEngine
from bcd_ray.model.heatmap import class_activation
from bcd_ray.model.network import Tensors

CONFIG = FitConfig(epochs=2, learning_rate=0.003, label_smoothing=0.1, batch_size=8, workers=0, seed=0)
IMAGES = [draw_smear(number % 4, number) for number in range(22)]
LABELS = np.arange(22) % 4


def task_of(model: Model, blocks: int) -> Task:
    trunk = model.trunk(blocks)
    maps = OpenVinoEngine(trunk.tensors, trunk.preprocessing, threads=2).infer(IMAGES).embeddings
    return Task(maps[None], LABELS, np.arange(len(LABELS)), model, blocks, CONFIG)


@pytest.fixture(scope="module")
def task() -> Task:
    return task_of(pretrained("keras"), 2)


def in_two_threads(task: Task) -> Tensors:
    """What two workers do that nothing befalls."""
    barrier, given = threading.Barrier(2), dict[int, Floats]()
    found = dict[int, Tensors]()

    def work(rank: int) -> None:
        def total(values: Floats) -> Floats:
            given[rank] = values.copy()
            barrier.wait()
            both = given[0] + given[1]
            barrier.wait()
            return both

        found[rank] = unfreezing._trained(task, Workers(rank, 2, total), None, lambda state: None)

    torch.set_num_threads(1)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    return found[0]


def dies_once(marker: Path, states: str) -> Callable[[Task, Workers], Tensors]:
    """What a worker runs, the second of which is killed in its last pass, once, when the state before it is kept."""

    def work(task: Task, workers: Workers) -> Tensors:
        import os
        import signal
        import time

        from bcd_ray import storage
        from bcd_ray.learning import unfreezing

        def go_over(self: unfreezing._Fit, epoch: int) -> None:
            if epoch == task.config.epochs and workers.rank == 1 and not marker.exists():
                while not any("snapshot" in name for name in storage.list_names(states)):
                    time.sleep(0.1)
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            (marker.parent / f"pass-{epoch}-of-{workers.rank}-{marker.exists()}").touch()
            kept(self, epoch)

        kept, unfreezing._Fit.go_over = unfreezing._Fit.go_over, go_over  # type: ignore[method-assign]
        return unfreezing._work(task, workers)

    return work


def test_a_worker_that_is_killed_changes_nothing(task: Task, s3: str, ray_cluster: None, tmp_path: Path) -> None:
    found = run_with_ray_train(dies_once(tmp_path / "killed", f"{s3}/states"), task, 2, 0.5, f"{s3}/states")
    expected = in_two_threads(task)
    again = {path.name for path in tmp_path.glob("pass-*-True")}
    assert f"pass-{CONFIG.epochs}-of-1-True" in again
    assert "pass-0-of-1-True" not in again  # it went on, and not from the beginning
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6)
    with pytest.raises(storage.NotFoundError):
        list(storage.list_objects(f"{s3}/states"))


@pytest.mark.parametrize("weights", ["keras", "efficientnet_lite0"])
def test_maps_and_the_last_blocks_are_the_whole_network(weights: str) -> None:
    model = pretrained(weights)  # type: ignore[arg-type]
    task = task_of(model, 4)
    unfreezer = Unfreezer(model, 4, task.maps, LABELS, CONFIG)
    whole = OpenVinoEngine(model.tensors, model.preprocessing, threads=2).infer(IMAGES).embeddings
    np.testing.assert_allclose(unfreezer.embed(model, task.maps)[0], whole, atol=1e-3 * np.abs(whole).max())
    trained = unfreezer.fit()
    changed = {name for name, each in trained.tensors.items() if not np.array_equal(each, model.tensors[name])}
    blocks = {name for pair in model.backbone.layers(model.backbone.last - 3, model.backbone.last) for name in pair}
    assert {name.rpartition(".")[0] for name in changed} == blocks
    assert not any(".running_" in name for name in changed)
    whole = OpenVinoEngine(trained.tensors, trained.preprocessing, threads=2).infer(IMAGES).embeddings
    np.testing.assert_allclose(unfreezer.embed(trained, task.maps)[0], whole, atol=1e-3 * np.abs(whole).max())


def test_what_was_trained_is_what_scores(ray_cluster: None, synthetic_archive: Path, tmp_path: Path) -> None:
    options = {"representation": "field", "augmented_views": 1, "epochs": 2, "workers": 0, "audit": False}
    metrics = train(TrainConfig(str(synthetic_archive), str(tmp_path / "model"), unfreeze=1, **options))
    assert metrics["accuracy"] > 0.7
    assert "but for the last 1 blocks" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    bundle = load_bundle(str(tmp_path / "model"))
    last = "features.18.0.weight"
    assert not np.array_equal(bundle.model.tensors[last], pretrained("keras").tensors[last])
    tested = [image for image in list_labelled(str(synthetic_archive)) if image.name in metrics["split"]["test"]]
    pixels = [read_pixels(image) for image in tested]
    logits = open_engine("openvino", bundle, threads=2).infer(pixels).logits
    right = logits.argmax(axis=1) == [image.label for image in tested]
    assert right.mean() == pytest.approx(metrics["accuracy"])
    maps = next(class_activation(bundle.model, [np.stack(pixels)]))
    np.testing.assert_allclose(maps.mean(axis=(2, 3)) + bundle.model.tensors["head.bias"], logits, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"unfreeze": 5}, "--unfreeze must be at most 4"),
        ({"unfreeze": -1}, "--unfreeze must be at least 0"),
        ({"unfreeze": 1}, "--unfreeze goes with --representation field"),
    ],
)
def test_what_cannot_be_unfrozen_is_refused(options: dict[str, object], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        TrainConfig(data="d", output="o", **options)  # type: ignore[arg-type]
