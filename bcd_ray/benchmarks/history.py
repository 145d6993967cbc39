"""Planning a night on an archive with a long history: seconds, and the memory of the process that plans."""

import hashlib
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray.benchmarks.against import ROOT, checkout
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import run_program
from bcd_ray.ledger import schema
from bcd_ray.ledger.manifests import digest
from bcd_ray.ledger.reconciling import INPUTS
from bcd_ray.progress import say

_RUNS = 365
_NEW = 200
_FACTOR = 0x9E3779B97F4A7C15F39CC0605CEDC835  # makes tags that are as hard to compress as digests
_IDENTITY = {"model_version": "0" * 64}
# The listing is simulated, the rest is what scoring does, in this revision and in those before it.
_PROGRAM = """
import json, resource, sys, time
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.storage import StoredObject

output, images, new, runs, factor, identity = sys.argv[1], *map(int, sys.argv[2:6]), json.loads(sys.argv[6])
of_run = -(-(images or new) // runs)

def shards():
    for number in range(images + new):
        uri = f"s3://lab-archive/smears/{number // of_run:05d}/slide-{number:08d}.jpg"
        yield StoredObject(uri, 40000, f"{number * factor % (1 << 128):032x}")

began = time.perf_counter()
try:
    from bcd_ray.ledger.held import hold_against
    from bcd_ray.ledger.listed import Listed
    from bcd_ray.ledger.manifests import identity_digest
    from bcd_ray.ledger.planning import make_plan
except ImportError:  # a revision that held all of it in memory
    listed, listing = list(shards()), time.perf_counter() - began
    plan = Ledger(output).plan(listed, identity)
else:
    listed, listing = Listed.of(shards()), time.perf_counter() - began
    state = Ledger(output).state()
    state.keep()
    plan = make_plan(state, hold_against(state, listed, identity_digest(identity)), identity)
ledger = Ledger(output)
plan = ledger.begin(plan, {})
todo = sum(len(unit.shards) for unit in ledger.unfinished(plan))
seconds = time.perf_counter() - began - listing
found = plan.current_images, plan.reasons, todo
assert found == (images, {"new": new}, new), found
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"listing_s": listing, "plan_s": seconds, "peak_gb": peak}))
"""


def history(config: BenchmarkConfig) -> dict[str, Any]:
    """Plan a night of 200 new images beside `images` loose ones that a year of runs published, and one of all new.

    Returns:
        `all_new`: of a night on an empty output. `first`: of the first night on an output of so many runs, which puts
        what they say into one file. `this`, and the revision of `--against`: of further nights, medians over the
        rounds. Each `listing_s`, to make up the listing and take it in, `plan_s`, until the plan is written and its
        units were gone through, and `peak_gb` of the process.
    """
    with tempfile.TemporaryDirectory() as output, ExitStack() as stack:
        roots = {"this": ROOT}
        if config.against:
            roots[config.against] = stack.enter_context(checkout(config.against))
        say(f"making up {config.images:,} published images")
        simulate(Path(output), config.images, _RUNS)
        found: dict[str, Any] = {"images": config.images, "new": _NEW, "runs": _RUNS, "rounds": config.rounds}
        with tempfile.TemporaryDirectory() as empty:
            found["all_new"] = _plan(ROOT, empty, 0, config.images)
        found["first"] = _plan(ROOT, output, config.images, _NEW)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in roots}
        for number in range(1, config.rounds + 1):
            for name in sorted(roots, reverse=number % 2 == 0):
                rounds[name].append(one := _plan(roots[name], output, config.images, _NEW))
                seconds = f"{one['listing_s']:6.1f} s to list, {one['plan_s']:6.1f} s to plan"
                say(f"round {number}  {name:12} {seconds}  {one['peak_gb']:5.2f} GB")
    return found | {
        name: {each: statistics.median(one[each] for one in of) for each in of[0]} for name, of in rounds.items()
    }


def _plan(root: Path, output: str, images: int, new: int) -> dict[str, float]:
    arguments = (output, str(images), str(new), str(_RUNS), str(_FACTOR), json.dumps(_IDENTITY))
    told, _ = run_program([sys.executable, "-c", _PROGRAM, *arguments], {"PYTHONPATH": str(root)}, root)
    return dict(json.loads(told))


def simulate(output: Path, images: int, runs: int) -> None:
    """Write what planning reads of an output where so many runs published so many loose images; no rows."""
    folder, previous = output / "manifests", list[dict[str, str]]()
    folder.mkdir(parents=True, exist_ok=True)
    of_run = -(-images // runs)
    for run in range(runs):
        run_id = hashlib.sha256(str(run).encode()).hexdigest()[:16]
        numbers = np.arange(run * of_run, min(images, (run + 1) * of_run))
        pq.write_table(_inputs(run, numbers, run_id), folder / f"{run_id}.inputs.parquet", compression="zstd")
        manifest = dict.fromkeys(sorted(schema.manifest_keys(schema.MANIFEST_VERSION)))
        manifest |= {"manifest_version": schema.MANIFEST_VERSION, "run_id": run_id, "run_number": run + 1}
        manifest |= {"identity": _IDENTITY, "statuses": {"scored": len(numbers)}, "configuration": {}}
        data = json.dumps({**manifest, "previous": previous}).encode()
        (folder / f"{run_id}.json").write_bytes(data)
        previous = [{"run_id": run_id, "sha256": hashlib.sha256(data).hexdigest()}]


def _inputs(run: int, numbers: Any, run_id: str) -> pa.Table:
    count = len(numbers)
    same = {"size": 40_000, "unit_id": digest(run_id)[:32], "rows": 1, "passing_failure": False, "holds": True}
    same |= {"left_out": "{}", "made_by": "{}", "incomplete": False}
    columns = {name: pa.repeat(pa.scalar(value, INPUTS.field(name).type), count) for name, value in same.items()}
    columns["uri"] = pa.array([f"s3://lab-archive/smears/{run:05d}/slide-{number:08d}.jpg" for number in numbers])
    columns["etag"] = pa.array([f"{int(number) * _FACTOR % (1 << 128):032x}" for number in numbers])
    columns["not_scored"] = pa.array([[]] * count, INPUTS.field("not_scored").type)
    columns["features"] = pa.nulls(count, pa.string())
    return pa.table([columns[name] for name in INPUTS.names], schema=INPUTS)
