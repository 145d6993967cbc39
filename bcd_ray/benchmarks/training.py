"""What a training run costs beside the bare forward passes of its images and their augmented views."""

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyarrow import parquet

from bcd_ray.benchmarks.measure import run_program
from bcd_ray.benchmarks.speed import Bench, bench, marks_in, peer_command
from bcd_ray.config import BenchmarkConfig
from bcd_ray.runtime import say

_JOB = Path(__file__).parents[2] / "jobs" / "train.py"


def training_cost(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds, as medians over the rounds, and the ratio of each round.

    Returns:
        `training_s`: of jobs/train.py with an empty cache, as a whole. `again_s`: of the next one, with another
        learning rate. `forward_s`: of the same number of `passes` in one process that does nothing else, its start left
        out, at the mean of its speeds before and after the training run. `ratio`: median, least and largest of training
        over forward.
    """
    runs = []
    with bench(config) as made, tempfile.TemporaryDirectory() as name:
        before = _pass_s(made)
        for number in range(1, config.rounds + 1):
            folder = Path(name, str(number))
            training_s = _train(made.loose, folder, "first", "0.003")
            after = _pass_s(made)
            passes = _passes(folder / "cache")
            forward_s = passes * statistics.mean([before, after])
            again_s = _train(made.loose, folder, "again", "0.002")
            runs.append({"training_s": training_s, "again_s": again_s, "forward_s": forward_s, "passes": passes})
            say(f"round {number}  " + "  ".join(f"{key} {value:,.1f}" for key, value in runs[-1].items()))
            before = after
    ratios = [run["training_s"] / run["forward_s"] for run in runs]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return medians | {"ratio": [statistics.median(ratios), min(ratios), max(ratios)], "rounds": config.rounds}


def _pass_s(made: Bench) -> float:
    """Seconds of one bare forward pass, over twice as many as there are images."""
    passes = 2 * made.images
    output, _ = run_program(peer_command(replace(made, engine="openvino"), "forward", passes), {})
    marks = marks_in(output)
    return (marks[-1][0] - marks[0][0]) / passes


def _train(data: str, folder: Path, name: str, learning_rate: str) -> float:
    """Seconds of a training run as a whole."""
    command = [sys.executable, str(_JOB), "--data", data, "--output", str(folder / name)]
    command += ["--cache", str(folder / "cache"), "--learning-rate", learning_rate]
    return run_program(command, {})[1].wall_s


def _passes(cache: Path) -> int:
    """Images and views that went through the backbone to fill a cache: of images with the same bytes, one."""
    return sum(parquet.ParquetFile(path).metadata.num_rows for path in cache.glob("*/views/*.parquet"))
