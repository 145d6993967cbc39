"""Is what was published what the manifests say? And a way to clear what unfinished runs left behind."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.archives.shards import image_id, is_loose
from bcd_ray.errors import JobError, StorageError
from bcd_ray.scoring import roll, schema
from bcd_ray.scoring.ledger import Ledger
from bcd_ray.scoring.state import Manifest, is_of_a_run, read_manifests
from bcd_ray.storage import parquet
from bcd_ray.uris import from_printable

_OF_A_FILE = ("uri", "rows", "bytes", "sha256")
_CHECKED = ("image_id", "shard_uri", "status", "predicted_class", "review", "review_reasons", "run_id")


def verify(output: str) -> list[str]:
    """What is wrong with a published output, a line each; empty if all of it holds.

    Checks of each run: files, sizes, digests, schema, counts, ids (none twice, those of loose images recomputed), and
    the rows of every shard against the run's inputs; and that no rows stand without a manifest and no run is missing.
    """
    found = read_manifests(output)
    manifests = [manifest.content for manifest in found]
    problems = [problem for manifest in manifests for problem in _problems(output, manifest)]
    problems += _breaks(found, roll.entries(output))
    known = {f"{manifest['run_id']}.parquet" for manifest in manifests}
    for name in storage.list_names(storage.join(output, "predictions")):
        if is_of_a_run(name, ".parquet") and name not in known:
            problems.append(f"predictions/{name}: no manifest names it; run the scoring command again")
        elif name not in known and name.endswith(".parquet"):
            problems.append(f"predictions/{name}: of no run, and readers take it for one: move it away")
    if not manifests:
        problems.append(f"{output}: no run is published here: give the --output of a scoring job that ended")
    return problems


def clear_leftovers(output: str) -> int:
    """Delete the working state of all runs, finished or not, and what killed writers left; return how many objects.

    Published files lie elsewhere and are not touched. A run that is under way loses its work: it then fails at its
    end, and the same command does it anew.

    Raises:
        JobError: a run died between its rows and its manifest and still needs the state.
    """
    ledger = Ledger(output)
    if ledger.without_manifest():
        raise JobError("a run died just before its manifest: run the scoring command again, then clear")
    work = storage.join(output, "_work")
    names = storage.list_names(work)
    for name in names:
        storage.delete(storage.join(work, name))
    parts = ("_work", "predictions", "manifests")
    return len(names) + sum(storage.delete_broken_off(storage.join(output, part)) for part in parts)


def _breaks(manifests: list[Manifest], entries: list[roll.Entry]) -> Iterator[str]:
    """Where the chain of the runs is broken; those of version 2 named none before them and left no number out.

    Of what comes last, which no manifest names, the roll knows.
    """
    numbers = sorted({each.content["run_number"] for each in manifests if each.content.get("manifest_version") == 2})
    for before, after in pairwise([0, *numbers]):
        if after > before + 1:
            yield f"after run {before} comes run {after}: restore the files of those between from a copy"
    digests, told = {manifest.content["run_id"]: manifest.sha256 for manifest in manifests}, set[str]()
    for manifest in manifests:
        after = manifest.content["run_id"]
        try:
            named = {each["run_id"]: each["sha256"] for each in manifest.content.get("previous", [])}
        except (KeyError, TypeError):
            yield f"run {after}: its manifest is damaged: restore it from a copy"
            continue
        for run_id, sha256 in named.items():
            if run_id not in digests:
                told.add(run_id)
                yield f"run {run_id}: is gone, though run {after} came after it: restore its files from a copy"
            elif digests[run_id] != sha256:
                told.add(run_id)
                yield f"run {run_id}: its manifest is not the one that run {after} came after: restore it from a copy"
    numbers_of = {each.run_id: each.number for each in entries}
    known = {(each.run_id, each.sha256) for each in entries}  # of a run that was recovered, two
    for run_id in numbers_of.keys() - told:
        if run_id not in digests:
            number = numbers_of[run_id]
            yield f"run {run_id}: is gone, though it was published as run {number}: restore its files from a copy"
        elif (run_id, digests[run_id]) not in known:
            yield f"run {run_id}: its manifest is not the one that was published: restore it from a copy"


def _problems(output: str, manifest: dict[str, Any]) -> Iterator[str]:
    run = f"run {manifest.get('run_id')}"
    version = manifest.get("manifest_version")
    if not isinstance(version, int) or not 2 <= version <= schema.MANIFEST_VERSION:
        yield f"{run}: its manifest is of version {version}, unknown here: verify with the release that wrote it"
        return
    if manifest.keys() != schema.manifest_keys(version):
        yield f"{run}: its manifest is not of version {version}: restore it from a copy"
        return
    try:
        described = [[each[name] for name in _OF_A_FILE] for each in (manifest["outputs"][0], manifest["inputs"])]
    except (IndexError, KeyError, TypeError):
        yield f"{run}: its manifest is damaged: restore it from a copy"
        return
    files = []
    for folder, (recorded, _, *digest) in zip(("predictions", "manifests"), described, strict=True):
        # By name, not by the recorded URI: an output may be copied elsewhere and verified there.
        uri = storage.join(output, folder, recorded.rpartition("/")[2])
        try:
            data = storage.read_bytes(uri)
        except StorageError as error:
            yield f"{run}: {error}"
            return
        if [len(data), hashlib.sha256(data).hexdigest()] != digest:
            yield f"{run}: {uri} is not the file that was published: restore it from a copy"
            return
        files.append(data)
    columns = pq.read_schema(pa.BufferReader(files[0]))
    columns_version = (columns.metadata or {}).get(b"bcd_ray.schema_version", b"").decode()
    if not columns_version.isdigit() or columns != schema.columns_of(int(columns_version)):
        yield f"{run}: the columns are not those of schema version {columns_version or schema.SCHEMA_VERSION}"
        return
    rows, inputs = parquet.table_of(files[0], _CHECKED), parquet.table_of(files[1], ["uri", "rows"])
    if [len(rows), len(inputs)] != [count for _, count, *_ in described]:
        yield f"{run}: the numbers of rows are not those of the manifest"
    for column, counts in (("status", manifest["statuses"]), ("predicted_class", manifest["predicted_classes"])):
        if _counts(rows[column]) != counts:
            yield f"{run}: the counts of {column} are not those of the manifest"
    reasons = _counts(pc.list_flatten(rows["review_reasons"]))
    if {"rows": pc.sum(rows["review"]).as_py() or 0, **reasons} != manifest["review"]:
        yield f"{run}: the counts of review are not those of the manifest"
    if twice := len(rows) - len(rows["image_id"].unique()):
        yield f"{run}: {twice} image ids stand twice"
    if rows["run_id"].unique().to_pylist() not in ([], [manifest["run_id"]]):
        yield f"{run}: rows of another run stand in it"
    yield from (f"{run}: {problem}" for problem in _against_inputs(rows, inputs))


def _counts(column: Any) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in column.drop_null().value_counts().to_pylist()}


def _against_inputs(rows: pa.Table, inputs: pa.Table) -> Iterator[str]:
    """Rows per shard, and the ids of loose images, which follow from their URIs alone."""
    inputs = inputs.filter(pc.greater(inputs["rows"], 0))  # of the others earlier rows hold
    found = pa.Table.from_struct_array(rows["shard_uri"].value_counts()).rename_columns(["uri", "rows"])
    if found.sort_by("uri") != inputs.sort_by("uri"):
        yield "the rows per shard are not those of its inputs"
    loose = (from_printable(uri) for uri in inputs["uri"].to_pylist() if is_loose(uri))
    expected = pa.array((image_id(uri, "", 1) for uri in loose), pa.string())
    if missing := len(expected) - (pc.sum(pc.is_in(expected, rows["image_id"])).as_py() or 0):
        yield f"{missing} planned images have no row"
