"""The dense softmax head, fitted on embeddings with Adam and cross-entropy by Ray Train.

Every worker takes its share of every batch, and the gradients are summed over the batch: the number of workers
changes the order of additions and nothing else. No row is dropped (Ray Train's own split of a dataset drops the
remainder).
"""

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.embedding import Embeddings
from bcd_ray.labels import CLASSES
from bcd_ray.runtime import ray_session
from bcd_ray.splits import Labels


@dataclass(frozen=True)
class FitConfig:
    """How the head is fitted; `workers` 0 fits in this process."""

    epochs: int
    learning_rate: float
    label_smoothing: float
    batch_size: int
    workers: int
    seed: int


@dataclass(frozen=True)
class Parts:
    """What a head is fitted on and measured on.

    Attributes:
        train: (v, n, 1280), the n training images in v views; an epoch goes once through every view of every image.
        train_labels: (n,).
        held_out: (m, 1280), measured after each epoch, never trained on.
        held_out_labels: (m,).
    """

    train: Embeddings
    train_labels: Labels
    held_out: Embeddings
    held_out_labels: Labels


@dataclass(frozen=True)
class FittedHead:
    """Weight (4, 1280), bias (4,), and a row per epoch: its number, loss and accuracy of both parts."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    history: list[dict[str, float]]

    def logits(self, embeddings: Embeddings) -> npt.NDArray[np.float32]:
        """(n, 4) of embeddings (n, 1280)."""
        return embeddings @ self.weight.T + self.bias


def fit_head(parts: Parts, config: FitConfig) -> FittedHead:
    """Fit the head with Ray Train."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what fails is raised too
    # Ray Train keeps its bookkeeping here and resumes a run of the same name: a fresh folder for each.
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="bcd_ray_train_", ignore_cleanup_errors=True))
        if config.workers:  # without them Ray Train fits in this process, and Ray need not run
            stack.enter_context(ray_session())
        trainer = TorchTrainer(
            _fit_worker,
            train_loop_config={"parts": ray.put(parts) if config.workers else parts, "config": config},
            scaling_config=ScalingConfig(num_workers=config.workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(name=Path(scratch).name, storage_path=scratch),
        )
        fitted: FittedHead = trainer.fit().return_value
    return fitted


def _fit_worker(given: dict[str, Any]) -> FittedHead:
    """What each Ray Train worker runs."""
    import ray
    from ray.train import get_context

    parts = ray.get(given["parts"]) if isinstance(given["parts"], ray.ObjectRef) else given["parts"]
    rank, workers = get_context().get_world_rank(), get_context().get_world_size()
    return fit(parts, given["config"], rank, workers)


def fit(parts: Parts, config: FitConfig, rank: int = 0, workers: int = 1) -> FittedHead:
    """Fit the head, as worker `rank` of `workers`, whose gradients are summed over torch's process group."""
    import torch
    import torch.distributed as distributed

    torch.set_num_threads(1)  # on matrices as small as these two threads wait for each other: 60 s instead of 1.5
    train, held_out = (torch.from_numpy(np.array(part)) for part in (parts.train.reshape(-1, 1280), parts.held_out))
    train_labels = torch.from_numpy(parts.train_labels).repeat(len(parts.train))
    held_out_labels = torch.from_numpy(parts.held_out_labels)
    smoothed = torch.eye(len(CLASSES)) * (1 - config.label_smoothing) + config.label_smoothing / len(CLASSES)
    head = torch.nn.Linear(1280, len(CLASSES))
    # From zero, not at random: what the training images do not span stays out of the answer for others.
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(head.parameters(), lr=config.learning_rate, fused=True)
    history = []
    for epoch in range(config.epochs):
        order = torch.from_numpy(np.random.default_rng([config.seed, epoch]).permutation(len(train)))
        for batch in torch.split(order, config.batch_size):
            own = batch[rank::workers]
            gradients = _gradients(head, train[own], smoothed[train_labels[own]])
            for parameter, gradient in zip(head.parameters(), gradients, strict=True):
                if workers > 1:
                    distributed.all_reduce(gradient)
                parameter.grad = gradient / len(batch)
            optimizer.step()
        row: dict[str, float] = {"epoch": epoch + 1}
        for part, images, labels in (("train", train, train_labels), ("held_out", held_out, held_out_labels)):
            loss_mean, accuracy = _measure(head, images[rank::workers], labels[rank::workers], len(labels))
            row |= {f"{part}_loss": loss_mean, f"{part}_accuracy": accuracy}
        history.append(row)
    return FittedHead(head.weight.detach().numpy(), head.bias.detach().numpy(), history)


def _gradients(head: Any, images: Any, targets: Any) -> tuple[Any, Any]:
    """Of the summed cross-entropy, for weight and bias; autograd takes three times as long for them."""
    import torch

    with torch.no_grad():
        error = head(images).softmax(1) - targets
        return error.T @ images, error.sum(0)


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
