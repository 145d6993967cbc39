"""Scoring beside that of another revision of this project: whole processes in turns, on the same input."""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bcd_ray.archives.config import PackConfig
from bcd_ray.archives.packing import pack
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.growth import cluster
from bcd_ray.benchmarks.measure import Usage, run_program
from bcd_ray.benchmarks.speed import bench, circumstances, figures, marks_of_job
from bcd_ray.errors import ConfigError
from bcd_ray.progress import say

ROOT = Path(__file__).parents[2]
_NEW_IMAGES = 200  # of a small night
_TRAINED_ON = 200  # images
_PAUSES = {"night": 100, "memory": 0, "shard": 100}  # between looks at memory, which take time


def beside(config: BenchmarkConfig) -> dict[str, Any]:
    """Scoring from the command to its end by this revision and by `config.against`, of what `config.what` names.

    `night` is a night of 200 new loose images, `memory` are tars, and `shard` is one Parquet file on the most simulated
    nodes of `config.nodes`.

    Returns:
        Of each revision `wall_s`, `cpu_s` and `peak_gb`, or for `shard` images a second, `steady` and as a `whole`: a
        median over the rounds. And the ratio of this one's to the other's, the median of the rounds with the least and
        the most.
    """
    config = replace(config, peer_images=min(_TRAINED_ON, config.images))
    if config.what == "night":
        config = replace(config, images=_NEW_IMAGES, images_per_shard=_NEW_IMAGES // 10)
    with checkout(config.against) as other, bench(config) as made, ExitStack() as stack:
        # By the older one, whose bundles both can read.
        model = str(made.folder / "model-of-both")
        _run(other, "train", "--data", made.loose_for_peers, "--output", model)
        data, environment = {"night": made.loose, "memory": made.shards}.get(config.what, ""), {"RAY_ADDRESS": "local"}
        if config.what == "shard":
            data = str(made.folder / "one")
            pack(PackConfig(made.loose, data, "parquet", config.images))
            environment = stack.enter_context(cluster(max(config.nodes)))
        runs: dict[str, list[dict[str, float]]] = {"this": [], config.against: []}
        roots = {"this": ROOT, config.against: other}
        for number in range(1, config.rounds + 1):
            for name in sorted(roots, reverse=number % 2 == 0):  # what one leaves behind is to meet both alike
                with tempfile.TemporaryDirectory() as output:
                    options = ("--model", model, "--input", data, "--output", output)
                    usage = _run(roots[name], "score", *options, environment=environment, pause=_PAUSES[config.what])
                    runs[name].append(_figures(config.what, usage, output))
                words = (f"{figure} {value:,.4g}" for figure, value in runs[name][-1].items())
                say("  ".join([f"round {number}  {name:12}", *words]))
    return {**circumstances(config), "images": config.images, "rounds": config.rounds} | compared(runs, config.against)


def _figures(what: str, usage: Usage, output: str) -> dict[str, float]:
    if what != "shard":
        return {"wall_s": usage.wall_s, "cpu_s": usage.cpu_s, "peak_gb": usage.peak_gb}
    found = figures(marks_of_job(output), usage)
    return {name: found[name] for name in ("steady", "whole")}  # the nodes are no part of the rest


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


def _run(root: Path, job: str, *options: str, environment: Mapping[str, str] | None = None, pause: int = 100) -> Usage:
    command = [sys.executable, str(root / "jobs" / f"{job}.py"), *options]
    # In its own folder: Ray's workers import from the one where the job was begun, before all others.
    return run_program(command, {"PYTHONPATH": str(root), **(environment or {"RAY_ADDRESS": "local"})}, root, pause)[1]


def compared(runs: Mapping[str, Sequence[Mapping[str, float]]], other: str) -> dict[str, Any]:
    """Medians of each revision's figures, and the ratios of `this` one's to the other's, round by round."""
    names = list(runs["this"][0])
    ratios = {
        each: sorted(this[each] / that[each] for this, that in zip(runs["this"], runs[other], strict=True))
        for each in names
    }
    medians = {name: {each: statistics.median(run[each] for run in of) for each in names} for name, of in runs.items()}
    spread = {each: [statistics.median(of), of[0], of[-1]] for each, of in ratios.items()}
    return {"medians": medians, "this_over_other": spread}
