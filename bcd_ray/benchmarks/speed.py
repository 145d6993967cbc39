"""Images a second of the job, of what others would write, and of the engine alone: in turn, on the same images."""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.dataset as ds
from PIL import Image

from bcd_ray import storage
from bcd_ray.archives.config import PackConfig
from bcd_ray.archives.images import Decoded, Limits, decode
from bcd_ray.archives.packing import pack
from bcd_ray.archives.shards import read_shard
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import Usage, run_program, steady_rate
from bcd_ray.errors import ConfigError
from bcd_ray.learning.dataset import LabelledImage, list_labelled, read_pixels
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.model.bundle import Model, Representation, load_bundle, pretrained, save_bundle
from bcd_ray.model.choice import open_engine, open_on_cpus
from bcd_ray.model.engines.base import EngineName
from bcd_ray.model.triage import Triage
from bcd_ray.progress import one_line, say
from bcd_ray.scoring.worker import UnitScorer

# What glibc frees it keeps, so that the next batch finds its pages: 2.5 times the speed of the PyTorch loop.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
_JOB = Path(__file__).parents[2] / "jobs" / "score.py"
_LOOKS = ("Benign", "Early", "Pre", "Pro")
_TRAINED_ON = 256  # images


@dataclass(frozen=True)
class Bench:
    """The same images as loose files and as tar shards, and a model."""

    folder: Path
    images: int
    engine: EngineName
    representation: Representation = "field"

    @property
    def loose(self) -> str:
        return str(self.folder / "loose")

    @property
    def loose_for_peers(self) -> str:
        return str(self.folder / "loose_for_peers")

    @property
    def shards(self) -> str:
        return str(self.folder / "shards")

    @property
    def model(self) -> str:
        return str(self.folder / self.representation)


def compare_speed(config: BenchmarkConfig) -> dict[str, Any]:
    """Run each program once a round, and write `speed.json` and `speed.png` to the output."""
    with bench(config) as made:
        programs = _programs(made) | (_peers(made) if config.peers else {})
        if config.s3:
            on_s3 = pack_on_s3(made, config)
            programs["job, shards on S3"] = lambda: run_job(made, on_s3)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for number in range(1, config.rounds + 1):
            for name, program in programs.items():
                runs[name].append(program())
                one = runs[name][-1]
                say(f"round {number}  {name:32} {one['steady']:6.1f} images/s steady, {one['whole']:6.1f} as a whole")
        found = {
            "images": made.images,
            **circumstances(config),
            "programs": {name: _summary(of, runs["job"]) for name, of in runs.items()},
            "runs": runs,
            "core_milliseconds_an_image": stages(made),
        }
    write_found(config.output, "speed", found, _plot)
    return found


def pack_on_s3(made: Bench, config: BenchmarkConfig) -> str:
    """Pack the images below `config.s3` too, into a folder of their own, and return its URI."""
    uri = storage.join(config.s3, uuid4().hex)
    pack(PackConfig(made.loose, uri, images_per_shard=config.images_per_shard))
    return uri


def circumstances(config: BenchmarkConfig) -> dict[str, Any]:
    """On what was measured."""
    source = config.data or f"synthetic, {config.image_width}x{config.image_height}"
    return {"source": source, "engine": config.engine, "cores": len(os.sched_getaffinity(0))}


def write_found(output: str, name: str, found: dict[str, Any], plot: Callable[[dict[str, Any], Path], None]) -> None:
    """Write what was found as NAME.json and as a plot, NAME.png, below a folder."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(found, folder / f"{name}.png")


@contextmanager
def bench(config: BenchmarkConfig) -> Iterator[Bench]:
    """Draw or link the images, pack them, and make a model; all is deleted at the end.

    Raises:
        ConfigError: the engine needs a GPU, and this machine has none.
    """
    if config.engine == "torch-cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--engine torch-cuda: this machine has no GPU that torch can use: measure another engine")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loose = folder / "loose"
        if config.data:
            _link(config.data, loose, config.images)
        else:
            _draw(loose, config)
        pack(PackConfig(str(loose), str(folder / "shards"), images_per_shard=config.images_per_shard))
        made = Bench(folder, config.images, config.engine, config.representation)
        _link(made.loose, Path(made.loose_for_peers), config.peer_images or config.images)
        images = list_labelled(str(loose))[:: max(1, config.images // _TRAINED_ON)]
        for each in {made, replace(made, representation="field")}:
            _save_model(each, images)
        yield made


def _save_model(made: Bench, images: list[LabelledImage]) -> None:
    """Write a model of some labelled images, as sure of the others as one is."""
    model, logits = _trained(made.representation, images)
    int8 = None
    if made.engine == "openvino-int8":
        from bcd_ray.learning.quantization import quantize

        int8 = quantize(model, images, logits)
    save_bundle(made.model, model, Triage.without_limits(model.embedding_size), {}, {}, int8)


def _trained(what: Representation, images: list[LabelledImage]) -> tuple[Model, npt.NDArray[np.float32]]:
    """A model of labelled images, and its logits (n, 4) of them."""
    backbone, labels = pretrained("keras", what), np.array([image.label for image in images])
    engine = open_on_cpus(backbone, len(os.sched_getaffinity(0)))
    embeddings = engine.infer([read_pixels(image) for image in images]).embeddings
    head = fit(embeddings[None], labels, FitConfig(25, 0.003, 0.1, 32, workers=0, seed=0, balanced=what != "field"))
    return backbone.with_head(head.weight, head.bias), head.logits(embeddings)


def stages(made: Bench) -> dict[str, float]:
    """Processor milliseconds for each image, stage by stage, each alone in one process."""
    bundle, shards = load_bundle(made.model), list(storage.list_objects(made.shards))[:4]
    threads = len(os.sched_getaffinity(0))
    engine = open_engine(made.engine, bundle, threads)
    entries, read = _timed(lambda: [entry for shard in shards for entry in read_shard(shard, Limits())])
    data = [entry.content for entry in entries if isinstance(entry.content, bytes)]
    decoded, decoding = _timed(lambda: [decode(one, Limits()) for one in data])
    pixels = [image.pixels for image in decoded if isinstance(image, Decoded)]
    _, network = _timed(lambda: engine.infer(pixels))
    with tempfile.TemporaryDirectory() as output:
        ledger = Ledger(output)
        units = ledger.plan(shards, {}).units
        scorer = UnitScorer(bundle, made.engine, ledger, Limits(), threads, None, keep=False)

        _, all_stages = _timed(lambda: [scorer.score(unit) for unit in units])
    seconds = {"read": read, "decode": decoding, "network": network}
    seconds["rows, digests, writing and threads"] = max(0.0, all_stages - sum(seconds.values()))
    return {name: 1000 * value / len(data) for name, value in seconds.items()}


def _programs(made: Bench) -> dict[str, Callable[[], dict[str, float]]]:
    job = {"job": lambda: run_job(made, made.shards)}
    if made.engine == "torch-cuda":  # one process in Python cannot decode for a GPU: two ceilings in place of one
        decoding, network = _peer(made, "decoding", made.shards), _peer(made, "forward", made.images)
        return {**job, "decoding alone": decoding, "network alone": network}
    return {**job, "ceiling": _peer(made, "ceiling", made.shards)}


def _peers(made: Bench) -> dict[str, Callable[[], dict[str, float]]]:
    return {
        "PyTorch loop": _peer(made, "pytorch", made.loose_for_peers),
        "PyTorch loop, malloc tuned": _peer(made, "pytorch", made.loose_for_peers, **_MALLOC),
        "Ray's pattern": _peer(made, "ray_pattern", made.loose_for_peers),
        "Ray's pattern, malloc tuned": _peer(made, "ray_pattern", made.loose_for_peers, **_MALLOC),
    }


def _peer(made: Bench, name: str, of: str | int, **environment: str) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        output, usage = run_program(peer_command(made, name, of), environment)
        return figures(marks_in(output), usage)

    return run


def peer_command(made: Bench, name: str, of: str | int) -> list[str]:
    """The command of a program of `peers`, which prints its `marks_in`."""
    return [sys.executable, "-m", "bcd_ray.benchmarks.peers", name, made.model, str(of), made.engine]


def marks_in(output: str) -> list[tuple[float, int]]:
    """The clock, and the images done by then, in each line that a program of `peers` printed."""
    return [(float(when), int(done)) for when, done in (line.split() for line in output.splitlines())]


def run_job(made: Bench, shards: str, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """The figures of one run of jobs/score.py; the time of each unit's rows is in its rows."""
    with tempfile.TemporaryDirectory() as output:
        usage = run_program(job_command(made, shards, output), environment or {})[1]
        return figures(marks_of_job(output), usage)


def job_command(made: Bench, shards: str, output: str) -> list[str]:
    """The command of jobs/score.py, whose output has its `marks_of_job`."""
    options = {"--model": made.model, "--input": shards, "--output": output, "--engine": made.engine}
    return [sys.executable, str(_JOB), *chain.from_iterable(options.items())]


def marks_of_job(output: str) -> list[tuple[float, int]]:
    """The clock at which each unit's rows were there, and the images done by then."""
    scored_at = pc.value_counts(ds.dataset(f"{output}/predictions").to_table(columns=["scored_at"])["scored_at"])
    counts = sorted((one["values"].timestamp(), one["counts"]) for one in scored_at.to_pylist())
    done = np.cumsum([count for _, count in counts]).tolist()
    return [(when, total) for (when, _), total in zip(counts, done, strict=True)]


def figures(marks: list[tuple[float, int]], usage: Usage) -> dict[str, float]:
    """Images a second, steady and as a whole, and what a program used of the machine."""
    images = marks[-1][1]
    return {
        "steady": steady_rate(marks),
        "whole": images / usage.wall_s,
        "first_result_s": marks[0][0] - usage.started,
        "cpu_s_per_1000": 1000 * usage.cpu_s / images,
        "peak_gb": usage.peak_gb,
    }


def _summary(runs: list[dict[str, float]], job: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds, and how many times as fast the job is, round by round."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    ratios = {
        f"job_is_{name}_times": statistics.median(one[name] / run[name] for one, run in zip(job, runs, strict=True))
        for name in ("steady", "whole")
    }
    return medians | ratios


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def _draw(folder: Path, config: BenchmarkConfig) -> None:
    say(f"drawing {config.images} synthetic smears")
    size = config.image_width, config.image_height

    def draw(number: int) -> None:
        path = folder / _LOOKS[number % 4] / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw_smear(number % 4, number))
        (image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)).save(path, quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, range(config.images)))


def _link(data: str, folder: Path, most: int) -> None:
    """Link images of a folder per class: some of all, or all several times over where more are wanted.

    Of those that come again each has other bytes, since scoring computes a content once.
    """
    images = list_labelled(data)
    step = max(1, len(images) // most)
    for number in range(most):
        image = images[number * step % len(images)]
        path = folder / _LOOKS[image.label] / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= len(images):
            path.write_bytes(_with_comment(Path(image.stored.uri).read_bytes(), number))
            continue
        try:
            path.hardlink_to(Path(image.stored.uri).resolve())
        except OSError:  # on another file system
            shutil.copyfile(image.stored.uri, path)


def _with_comment(data: bytes, number: int) -> bytes:
    """The same JPEG, with a comment behind its first segment; what is none stays as it is."""
    if not data.startswith(b"\xff\xd8\xff"):
        return data
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + data[end:]


def _plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    speeds, costs = figure.subplots(1, 2)
    programs = found["programs"]
    speeds.barh(list(programs), [each["steady"] for each in programs.values()])
    for row, each in enumerate(programs.values()):
        speeds.text(each["steady"], row, f" {each['steady']:.0f}", va="center")
    speeds.invert_yaxis()
    speeds.margins(x=0.25)  # room for the numbers
    speeds.locator_params(axis="x", nbins=4)
    speeds.set(xlabel="images a second, steady", title=f"{found['engine']}, {found['cores']} cores")
    bottom = 0.0
    for name, value in found["core_milliseconds_an_image"].items():
        costs.bar(0, value, bottom=bottom, label=f"{name}: {value:.2f}")
        bottom += value
    costs.set(xticks=[], ylabel="core milliseconds an image")
    costs.set_title(one_line(found["source"][:40]), parse_math=False)
    costs.legend(loc="upper center", bbox_to_anchor=(0.5, 0))  # below: over the bar it hides the axis
    figure.savefig(path, dpi=120)
