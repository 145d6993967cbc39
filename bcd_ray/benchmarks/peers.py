"""What the job is compared with, each as its documentation writes it, and the ceiling: programs of their own.

`python -m bcd_ray.benchmarks.peers NAME BUNDLE FOLDER ENGINE` scores all images of the folder and prints a line for
every batch: the clock in seconds when it was done, and the images so far. With the engine `torch-cuda` all use the GPU.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from bcd_ray.model.engines.base import EngineName
from bcd_ray.threads import in_chunks

Done = tuple[float, int]  # when a batch was done, and how many images it had
_BATCH, _CORES = 32, len(os.sched_getaffinity(0))
_PROCESSES_ON_A_GPU = 4  # one computes a batch while others copy theirs: with one an H200 did 0.85 times as many


def pytorch(bundle: str, folder: str, engine: EngineName) -> Iterator[Done]:
    """A DataLoader with a worker for each core, torchvision's transforms, the network in torch."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    steps = [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    to_tensor = transforms.Compose(steps)

    class Images(Dataset[torch.Tensor]):
        paths = sorted(Path(folder).rglob("*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            tensor: torch.Tensor = to_tensor(Image.open(self.paths[index]).convert("RGB"))
            return tensor

    device = "cuda" if engine == "torch-cuda" else "cpu"
    network = _torch_network(bundle).to(device)
    with torch.inference_mode():
        for images in DataLoader(Images(), batch_size=_BATCH, num_workers=_CORES, pin_memory=device == "cuda"):
            yield time.time(), len(network(images.to(device)).softmax(1).cpu())


def ray_pattern(bundle: str, folder: str, engine: EngineName) -> Iterator[Done]:
    """Ray Data's guide to batch inference: `read_images`, a map that scales, and actors that run the network."""
    import ray
    import torch
    from torchvision import transforms

    from bcd_ray.runtime import ray_session

    device = "cuda" if engine == "torch-cuda" else "cpu"
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": to_tensor(row["image"])}

    class Predictor:
        def __init__(self) -> None:
            self.network = _torch_network(bundle).to(device)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with torch.inference_mode():
                p = self.network(torch.as_tensor(batch["image"], device=device)).softmax(1).cpu().numpy()
            return {"p": p, "done_at": np.full(len(p), time.time())}  # blocks of many batches come back at once

    with ray_session():
        images = ray.data.read_images(folder, mode="RGB", size=(224, 224)).map(preprocess)
        pool = ray.data.ActorPoolStrategy(size=1)
        scored = images.map_batches(Predictor, batch_size=_BATCH, compute=pool, num_gpus=int(device == "cuda"))
        done_at = np.concatenate([batch["done_at"] for batch in scored.iter_batches(batch_size=None)])
    yield from zip(*np.unique(done_at, return_counts=True), strict=True)


def ceiling(bundle: str, folder: str, engine: EngineName) -> Iterator[Done]:
    """One process without Ray: the same engine, JPEGs decoded in threads, and nothing else."""
    from bcd_ray.archives.images import Decoded, Limits, decode
    from bcd_ray.model.bundle import load_bundle
    from bcd_ray.model.choice import open_engine
    from bcd_ray.threads import EngineThreads

    def score(chunk: list[bytes]) -> int:
        decoded = (decode(data, Limits()) for data in chunk)
        return len(network.infer([each.pixels for each in decoded if isinstance(each, Decoded)]).logits)

    network = open_engine(engine, load_bundle(bundle), _CORES)
    members = chain.from_iterable(map(_members, sorted(map(str, Path(folder).glob("*.tar")))))
    for count in EngineThreads(_CORES).map(score, in_chunks(members, network.chunk)):
        yield time.time(), count


def decoding(bundle: str, folder: str, engine: EngineName) -> Iterator[Done]:
    """Decoding alone, a process for each core: what no job with a faster network can exceed."""
    return _in_processes(_CORES, _decode_shard, sorted(map(str, Path(folder).glob("*.tar"))))


def _decode_shard(path: str) -> list[Done]:
    from bcd_ray.archives.images import Limits, decode

    return [(time.time(), len([decode(data, Limits()) for data in some])) for some in in_chunks(_members(path), _BATCH)]


def forward(bundle: str, images: str, engine: EngineName) -> Iterator[Done]:
    """The bare network on so many images of noise, nothing read and nothing decoded; on a GPU, in four processes."""
    if engine != "torch-cuda":
        return iter(_forward(bundle, int(images), engine, _CORES))
    share = partial(_forward, bundle, engine=engine, cores=1)
    return _in_processes(_PROCESSES_ON_A_GPU, share, repeat(int(images) // _PROCESSES_ON_A_GPU, _PROCESSES_ON_A_GPU))


def _forward(bundle: str, images: int, engine: EngineName, cores: int) -> list[Done]:
    from bcd_ray.archives.images import SIZE
    from bcd_ray.model.bundle import load_bundle
    from bcd_ray.model.choice import open_engine
    from bcd_ray.threads import EngineThreads

    network = open_engine(engine, load_bundle(bundle), cores)
    noise = list(np.random.default_rng(0).integers(0, 256, (network.chunk, SIZE, SIZE, 3), np.uint8))
    done = [(time.time(), 0)]
    for outputs in EngineThreads(cores).map(network.infer, repeat(noise, -(-images // network.chunk))):
        done.append((time.time(), len(outputs.logits)))
    return done


def _in_processes(count: int, work: Callable[[Any], list[Done]], shares: Iterable[Any]) -> Iterator[Done]:
    """What `work` gives of each share, in order of time."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        return iter(sorted(chain.from_iterable(pool.map(work, shares))))


def _members(path: str) -> Iterator[bytes]:
    """The JPEGs of a tar shard."""
    import tarfile

    with tarfile.open(path, "r|") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                yield tar.extractfile(member).read()  # type: ignore[union-attr]


def _torch_network(bundle: str) -> Any:
    """torchvision's MobileNetV2 under a head of four classes, as a user would write it."""
    import torch
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(num_classes=4)
    from bcd_ray.model.bundle import load_bundle

    tensors = dict(load_bundle(bundle).model.tensors)
    tensors["classifier.1.weight"], tensors["classifier.1.bias"] = tensors.pop("head.weight"), tensors.pop("head.bias")
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, strict=False)
    return network.eval()


_PEERS: dict[str, Callable[..., Iterator[Done]]] = {
    each.__name__: each for each in (pytorch, ray_pattern, ceiling, decoding, forward)
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    done = 0
    for when, count in _PEERS[name](*arguments):
        done += count
        print(when, done, flush=True)
