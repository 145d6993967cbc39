"""From the command to the first scored row, itemised: each item in a process of its own."""

import statistics
import sys
from itertools import pairwise
from typing import Any

from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import run_program
from bcd_ray.benchmarks.speed import bench, run_job
from bcd_ray.progress import say

_ENGINE = """
from bcd_ray.model.bundle import load_bundle
from bcd_ray.model.choice import open_engine
bundle = load_bundle({model!r})
"""
# Each item is the time of a program less that of the one before it.
_PROGRAMS = {
    "python": "",
    "command line": "import bcd_ray.cli, bcd_ray.scoring.config",
    "scoring's imports": "import bcd_ray.cli, bcd_ray.scoring.job",
    "Ray's and Ray Data's imports": "import bcd_ray.cli, bcd_ray.scoring.job, ray.data",
    "start and end of Ray": "import bcd_ray.runtime, ray.data\nwith bcd_ray.runtime.ray_session(): pass",
}


def startup_times(config: BenchmarkConfig) -> dict[str, Any]:
    """Median seconds over the rounds of each item, and of the job on few images to its first row and to its end."""
    with bench(config) as made:
        load = _ENGINE.format(model=made.model)
        programs = _PROGRAMS | {
            "engine: load": load,
            "engine: compile": f"{load}open_engine({made.engine!r}, bundle, 2)",
        }
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        job = []
        for number in range(config.rounds):
            for name, program in programs.items():
                seconds[name].append(run_program([sys.executable, "-c", program], {})[1].wall_s)
            job.append(run_job(made, made.shards)["first_result_s"])
            say(f"round {number + 1}: the job's first rows after {job[-1]:.1f} s")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    names = list(_PROGRAMS)
    items = {"python": medians["python"]}
    items |= {name: medians[name] - medians[before] for before, name in pairwise(names)}
    items["compilation of the network, in the actor"] = medians["engine: compile"] - medians["engine: load"]
    return {"seconds": items, "first_rows_s": statistics.median(job), "rounds": config.rounds}
