"""Is what was published what the manifests say? And a way to clear what unfinished runs left behind."""

import hashlib
import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.errors import JobError, StorageError
from bcd_ray.ledger import roll, schema
from bcd_ray.ledger.features_check import OF_FEATURES, features_problems
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.manifests import Manifest, is_of_a_run, read_manifests
from bcd_ray.ledger.rows_check import rows_problems
from bcd_ray.ledger.standing_check import standing_problems
from bcd_ray.storage.sorting import SortedFile

_OF_A_FILE = ("uri", "rows", "bytes", "sha256")


def verify(output: str) -> list[str]:
    """What is wrong with a published output, a line each; empty if all of it holds.

    Checks of each run: files, sizes, digests, schema, counts, ids (none twice, those of loose images recomputed), the
    rows of every shard against the run's inputs, and embeddings against the rows; and that no rows stand without a
    manifest, no run is missing, and what stands in one file is what the runs say.
    """
    found = read_manifests(output)
    manifests = [manifest.content for manifest in found]
    problems = list[str]()
    for manifest in manifests:
        problems += _problems(output, manifest, _Later.of(manifests, manifest))
    problems += _breaks(found, roll.entries(output))
    problems += standing_problems(output, found) if not problems else []
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
    parts = ("_work", "predictions", "features", "manifests")
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
    # The last may have died before it was entered.
    for manifest in sorted(manifests, key=lambda each: each.content["run_number"])[:-1]:
        run_id, version = manifest.content["run_id"], manifest.content.get("manifest_version")
        kept = isinstance(version, int) and version >= roll.FIRST_MANIFEST_VERSION
        if kept and run_id not in numbers_of:
            yield f"run {run_id}: manifests/published/ does not name it: run the scoring command again, which enters it"
    known = {(each.run_id, each.sha256) for each in entries}  # of a run that was recovered, two
    for run_id in numbers_of.keys() - told:
        if run_id not in digests:
            number = numbers_of[run_id]
            yield f"run {run_id}: is gone, though it was published as run {number}: restore its files from a copy"
        elif (run_id, digests[run_id]) not in known:
            yield f"run {run_id}: its manifest is not the one that was published: restore it from a copy"


class _Later(NamedTuple):
    """What withdrawals that came after a run say of its file, and what those before it say of its images."""

    erased: dict[str, Any] | None  # of the last that wrote its file anew
    withdrawn: pa.Array  # contents that it was not to take up

    @classmethod
    def of(cls, manifests: list[dict[str, Any]], manifest: dict[str, Any]) -> "_Later":
        withdrawals = [each for each in manifests if isinstance(each.get("withdrawn"), dict)]
        erased = [file for each in withdrawals for file in each["withdrawn"]["erased"]]
        own = [file for file in erased if file["run_id"] == manifest["run_id"]]
        before = [each for each in withdrawals if each["run_number"] < manifest["run_number"]]
        contents = {content for each in before for content in each["withdrawn"]["contents"]}
        return cls(own[-1] if own else None, pa.array(contents, pa.string()))


def _problems(output: str, manifest: dict[str, Any], later: _Later) -> Iterator[str]:
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
        if features := manifest.get("features"):
            _ = [features[name] for name in OF_FEATURES]
    except (IndexError, KeyError, TypeError):
        yield f"{run}: its manifest is damaged: restore it from a copy"
        return
    if later.erased:
        described[0][1:] = [later.erased[name] for name in _OF_A_FILE[1:]]
        manifest = manifest | {name: later.erased[name] for name in ("statuses", "predicted_classes", "review")}
    files = _fetched(output, manifest, described, later)
    if isinstance(files, str):
        yield f"{run}: {files}"
        return
    rows, inputs = pq.ParquetFile(files[0]), SortedFile(files[1], "the list of its shards", "restore it from a copy")
    columns_version = (rows.schema_arrow.metadata or {}).get(b"bcd_ray.schema_version", b"").decode()
    if not columns_version.isdigit() or rows.schema_arrow != schema.columns_of(int(columns_version)):
        yield f"{run}: the columns are not those of schema version {columns_version or schema.SCHEMA_VERSION}"
        return
    if [rows.metadata.num_rows, inputs.rows] != [count for _, count, *_ in described]:
        yield f"{run}: the numbers of rows are not those of the manifest"
    yield from (f"{run}: {problem}" for problem in rows_problems(rows, inputs, manifest, later.withdrawn))
    if manifest.get("features"):
        yield from (f"{run}: {problem}" for problem in features_problems(output, manifest, rows, inputs, later.erased))


def _fetched(output: str, manifest: dict[str, Any], described: list[list[Any]], later: _Later) -> list[BinaryIO] | str:
    """The rows and the inputs of a run, or why they are not those that are described."""
    files = []
    for folder, (recorded, _, *digest) in zip(("predictions", "manifests"), described, strict=True):
        # By name, not by the recorded URI: an output may be copied elsewhere and verified there.
        uri = storage.join(output, folder, recorded.rpartition("/")[2])
        try:
            file: Any = storage.fetch(uri)
        except StorageError as error:
            return str(error)
        found = [file.seek(0, io.SEEK_END), _sha256(file)]
        if later.erased and found == [manifest["outputs"][0][name] for name in ("bytes", "sha256")]:
            return f"images were to be erased from {uri}, and were not: run jobs/forget.py --erase again"
        if found != digest:
            return f"{uri} is not the file that was published: restore it from a copy"
        files.append(file)
    return files


def _sha256(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
