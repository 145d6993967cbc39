"""Nothing lost, nothing twice: the plan, the units' outputs, their reconciliation and publication.

    OUTPUT/_work/numbers/NUMBER              the id of the run that has this number, written first
    OUTPUT/_work/plans/RUN_ID.parquet        what is to be done
    OUTPUT/_work/standing/...                what stands of all shards after many runs, for the next (`compacted`)
    OUTPUT/_work/units/UNIT_ID.parquet       the rows of one unit, whole; named by everything that changes them
    OUTPUT/predictions/RUN_ID.parquet        the rows of all units, one object that appears at once
    OUTPUT/features/RUN_ID.parquet           the embeddings of these rows (`features`), where they are kept
    OUTPUT/manifests/RUN_ID.inputs.parquet   the shards that were read
    OUTPUT/manifests/RUN_ID.json             what was read and written: with it the run is published
    OUTPUT/manifests/published/...           that it is, by the manifest's digest, last (`roll`)

Every name is made from the content's identity, and nothing is written over: a run that died goes on where it was, a
second copy of it finds the work done, and a reader never sees part of a run.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import JobError, NotFoundError
from bcd_ray.ledger import roll, roots, schema
from bcd_ray.ledger.dividing import Joined
from bcd_ray.ledger.equal import Equals
from bcd_ray.ledger.features import EMBEDDING, FEATURES, FEATURES_OF, features_of
from bcd_ray.ledger.held import hold_against
from bcd_ray.ledger.listed import Listed
from bcd_ray.ledger.manifests import (
    Manifest,
    ends_of_chain,
    identity_digest,
    is_of_a_run,
    manifest_of,
    read_manifests,
)
from bcd_ray.ledger.plan import Plan, facts_of, plan_of
from bcd_ray.ledger.planning import make_plan
from bcd_ray.ledger.reconciling import INPUTS, KEPT, MADE_BY, READ, RECONCILED, left_out_of, read_shards
from bcd_ray.ledger.seen import Seen
from bcd_ray.ledger.sources import Sources
from bcd_ray.ledger.state import State
from bcd_ray.ledger.undelivered import Undelivered
from bcd_ray.ledger.units import Unit, Units
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.threads import in_chunks, map_ahead

_READERS = 16  # of units, at publication
_SMALL_UNIT_BYTES = 2 << 20  # some 20,000 rows, or 1,000 with embeddings, which are read whole
_SHARDS_AT_A_TIME = 8192
_ADDED_AT_PUBLICATION = ("run_id", "run_number")
_UNIT_SCHEMA = pa.schema([field for field in schema.PREDICTIONS if field.name not in _ADDED_AT_PUBLICATION])


class Ledger:
    """The state of one output folder."""

    def __init__(self, output: str) -> None:
        self.output = output

    def plan(
        self, shards: Iterable[StoredObject], identity: dict[str, Any], features: dict[str, Any] | None = None
    ) -> Plan:
        """`planning.make_plan` of some shards, by what is published."""
        state = self.state()
        held = hold_against(state, Listed.of(shards), identity_digest(identity))
        return make_plan(state, held, identity, features)

    def begin(self, plan: Plan, facts: dict[str, Any]) -> Plan:
        """Write the plan, and facts for the manifest, unless an earlier attempt at the same run did.

        Returns the plan under the number that it got: a run that was planned at the same time may have taken the next.
        """
        plan = self._claimed(plan)
        plan.write(self.plan_uri(plan.run_id), {"started_at": _now(), **facts})
        return plan

    def _claimed(self, plan: Plan) -> Plan:
        """The plan under the first number that no other run took: of two at a time, the one planned last holds."""
        while True:
            uri = storage.join(self.output, "_work", "numbers", f"{plan.run_number:08d}")
            run_id = plan.run_id.encode()
            if storage.create(uri, run_id) or storage.read_bytes(uri) == run_id:
                return plan
            plan = plan.numbered(plan.run_number + 1)

    def unfinished(self, plan: Plan) -> Units:
        """The units whose rows are not there yet."""
        done = storage.list_names(storage.join(self.output, "_work", "units"))
        return plan.units.without([name.removesuffix(".parquet") for name in done])

    def is_begun(self, plan: Plan) -> bool:
        """Whether an earlier attempt at the same run wrote its plan."""
        return storage.exists(self.plan_uri(plan.run_id))

    def is_finished(self, unit: Unit) -> bool:
        """Whether the rows of a unit are there."""
        return storage.exists(self._unit_uri(unit.unit_id))

    def write_unit(
        self,
        unit: Unit,
        rows: Iterable[pa.Table],
        seen: Seen,
        made_by: Mapping[str, Any] | None = None,
        keep: bool = False,
    ) -> None:
        """Write the rows of a unit by the chunk, of all columns but the run's; the first writer of a unit wins.

        `seen` is what was read of its shards, known once the rows are; `made_by` is the engine and versions; with
        `keep` the rows have embeddings beside them.
        """
        with parquet.Appender(_UNIT_SCHEMA.append(EMBEDDING) if keep else _UNIT_SCHEMA) as file:
            for chunk in rows:
                file.append(chunk)
            record = {**seen.record(), MADE_BY: json.dumps(made_by or {}, sort_keys=True)}
            record |= {KEPT: ""} if keep else {}
            file.finish(record)
            file.create(self._unit_uri(unit.unit_id))

    def publish(self, plan: Plan, max_undelivered: float = 1.0) -> dict[str, Any]:
        """Reconcile the units with the plan, publish their rows as one object, then the manifest; return it.

        Rows of a shard that failed for the moment are left out where they would take the place of better ones.

        Args:
            max_undelivered: share of the images, those published before counted, that may have failed for the moment.

        Raises:
            JobError: rows and plan do not agree, or too much failed for the moment; nothing is published.
        """
        manifest_uri = storage.join(self.output, "manifests", f"{plan.run_id}.json")
        if storage.exists(manifest_uri):  # another copy of this run was first, and its units may be gone
            return self._enter(plan.run_id).content
        planned = facts_of(self.plan_uri(plan.run_id))
        told = planned.get("configuration", {})
        by = told.get("source_pattern", ""), told.get("small_sources", "review") == "review"
        sources, undelivered = Sources(planned.get("source_limit"), *by), Undelivered(plan)
        joined, members, incomplete = Joined(), Counter[str](), 0
        with parquet.Appender(INPUTS) as file:
            for read in self._reconciled(plan, sources, joined, plan.run_id if planned.get("features") else None):
                read = undelivered.judged(read)
                members += left_out_of(read)
                incomplete += pc.sum(read["incomplete"]).as_py() or 0
                file.append(read)
            self._refuse(plan, undelivered, max_undelivered)
            output, kept, counts = self._publish_rows(plan, planned, sources, undelivered, joined)
            made_by = counts.pop("made_by")
            read_uri = storage.join(self.output, "manifests", f"{plan.run_id}.inputs.parquet")
            read_file = self._create_file(read_uri, file)
        manifest = {
            "manifest_version": schema.MANIFEST_VERSION,
            "source_limit": None,
            "reasons": {},
            "withdrawn": None,
            **planned,
            "published_at": _now(),
            **{name: dict(sorted(count.items())) for name, count in counts.items()},
            "made_by": [{"rows": count, **json.loads(made)} for made, count in sorted(made_by.items())],
            "undelivered": dict(sorted(undelivered.lost.items())),
            "kept_shards": undelivered.kept,
            "sources": sources.told(),
            "outputs": [output],
            "features": kept,
            "inputs": read_file,
            "left_out": {"files": planned.get("left_out", {}), "members": members},
            "incomplete_shards": incomplete,
            "previous": ends_of_chain(read_manifests(self.output)),
        }
        storage.create(manifest_uri, (json.dumps(manifest, indent=2) + "\n").encode())
        return self._enter(plan.run_id).content  # of another copy of this run, where that was first

    def _enter(self, run_id: str) -> Manifest:
        """The manifest of a run, which stands in the roll from now on."""
        manifest = manifest_of(storage.join(self.output, "manifests", f"{run_id}.json"))
        roll.enter(self.output, manifest)
        return manifest

    def _publish_rows(
        self, plan: Plan, planned: dict[str, Any], sources: Sources, undelivered: Undelivered, joined: Joined
    ) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Counter[str]]]:
        """Publish the rows of all units as one object, and their embeddings as another; describe them, and the rows."""
        statuses, classes, review, made_by = Counter[str](), Counter[str](), Counter[str](rows=0), Counter[str]()
        identity, kept = planned.get("features"), 0
        units = (unit for unit in plan.units if joined.publishes(unit))
        with parquet.Appender(schema.PREDICTIONS, schema.ROWS_PER_GROUP) as file, parquet.Appender(FEATURES) as beside:
            read = self._read_units(units)
            for chunk in (joined.published(unit, chunk) for unit, chunks in read for chunk in chunks):
                rows = sources.judged(undelivered.without(chunk))
                made_by[chunk.schema.metadata[MADE_BY].decode()] += len(rows)
                features = features_of(rows)
                kept += len(rows) - features[EMBEDDING.name].null_count
                beside.append(features)
                statuses.update(rows["status"].to_pylist())
                classes.update(rows["predicted_class"].drop_null().to_pylist())
                review["rows"] += int(pc.sum(rows["review"]).as_py() or 0)
                review.update(pc.list_flatten(rows["review_reasons"]).to_pylist())
                rows = rows.append_column("run_id", pa.repeat(pa.scalar(plan.run_id), len(rows)))
                number = pa.scalar(plan.run_number, pa.int32())
                file.append(rows.append_column("run_number", pa.repeat(number, len(rows))))
            output = self._create_file(storage.join(self.output, "predictions", f"{plan.run_id}.parquet"), file)
            described = None
            if identity and kept:
                uri = storage.join(self.output, "features", f"{plan.run_id}.parquet")
                described = {
                    **self._create_file(uri, beside, {FEATURES_OF: json.dumps(identity)}),
                    "identity": identity,
                }
        counts = {"statuses": statuses, "predicted_classes": classes, "review": review, "made_by": made_by}
        return output, described, counts

    def _refuse(self, plan: Plan, undelivered: Undelivered, most: float) -> None:
        """JobError where more failed for the moment than may; the units are done anew by the next attempt."""
        lost, images = undelivered.lost, undelivered.images
        if lost.total() <= most * images:
            return
        for unit in plan.units:
            if unit.known_as in undelivered.units:
                storage.delete(self._unit_uri(unit.unit_id))
        statuses = ", ".join(f"{count:,} {status}" for status, count in lost.most_common())
        raise JobError(
            f"nothing is published: {lost.total():,} of {images:,} images could not be read ({statuses}), more than "
            f"--max-undelivered {most:g}: mount or mend the storage and run the same command again"
        )

    def recover(self) -> list[str]:
        """Finish the runs that died between their rows and their manifest, and return their ids.

        Their rows are there to be read, so they must be known before another run is planned. Those that died before
        they were entered into the roll are entered.
        """
        names = storage.list_names(storage.join(self.output, "manifests"))
        entered = {each.run_id for each in roll.entries(self.output)}
        for run_id in {name.removesuffix(".json") for name in names if is_of_a_run(name, ".json")} - entered:
            self._enter(run_id)
        unknown = self.without_manifest()
        for run_id in unknown:
            try:
                plan = plan_of(self.plan_uri(run_id))
            except NotFoundError as error:
                raise JobError(f"predictions/{run_id}.parquet is of no known run: move it away") from error
            self.publish(plan)
        return unknown

    def without_manifest(self) -> list[str]:
        """Ids of the runs whose rows are there, and their manifest is not."""
        known = set(storage.list_names(storage.join(self.output, "manifests")))
        names = storage.list_names(storage.join(self.output, "predictions"))
        runs = [name.removesuffix(".parquet") for name in names if is_of_a_run(name, ".parquet")]
        return [run_id for run_id in runs if f"{run_id}.json" not in known]

    def state(self) -> State:
        """What all published runs say."""
        state = State(self.output, equal=Equals.known(self.output))
        if state.roots:
            state.roots |= roots.kept(self.output)
        return state

    def _reconciled(self, plan: Plan, sources: Sources, joined: Joined, keeper: str | None) -> Iterator[pa.Table]:
        """The shards of the units in the plan's order, some thousand at a time, with what their rows say of each.

        Ids are unique within a unit, and made from their shard's URI; shards are unique within a plan, in whose order
        they would stand side by side, and be joined: so none repeats.
        """

        def read(unit: Unit, rows: Iterable[pa.Table]) -> list[dict[str, Any]]:
            return read_shards(unit, map(sources.added, rows), keeper)

        units = self._read_units(plan.units, RECONCILED)
        for some in in_chunks(joined.shards(units, read), _SHARDS_AT_A_TIME):
            yield pa.Table.from_pylist(some, READ)

    def _read_units(
        self, units: Iterable[Unit], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Unit, Iterable[pa.Table]]]:
        """Units in order, with their rows by the chunk; many small units are read at a time: a GET takes some 15 ms."""
        folder = storage.join(self.output, "_work", "units")
        try:
            found = {each.uri: each for each in storage.list_objects(folder)}
        except NotFoundError:
            found = {}

        def read(unit: Unit) -> tuple[Unit, Iterable[pa.Table]]:
            uri = self._unit_uri(unit.unit_id)
            if uri in found and found[uri].size > _SMALL_UNIT_BYTES:
                return unit, parquet.chunks(found[uri], "delete it", columns)
            return unit, [parquet.read(uri, "delete it", columns)]

        with ThreadPoolExecutor(_READERS) as pool:
            yield from map_ahead(pool, read, units, ahead=2 * _READERS)

    def _create_file(
        self, uri: str, file: parquet.Appender, metadata: Mapping[bytes, str] | None = None
    ) -> dict[str, Any]:
        """Publish a file, unless an earlier attempt at the same run did, and describe it."""
        sha256 = file.finish(metadata)
        if not file.create(uri) and storage.sha256(uri) != sha256:
            raise JobError(f"{uri} exists with other content: move it away and run the same command again")
        return {"uri": uri, "rows": file.rows, "bytes": file.size, "sha256": sha256}

    def plan_uri(self, run_id: str) -> str:
        """Where the plan of a run is written."""
        return storage.join(self.output, "_work", "plans", f"{run_id}.parquet")

    def _unit_uri(self, unit_id: str) -> str:
        return storage.join(self.output, "_work", "units", f"{unit_id}.parquet")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
