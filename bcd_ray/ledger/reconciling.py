"""Do the rows of a unit agree with its plan? And what they say of each of its shards."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.archives.shards import is_loose
from bcd_ray.errors import JobError
from bcd_ray.ledger import schema
from bcd_ray.ledger.seen import LEFT_OUT, Seen
from bcd_ray.ledger.sources import SOURCE_COLUMNS
from bcd_ray.ledger.units import PLANNED, Unit

MADE_BY, KEPT = b"made_by", b"features"  # in the metadata of a unit's rows; the latter where they have embeddings
RECONCILED = ("image_id", "status", *SOURCE_COLUMNS)  # columns that this goes by
INPUTS = pa.schema(
    [
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("unit_id", pa.string()),
        ("rows", pa.int64()),
        ("passing_failure", pa.bool_()),
        ("holds", pa.bool_()),
        ("not_scored", pa.map_(pa.string(), pa.int64())),
        ("left_out", pa.string()),
        ("made_by", pa.string()),
        ("incomplete", pa.bool_()),
        ("features", pa.string()),
    ]
)
READ = INPUTS.append(PLANNED.field("earlier"))  # with the rows that held before


def read_shards(unit: Unit, chunks: Iterable[pa.Table], keeper: str | None) -> list[dict[str, Any]]:
    """The unit's shards, as rows of `READ`, from its rows by the chunk; JobError where rows and unit do not agree.

    `keeper` is the run that publishes them, where it keeps embeddings.
    """
    planned = [storage.printable(shard.name) for shard in unit.shards]
    found, failed, incomplete = Counter[str](), dict[str, Counter[str]](), set[str]()
    seen, record = Seen(), dict[bytes, bytes]()
    for rows in chunks:
        seen.add(rows["image_id"].to_pylist())
        record = rows.schema.metadata or {}
        found.update(rows["shard_uri"].to_pylist())
        incomplete |= _incomplete(rows)
        rows = rows.filter(pc.not_equal(rows["status"], "scored"))
        for uri, status in zip(rows["shard_uri"].to_pylist(), rows["status"].to_pylist(), strict=True):
            failed.setdefault(uri, Counter())[status] += 1
    loose = [uri for uri in planned if is_loose(uri)]
    if not seen.agrees(record) or found.keys() != set(planned) or any(found[uri] != 1 for uri in loose):
        raise JobError(f"the rows of unit {unit.unit_id} are not those of its plan: delete it under _work/units")
    left_out, made_by = (record.get(name, b"{}").decode() for name in (LEFT_OUT, MADE_BY))
    features = unit.features or (keeper if KEPT in record else None,) * len(planned)
    earlier = unit.earlier or (None,) * len(planned)
    return [
        {
            "uri": uri,
            "size": shard.size,
            "etag": shard.etag,
            "unit_id": unit.known_as,
            "rows": found[uri],
            "passing_failure": passing(failed.get(uri, {})) > 0,
            "holds": True,
            "not_scored": list(failed.get(uri, {}).items()),
            "left_out": left_out,
            "made_by": made_by,
            "incomplete": uri in incomplete,
            "features": kept,
            "earlier": before and before._asdict(),
        }
        for uri, shard, kept, before in zip(planned, unit.shards, features, earlier, strict=True)
    ]


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
