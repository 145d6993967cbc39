"""How long a run would take, and what it would cost, at the rates of earlier ones."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.ledger.manifests import read_manifests
from bcd_ray.ledger.plan import Plan
from bcd_ray.nights.record import Estimate
from bcd_ray.storage import parquet

_RUNS = 10  # the last ones, of which the largest is taken: the others are mostly start-up


class _Rate(NamedTuple):
    """What a run did, from its plan to its publication."""

    images: int
    read_bytes: int
    seconds: float


def estimate(plan: Plan, output: str, hourly_cost: float) -> Estimate:
    """What a plan takes at the rate of the largest of the last runs of an output that read, or rescored, images."""
    kept, size = plan.units.kept.numbers, plan.units.to_read.numbers.size
    known = Estimate(plan.shards, plan.current_shards, kept.shards, size)
    runs = [manifest.content for manifest in read_manifests(output)][-_RUNS:]
    reading, rescoring = (_largest(output, runs, rescored) for rescored in (False, True))
    images, seconds = 0.0, 0.0
    if kept.shards and rescoring:
        images = kept.earlier_rows
        seconds = images / rescoring.images * rescoring.seconds
    else:
        size += kept.size
    if size and not (reading and reading.read_bytes):
        return known
    if size and reading:
        share = size / reading.read_bytes
        images, seconds = images + share * reading.images, seconds + share * reading.seconds
    cost = round(seconds / 3600 * hourly_cost, 2) if hourly_cost else None
    return replace(known, images=round(images), seconds=round(seconds, 1), cost=cost)


def words_of(found: Estimate) -> str:
    """An estimate for a person."""
    kept = f", {found.kept_shards:,} of them from kept embeddings," * bool(found.kept_shards)
    words = f"would score {found.shards:,} shards{kept} and read {found.bytes / 1e6:,.1f} MB"
    words += f"; the rows of {found.current_shards:,} hold"
    if found.seconds is None:
        return f"{words}; no run before says how long that takes"
    cost = f" and cost {found.cost:,.2f}" if found.cost is not None else ""
    return f"{words}; some {found.images:,} images, which would take {timedelta(seconds=round(found.seconds))}{cost}"


def _largest(output: str, runs: Iterable[Mapping[str, Any]], rescored: bool) -> _Rate | None:
    """Of the runs most of whose rows were made of kept embeddings, or were not."""
    rates = []
    for run in runs:
        rows, made = sum(run["statuses"].values()), run.get("made_by", ())
        of_kept = sum(each["rows"] for each in made if each.get("engine") == "features")
        if rows and (2 * of_kept > rows) == rescored:
            rates.append(_rate_of(output, run, of_kept if rescored else rows - of_kept))
    return max(rates, default=None)


def _rate_of(output: str, manifest: Mapping[str, Any], images: int) -> _Rate:
    began, ended = (datetime.fromisoformat(manifest[name]) for name in ("started_at", "published_at"))
    uri = storage.join(output, "manifests", f"{manifest['run_id']}.inputs.parquet")
    tables = parquet.chunks_at(uri, "restore it from a copy", ["size", "rows"])
    size = sum(pc.sum(read.filter(pc.greater(read["rows"], 0))["size"]).as_py() or 0 for read in tables)
    share = images / sum(manifest["statuses"].values())
    return _Rate(images, round(share * size), max(1.0, (ended - began).total_seconds()))
