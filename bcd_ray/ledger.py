"""Nothing lost, nothing twice: the plan, the units' outputs, their reconciliation and publication.

    OUTPUT/_work/plans/RUN_ID.parquet   what is to be done, written first
    OUTPUT/_work/units/UNIT_ID.parquet  the rows of one unit, whole; named by everything that changes them
    OUTPUT/predictions/RUN_ID.parquet   the rows of all units, one object that appears at once
    OUTPUT/manifests/RUN_ID.json        what was read and written, last

Every name is made from the content's identity, and nothing is written over: a run that died goes on where it was, a
second copy of it finds the work done, and a reader never sees part of a run.
"""

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray import schema, storage
from bcd_ray.archive import kind_of
from bcd_ray.errors import JobError
from bcd_ray.storage import StoredObject

MANIFEST_VERSION = 1
_LOOSE_IMAGES_PER_UNIT = 256
_ROWS_PER_GROUP = 65_536
_UNIT_SCHEMA = schema.PREDICTIONS.remove(schema.PREDICTIONS.get_field_index("run_id"))


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work: one shard, or some loose images in a row."""

    unit_id: str
    shards: tuple[StoredObject, ...]


@dataclass(frozen=True)
class Plan:
    """What a run does: units in order of their URIs. The run's id is made from them, not from the clock."""

    run_id: str
    units: tuple[Unit, ...]
    identity: dict[str, Any]


def make_plan(shards: Iterable[StoredObject], identity: dict[str, Any]) -> Plan:
    """Group shards, sorted by URI, into units.

    Args:
        identity: everything besides the shards that changes the rows: model, limits, schema. JSON-ready.
    """
    units = []
    for group in _groups(shards):
        units.append(Unit(_digest([identity, [shard.version_name() for shard in group]])[:32], tuple(group)))
    run_id = _digest([identity, [unit.unit_id for unit in units]])[:16]
    return Plan(run_id, tuple(units), identity)


class Ledger:
    """The state of one output folder."""

    def __init__(self, output: str) -> None:
        self.output = output

    def published(self, identity: dict[str, Any]) -> set[str]:
        """Version names of the shards that were published with this identity."""
        names = set()
        folder = storage.join(self.output, "manifests")
        for name in storage.list_names(folder):
            manifest = json.loads(storage.read_bytes(storage.join(folder, name)))
            if manifest["identity"] == identity:
                names |= {StoredObject(**shard).version_name() for shard in manifest["inputs"]}
        return names

    def begin(self, plan: Plan) -> None:
        """Write the plan, unless an earlier attempt at the same run did."""
        rows = [
            {"unit_id": unit.unit_id, "uri": storage.printable(shard.uri), "size": shard.size, "etag": shard.etag}
            for unit in plan.units
            for shard in unit.shards
        ]
        table = pa.Table.from_pylist(rows).replace_schema_metadata(
            {"identity": json.dumps(plan.identity), "started_at": _now()}
        )
        storage.create(self._plan_uri(plan), _parquet_bytes(table))

    def unfinished(self, plan: Plan) -> list[Unit]:
        """The units whose rows are not there yet."""
        done = set(storage.list_names(storage.join(self.output, "_work", "units")))
        return [unit for unit in plan.units if f"{unit.unit_id}.parquet" not in done]

    def write_unit(self, unit: Unit, rows: pa.Table) -> None:
        """Write the rows of a unit, of all columns but `run_id`; the first writer of a unit wins."""
        rows = rows.select(_UNIT_SCHEMA.names).cast(_UNIT_SCHEMA).sort_by("image_uri")
        storage.create(self._unit_uri(unit), _parquet_bytes(rows))

    def publish(self, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
        """Reconcile the units with the plan, publish their rows as one object, then the manifest; return it.

        Raises:
            JobError: rows and plan do not agree; nothing is published.
        """
        statuses, classes = Counter[str](), Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "predictions.parquet")
            with pq.ParquetWriter(path, schema.PREDICTIONS, compression="zstd") as writer:
                for table in self._reconciled(plan):
                    statuses.update(table["status"].to_pylist())
                    classes.update(table["predicted_class"].drop_null().to_pylist())
                    writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
            data_uri = storage.join(self.output, "predictions", f"{plan.run_id}.parquet")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if not storage.create_from_file(data_uri, path):
                self._check_same(data_uri, digest)
            output = {"uri": data_uri, "rows": statuses.total(), "bytes": path.stat().st_size, "sha256": digest}
        plan_metadata = pq.read_schema(io.BytesIO(storage.read_bytes(self._plan_uri(plan)))).metadata
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "run_id": plan.run_id,
            "started_at": plan_metadata[b"started_at"].decode(),
            "published_at": _now(),
            "identity": plan.identity,
            **facts,
            "statuses": dict(sorted(statuses.items())),
            "predicted_classes": dict(sorted(classes.items())),
            "outputs": [output],
            "inputs": [
                {"uri": shard.uri, "size": shard.size, "etag": shard.etag}
                for unit in plan.units
                for shard in unit.shards
            ],
        }
        manifest_uri = storage.join(self.output, "manifests", f"{plan.run_id}.json")
        if not storage.create(manifest_uri, (json.dumps(manifest, indent=2) + "\n").encode()):
            manifest = json.loads(storage.read_bytes(manifest_uri))  # another copy of this run was first
        return manifest

    def _reconciled(self, plan: Plan) -> Iterator[pa.Table]:
        """The units' rows in the plan's order, in large tables; JobError where they are not those of the plan."""
        ids: set[bytes] = set()
        waiting: list[pa.Table] = []
        for unit in plan.units:
            rows = pq.read_table(io.BytesIO(storage.read_bytes(self._unit_uri(unit))))
            _check_shards(unit, rows)
            before = len(ids)
            ids.update(bytes.fromhex(image_id) for image_id in rows["image_id"].to_pylist())
            if len(ids) - before != len(rows):
                raise JobError(f"unit {unit.unit_id} repeats an image id: report this with the plan {plan.run_id}")
            run_ids = pa.array([plan.run_id] * len(rows), pa.string())
            waiting.append(rows.append_column("run_id", run_ids).select(schema.PREDICTIONS.names))
            if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                yield pa.concat_tables(waiting).cast(schema.PREDICTIONS)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting).cast(schema.PREDICTIONS)

    def _check_same(self, uri: str, digest: str) -> None:
        if hashlib.sha256(storage.read_bytes(uri)).hexdigest() != digest:
            raise JobError(f"{uri} exists with other content: move it away and run the same command again")

    def _plan_uri(self, plan: Plan) -> str:
        return storage.join(self.output, "_work", "plans", f"{plan.run_id}.parquet")

    def _unit_uri(self, unit: Unit) -> str:
        return storage.join(self.output, "_work", "units", f"{unit.unit_id}.parquet")


def _groups(shards: Iterable[StoredObject]) -> Iterator[list[StoredObject]]:
    """A shard alone, loose images that follow each other together: the rows of all units are then in order."""
    loose: list[StoredObject] = []
    for shard in shards:
        is_image = kind_of(shard.uri) == "image"
        if loose and (not is_image or len(loose) == _LOOSE_IMAGES_PER_UNIT):
            yield loose
            loose = []
        if is_image:
            loose.append(shard)
        else:
            yield [shard]
    if loose:
        yield loose


def _check_shards(unit: Unit, rows: pa.Table) -> None:
    """JobError if rows are of other shards than the unit's, or a loose image has not exactly one."""
    counted = rows.group_by("shard_uri").aggregate([("shard_uri", "count")])
    found = dict(zip(counted["shard_uri"].to_pylist(), counted["shard_uri_count"].to_pylist(), strict=True))
    planned = [storage.printable(shard.uri) for shard in unit.shards]
    loose = [uri for uri in planned if kind_of(uri) == "image"]
    if not found.keys() <= set(planned) or any(found.get(uri) != 1 for uri in loose):
        raise JobError(f"the rows of unit {unit.unit_id} are not those of its plan: delete it under _work/units")


def unscored(statuses: dict[str, int]) -> int:
    """How many images of a manifest's `statuses` could not be scored."""
    return sum(count for status, count in statuses.items() if status != "scored")


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _digest(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
