"""Forgetting images, top to bottom: find their rows in all runs, publish what holds without them, erase, if asked to.

A withdrawal is published like a run: it has a number, a manifest in the chain, and, of each shard that lost an image,
all rows that hold, those of forgotten images without what was seen in them. So every reader that takes the rows of a
shard's last run is right, if it leaves out the status `withdrawn`. The manifest names the contents, and no later run
takes one up.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import ConfigError
from bcd_ray.ledger import counts, schema
from bcd_ray.ledger.grouping import groups
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.manifests import digest
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.schema import ROWS_PER_GROUP, WITHDRAWN
from bcd_ray.ledger.seen import Seen
from bcd_ray.ledger.state import State
from bcd_ray.ledger.units import Unit, Units
from bcd_ray.runtime import library_versions
from bcd_ray.scoring.blanking import blanked
from bcd_ray.scoring.config import ForgetConfig
from bcd_ray.scoring.targets import Targets
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.storage.sorting import GROUP_ROWS, SortedFile, Sorter
from bcd_ray.uris import from_printable

_BY_SHARD = pa.schema(sorted(schema.PREDICTIONS, key=lambda field: field.name != "shard_uri"))  # which comes first
_FOUND_BY = ("image_id", "image_uri", "shard_uri", "image_sha256", "status")


class Withdrawal(NamedTuple):
    """What was done."""

    manifest: dict[str, Any] | None  # None where nothing was written
    images: int  # rows that held, of forgotten images
    contents: int  # that no run takes up any more, newly
    erased: int  # files of earlier runs that were written anew


@dataclass
class _Found:
    """Rows of forgotten images."""

    contents: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)  # ids by place: all that was ever published under them
    unread: set[str] = field(default_factory=set)  # of these, those whose content nobody knows

    @cached_property
    def _named(self) -> tuple[pa.Array, pa.Array]:
        return pa.array(self.images, pa.string()), pa.array(self.contents, pa.string())

    def among(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which of the rows are theirs, and still say something; to be asked once all are found."""
        images, contents = self._named
        of_image, of_content = pc.is_in(rows["image_id"], images), pc.is_in(rows["image_sha256"], contents)
        return pc.and_(pc.or_(of_image, of_content), pc.not_equal(rows["status"], WITHDRAWN))


def forget(config: ForgetConfig) -> Withdrawal:
    """Withdraw images from what is published, whichever run published them; the same command again goes on.

    Raises:
        ConfigError: nothing is published, or nothing is what a target names.
    """
    ledger = Ledger(config.output)
    if not config.dry_run:
        ledger.recover()
    state = ledger.state()
    if not state.runs:
        raise ConfigError(f"{config.output}: no run is published here: give the --output of a scoring job that ended")
    found = _find(state, Targets.of(config, state.roots), copies=not config.moved)
    shards = _shards(state, found)
    with tempfile.TemporaryDirectory() as folder:
        erased = list(_erased(state, found, Path(folder))) if config.erase else []
        new = (found.contents | found.unread) - state.withdrawn if not config.moved else set[str]()
        if not shards and not erased and not new:
            return Withdrawal(None, 0, 0, 0)
        rows = _without(state, shards, found)
        images = sum(pc.sum(pc.equal(some["status"], WITHDRAWN)).as_py() or 0 for some in rows.tables())
        if config.dry_run:
            return Withdrawal(None, images, len(new), len(erased))
        withdrawn = {
            "contents": sorted(found.contents) if not config.moved else [],
            "images": sorted(found.unread) if not config.moved else [],
            "erased": erased,
        }
        plan = _plan(state, shards, withdrawn)
        facts = {"engine": {}, "versions": library_versions(), "withdrawn": withdrawn}
        facts["configuration"] = {"moved": config.moved, "erase": config.erase}
        plan = ledger.begin(plan, facts)
        _write(ledger, plan, rows)
        manifest = ledger.publish(plan)
        for file in erased:
            name = f"{file['run_id']}.parquet"
            storage.delete(storage.join(config.output, "features", name))
            with Path(folder, name).open("rb") as anew:
                storage.write_from_file(storage.join(config.output, "predictions", name), anew)
    if config.erase:  # the rows of units are those of the files
        for name in storage.list_names(storage.join(config.output, "_work")):
            storage.delete(storage.join(config.output, "_work", name))
    return Withdrawal(manifest, images, len(new), len(erased))


def _find(state: State, targets: Targets, copies: bool) -> _Found:
    """The contents and images that the targets name in any run."""
    found = _Found(contents=set(targets.contents))
    for _, rows in _runs(state, _FOUND_BY):
        named = rows.filter(targets.among(rows))
        found.images |= set(named["image_id"].to_pylist())
        if copies:
            found.contents |= set(named["image_sha256"].drop_null().to_pylist())
            unread = named.filter(pc.and_(pc.is_null(named["image_sha256"]), pc.not_equal(named["status"], WITHDRAWN)))
            found.unread |= set(unread["image_id"].to_pylist())
    targets.refuse_unmatched()
    return found


def _shards(state: State, found: _Found) -> list[StoredObject]:
    """The shards of whose rows that hold some are to be withdrawn, in order."""
    shards = dict[str, StoredObject]()
    for run_id, rows in _runs(state, _FOUND_BY):
        uris = rows.filter(found.among(rows))["shard_uri"].unique().sort()
        held = state.of(uris)
        for row in held.filter(pc.equal(held["run_id"], run_id)).select(["uri", "etag"]).to_pylist():
            shards[row["uri"]] = StoredObject(from_printable(row["uri"]), 0, row["etag"])
    return [shard for _, shard in sorted(shards.items())]


def _without(state: State, shards: list[StoredObject], found: _Found) -> Sorter:
    """All rows that hold of the shards, in their order; those of forgotten images say nothing any more."""
    of_runs: dict[str, list[str]] = {}
    for shard, last in zip(shards, state.find(shards), strict=True):
        of_runs.setdefault(last.run_id if last else "", []).append(storage.printable(shard.name))
    rows = Sorter(_BY_SHARD)
    for run_id, names in of_runs.items():
        these = pa.array(names, pa.string())
        for chunk in _chunks(state, run_id):
            some = chunk.filter(pc.is_in(chunk["shard_uri"], these))
            some = blanked(some, found.among(some))
            some = pa.concat_tables([_BY_SHARD.empty_table(), some], promote_options="default")
            rows.append(some.select(_BY_SHARD.names))
    return rows


def _plan(state: State, shards: list[StoredObject], withdrawn: dict[str, Any]) -> Plan:
    identity = {"withdrawal": digest([withdrawn, [(storage.printable(shard.name), shard.etag) for shard in shards]])}
    number = state.last_number + 1
    units = Units.of(
        Unit(digest([identity, number, [storage.printable(shard.name) for shard in group]])[:32], tuple(group))
        for group in groups(shards)
    )
    return Plan("", 0, units, identity, len(shards), 0, {"withdrawn": len(shards)}).numbered(number)


def _write(ledger: Ledger, plan: Plan, rows: Sorter) -> None:
    """Write the rows of the units that are not there yet."""
    with parquet.Appender(_BY_SHARD, GROUP_ROWS, plain=_BY_SHARD.names) as file:
        for some in rows.tables():
            file.append(some)
        file.finish()
        sorted_rows = SortedFile.temporary(file)
        for unit in ledger.unfinished(plan):
            of_unit = sorted_rows.of(pa.array([storage.printable(shard.name) for shard in unit.shards], pa.string()))
            seen = Seen()
            seen.add(of_unit["image_id"].to_pylist())
            ledger.write_unit(unit, [of_unit], seen)


def _erased(state: State, found: _Found, folder: Path) -> Iterator[dict[str, Any]]:
    """Files of runs that hold rows of forgotten images, written anew to a folder, each with what its manifest says."""
    for manifest in state.manifests:
        run_id = manifest["run_id"]
        if not any(pc.any(found.among(rows)).as_py() for rows in _chunks(state, run_id, _FOUND_BY)):
            continue
        counted = {"statuses": Counter[str](), "predicted_classes": Counter[str](), "review": Counter[str](rows=0)}
        chunks = (blanked(rows, found.among(rows)) for rows in _chunks(state, run_id))
        first = next(chunks)
        with parquet.Appender(first.schema, ROWS_PER_GROUP) as file:
            for rows in chain([first], chunks):
                for name, count in counts.of_rows(rows).items():
                    counted[name].update(count)
                file.append(rows)
            told = {"sha256": file.finish(), "rows": file.rows, "bytes": file.size}
            storage.write_from_file(str(folder / f"{run_id}.parquet"), file.finished)
        yield {"run_id": run_id, **told, **counted}


def _runs(state: State, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """The rows of all runs, some thousand at a time, and of which run they are."""
    for manifest in state.manifests:
        for rows in _chunks(state, manifest["run_id"], columns):
            yield manifest["run_id"], rows


def _chunks(state: State, run_id: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a run, some thousand at a time."""
    uri = storage.join(state.output, "predictions", f"{run_id}.parquet")
    return parquet.chunks_at(uri, "restore it from a copy", columns)
