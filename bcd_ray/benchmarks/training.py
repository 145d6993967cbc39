"""What a training run costs beside the bare forward passes of its images and their augmented views."""

import statistics
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyarrow import parquet

from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import Usage, run_program
from bcd_ray.benchmarks.speed import Bench, bench, marks_in, peer_command
from bcd_ray.progress import say

_JOB = Path(__file__).parents[2] / "jobs" / "train.py"


def training_cost(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds, as medians over the rounds, and ratios with their spread over them.

    Returns:
        `training_s`: of jobs/train.py with an empty cache, as a whole: `identifying_s` from the command until images
        are identified, `embedding_s` from there until their views are embedded, Ray's start included, and `fitting_s`
        from there to the end. `again_s`: of the next run, with another learning rate. `forward_s`: of the same number
        of `passes` in one process that does nothing else, its start left out, at the mean of its speeds before and
        after the training run. `ratio` and `embedding_ratio`: median, least and largest of training, and of embedding,
        over forward.
    """
    runs = []
    with bench(config) as made, tempfile.TemporaryDirectory() as name:
        before = _pass_s(made)
        for number in range(1, config.rounds + 1):
            folder = Path(name, str(number))
            run = _parts(folder / "cache", _train(made.loose, folder, "first", "0.003"))
            after = _pass_s(made)
            run["passes"] = _passes(folder / "cache")
            run["forward_s"] = run["passes"] * statistics.mean([before, after])
            run["again_s"] = _train(made.loose, folder, "again", "0.002").wall_s
            runs.append(run)
            say(f"round {number}  " + "  ".join(f"{key} {value:,.1f}" for key, value in run.items()))
            before = after
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    ratios = {"ratio": _ratio(runs, "training_s"), "embedding_ratio": _ratio(runs, "embedding_s")}
    return medians | ratios | {"rounds": config.rounds}


def _pass_s(made: Bench) -> float:
    """Seconds of one bare forward pass, over twice as many as there are images."""
    passes = 2 * made.images
    output, _ = run_program(peer_command(replace(made, engine="openvino"), "forward", passes), {})
    marks = marks_in(output)
    return (marks[-1][0] - marks[0][0]) / passes


def _ratio(runs: list[dict[str, float]], part: str) -> list[float]:
    """Median, least and largest over the runs of a part over the bare passes."""
    ratios = [run[part] / run["forward_s"] for run in runs]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _train(data: str, folder: Path, name: str, learning_rate: str) -> Usage:
    """A training run as a whole."""
    command = [sys.executable, str(_JOB), "--data", data, "--output", str(folder / name)]
    command += ["--representation", "field"]  # what is passed forward beside it
    command += ["--workers", "0"]  # as on one machine, also where Ray runs already
    command += ["--cache", str(folder / "cache"), "--learning-rate", learning_rate]
    return run_program(command, {})[1]


def _parts(cache: Path, usage: Usage) -> dict[str, float]:
    """Seconds of a run that filled this cache, and of its parts, by when it wrote the images and the last views."""
    identified, embedded = (
        max(path.stat().st_mtime for path in cache.glob(f"*/{kind}/*.parquet")) for kind in ("images", "views")
    )
    marks = [usage.started, identified, embedded, usage.started + usage.wall_s]
    names = ("identifying_s", "embedding_s", "fitting_s")
    parts = {name: end - start for name, (start, end) in zip(names, pairwise(marks), strict=True)}
    return {"training_s": usage.wall_s, **parts}


def _passes(cache: Path) -> int:
    """Images and views that went through the backbone to fill a cache: of images with the same bytes, one."""
    return sum(parquet.ParquetFile(path).metadata.num_rows for path in cache.glob("*/views/*.parquet"))
