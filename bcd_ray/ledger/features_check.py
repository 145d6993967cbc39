"""Are the embeddings that a run keeps those that it published, and of its rows?"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.errors import StorageError
from bcd_ray.ledger.features import FEATURES_OF
from bcd_ray.storage.parquet_rows import ParquetRows
from bcd_ray.storage.sorting import SortedFile

OF_FEATURES = ("rows", "sha256", "identity")  # what a manifest says of them, and is checked
_REMEDY = "restore it from a copy"
_ROWS_AT_A_TIME = 4096


def features_problems(
    output: str, manifest: dict[str, Any], rows: pq.ParquetFile, inputs: SortedFile, erased: dict[str, Any] | None
) -> Iterator[str]:
    """What is wrong with the embeddings of a run, a line each.

    Args:
        rows: of its predictions, as they are now.
        inputs: the shards that it read.
        erased: what was written anew in place of these, if it was: then no embeddings are to be there.
    """
    described = manifest["features"]
    uri = storage.join(output, "features", f"{manifest['run_id']}.parquet")
    if erased:
        if storage.exists(uri):
            yield f"images were to be erased from {uri}, and were not: delete it"
        return
    try:
        if storage.sha256(uri) != described["sha256"]:
            yield f"{uri} is not the file that was published: {_REMEDY}"
            return
        with ParquetRows(uri, _REMEDY, ["image_id", "embedding"]) as kept:
            yield from _against_rows(uri, kept, manifest, rows, inputs)
    except StorageError as error:
        yield f"{error}; without it its images are read again for another model"


def _against_rows(
    uri: str, kept: ParquetRows, manifest: dict[str, Any], file: pq.ParquetFile, inputs: SortedFile
) -> Iterator[str]:
    described, run_id = manifest["features"], manifest["run_id"]
    identity = json.loads(kept.metadata.get(FEATURES_OF, b"null"))
    found = [kept.count, file.metadata.num_rows, identity]
    if found != [described["rows"], described["rows"], described["identity"]]:
        yield f"{uri}: what it is of, or its number of rows, is not what the manifest says"
        return
    start = 0
    for rows in file.iter_batches(_ROWS_AT_A_TIME, columns=["image_id", "shard_uri", "status"], use_threads=False):
        beside = kept.slice(start, start + len(rows))
        start += len(rows)
        of_shards = inputs.of(rows["shard_uri"].unique().sort())
        keeps = of_shards["uri"].filter(pc.equal(of_shards["features"], run_id)).combine_chunks()
        wanted = pc.and_(pc.is_in(rows["shard_uri"], keeps), pc.equal(rows["status"], "scored"))
        embedded = pc.is_valid(beside["embedding"]).combine_chunks()
        if not beside["image_id"].combine_chunks().equals(rows["image_id"]) or not embedded.equals(wanted):
            yield f"{uri}: its embeddings are not of the scored rows of its run"
            return
