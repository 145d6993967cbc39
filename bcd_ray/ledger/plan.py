"""What a run does, and the file in which that is kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.ledger.manifests import digest
from bcd_ray.ledger.roots import Roots
from bcd_ray.ledger.units import PLANNED, Place, Unit, Units
from bcd_ray.storage import parquet
from bcd_ray.storage.parquet_rows import ParquetRows

_TOLD = b"bcd_ray"  # in the metadata
_REMEDY = "delete it"
_OF_A_PLAN = ("run_id", "run_number", "identity", "superseded_shards", "current_images", "reasons")


@dataclass(frozen=True)
class Plan:
    """What a run does: units in order of their names. The run's id is made from them, not from the clock."""

    run_id: str
    run_number: int
    units: Units = field(compare=False)
    identity: dict[str, Any]
    superseded_shards: int
    current_images: int  # of the same inputs, published before
    reasons: dict[str, int] = field(default_factory=dict)  # shards by why they are to be scored
    current_shards: int = 0
    rescored_shards: int = 0  # of the content that their rows are of: another model or other settings are the reason

    @property
    def shards(self) -> int:
        """How many shards its units are of."""
        return self.units.numbers.shards

    def numbered(self, number: int) -> "Plan":
        """The same under another number, and so another id."""
        run_id = digest([digest(self.identity), number, list(self.units.ids())])[:16]
        return replace(self, run_id=run_id, run_number=number)

    def write(self, uri: str, facts: dict[str, Any]) -> None:
        """A row for each shard, and facts for the manifest; unless an earlier attempt at the same run did."""
        described = {name: getattr(self, name) for name in _OF_A_PLAN}
        with parquet.Appender(PLANNED, plain=("uri", "etag")) as file:
            for table in self.units.tables():
                file.append(table)
            file.finish({_TOLD: json.dumps(described | facts)})
            file.create(uri)


def facts_of(uri: str) -> dict[str, Any]:
    """What a plan that was written says of itself beside its shards, and the facts."""
    (listed,) = storage.list_objects(uri)
    with parquet.damage_told(uri, _REMEDY), storage.open_stream(listed) as stream:
        return dict(json.loads(pq.ParquetFile(stream).metadata.metadata[_TOLD]))


def plan_of(uri: str) -> Plan:
    """The plan that was written; of its shards only the names are known."""
    described = facts_of(uri)

    def planned() -> Iterator[pa.Table]:
        for table in parquet.chunks_at(uri, _REMEDY):  # earlier versions have fewer columns
            yield pa.concat_tables([PLANNED.empty_table(), table], promote_options="default").select(PLANNED.names)

    return Plan(units=Units(planned), **{name: described[name] for name in _OF_A_PLAN if name in described})


def unit_ids(uri: str) -> set[str]:
    """Of the units of a plan that was written."""
    tables = parquet.chunks_at(uri, _REMEDY, ["unit_id"])
    return {unit_id for table in tables for unit_id in table["unit_id"].unique().to_pylist()}


class Handed:
    """The units of a plan that was written, by their places: what an actor is handed. Threads may share it."""

    def __init__(self, uri: str, roots: Roots) -> None:
        self._uri, self._roots = uri, roots
        self._rows: ParquetRows | None = None

    def unit(self, place: Place) -> Unit:
        """JobError if the plan is damaged."""
        if self._rows is None:
            self._rows = ParquetRows(self._uri, _REMEDY, PLANNED.names).__enter__()
        rows = self._rows.slice(place.row, place.row + place.rows)
        return next(iter(Units(lambda: [rows], self._roots)))
