"""Nothing lost, nothing twice: the plan, the units' outputs, their reconciliation and publication.

    OUTPUT/_work/plans/RUN_ID.parquet        what is to be done, written first
    OUTPUT/_work/units/UNIT_ID.parquet       the rows of one unit, whole; named by everything that changes them
    OUTPUT/predictions/RUN_ID.parquet        the rows of all units, one object that appears at once
    OUTPUT/manifests/RUN_ID.inputs.parquet   the shards that were read
    OUTPUT/manifests/RUN_ID.json             what was read and written, last: with it the run is published

Every name is made from the content's identity, and nothing is written over: a run that died goes on where it was, a
second copy of it finds the work done, and a reader never sees part of a run.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.archives.shards import is_loose
from bcd_ray.errors import JobError, NotFoundError
from bcd_ray.scoring import schema
from bcd_ray.storage import StoredObject, parquet

_LOOSE_IMAGES_PER_UNIT = 256
_ROWS_PER_GROUP = 65_536
_LEFT_OUT = b"left_out"  # in the metadata of a unit's rows
_ADDED_AT_PUBLICATION = ("run_id", "run_number")
_UNIT_SCHEMA = pa.schema([field for field in schema.PREDICTIONS if field.name not in _ADDED_AT_PUBLICATION])


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work: one shard, or some loose images in a row."""

    unit_id: str
    shards: tuple[StoredObject, ...]


@dataclass(frozen=True)
class Plan:
    """What a run does: units in order of their URIs. The run's id is made from them, not from the clock."""

    run_id: str
    run_number: int
    units: tuple[Unit, ...]
    identity: dict[str, Any]
    superseded_shards: int


@dataclass(frozen=True, slots=True)
class _Published:
    """The last publication of a shard."""

    run_number: int
    etag: str
    identity: str
    passing_failure: bool


class Ledger:
    """The state of one output folder."""

    def __init__(self, output: str) -> None:
        self.output = output

    def plan(self, shards: Iterable[StoredObject], identity: dict[str, Any]) -> Plan:
        """The units of the shards, sorted by URI, that are not published as they are now.

        Args:
            identity: everything besides the shards that changes the rows: model, limits, schema. JSON-ready.
        """
        last_run, published = self._published()
        identity_digest = _digest(identity)
        units, superseded = [], 0

        def last(shard: StoredObject) -> _Published | None:
            return published.get(storage.printable(shard.uri))

        for group in _groups(shard for shard in shards if not _is_current(last(shard), shard, identity_digest)):
            before = [last(shard) for shard in group]
            superseded += sum(one is not None and not one.passing_failure for one in before)
            # What failed for the moment is tried anew, so its unit is another one.
            again = [one.run_number if one and one.passing_failure else 0 for one in before]
            content = [identity_digest, [(shard.uri, shard.etag, run) for shard, run in zip(group, again, strict=True)]]
            units.append(Unit(_digest(content)[:32], tuple(group)))
        run_id = _digest([identity_digest, last_run + 1, [unit.unit_id for unit in units]])[:16]
        return Plan(run_id, last_run + 1, tuple(units), identity, superseded)

    def begin(self, plan: Plan, facts: dict[str, Any]) -> None:
        """Write the plan, and facts for the manifest, unless an earlier attempt at the same run did."""
        known = [(unit, shard) for unit in plan.units for shard in unit.shards]
        table = pa.table(
            {
                "unit_id": pa.array([unit.unit_id for unit, _ in known], pa.string()),
                "uri": pa.array([storage.printable(shard.uri) for _, shard in known], pa.string()),
                "size": pa.array([shard.size for _, shard in known], pa.int64()),
                "etag": pa.array([shard.etag for _, shard in known], pa.string()),
                # How many images a tar or a Parquet shard holds is known once it is read.
                "images": pa.array([1 if is_loose(shard.uri) else None for _, shard in known], pa.int64()),
            },
            metadata={"bcd_ray": json.dumps(_described(plan) | {"started_at": _now(), **facts})},
        )
        storage.create(self._plan_uri(plan.run_id), parquet.bytes_of(table, compression="zstd"))

    def unfinished(self, plan: Plan) -> list[Unit]:
        """The units whose rows are not there yet."""
        done = set(storage.list_names(storage.join(self.output, "_work", "units")))
        return [unit for unit in plan.units if f"{unit.unit_id}.parquet" not in done]

    def is_finished(self, unit: Unit) -> bool:
        """Whether the rows of a unit are there."""
        return storage.exists(self._unit_uri(unit))

    def write_unit(self, unit: Unit, rows: pa.Table, left_out: Mapping[str, int] | None = None) -> None:
        """Write the rows of a unit, of all columns but the run's; the first writer of a unit wins.

        `left_out` counts the members of its shard that are no images, by suffix.
        """
        rows = rows.select(_UNIT_SCHEMA.names).cast(_UNIT_SCHEMA)
        rows = rows.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out or {}, sort_keys=True)})
        rows = rows.sort_by([(name, "ascending") for name in ("shard_uri", "image_uri", "image_id")])
        storage.create(self._unit_uri(unit), parquet.bytes_of(rows, compression="zstd"))

    def publish(self, plan: Plan) -> dict[str, Any]:
        """Reconcile the units with the plan, publish their rows as one object, then the manifest; return it.

        Raises:
            JobError: rows and plan do not agree; nothing is published.
        """
        statuses, classes, review = Counter[str](), Counter[str](), Counter[str]()
        inputs, members, incomplete = [], Counter[str](), 0
        with _temporary_folder() as folder:
            path = folder / "predictions.parquet"
            with pq.ParquetWriter(path, schema.PREDICTIONS, compression="zstd") as writer:
                for rows, read in self._reconciled(plan):
                    statuses.update(rows["status"].to_pylist())
                    classes.update(rows["predicted_class"].drop_null().to_pylist())
                    review["rows"] += int(pc.sum(rows["review"]).as_py() or 0)
                    review.update(pc.list_flatten(rows["review_reasons"]).to_pylist())
                    members += _left_out(read)
                    incomplete += _incomplete(rows)
                    inputs.append(read)
                    writer.write_table(rows, row_group_size=_ROWS_PER_GROUP)
            output = self._create_file(storage.join(self.output, "predictions", f"{plan.run_id}.parquet"), path)
            pq.write_table(pa.concat_tables(inputs), path, compression="zstd")
            read_uri = storage.join(self.output, "manifests", f"{plan.run_id}.inputs.parquet")
            read_file = self._create_file(read_uri, path)
        planned = self._read_plan(plan.run_id).schema.metadata[b"bcd_ray"]
        manifest = {
            "manifest_version": schema.MANIFEST_VERSION,
            **json.loads(planned),
            "published_at": _now(),
            "statuses": dict(sorted(statuses.items())),
            "predicted_classes": dict(sorted(classes.items())),
            "review": dict(sorted(review.items())),
            "outputs": [output],
            "inputs": read_file,
            "left_out": {"files": json.loads(planned).get("left_out", {}), "members": members},
            "incomplete_shards": incomplete,
        }
        manifest_uri = storage.join(self.output, "manifests", f"{plan.run_id}.json")
        if not storage.create(manifest_uri, (json.dumps(manifest, indent=2) + "\n").encode()):
            manifest = _manifest_of(manifest_uri)  # another copy of this run was first
        return manifest

    def recover(self) -> list[str]:
        """Finish the runs that died between their rows and their manifest, and return their ids.

        Their rows are there to be read, so they must be known before another run is planned.
        """
        unknown = self.without_manifest()
        for run_id in unknown:
            try:
                table = self._read_plan(run_id)
            except NotFoundError as error:
                raise JobError(f"predictions/{run_id}.parquet is of no known run: move it away") from error
            self.publish(_plan_of(table))
        return unknown

    def without_manifest(self) -> list[str]:
        """Ids of the runs whose rows are there, and their manifest is not."""
        published = {manifest["run_id"] for manifest in self.manifests()}
        names = storage.list_names(storage.join(self.output, "predictions"))
        return [run_id for run_id in (name.removesuffix(".parquet") for name in names) if run_id not in published]

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of all published runs, in order of their numbers."""
        folder = storage.join(self.output, "manifests")
        uris = [storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".json")]
        found = [_manifest_of(uri) for uri in uris]
        return sorted(found, key=lambda manifest: (manifest["run_number"], manifest["run_id"]))

    def _published(self) -> tuple[int, dict[str, _Published]]:
        """The number of the last run, and the last publication of each shard by its URI."""
        last, published = 0, {}
        for manifest in self.manifests():
            last, identity = manifest["run_number"], _digest(manifest["identity"])
            # By name, not by the recorded URI: an output may have been moved.
            inputs_uri = storage.join(self.output, "manifests", f"{manifest['run_id']}.inputs.parquet")
            table = parquet.read(inputs_uri, "restore it from a copy")
            columns = (table[name].to_pylist() for name in ("uri", "etag", "passing_failure"))
            for uri, etag, passing_failure in zip(*columns, strict=True):
                published[uri] = _Published(last, etag, identity, passing_failure)
        return last, published

    def _reconciled(self, plan: Plan) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The units' rows in the plan's order, some units together, and the shards they came from.

        Ids are unique within a unit, shards within a plan, and an id is made from its shard's URI: so none repeats.
        """
        if len({shard.uri for unit in plan.units for shard in unit.shards}) != sum(len(u.shards) for u in plan.units):
            raise JobError("the plan lists a shard twice: report this")
        waiting: list[tuple[pa.Table, pa.Table]] = []
        for unit in plan.units:
            rows = parquet.read(self._unit_uri(unit), "delete it")
            read = _read_shards(unit, rows)
            rows = rows.append_column("run_id", pa.repeat(pa.scalar(plan.run_id), len(rows)))
            rows = rows.append_column("run_number", pa.repeat(pa.scalar(plan.run_number, pa.int32()), len(rows)))
            waiting.append((rows.select(schema.PREDICTIONS.names).cast(schema.PREDICTIONS), read))
            if sum(len(rows) for rows, _ in waiting) >= _ROWS_PER_GROUP:
                yield pa.concat_tables(rows for rows, _ in waiting), pa.concat_tables(read for _, read in waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(rows for rows, _ in waiting), pa.concat_tables(read for _, read in waiting)

    def _create_file(self, uri: str, path: Path) -> dict[str, Any]:
        """Publish a file, unless an earlier attempt at the same run did, and describe it."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not storage.create_from_file(uri, path) and hashlib.sha256(storage.read_bytes(uri)).hexdigest() != digest:
            raise JobError(f"{uri} exists with other content: move it away and run the same command again")
        rows = pq.read_metadata(path).num_rows
        return {"uri": uri, "rows": rows, "bytes": path.stat().st_size, "sha256": digest}

    def _read_plan(self, run_id: str) -> pa.Table:
        return parquet.read(self._plan_uri(run_id), "delete it")

    def _plan_uri(self, run_id: str) -> str:
        return storage.join(self.output, "_work", "plans", f"{run_id}.parquet")

    def _unit_uri(self, unit: Unit) -> str:
        return storage.join(self.output, "_work", "units", f"{unit.unit_id}.parquet")


def _described(plan: Plan) -> dict[str, Any]:
    """The plan's fields but its units, JSON-ready."""
    return {field.name: getattr(plan, field.name) for field in fields(plan) if field.name != "units"}


def _manifest_of(uri: str) -> dict[str, Any]:
    try:
        manifest = dict[str, Any](json.loads(storage.read_bytes(uri)))
        manifest["run_number"], manifest["run_id"], manifest["identity"]
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(f"{uri} is damaged or no manifest: restore it from a copy, or move away what is none") from error
    return manifest


def _plan_of(table: pa.Table) -> Plan:
    """The plan that `Ledger.begin` wrote."""
    described = json.loads(table.schema.metadata[b"bcd_ray"])
    units: dict[str, list[StoredObject]] = {}
    for row in table.to_pylist():
        units.setdefault(row["unit_id"], []).append(StoredObject(row["uri"], row["size"], row["etag"]))
    names = {field.name for field in fields(Plan)} - {"units"}
    grouped = tuple(Unit(unit_id, tuple(shards)) for unit_id, shards in units.items())
    return Plan(units=grouped, **{name: described[name] for name in names})


def _left_out(read: pa.Table) -> Counter[str]:
    """How many members of shards are no images, by suffix."""
    counts = Counter[str]()
    for text in read["left_out"].filter(pc.not_equal(read["left_out"], "{}")).to_pylist():
        counts.update(json.loads(text))
    return counts


def _incomplete(rows: pa.Table) -> int:
    """How many rows stand for a shard, or the rest of one, of which nobody knows how many images it holds."""
    statuses = pa.array(["unreadable_shard", "crashed", *schema.PASSING_STATUSES])
    alone = pc.and_(pc.equal(rows["image_uri"], rows["shard_uri"]), pc.is_in(rows["status"], statuses))
    return sum(not is_loose(uri) for uri in rows["shard_uri"].filter(alone).to_pylist())


def unscored(statuses: dict[str, int]) -> int:
    """How many images of a manifest's `statuses` could not be scored."""
    return sum(count for status, count in statuses.items() if status != "scored")


def _is_current(last: _Published | None, shard: StoredObject, identity: str) -> bool:
    """Whether the last publication of a shard is of this content and identity, and did not fail for the moment."""
    return last is not None and (last.etag, last.identity, last.passing_failure) == (shard.etag, identity, False)


def _groups(shards: Iterable[StoredObject]) -> Iterator[list[StoredObject]]:
    """A shard alone, loose images that follow each other together: the rows of all units are then in order."""
    loose: list[StoredObject] = []
    for shard in shards:
        is_image = is_loose(shard.uri)
        if loose and (not is_image or len(loose) == _LOOSE_IMAGES_PER_UNIT):
            yield loose
            loose = []
        if is_image:
            loose.append(shard)
        else:
            yield [shard]
    if loose:
        yield loose


def _read_shards(unit: Unit, rows: pa.Table) -> pa.Table:
    """The unit's shards with how many rows each gave; JobError where rows and unit do not agree."""
    planned = [storage.printable(shard.uri) for shard in unit.shards]
    found, passing = Counter(rows["shard_uri"].to_pylist()), set[str]()
    for uri, status in zip(rows["shard_uri"].to_pylist(), rows["status"].to_pylist(), strict=True):
        if status in schema.PASSING_STATUSES:
            passing.add(uri)
    loose = [uri for uri in planned if is_loose(uri)]
    left_out = (rows.schema.metadata or {}).get(_LEFT_OUT, b"{}").decode()
    unique_ids = len(set(rows["image_id"].to_pylist())) == len(rows)
    if not unique_ids or found.keys() != set(planned) or any(found[uri] != 1 for uri in loose):
        raise JobError(f"the rows of unit {unit.unit_id} are not those of its plan: delete it under _work/units")
    return pa.table(
        {
            "uri": pa.array(planned, pa.string()),
            "size": pa.array([shard.size for shard in unit.shards], pa.int64()),
            "etag": pa.array([shard.etag for shard in unit.shards], pa.string()),
            "unit_id": pa.array([unit.unit_id] * len(planned), pa.string()),
            "rows": pa.array([found[uri] for uri in planned], pa.int64()),
            "passing_failure": pa.array([uri in passing for uri in planned], pa.bool_()),
            "left_out": pa.array([left_out] * len(planned), pa.string()),
        }
    )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:  # those of storage are StorageErrors
        remedy = f"make room in {tempfile.gettempdir()}, or set TMPDIR"
        raise JobError(f"no temporary file can be written ({error}): {remedy}") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
