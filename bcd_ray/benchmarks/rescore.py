"""Rows of another model from kept embeddings, beside scoring the images anew; and what keeping them costs."""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bcd_ray.benchmarks.against import ROOT, checkout
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import run_program
from bcd_ray.benchmarks.speed import Bench, bench, circumstances, figures, job_command, marks_of_job
from bcd_ray.benchmarks.turns import Program, ratios, take_turns
from bcd_ray.model.bundle import load_bundle, save_bundle
from bcd_ray.model.triage import DIRECTIONS, DistanceModel, Triage
from bcd_ray.progress import say

_TURN_S = 5.0
_NONE, _KEEP = "--no-keep-features", "--keep-features"


def rescoring_speed(config: BenchmarkConfig, turn_s: float = _TURN_S) -> dict[str, Any]:
    """Images a second of scoring with and without keeping, in turns, and of another head, rescored and scored anew.

    Returns:
        `keeping`: images a second with embeddings kept over those without, with a 95 % interval. `steady` and `whole`,
        of whole processes: medians of images a second of each program over the rounds, and how many times as fast
        rescoring is as each of the others, with the least and the most; the revision of `--against` is one of them.
    """
    with bench(config) as made, tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        keeping = _keeping(made, folder, turn_s)
        model = _another_head(made, folder / "other")
        roots = {"scoring": ROOT}
        if config.against:
            roots[config.against] = stack.enter_context(checkout(config.against))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("rescoring", *roots)}
        for number in range(1, config.rounds + 1):
            for each in sorted(runs, reverse=number % 2 == 0):
                output = folder / f"{each}-{number}".replace("/", "-")
                if each == "rescoring":
                    shutil.copytree(folder / "with" / "rows", output)
                options = {"rescoring": [_KEEP, "--supersede"], "scoring": [_NONE]}.get(each, [])
                runs[each].append(_run(roots.get(each, ROOT), made, model, output, options))
                shutil.rmtree(output)
                one = runs[each][-1]
                say(f"round {number}  {each:12} {one['steady']:8.1f} images/s steady, {one['whole']:8.1f} as a whole")
    found = {what: compared(runs, what) for what in ("steady", "whole")}
    return {**circumstances(config), "images": made.images, "rounds": config.rounds, "keeping": keeping} | found


def _keeping(made: Bench, folder: Path, turn_s: float) -> list[float]:
    """Images a second with embeddings kept, over those without, and the ends of the interval."""
    programs, outputs = {}, {"ceiling": ("without", _NONE), "job": ("with", _KEEP)}
    for each, (name, option) in outputs.items():
        command = [*job_command(made, made.shards, str(folder / name / "rows")), option]
        programs[each] = Program(command, folder / name, "rows/_work/units/*", to_its_end=True)
    turns = take_turns(programs, turn_s, {"RAY_ADDRESS": "local"})
    marks = {each: marks_of_job(str(folder / name / "rows")) for each, (name, _) in outputs.items()}
    found: list[float] = ratios(turns, marks)["programs"]["job"]["of_ceiling"]
    return found


def _another_head(made: Bench, folder: Path) -> str:
    """A bundle of the same backbone, with as much to decide by as a trained one."""
    model, drawn = load_bundle(made.model).model, np.random.default_rng(0)
    head = drawn.normal(0, 0.05, model.tensors["head.weight"].shape).astype(np.float32)
    factor = drawn.normal(0, 0.01, (DIRECTIONS, model.embedding_size)).astype(np.float32)
    means = drawn.random((len(head), model.embedding_size), np.float32)
    settings = Triage.without_limits(model.embedding_size).settings
    triage = Triage(DistanceModel(means, factor, 1.0), settings)
    save_bundle(str(folder), model.with_head(head, head[:, 0].copy()), triage, {}, {})
    return str(folder)


def _run(root: Path, made: Bench, model: str, output: Path, options: Sequence[str]) -> dict[str, float]:
    before = {path.name for path in output.glob("predictions/*")}
    _, script, *others = job_command(made, made.shards, str(output))
    others = [model if each == made.model else each for each in others]
    command = [sys.executable, str(root / "jobs" / Path(script).name), *others, *options]
    usage = run_program(command, {"PYTHONPATH": str(root), "RAY_ADDRESS": "local"}, root)[1]
    for path in output.glob("predictions/*"):
        if path.name in before:
            path.unlink()  # of the run before
    return figures(marks_of_job(str(output)), usage)


def compared(runs: dict[str, list[dict[str, float]]], what: str) -> dict[str, Any]:
    """Medians of one figure of each program, and how many times that of each other `rescoring` has, round by round."""
    values = {name: [one[what] for one in of] for name, of in runs.items()}
    times = {}
    for name in values.keys() - {"rescoring"}:
        of = sorted(a / b for a, b in zip(values["rescoring"], values[name], strict=True))
        times[name] = [statistics.median(of), of[0], of[-1]]
    return {"images_per_s": {name: statistics.median(of) for name, of in values.items()}, "rescoring_is_times": times}
