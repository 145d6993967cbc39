"""Nights of scoring without Ray and without a network: the ledger is driven as the job drives it, with made-up rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.archives.shards import image_id
from bcd_ray.ledger import schema
from bcd_ray.ledger.features import EMBEDDING, column_of
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.listed import Listed
from bcd_ray.ledger.manifests import identity_digest
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.seen import Seen
from bcd_ray.ledger.state import Missed, State
from bcd_ray.ledger.units import Unit, Units
from bcd_ray.storage import StoredObject
from bcd_ray.uris import printable

IDENTITY = {"model_version": "0" * 64}
FACTS: dict[str, Any] = {"engine": {}, "versions": {}, "configuration": {}, "features": {"made_for": "tests"}}
Statuses = Mapping[str, str]  # of images that are not scored, by URI, or of whole shards


def shard(uri: str, etag: str = "etag") -> StoredObject:
    return StoredObject(uri, 1, etag)


def rows_of(unit: Unit, statuses: Statuses | None = None) -> pa.Table:
    """Rows as scoring writes them, one for a loose image and three for a tar, the last of them not scored."""
    statuses = statuses or {}
    rows = []
    for each in unit.shards:
        tar = each.uri.endswith(".tar") and each.uri not in statuses
        for name in ("1.jpg", "2.jpg", "3.jpg") if tar else ("",):
            uri = f"{each.uri}#{name}" if name else each.uri
            status = statuses.get(uri, "corrupt_image" if name == "3.jpg" else "scored")
            scored = status == "scored"
            row: dict[str, Any] = dict.fromkeys(schema.PREDICTIONS.names)
            row |= {
                "image_id": image_id(each.uri, name, 1),
                "image_uri": printable(uri),
                "shard_uri": printable(each.uri),
            }
            row |= {"shard_etag": each.etag, "status": status, "scored_at": datetime.now(UTC)}
            row |= {"predicted_class": "pre_b" if scored else None, "review": not scored}
            row |= {"review_reasons": [] if scored else ["not_scored"], "model_version": "0" * 64}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema.PREDICTIONS)


def work(ledger: Ledger, plan: Plan, statuses: Statuses | None = None, engine: str = "openvino") -> Plan:
    """Write the plan and what is missing of its units; returns the plan under the number that it got."""
    plan = ledger.begin(plan, FACTS)
    for unit in ledger.unfinished(plan):
        write(ledger, unit, statuses, {"engine": engine, "versions": {}})
    return plan


def write(
    ledger: Ledger, unit: Unit, statuses: Statuses | None = None, made_by: Mapping[str, Any] | None = None
) -> None:
    """Write the made-up rows of a unit, two at a time."""
    rows, seen = rows_of(unit, statuses), Seen()
    seen.add(rows["image_id"].to_pylist())
    scored = pc.equal(rows["status"], "scored").to_numpy()
    rows = rows.append_column(EMBEDDING, column_of(np.ones((scored.sum(), 8), np.float32), scored))
    ledger.write_unit(unit, (rows.slice(start, 2) for start in range(0, len(rows), 2)), seen, made_by, keep=True)


def night(
    output: str,
    shards: Sequence[StoredObject],
    statuses: Statuses | None = None,
    identity: dict[str, Any] = IDENTITY,
    before: Callable[[Plan], Plan] = lambda plan: plan,
    **options: Any,
) -> dict[str, Any] | None:
    """A run as the job makes it; its manifest, None where there was nothing to do."""
    ledger = Ledger(output)
    ledger.recover()
    plan = ledger.plan(shards, identity)
    if not plan.units:
        return None
    plan = work(ledger, plan, statuses)
    return ledger.publish(before(plan), **options)


def missed(state: State, shards: Iterable[StoredObject]) -> Missed:
    """What of some shards has no prediction."""
    return state.missed(Listed.of(shards).tables(), identity_digest(IDENTITY))


def blind(plan: Plan) -> Plan:
    """The plan as if nothing were known of what its shards were before."""
    return replace(plan, units=Units.of(replace(unit, earlier=()) for unit in plan.units))
