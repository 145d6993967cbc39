"""The network for GPUs gives what the reference gives; how actors share a GPU; on a machine that has one, all of it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engine import assert_same, with_random_head

from bcd_ray.archives.images import Pixels
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.bundle import Model, pretrained
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.engines.cuda import CudaEngine, FoldedNetwork
from bcd_ray.model.engines.cuda import measure as measure_on_gpu
from bcd_ray.model.engines.torch import TorchEngine
from bcd_ray.model.network import softmax
from bcd_ray.model.quality import measure

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(scope="module")
def model() -> Model:
    return with_random_head(pretrained("keras"))


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    """Smears, and what shows padding and scaling best: levels and noise."""
    levels = [np.full((224, 224, 3), level, np.uint8) for level in (0, 128, 255)]
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    return [draw_smear(number % 4, number) for number in range(8)] + levels + list(noise)


@pytest.fixture(scope="module")
def expected(model: Model, images: list[Pixels]) -> Outputs:
    return TorchEngine(model.tensors, model.preprocessing).infer(images)


def assert_nearly_same(found: Outputs, expected: Outputs) -> None:
    """Half precision: off by one or two per cent, on an all black image by ten; the same class where none ties."""
    error = np.linalg.norm(found.embeddings - expected.embeddings, axis=1)
    error /= np.linalg.norm(expected.embeddings, axis=1)
    assert np.median(error) < 0.02
    assert error.max() < 0.1
    p, q = softmax(found.logits), softmax(expected.logits)
    apart = np.abs(p - q).max(axis=1)
    assert np.median(apart) < 0.02
    assert apart.max() < 0.15
    ranked = np.sort(q, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 0.15
    assert clear.sum() > len(q) // 2
    np.testing.assert_array_equal(p[clear].argmax(1), q[clear].argmax(1))


def fold(model: Model, dtype: torch.dtype, images: list[Pixels]) -> Outputs:
    network = FoldedNetwork(model.tensors, model.preprocessing, torch.device("cpu"), dtype)
    with torch.inference_mode():
        return Outputs(*(output.numpy() for output in network(torch.from_numpy(np.stack(images)))))


def test_folded_in_full_precision_the_network_gives_what_the_reference_gives(
    model: Model, images: list[Pixels], expected: Outputs
) -> None:
    assert_same(fold(model, torch.float32, images), expected)


def test_folded_in_half_precision_it_gives_nearly_the_same(
    model: Model, images: list[Pixels], expected: Outputs
) -> None:
    assert_nearly_same(fold(model, torch.float16, images), expected)


def test_padding_and_scaling_of_torchvision_are_folded_too(images: list[Pixels]) -> None:
    tensors = with_random_head(pretrained("keras")).tensors
    preprocessing = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "padding": "symmetric"}
    other = Model(dict(tensors), preprocessing)
    expected = TorchEngine(other.tensors, other.preprocessing).infer(images)
    assert_same(fold(other, torch.float32, images), expected)


def test_a_gpu_measures_what_quality_measures(images: list[Pixels]) -> None:
    found = measure_on_gpu(torch.from_numpy(np.stack(images))).numpy()
    np.testing.assert_allclose(found, measure(images), rtol=1e-6, atol=1e-6)


def test_actors_share_a_gpu(tmp_path: Path) -> None:
    """Ray is told of GPUs that are not there, and a stand-in for nvidia-smi tells their memory."""
    expected = {  # CPUs and GPUs of a machine, MiB of each GPU: actors, and threads of each
        (40, 2, "143771\n143771"): (20, 2),
        (40, 2, "143771\n15360"): (12, 3),
        (40, 2, "4096"): (4, 10),
        (40, 2, "[N/A]"): (2, 20),
        (40, 2, ""): (2, 20),
        (1, 2, "143771\n143771"): (2, 1),
    }
    program = (
        "import json, pathlib, ray\n"
        "from bcd_ray import runtime\n"
        "ray.init(num_cpus=40, num_gpus=2, include_dashboard=False, log_to_driver=False)\n"
        "(node,) = runtime._nodes(with_gpus=True)\n"
        "runtime._nodes = lambda with_gpus: [node | {'Resources': {'CPU': cpus, 'GPU': gpus}}]\n"
        f"for cpus, gpus, memory in {list(expected)!r}:\n"
        "    assert cpus == 1 or node['Resources'].items() >= {'CPU': cpus, 'GPU': gpus}.items()\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'memory').write_text(memory)\n"
        "    pool = runtime.actor_pool(on_gpu=True)\n"
        "    print(json.dumps([runtime.gpu_count(), pool.least, pool.most, pool.threads, pool.least * pool.gpus]))\n"
    )
    tell = tmp_path / "nvidia-smi"
    tell.write_text(f"#!/bin/sh\ncat {tmp_path}/memory\n")
    tell.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}", "RAY_prestart_worker_first_driver": "0"}
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=240).stdout
    found = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    for (_, gpus, _), (actors, threads), line in zip(expected, expected.values(), found, strict=True):
        assert line == [gpus, actors, actors, threads, pytest.approx(gpus)]


@needs_none
def test_a_benchmark_of_a_gpu_needs_one(tmp_path: Path) -> None:
    from bcd_ray.benchmarks.speed import compare_speed

    with pytest.raises(ConfigError, match="no GPU that torch can use"):
        compare_speed(BenchmarkConfig("speed", str(tmp_path), engine="torch-cuda"))
    assert not list(tmp_path.iterdir())


@needs_none
def test_a_gpu_that_cannot_be_used_is_told_with_a_remedy(model: Model) -> None:
    with pytest.raises(JobError, match=r"see to its driver, .* or use --engine openvino"):
        CudaEngine(model.tensors, model.preprocessing)


@needs_gpu
class TestOnAGpu:
    @pytest.fixture(scope="class")
    @staticmethod
    def engine(model: Model) -> CudaEngine:
        return CudaEngine(model.tensors, model.preprocessing)

    @pytest.mark.parametrize("count", [1, 13, 64, 65, 150])
    def test_any_number_of_images_gives_nearly_what_the_reference_gives(
        self, engine: CudaEngine, images: list[Pixels], expected: Outputs, count: int
    ) -> None:
        order = np.arange(count) % len(images)
        found = engine.infer([images[place] for place in order])
        assert_nearly_same(found, Outputs(expected.embeddings[order], expected.logits[order]))
        np.testing.assert_allclose(found.quality, measure(images)[order], rtol=1e-6, atol=1e-6)

    def test_threads_do_not_mix_their_images(self, engine: CudaEngine, images: list[Pixels], expected: Outputs) -> None:
        random = np.random.default_rng(2)
        orders = [random.integers(0, len(images), size) for size in random.integers(1, 130, 24)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda order: engine.infer([images[place] for place in order]), orders))
        for order, outputs in zip(orders, found, strict=True):
            assert_nearly_same(outputs, Outputs(expected.embeddings[order], expected.logits[order]))
