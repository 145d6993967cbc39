"""The backbone's last blocks trained further, on what the frozen blocks before them make of the images.

The frozen part is run once, by `embedding.Embedder`, and its maps are kept as embeddings are; what is trained here
starts from them. BatchNorms keep their ImageNet statistics: those of a batch would be of its days. The first pass fits
the head alone (warm-up), else the gradients of a head that knows nothing would spoil the blocks; then the blocks
follow, at a lower rate. The head that comes out is left: `head.fit_head` fits one to the new embeddings.

Ray Train's workers share every batch as in `head`, and the state is kept after each pass: when a worker dies, all begin
again at the last, and end with the weights that they would have had.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from bcd_ray.labels import CLASSES
from bcd_ray.learning.embedding import Embeddings
from bcd_ray.learning.head import FitConfig, Workers, run_with_ray_train
from bcd_ray.learning.splits import Labels, Mask
from bcd_ray.model.bundle import EMBEDDING_SIZE, LAST_SIDE, Model
from bcd_ray.model.engines.torch import Walked, as_torch
from bcd_ray.model.network import Tensors
from bcd_ray.progress import say

# Fixed before anything was measured with them: a thirtieth of the head's rate, as is usual.
_SLOWER = 1 / 30
_WORKERS = 2  # also on a machine alone: the minutes that they share are more than the seconds they take to start
_AT_A_TIME = 64  # maps of which embeddings are computed
_EPOCH, _FILE, _OF_ADAM = "epoch", "state.safetensors", ("step", "exp_avg", "exp_avg_sq")
State = dict[str, npt.NDArray[Any]]  # of a fit after a pass: values and Adam's moments by name, and the pass


@dataclass(frozen=True)
class Task:
    """What is trained on: maps (v, n, d) and labels (n,) of images in views, those `chosen` (m,), from `model` on."""

    maps: Embeddings
    labels: Labels
    chosen: Labels
    model: Model
    blocks: int
    config: FitConfig


class Unfreezer:
    """Trains the last blocks of a model, on all of the training images or on some, and embeds by them.

    Args:
        model: the pretrained one, whose `trunk(blocks)` gave the maps.
        blocks: how many of the last are trained.
        maps: (v, n, d) of the training images in v views.
        labels: (n,).
        config: of the head; the blocks are trained for as many passes, each over one view of every image.
        storage_uri: below which Ray Train's workers keep their state while they work; empty for their one machine.
    """

    def __init__(
        self, model: Model, blocks: int, maps: Embeddings, labels: Labels, config: FitConfig, storage_uri: str = ""
    ) -> None:
        self._model, self._blocks, self._maps, self._labels, self._config = model, blocks, maps, labels, config
        self._storage_uri = storage_uri
        torch.set_num_threads(
            1
        )  # where others use the cores, two threads that wait for each other take ten times as long

    def fit(self, mask: Mask | None = None) -> Model:
        """The model with its last blocks trained on the images of a mask (n,), or on all."""
        chosen = np.arange(len(self._labels)) if mask is None else np.flatnonzero(mask)
        task = Task(self._maps, self._labels, chosen, self._model, self._blocks, self._config)
        workers = _WORKERS if self._config.workers is None else self._config.workers
        say(f"training the last {self._blocks} blocks on {len(chosen):,} images")
        trained = (
            run_with_ray_train(_work, task, workers, 1, self._storage_uri)
            if workers
            else _trained(task, Workers(), None, lambda state: None)
        )
        return Model({**self._model.tensors, **trained}, self._model.preprocessing)

    def without(self, mask: Mask) -> Embeddings:
        """(v, n, 1280) of all images, by blocks that were trained on those of the mask (n,) alone."""
        return self.embed(self.fit(mask), self._maps)

    def embed(self, model: Model, maps: Embeddings) -> Embeddings:
        """(v, m, 1280) of maps (v, m, d)."""
        tail, flat = _Tail(model, self._blocks), maps.reshape(-1, maps.shape[-1])
        starts = range(0, len(flat), _AT_A_TIME)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            parts = list(pool.map(lambda start: tail.embed(flat[start : start + _AT_A_TIME]), starts))
        return np.concatenate(parts).reshape(*maps.shape[:2], EMBEDDING_SIZE)


class _Tail:
    """The last blocks of a model, and a head, in torch."""

    def __init__(self, model: Model, blocks: int) -> None:
        backbone = model.backbone
        self._first = backbone.last - blocks + 1
        names = {name for pair in backbone.layers(self._first, backbone.last) for name in pair}
        own = {name: each for name, each in model.tensors.items() if name.rpartition(".")[0] in names}
        self._tensors = as_torch(own)
        self.trained = {name: each for name, each in self._tensors.items() if ".running_" not in name}
        self._walked = Walked(self._tensors, backbone, model.preprocessing["padding"])
        sizes = {"weight": (len(CLASSES), EMBEDDING_SIZE), "bias": (len(CLASSES),)}
        self.head = {f"head.{name}": torch.zeros(size) for name, size in sizes.items()}

    def embed(self, maps: Embeddings) -> npt.NDArray[np.float32]:
        """(n, 1280) of maps (n, d)."""
        with torch.inference_mode():
            return np.asarray(self._embedded(maps).numpy())

    def loss(self, maps: Embeddings, labels: Labels, smoothing: float) -> torch.Tensor:
        """The sum over n maps (n, d) of labels (n,)."""
        logits = functional.linear(self._embedded(maps), *self.head.values())
        wanted = torch.from_numpy(labels)
        return functional.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)

    def _embedded(self, maps: Embeddings) -> torch.Tensor:
        value = torch.from_numpy(np.ascontiguousarray(maps)).reshape(len(maps), -1, LAST_SIDE, LAST_SIDE)
        # Channels last, and norms folded into their convolutions: a step takes 0.6 times as long.
        value = value.contiguous(memory_format=torch.channels_last)
        return self._walked(value, first=self._first).mean((2, 3))


class _Fit:
    """A fit of the last blocks and a head over them, as one of the workers."""

    def __init__(self, task: Task, workers: Workers) -> None:
        self._task, self._workers, self.tail = task, workers, _Tail(task.model, task.blocks)
        self._named = {**self.tail.trained, **self.tail.head}
        rate = task.config.learning_rate
        of_head = {"params": list(self.tail.head.values()), "lr": rate}
        self._adam = torch.optim.Adam([of_head, {"params": list(self.tail.trained.values()), "lr": rate * _SLOWER}])

    def go_over(self, epoch: int) -> None:
        """One pass over the images that are chosen, each in one view."""
        task, config = self._task, self._task.config
        moving = list((self.tail.head if epoch == 0 else self._named).values())
        for each in moving:
            each.requires_grad_(True)
        view = task.maps[epoch % len(task.maps)]
        order = np.random.default_rng([config.seed, epoch]).permutation(task.chosen)
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            own = batch[self._workers.rank :: self._workers.count]
            self._adam.zero_grad()
            if len(own):
                self.tail.loss(view[own], task.labels[own], config.label_smoothing).backward()  # type: ignore[no-untyped-call]
            self._add_up(moving, len(batch))
            self._adam.step()

    def _add_up(self, moving: list[torch.Tensor], images: int) -> None:
        """Make each gradient the mean over all workers' images."""
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in moving]
        total = self._workers.total(torch.cat([each.flatten() for each in parts]).numpy())
        sums = torch.split(torch.from_numpy(total) / images, [each.numel() for each in moving])
        for each, summed in zip(moving, sums, strict=True):
            each.grad = summed.reshape(each.shape)

    def state(self, epoch: int) -> State:
        """What to go on from after a pass."""
        state: State = {_EPOCH: np.array(epoch)}
        for name, each in self._named.items():
            state[f"value/{name}"] = each.detach().numpy().copy()
            state |= {f"{key}/{name}": value.numpy().copy() for key, value in self._adam.state.get(each, {}).items()}
        return state

    def restore(self, state: State) -> int:
        """Be as it was after a pass, whose number is returned."""
        for name, each in self._named.items():
            with torch.no_grad():
                each.copy_(torch.from_numpy(state[f"value/{name}"]))
            if f"step/{name}" in state:
                moments = {key: torch.from_numpy(state[f"{key}/{name}"].copy()) for key in _OF_ADAM}
                self._adam.state[each] = moments
        return int(state[_EPOCH])


def _trained(task: Task, workers: Workers, last: State | None, keep: Callable[[State], None]) -> Tensors:
    """The tensors of the blocks after all passes, or those after the `last`; `keep` is given the state after each."""
    fit = _Fit(task, workers)
    begun = fit.restore(last) + 1 if last else 0
    for epoch in range(begun, 1 + task.config.epochs):
        fit.go_over(epoch)
        keep(fit.state(epoch))
    return {name: each.detach().numpy() for name, each in fit.tail.trained.items()}


def _work(task: Task, workers: Workers) -> Tensors:
    """What each Ray Train worker runs: the first keeps the state, from which all go on."""
    from ray.train import Checkpoint, get_checkpoint, report

    torch.set_num_threads(1)

    def keep(state: State) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if workers.rank == 0:
                save_file(state, Path(folder, _FILE))
            report({_EPOCH: int(state[_EPOCH])}, Checkpoint.from_directory(folder) if workers.rank == 0 else None)

    state = None
    if kept := get_checkpoint():
        with kept.as_directory() as folder:
            state = load_file(Path(folder, _FILE))
    return _trained(task, workers, state, keep)
