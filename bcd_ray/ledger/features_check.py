"""Are the embeddings that a run keeps those that it published, and of its rows?"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.errors import StorageError
from bcd_ray.ledger.features import FEATURES_OF

OF_FEATURES = ("rows", "sha256", "identity")  # what a manifest says of them, and is checked
_REMEDY = "restore it from a copy"


def features_problems(
    output: str, manifest: dict[str, Any], rows: pa.Table, inputs: pa.Table, erased: dict[str, Any] | None
) -> Iterator[str]:
    """What is wrong with the embeddings of a run, a line each.

    Args:
        rows: of its predictions, as they are now.
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
        (listed,) = storage.list_objects(uri)
        with storage.open_stream(listed) as stream:
            yield from _against_rows(uri, pq.ParquetFile(stream), manifest, rows, inputs)
    except StorageError as error:
        yield f"{error}; without it its images are read again for another model"


def _against_rows(
    uri: str, file: pq.ParquetFile, manifest: dict[str, Any], rows: pa.Table, inputs: pa.Table
) -> Iterator[str]:
    described = manifest["features"]
    identity = json.loads((file.metadata.metadata or {}).get(FEATURES_OF, b"null"))
    found = [file.metadata.num_rows, len(rows), identity]
    if found != [described["rows"], described["rows"], described["identity"]]:
        yield f"{uri}: what it is of, or its number of rows, is not what the manifest says"
        return
    keeps = inputs["uri"].filter(pc.equal(inputs["features"], manifest["run_id"])).combine_chunks()
    wanted = pc.and_(pc.is_in(rows["shard_uri"], keeps), pc.equal(rows["status"], "scored"))
    start = 0
    for group in range(file.num_row_groups):
        kept = file.read_row_group(group, ["image_id", "embedding"], use_threads=False)
        same = kept["image_id"].equals(rows["image_id"].slice(start, len(kept)))
        if not same or not pc.is_valid(kept["embedding"]).equals(wanted.slice(start, len(kept))):
            yield f"{uri}: its embeddings are not of the scored rows of its run"
            return
        start += len(kept)
