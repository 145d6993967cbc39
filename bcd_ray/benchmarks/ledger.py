"""What the ledger costs: measured side by side with scoring without it, and plans of large archives."""

import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bcd_ray import storage
from bcd_ray.archives.config import PackConfig
from bcd_ray.archives.images import Limits
from bcd_ray.archives.packing import pack
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.learning.synthetic import write_synthetic_archive
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.model.bundle import EMBEDDING_SIZE, Bundle, pretrained
from bcd_ray.model.triage import Triage
from bcd_ray.progress import say
from bcd_ray.runtime import ray_session
from bcd_ray.scoring.attempts import Entries, start_counter
from bcd_ray.scoring.worker import UnitScorer
from bcd_ray.storage import StoredObject

IMAGES_PER_UNIT = 512
_PLANS = (("loose images", "jpg", 1_000_000), ("tar shards", "tar", 100_000))


def ledger_cost(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds to score `units` tar shards of 512 synthetic images with and without the ledger, in turn.

    Without: read, decode, infer and make the rows in one process. With: the same, and plan, counting of attempts, units
    written, reconciliation and publication. Returns the seconds of every round and the median of their ratios.
    """
    import ray

    rounds = []
    with tempfile.TemporaryDirectory() as folder, ray_session():
        say(f"drawing {config.units * IMAGES_PER_UNIT} synthetic smears")
        write_synthetic_archive(Path(folder, "loose"), config.units * IMAGES_PER_UNIT // 4)
        pack(PackConfig(input=f"{folder}/loose", output=f"{folder}/shards", images_per_shard=IMAGES_PER_UNIT))
        shards = list(storage.list_objects(f"{folder}/shards"))
        bundle = Bundle(pretrained("keras"), Triage.without_limits(EMBEDDING_SIZE), {}, "benchmark")
        starts = start_counter()
        for number in range(config.rounds + 1):
            ledger = Ledger(f"{folder}/output-{number}")
            scorer = UnitScorer(bundle, "openvino", ledger, Limits(), threads=2, starts=starts, keep=False)
            units = ledger.plan(shards, {}).units
            entries = [Entries(unit.shards, Limits()) for unit in units]
            without = _seconds(lambda: [list(scorer.rows(each)) for each in entries])  # noqa: B023

            def with_ledger(ledger: Ledger = ledger, scorer: UnitScorer = scorer) -> None:
                plan = ledger.plan(shards, {})
                ledger.begin(plan, {"engine": "", "versions": {}, "configuration": {}})
                for unit in ledger.unfinished(plan):
                    ray.get(starts.count.remote(unit.unit_id))
                    scorer.score(unit)
                ledger.publish(plan)

            rounds.append({"without_s": without, "with_s": _seconds(with_ledger)})
            say(
                f"round {number}: {rounds[-1]['without_s']:.2f} s without, {rounds[-1]['with_s']:.2f} s with the ledger"
            )
    rounds = rounds[1:]  # the first warms up
    ratios = [one["with_s"] / one["without_s"] for one in rounds]
    images = config.units * IMAGES_PER_UNIT
    return {"images": images, "rounds": rounds, "ratio_median": statistics.median(ratios), "ratios": sorted(ratios)}


def plan_cost() -> list[dict[str, Any]]:
    """Seconds to plan large archives and write the plan, listing simulated, and the process's peak memory in GB."""
    measured = []
    for what, suffix, count in _PLANS:
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(folder)

            def plan(ledger: Ledger = ledger, count: int = count, suffix: str = suffix) -> None:
                made = ledger.plan(list(_listing(count, suffix)), {"model_version": "benchmark"})
                ledger.begin(made, {})
                ledger.unfinished(made)

            seconds = _seconds(plan)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            measured.append({"what": f"{count:,} {what}", "seconds": seconds, "peak_memory_gb": peak})
            say(f"plan of {count:,} {what}: {seconds:.1f} s, peak memory of the process {peak:.2f} GB")
    return measured


def _listing(count: int, suffix: str) -> Iterator[StoredObject]:
    for number in range(count):
        uri = f"s3://lab-archive/smears/{number // 1000:05d}/slide-{number:08d}.{suffix}"
        yield StoredObject(uri, 40_000 + number % 1000, f"{number:032x}")


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
