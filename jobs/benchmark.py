"""Measure what can be claimed: `python jobs/benchmark.py --what speed`; `--help` lists the others."""

import json

from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK


def main(config: BenchmarkConfig) -> int:
    from bcd_ray.benchmarks.against import beside
    from bcd_ray.benchmarks.growth import growth
    from bcd_ray.benchmarks.history import history
    from bcd_ray.benchmarks.ledger import ledger_cost, plan_cost
    from bcd_ray.benchmarks.rescore import rescoring_speed
    from bcd_ray.benchmarks.speed import compare_speed
    from bcd_ray.benchmarks.startup import startup_times
    from bcd_ray.benchmarks.training import training_cost
    from bcd_ray.benchmarks.turns import compare_in_turns

    if config.what == "speed":
        found: object = {name: value for name, value in compare_speed(config).items() if name != "runs"}
    elif config.what == "turns":
        found = compare_in_turns(config)
    elif config.what == "growth":
        found = growth(config)
    elif config.what == "startup":
        found = startup_times(config)
    elif config.what == "training":
        found = training_cost(config)
    elif config.what in ("night", "memory", "shard"):
        found = beside(config)
    elif config.what == "history":
        found = history(config)
    elif config.what == "rescore":
        found = rescoring_speed(config)
    else:
        found = ledger_cost(config) if config.what == "ledger" else plan_cost()
    print(json.dumps(found, indent=2))
    return EXIT_OK


if __name__ == "__main__":
    run(BenchmarkConfig, main)
