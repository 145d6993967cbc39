"""What a run does, and the table in which that is kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pyarrow as pa

from bcd_ray import storage
from bcd_ray.archives.parts import Part
from bcd_ray.archives.shards import is_loose
from bcd_ray.ledger.manifests import digest
from bcd_ray.ledger.standing import Rows
from bcd_ray.storage import StoredObject
from bcd_ray.uris import from_printable

_OF_A_PLAN = ("run_id", "run_number", "identity", "superseded_shards", "current_images", "reasons")
_PART = pa.struct([*((name, pa.int64()) for name in ("begin", "end", "size", "images_before")), ("last", pa.bool_())])
_EARLIER = pa.struct([("rows", pa.int64()), ("scored", pa.int64()), ("passing_failure", pa.bool_())])


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work: one shard or a part of it, or some loose images in a row."""

    unit_id: str
    shards: tuple[StoredObject, ...]
    features: tuple[str, ...] = ()  # of each shard the run that kept its embeddings; empty where all are to be read
    part: Part | None = None
    undivided: str = ""  # id of the unit that all parts of the shard would be

    @property
    def size(self) -> int:
        """Bytes that are to be read."""
        return self.part.size if self.part else sum(shard.size for shard in self.shards)

    @property
    def known_as(self) -> str:
        """What the shards' record calls it: the parts of a shard have one."""
        return self.undivided or self.unit_id


@dataclass(frozen=True)
class Plan:
    """What a run does: units in order of their names. The run's id is made from them, not from the clock."""

    run_id: str
    run_number: int
    units: tuple[Unit, ...]
    identity: dict[str, Any]
    superseded_shards: int
    current_images: int  # of the same inputs, published before
    earlier: dict[str, Rows]  # that hold of the shards in the units, by printable URI
    reasons: dict[str, int] = field(default_factory=dict)  # shards by why they are to be scored
    current_shards: int = 0
    rescored_shards: int = 0  # of the content that their rows are of: another model or other settings are the reason

    @property
    def shards(self) -> int:
        """How many shards its units are of."""
        return sum(len(unit.shards) for unit in self.units if not unit.part or unit.part.first)

    def numbered(self, number: int) -> "Plan":
        """The same under another number, and so another id."""
        run_id = digest([digest(self.identity), number, [unit.unit_id for unit in self.units]])[:16]
        return replace(self, run_id=run_id, run_number=number)


def table_of(plan: Plan, facts: dict[str, Any]) -> pa.Table:
    """A row for each shard, and facts for the manifest."""
    known = [(unit, shard) for unit in plan.units for shard in unit.shards]
    before = [plan.earlier.get(storage.printable(shard.name)) for _, shard in known]
    described = {name: getattr(plan, name) for name in _OF_A_PLAN}
    return pa.table(
        {
            "unit_id": pa.array([unit.unit_id for unit, _ in known], pa.string()),
            "uri": pa.array([storage.printable(shard.name) for _, shard in known], pa.string()),
            "size": pa.array([shard.size for _, shard in known], pa.int64()),
            "etag": pa.array([shard.etag for _, shard in known], pa.string()),
            # How many images a tar or a Parquet shard holds is known once it is read.
            "images": pa.array([1 if is_loose(shard.uri) else None for _, shard in known], pa.int64()),
            "earlier": pa.array([one and one._asdict() for one in before], _EARLIER),
            "features": pa.array(chain.from_iterable(map(_features, plan.units)), pa.string()),
            "part": pa.array([unit.part and unit.part._asdict() for unit, _ in known], _PART),
            "undivided": pa.array([unit.undivided for unit, _ in known], pa.string()),
        },
        metadata={"bcd_ray": json.dumps(described | facts)},
    )


def facts_of(table: pa.Table) -> dict[str, Any]:
    """What the plan says of itself beside its shards, and the facts."""
    return dict(json.loads(table.schema.metadata[b"bcd_ray"]))


def plan_of(table: pa.Table) -> Plan:
    """The plan of such a table."""
    described = facts_of(table)
    units: dict[str, list[StoredObject]] = {}
    features: dict[str, list[str]] = {}
    parts: dict[str, tuple[Part, str]] = {}
    earlier = {}
    for row in table.to_pylist():
        units.setdefault(row["unit_id"], []).append(StoredObject(from_printable(row["uri"]), row["size"], row["etag"]))
        if run_id := row.get("features"):
            features.setdefault(row["unit_id"], []).append(run_id)
        if part := row.get("part"):
            parts[row["unit_id"]] = Part(**part), row["undivided"]
        if row["earlier"]:
            earlier[row["uri"]] = Rows(**row["earlier"])
    grouped = tuple(
        Unit(each, tuple(shards), tuple(features.get(each, ())), *parts.get(each, ())) for each, shards in units.items()
    )
    return Plan(units=grouped, earlier=earlier, **{name: described[name] for name in _OF_A_PLAN if name in described})


def _features(unit: Unit) -> Sequence[str | None]:
    return unit.features or (None,) * len(unit.shards)
