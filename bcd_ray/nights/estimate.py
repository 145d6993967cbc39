"""How long a run would take, and what it would cost, at the rate of an earlier one."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.state import read_manifests
from bcd_ray.nights.record import Estimate
from bcd_ray.storage import parquet

_RUNS = 10  # the last ones, of which the largest is taken: the others are mostly start-up


class Rate(NamedTuple):
    """What a run did, from its plan to its publication."""

    images: int
    read_bytes: int
    seconds: float


def estimate(plan: Plan, output: str, hourly_cost: float) -> Estimate:
    """What a plan takes at the rate of the largest of the last runs of an output."""
    shards, size = sum(len(unit.shards) for unit in plan.units), sum(unit.size for unit in plan.units)
    rate = _rate(output)
    if rate is None or not rate.read_bytes:
        return Estimate(shards, plan.current_shards, size)
    share = size / rate.read_bytes
    seconds = round(share * rate.seconds, 1)
    cost = round(seconds / 3600 * hourly_cost, 2) if hourly_cost else None
    return Estimate(shards, plan.current_shards, size, round(share * rate.images), seconds, cost)


def words_of(found: Estimate) -> str:
    """An estimate for a person."""
    words = (
        f"would score {found.shards:,} shards of {found.bytes / 1e6:,.1f} MB; the rows of {found.current_shards:,} hold"
    )
    if found.seconds is None:
        return f"{words}; no run before says how long that takes"
    cost = f" and cost {found.cost:,.2f}" if found.cost is not None else ""
    return f"{words}; some {found.images:,} images, which would take {timedelta(seconds=round(found.seconds))}{cost}"


def _rate(output: str) -> Rate | None:
    runs = [manifest.content for manifest in read_manifests(output)][-_RUNS:]
    rates = [_rate_of(output, run) for run in runs if sum(run["statuses"].values())]
    return max(rates, default=None)


def _rate_of(output: str, manifest: Mapping[str, Any]) -> Rate:
    began, ended = (datetime.fromisoformat(manifest[name]) for name in ("started_at", "published_at"))
    uri = storage.join(output, "manifests", f"{manifest['run_id']}.inputs.parquet")
    read = parquet.read(uri, "restore it from a copy", ["size", "rows"])
    size = pc.sum(read.filter(pc.greater(read["rows"], 0))["size"]).as_py() or 0
    return Rate(sum(manifest["statuses"].values()), size, max(1.0, (ended - began).total_seconds()))
