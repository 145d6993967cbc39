"""Scoring beside that of another revision of this project: whole processes in turns, on the same input."""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import Usage, run_program
from bcd_ray.benchmarks.speed import bench, circumstances
from bcd_ray.errors import ConfigError
from bcd_ray.progress import say

ROOT = Path(__file__).parents[2]
_NEW_IMAGES = 200  # of a small night
_FIGURES = ("wall_s", "cpu_s", "peak_gb")


def night(config: BenchmarkConfig) -> dict[str, Any]:
    """A night of 200 new loose images, from the command to its end, by this revision and by `config.against`.

    Returns:
        `wall_s`, `cpu_s` and `peak_gb` of each revision, a median over the rounds, and the ratio of this one's to the
        other's, the median of the rounds with the least and the most.
    """
    small = replace(config, images=_NEW_IMAGES, images_per_shard=_NEW_IMAGES // 10)
    with checkout(config.against) as other, bench(small) as made:
        # By the older one, whose bundles both can read.
        model = str(made.folder / "model-of-both")
        _run(other, "train", "--data", made.loose, "--output", model)
        runs: dict[str, list[Usage]] = {"this": [], config.against: []}
        roots = {"this": ROOT, config.against: other}
        for number in range(1, config.rounds + 1):
            for name in sorted(roots, reverse=number % 2 == 0):  # what one leaves behind is to meet both alike
                with tempfile.TemporaryDirectory() as output:
                    options = ("--model", model, "--input", made.loose, "--output", output)
                    runs[name].append(_run(roots[name], "score", *options))
                say(f"round {number}  {name:12} {runs[name][-1].wall_s:5.1f} s")
    return {**circumstances(small), "images": _NEW_IMAGES, "rounds": config.rounds} | compared(runs, config.against)


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with another revision of this repository; ConfigError if it has none of that name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "revision")
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", folder, revision], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"--against {revision}: {done.stderr.strip().splitlines()[-1]}: name a git revision")
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", folder], capture_output=True, check=False)


def _run(root: Path, job: str, *options: str) -> Usage:
    command = [sys.executable, str(root / "jobs" / f"{job}.py"), *options]
    # In its own folder: Ray's workers import from the one where the job was begun, before all others.
    return run_program(command, {"PYTHONPATH": str(root), "RAY_ADDRESS": "local"}, root)[1]


def compared(runs: dict[str, list[Usage]], other: str) -> dict[str, Any]:
    """Medians of each revision's figures, and the ratios of `this` one's to the other's, round by round."""
    values = {name: {each: [getattr(run, each) for run in of] for each in _FIGURES} for name, of in runs.items()}
    ratios = {
        each: sorted(a / b for a, b in zip(values["this"][each], values[other][each], strict=True)) for each in _FIGURES
    }
    return {
        "medians": {name: {each: statistics.median(of[each]) for each in _FIGURES} for name, of in values.items()},
        "this_over_other": {each: [statistics.median(of), of[0], of[-1]] for each, of in ratios.items()},
    }
