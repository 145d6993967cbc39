"""Is what was published what the manifests say? And a way to clear what unfinished runs left behind."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from bcd_ray import parquet, schema, storage
from bcd_ray.archive import image_id, kind_of
from bcd_ray.errors import JobError, StorageError
from bcd_ray.ledger import Ledger


def verify(output: str) -> list[str]:
    """What is wrong with a published output, a line each; empty if all of it holds.

    Checks of each run: files, sizes, digests, schema, counts, ids (none twice, those of loose images recomputed), and
    the rows of every shard against the run's inputs; and that no rows stand without a manifest.
    """
    manifests = Ledger(output).manifests()
    problems = [problem for manifest in manifests for problem in _problems(output, manifest)]
    known = {f"{manifest['run_id']}.parquet" for manifest in manifests}
    for name in storage.list_names(storage.join(output, "predictions")):
        if name not in known:
            problems.append(f"predictions/{name}: no manifest names it; run the scoring command again")
    if not manifests:
        problems.append(f"{output}: no run is published here")
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


def _problems(output: str, manifest: dict[str, Any]) -> Iterator[str]:
    run = f"run {manifest.get('run_id')}"
    if manifest.get("manifest_version") != schema.MANIFEST_VERSION or manifest.keys() != schema.MANIFEST.keys():
        yield f"{run}: its manifest is not of version {schema.MANIFEST_VERSION}"
        return
    tables = []
    for folder, file in (("predictions", manifest["outputs"][0]), ("manifests", manifest["inputs"])):
        # By name, not by the recorded URI: an output may be copied elsewhere and verified there.
        uri = storage.join(output, folder, file["uri"].rpartition("/")[2])
        try:
            data = storage.read_bytes(uri)
        except StorageError as error:
            yield f"{run}: {error}"
            return
        if (len(data), hashlib.sha256(data).hexdigest()) != (file["bytes"], file["sha256"]):
            yield f"{run}: {uri} is not the file that was published: restore it from a copy"
            return
        tables.append(parquet.table_of(data))
    rows, inputs = tables
    if rows.schema != schema.PREDICTIONS:
        yield f"{run}: the columns are not those of schema version {schema.SCHEMA_VERSION}"
        return
    if len(rows) != manifest["outputs"][0]["rows"] or len(inputs) != manifest["inputs"]["rows"]:
        yield f"{run}: the numbers of rows are not those of the manifest"
    for column, counts in (("status", manifest["statuses"]), ("predicted_class", manifest["predicted_classes"])):
        if Counter(rows[column].drop_null().to_pylist()) != counts:
            yield f"{run}: the counts of {column} are not those of the manifest"
    reasons = Counter(name for names in rows["review_reasons"].to_pylist() for name in names)
    if {"rows": sum(rows["review"].to_pylist()), **reasons} != manifest["review"]:
        yield f"{run}: the counts of review are not those of the manifest"
    ids = rows["image_id"].to_pylist()
    if len(set(ids)) != len(ids):
        yield f"{run}: {len(ids) - len(set(ids))} image ids stand twice"
    if rows["run_id"].unique().to_pylist() not in ([], [manifest["run_id"]]):
        yield f"{run}: rows of another run stand in it"
    yield from (f"{run}: {problem}" for problem in _against_inputs(rows, inputs))


def _against_inputs(rows: pa.Table, inputs: pa.Table) -> Iterator[str]:
    """Rows per shard, and the ids of loose images, which follow from their URIs alone."""
    planned = dict(zip(inputs["uri"].to_pylist(), inputs["rows"].to_pylist(), strict=True))
    shard_uris = rows["shard_uri"].to_pylist()
    if Counter(shard_uris) != planned:
        yield "the rows per shard are not those of its inputs"
    expected = {image_id(uri, "", 1) for uri in planned if kind_of(uri) == "image" and "\\udc" not in uri}
    found = set(rows["image_id"].to_pylist())
    if missing := expected - found:
        yield f"{len(missing)} planned images have no row"
