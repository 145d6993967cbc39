"""The dense softmax head, fitted on embeddings with Adam and cross-entropy.

On a cluster Ray Train's TorchTrainer fits it, with `workers` 1 and more everywhere; on a machine alone, where the job
starts Ray itself, the job's own process does, which saves the 20 s that two more workers take to start.

Every worker takes its share of every batch, and the gradients are summed over the batch: the number of workers
changes the order of additions and nothing else. No row is dropped (Ray Train's own split of a dataset drops the
remainder).
"""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from bcd_ray import own_ray, storage
from bcd_ray.labels import CLASSES
from bcd_ray.learning.config import FitOptions
from bcd_ray.learning.embedding import Embeddings
from bcd_ray.learning.splits import Labels
from bcd_ray.model.bundle import compared_size
from bcd_ray.model.network import softmax
from bcd_ray.progress import say
from bcd_ray.runtime import on_cluster, ray_session, say_if_taken

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
Floats = npt.NDArray[np.floating[Any]]
_SPREAD = 0.2  # of each number where they are scaled alike: with 1 the head learns days by heart, 0.1 to 0.3 do alike
_CPUS = 0.5  # of a Ray Train worker
_WORKERS_ON_A_CLUSTER = 2
_TRIES_AGAIN = 2  # where a worker or its node dies; each begins anew, which costs seconds


@dataclass(frozen=True)
class FitConfig:
    """How the head is fitted; `workers` 0 fits in this process, None lets the place decide (see `fit_head`)."""

    epochs: int
    learning_rate: float
    label_smoothing: float
    batch_size: int
    workers: int | None
    seed: int
    balanced: bool = False  # numbers of an embedding scaled alike, classes weighted alike, small groups more: for cells
    compared: int | None = None  # of an embedding's numbers the first ones, by which triage compares images; None: all

    @classmethod
    def of(cls, options: FitOptions, workers: int | None, seed: int) -> Self:
        """As a job's options say."""
        return cls(
            options.epochs,
            options.learning_rate,
            options.label_smoothing,
            options.batch_size,
            workers,
            seed,
            balanced=options.representation != "field",
            compared=compared_size(options.representation),
        )


@dataclass(frozen=True)
class Parts:
    """What a head is fitted on and measured on.

    Attributes:
        train: (v, n, d), the n training images in v views; an epoch goes once through every view of every image.
        train_labels: (n,).
        held_out: (m, d), measured after each epoch, never trained on.
        held_out_labels: (m,).
        groups: (n,) of the training images, or None where nobody knows.
    """

    train: Embeddings
    train_labels: Labels
    held_out: Embeddings
    held_out_labels: Labels
    groups: Labels | None = None


@dataclass(frozen=True)
class FittedHead:
    """Weight (4, d), bias (4,), and a row per epoch: its number, loss and accuracy of both parts; none by `fit`."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    history: list[dict[str, float]]

    def logits(self, embeddings: Embeddings) -> npt.NDArray[np.float32]:
        """(n, 4) of embeddings (n, d)."""
        return embeddings @ self.weight.T + self.bias


def fit_head(parts: Parts, config: FitConfig) -> FittedHead:
    """Fit the head with Ray Train, or, with the same result, in this process."""
    workers = count_of_workers(config)
    if not workers:
        say("fitting the head in this process (--workers 1 and more: with Ray Train, as on a cluster)")
        return fit_measured(parts, config)
    return _fit_with_ray_train(parts, config, workers)


def count_of_workers(config: FitConfig) -> int:
    """How many Ray Train workers fit; 0 for this process alone."""
    if config.workers is None:
        return _WORKERS_ON_A_CLUSTER if on_cluster() else 0
    return config.workers


def _fit_with_ray_train(parts: Parts, config: FitConfig, workers: int) -> FittedHead:
    return run_with_ray_train(_fit_as_worker, (parts, config), workers, _CPUS)


def _fit_as_worker(given: tuple[Parts, FitConfig], workers: "Workers") -> FittedHead:
    return fit_measured(*given, workers)


def run_with_ray_train(
    work: Callable[[_Given, "Workers"], _Found], given: _Given, wanted: int, cpus: float, storage_uri: str = ""
) -> _Found:
    """What `work` makes of what is given, as the first of `wanted` workers, each with so many cores, returns it.

    Where a worker or its node dies all begin again: anew, or, where what they report is kept below a URI that all can
    reach, at what they last reported.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    lean = nullcontext if on_cluster() else own_ray.lean_train
    with ray_session(), lean(), _scratch(storage_uri) as (filesystem, folder):
        workers = min(wanted, max(1, int(ray.cluster_resources().get("CPU", 0) / cpus)))
        if workers < wanted:  # Ray Train would wait for more cores, for ever and without a word
            say(f"the cluster has cores for {workers} of {wanted} workers: they do the same alone")
        say(f"fitting with Ray Train's TorchTrainer, {workers} workers")
        say_if_taken(CPU=workers * cpus)
        again = FailureConfig(max_failures=_TRIES_AGAIN, controller_failure_limit=_TRIES_AGAIN)
        name = Path(folder).name
        trainer = TorchTrainer(
            _as_worker,
            train_loop_config={"given": ray.put(given), "work": work},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus}),
            run_config=RunConfig(name, storage_path=folder, storage_filesystem=filesystem, failure_config=again),
        )
        found: _Found = trainer.fit().return_value
    return found


@contextmanager
def _scratch(uri: str) -> Iterator[tuple[Any, str]]:
    """A fresh folder: Ray Train keeps its bookkeeping there, and resumes a run of the same name.

    On this machine, or below a URI, with the Arrow file system that it is in.
    """
    if not uri:
        with tempfile.TemporaryDirectory(prefix="bcd_ray_train_", ignore_cleanup_errors=True) as folder:
            yield None, folder
        return
    filesystem, folder = storage.arrow_filesystem(storage.join(uri, f"bcd_ray_train_{uuid.uuid4().hex}"))
    try:
        yield filesystem, folder
    finally:
        with suppress(OSError):
            filesystem.delete_dir(folder)


def _as_worker(config: dict[str, Any]) -> Any:
    """What each Ray Train worker runs."""
    import ray
    import torch
    import torch.distributed
    from ray.train import get_context

    def over_workers(values: Floats) -> Floats:
        total = torch.from_numpy(values)
        torch.distributed.all_reduce(total)
        return np.asarray(total.numpy())

    context = get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size(), over_workers)
    return config["work"](ray.get(config["given"]), workers)


@dataclass(frozen=True)
class Workers:
    """This worker's rank among `count`, and how to add an array up over all of them."""

    rank: int = 0
    count: int = 1
    total: Callable[[Floats], Floats] = lambda values: values


_ALONE = Workers()


def fit(views: Embeddings, labels: Labels, config: FitConfig, groups: Labels | None = None) -> FittedHead:
    """Fit the head in this process on n images in v views (v, n, d) of labels and groups (n,), measuring nothing."""
    rows = _Rows(views, labels, groups, config)
    *_, layer = _epochs(rows, config, _ALONE)
    return rows.fitted(layer, [])


def fit_measured(parts: Parts, config: FitConfig, workers: Workers = _ALONE) -> FittedHead:
    """Fit the head in this process, as one of the workers, and measure it after each epoch."""
    rows = _Rows(parts.train, parts.train_labels, parts.groups, config)
    held_out, history = rows.scaled(parts.held_out), []
    for epoch, layer in enumerate(_epochs(rows, config, workers), start=1):
        of_train = _measured("train", layer, rows.features, rows.labels, workers)
        of_held_out = _measured("held_out", layer, held_out, parts.held_out_labels, workers)
        history.append({"epoch": epoch, **of_train, **of_held_out})
    return rows.fitted(layer, history)


class _Rows:
    """Every view of every training image as a row: features (n, d), labels (n,) and, if balanced, weights (n,)."""

    def __init__(self, views: Embeddings, labels: Labels, groups: Labels | None, config: FitConfig) -> None:
        self.features, self.labels = views.reshape(-1, views.shape[-1]), np.tile(labels, len(views))
        self.weights: Floats | None = None
        self._scaling: tuple[Floats, Floats] | None = None
        if config.balanced:
            self.weights = np.tile(balanced_weights(labels, groups), len(views))
            deviation = self.features.std(axis=0) + np.float32(1e-6)
            self._scaling = self.features.mean(axis=0), np.float32(_SPREAD) / deviation
            self.features = self.scaled(self.features)

    def scaled(self, features: Embeddings) -> Embeddings:
        """Features (m, d) as the head sees them while it is fitted."""
        if self._scaling is None:
            return features
        return np.asarray((features - self._scaling[0]) * self._scaling[1], np.float32)

    def fitted(self, layer: Floats, history: list[dict[str, float]]) -> FittedHead:
        """The head of a layer (4, d + 1), for features as they are."""
        weight, bias = layer[:, :-1].copy(), layer[:, -1].copy()
        if self._scaling is not None:
            weight = weight * self._scaling[1]
            bias = bias - weight @ self._scaling[0]
        return FittedHead(weight.astype(np.float32), bias.astype(np.float32), history)


def balanced_weights(labels: Labels, groups: Labels | None) -> Floats:
    """(n,) how much each image counts: 1 in the mean, each class as much, a group by the square root of its images.

    So the largest sitting of a class does not drown the others.
    """
    weights = np.zeros(len(labels), np.float32)
    for label in np.unique(labels):
        own = labels == label
        _, member, sizes = np.unique(
            labels[own] if groups is None else groups[own], return_inverse=True, return_counts=True
        )
        weights[own] = 1 / np.sqrt(sizes[member])
        weights[own] /= weights[own].sum()
    return np.asarray(weights / weights.mean(), np.float32)


def _epochs(rows: _Rows, config: FitConfig, workers: Workers) -> Iterator[Floats]:
    """After each epoch over n rows the layer (4, d + 1), one array, its bias in the last column.

    In numpy: the gradient of a softmax layer is a line, and torch takes 3 s to import and twice as long for a step.
    """
    train, labels = rows.features, rows.labels
    targets = np.eye(len(CLASSES)) * (1 - config.label_smoothing) + config.label_smoothing / len(CLASSES)
    # From zero, not at random: what the training images do not span stays out of the answer for others.
    layer = np.zeros((len(CLASSES), train.shape[1] + 1), np.float32)
    adam = _Adam(layer.shape, config.learning_rate)
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            own = batch[workers.rank :: workers.count]
            images = train[own]
            error = (softmax(_logits(layer, images)) - targets[labels[own]]).astype(np.float32)
            if rows.weights is not None:
                error *= rows.weights[own, None]
            gradient = np.concatenate([error.T @ images, error.sum(axis=0)[:, None]], axis=1)
            layer -= adam.step(workers.total(gradient) / len(batch))
        yield layer


def _measured(part: str, layer: Floats, images: Embeddings, labels: Labels, workers: Workers) -> dict[str, float]:
    """Mean loss and accuracy over all workers' shares of a part."""
    own = slice(workers.rank, None, workers.count)
    logits, own_labels = _logits(layer, images[own]).astype(np.float64), labels[own]
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), own_labels]
    sums = np.array([losses.sum(), (logits.argmax(axis=1) == own_labels).sum()], np.float64)
    loss, accuracy = (workers.total(sums) / len(labels)).tolist()
    return {f"{part}_loss": loss, f"{part}_accuracy": accuracy}


def _logits(layer: Floats, images: Embeddings) -> Floats:
    return np.asarray(images @ layer[:, :-1].T + layer[:, -1])


class _Adam:
    """Adam with its authors' settings (D. Kingma and J. Ba, ICLR 2015, algorithm 1)."""

    def __init__(self, shape: tuple[int, ...], learning_rate: float) -> None:
        self._rate, self._steps = learning_rate, 0
        self._mean, self._square = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def step(self, gradient: Floats) -> Floats:
        """What to subtract from the parameters."""
        self._steps += 1
        self._mean += (1 - 0.9) * (gradient - self._mean)
        self._square += (1 - 0.999) * (gradient * gradient - self._square)
        mean, square = self._mean / (1 - 0.9**self._steps), self._square / (1 - 0.999**self._steps)
        return np.asarray(self._rate * mean / (np.sqrt(square) + 1e-8))
