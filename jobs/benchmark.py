"""Measure what can be claimed of speed: `python jobs/benchmark.py --what ledger`, `--what plan`."""

import json

from bcd_ray.cli import run
from bcd_ray.config import BenchmarkConfig
from bcd_ray.errors import EXIT_OK


def main(config: BenchmarkConfig) -> int:
    from bcd_ray.benchmarks.ledger import ledger_cost, plan_cost

    print(json.dumps(ledger_cost(config) if config.what == "ledger" else plan_cost(), indent=2))
    return EXIT_OK


if __name__ == "__main__":
    run(BenchmarkConfig, main)
