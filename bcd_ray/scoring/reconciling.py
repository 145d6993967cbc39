"""Do the rows of a unit agree with its plan? And what they say of each of its shards."""

import json
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.archives.shards import is_loose
from bcd_ray.errors import JobError
from bcd_ray.scoring import schema
from bcd_ray.scoring.plan import Unit
from bcd_ray.scoring.seen import LEFT_OUT, Seen

MADE_BY = b"made_by"  # in the metadata of a unit's rows
_BY_STATUS = pa.map_(pa.string(), pa.int64())


def read_shards(unit: Unit, rows: pa.Table) -> pa.Table:
    """The unit's shards with how many rows each gave; JobError where rows and unit do not agree."""
    planned = [storage.printable(shard.uri) for shard in unit.shards]
    found, failed = Counter(rows["shard_uri"].to_pylist()), dict[str, Counter[str]]()
    for uri, status in zip(rows["shard_uri"].to_pylist(), rows["status"].to_pylist(), strict=True):
        if status != "scored":
            failed.setdefault(uri, Counter())[status] += 1
    loose = [uri for uri in planned if is_loose(uri)]
    record = rows.schema.metadata or {}
    left_out, made_by = (record.get(name, b"{}").decode() for name in (LEFT_OUT, MADE_BY))
    incomplete = _incomplete(rows)
    seen = Seen()
    seen.add(rows["image_id"].to_pylist())
    if not seen.agrees(record) or found.keys() != set(planned) or any(found[uri] != 1 for uri in loose):
        raise JobError(f"the rows of unit {unit.unit_id} are not those of its plan: delete it under _work/units")
    return pa.table(
        {
            "uri": pa.array(planned, pa.string()),
            "size": pa.array([shard.size for shard in unit.shards], pa.int64()),
            "etag": pa.array([shard.etag for shard in unit.shards], pa.string()),
            "unit_id": pa.array([unit.unit_id] * len(planned), pa.string()),
            "rows": pa.array([found[uri] for uri in planned], pa.int64()),
            "passing_failure": pa.array([passing(failed.get(uri, {})) > 0 for uri in planned], pa.bool_()),
            "holds": pa.array([True] * len(planned), pa.bool_()),
            "not_scored": pa.array([list(failed.get(uri, {}).items()) for uri in planned], _BY_STATUS),
            "left_out": pa.array([left_out] * len(planned), pa.string()),
            "made_by": pa.array([made_by] * len(planned), pa.string()),
            "incomplete": pa.array([uri in incomplete for uri in planned], pa.bool_()),
        }
    )


def left_out_of(read: pa.Table) -> Counter[str]:
    """How many members of shards are no images, by suffix."""
    counts = Counter[str]()
    for text in read["left_out"].filter(pc.not_equal(read["left_out"], "{}")).to_pylist():
        counts.update(json.loads(text))
    return counts


def passing(not_scored: Mapping[str, int]) -> int:
    """How many of these, by status, failed for the moment."""
    return sum(count for status, count in not_scored.items() if status in schema.PASSING_STATUSES)


def _incomplete(rows: pa.Table) -> set[str]:
    """Shards of which a row stands for the whole, or the rest: nobody knows how many images that is."""
    statuses = pa.array(["unreadable_shard", "crashed", *schema.PASSING_STATUSES])
    alone = pc.and_(pc.equal(rows["image_uri"], rows["shard_uri"]), pc.is_in(rows["status"], statuses))
    return {uri for uri in rows["shard_uri"].filter(alone).to_pylist() if not is_loose(uri)}
