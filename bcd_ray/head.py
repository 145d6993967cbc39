"""The dense softmax head, fitted on embeddings with Adam and cross-entropy by Ray Train.

Every worker takes its share of every batch, and the gradients are summed over the batch: the number of workers
changes the order of additions and nothing else. No row is dropped (Ray Train's own split of a dataset drops the
remainder).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.dataset import Labels
from bcd_ray.embedding import Embeddings
from bcd_ray.labels import CLASSES


@dataclass(frozen=True)
class FitConfig:
    """How the head is fitted; `workers` 0 fits in this process."""

    epochs: int
    learning_rate: float
    batch_size: int
    workers: int
    seed: int


@dataclass(frozen=True)
class FittedHead:
    """Weight (4, 1280), bias (4,), and a row per epoch: its number, loss and accuracy of both parts."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    history: list[dict[str, float]]

    def logits(self, embeddings: Embeddings) -> npt.NDArray[np.float32]:
        """(n, 4) of embeddings (n, 1280)."""
        return embeddings @ self.weight.T + self.bias


def fit_head(
    train: Embeddings, train_labels: Labels, held_out: Embeddings, held_out_labels: Labels, config: FitConfig
) -> FittedHead:
    """Fit the head.

    Args:
        train: (v, n, 1280), the n training images in v views; an epoch goes once through every view of every image.
        train_labels: (n,).
        held_out: (m, 1280), measured after each epoch, never trained on; and their labels (m,).
        config: see `FitConfig`.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    arrays = {"train": ray.put(train), "held_out": ray.put(held_out)}
    # Ray Train keeps its bookkeeping here and resumes a run of the same name: a fresh folder for each.
    with tempfile.TemporaryDirectory(prefix="bcd_ray_train_", ignore_cleanup_errors=True) as scratch:
        trainer = TorchTrainer(
            _fit_worker,
            train_loop_config={
                "config": config,
                "arrays": arrays,
                "train_labels": train_labels,
                "held_out_labels": held_out_labels,
            },
            scaling_config=ScalingConfig(num_workers=config.workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(name=Path(scratch).name, storage_path=scratch),
        )
        fitted: FittedHead = trainer.fit().return_value
    return fitted


def _fit_worker(given: dict[str, Any]) -> FittedHead:
    """What each Ray Train worker runs."""
    import ray
    import torch
    from ray.train import get_context
    from ray.train.torch import prepare_model

    config: FitConfig = given["config"]
    train, held_out = (torch.from_numpy(np.array(ray.get(given["arrays"][name]))) for name in ("train", "held_out"))
    train_labels, held_out_labels = (torch.from_numpy(given[f"{name}_labels"]) for name in ("train", "held_out"))
    train_labels, train = train_labels.repeat(len(train)), train.flatten(0, 1)
    rank, workers = get_context().get_world_rank(), get_context().get_world_size()
    head = _initial_head(config.seed)
    model = prepare_model(head, move_to_device=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    history = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            own = torch.from_numpy(batch[rank::workers])
            # The mean over the whole batch: each worker's sum, times the workers that torch will average over.
            loss = torch.nn.functional.cross_entropy(model(train[own]), train_labels[own], reduction="sum")
            optimizer.zero_grad()
            (loss * workers / len(batch)).backward()
            optimizer.step()
        row: dict[str, float] = {"epoch": epoch + 1}
        for part, images, labels in (("train", train, train_labels), ("held_out", held_out, held_out_labels)):
            loss_mean, accuracy = _measure(head, images[rank::workers], labels[rank::workers], len(labels))
            row |= {f"{part}_loss": loss_mean, f"{part}_accuracy": accuracy}
        history.append(row)
    return FittedHead(head.weight.detach().numpy(), head.bias.detach().numpy(), history)


def _initial_head(seed: int) -> Any:
    """A dense layer as Keras starts one: Glorot uniform (Glorot and Bengio, AISTATS 2010), zero bias."""
    import torch

    head = torch.nn.Linear(1280, len(CLASSES))
    torch.nn.init.xavier_uniform_(head.weight, generator=torch.Generator().manual_seed(seed))
    torch.nn.init.zeros_(head.bias)
    return head


def _measure(head: Any, images: Any, labels: Any, total: int) -> tuple[float, float]:
    """Mean loss and accuracy over all workers' shares of `total` images."""
    import torch
    import torch.distributed as distributed

    with torch.no_grad():
        logits = head(images)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").double()
        sums = torch.stack([loss, (logits.argmax(1) == labels).sum().double()])
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return float(sums[0] / total), float(sums[1] / total)
