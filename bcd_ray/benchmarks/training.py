"""What a training run costs beside the bare forward passes of its images and their augmented views."""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bcd_ray.benchmarks.measure import run_program
from bcd_ray.benchmarks.speed import bench
from bcd_ray.config import BenchmarkConfig
from bcd_ray.runtime import say

_JOB = Path(__file__).parents[2] / "jobs" / "train.py"


def training_cost(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds, as medians over the rounds, and the ratio of each round.

    Returns:
        `training_s`: of jobs/train.py with an empty cache, as a whole. `again_s`: of the next one, with another
        learning rate. `forward_s`: of the same number of `passes` in one process that does nothing else, its start left
        out. `ratio`: median, least and largest of training over forward.
    """
    runs = []
    with bench(config) as made, tempfile.TemporaryDirectory() as name:
        for number in range(1, config.rounds + 1):
            folder = Path(name, str(number))
            first, metrics = _train(made.loose, folder, "first", "0.003")
            again, _ = _train(made.loose, folder, "again", "0.002")
            trained = sum(metrics["counts"]["train"].values())
            passes = metrics["counts"]["usable"] + metrics["augmented_views"] * trained
            command = [sys.executable, "-m", "bcd_ray.benchmarks.peers", "forward", made.model, str(passes)]
            marks = [float(line.split()[0]) for line in run_program(command, {})[0].splitlines()]
            runs.append({"training_s": first, "again_s": again, "forward_s": marks[-1] - marks[0], "passes": passes})
            say(f"round {number}  " + "  ".join(f"{key} {value:,.1f}" for key, value in runs[-1].items()))
    ratios = [run["training_s"] / run["forward_s"] for run in runs]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return medians | {"ratio": [statistics.median(ratios), min(ratios), max(ratios)], "rounds": config.rounds}


def _train(data: str, folder: Path, name: str, learning_rate: str) -> tuple[float, dict[str, Any]]:
    """Seconds of a training run as a whole, and its metrics with the number of augmented views."""
    command = [sys.executable, str(_JOB), "--data", data, "--output", str(folder / name)]
    command += ["--cache", str(folder / "cache"), "--learning-rate", learning_rate]
    usage = run_program(command, {})[1]
    metrics = json.loads((folder / name / "metrics.json").read_text())
    views = json.loads((folder / name / "model.json").read_text())["training"]["augmented_views"]
    return usage.wall_s, metrics | {"augmented_views": views}
