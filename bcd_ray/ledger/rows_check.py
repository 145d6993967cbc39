"""Are the rows of a run those of its manifest, and of the shards that it read? In bounded memory."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcd_ray.archives.shards import image_id, is_loose
from bcd_ray.ledger import counts
from bcd_ray.storage.sorting import SortedFile, Sorter, side_by_side
from bcd_ray.uris import from_printable

_CHECKED = ("image_id", "shard_uri", "image_sha256", "status", "predicted_class", "review", "review_reasons", "run_id")
_IDS = pa.schema([("image_id", pa.string())])
_OF_SHARDS = pa.schema([("uri", pa.string()), ("rows", pa.int64())])


def rows_problems(
    file: pq.ParquetFile, inputs: SortedFile, manifest: Mapping[str, Any], withdrawn: pa.Array
) -> Iterator[str]:
    """What is wrong with the rows of a run, a line each.

    Args:
        inputs: the shards that it read.
        withdrawn: contents that it was not to take up.
    """
    counted = {"statuses": Counter[str](), "predicted_classes": Counter[str](), "review": Counter(rows=0)}
    again, runs, ids, of_shards = 0, set[str](), Sorter(_IDS), Sorter(_OF_SHARDS)
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group, _CHECKED, use_threads=False)
        for name, count in counts.of_rows(rows).items():
            counted[name].update(count)
        again += pc.sum(pc.is_in(rows["image_sha256"], withdrawn)).as_py() or 0
        runs.update(rows["run_id"].unique().to_pylist())
        ids.append(rows.select(_IDS.names))
        of_shards.append(pa.table(rows["shard_uri"].value_counts().flatten(), schema=_OF_SHARDS))
    for name, total in counted.items():
        if total != manifest[name]:
            yield f"the counts of {name} are not those of the manifest"
    if again:
        yield f"{again} images stand in it that were withdrawn before: run jobs/forget.py again"
    if runs - {manifest["run_id"]}:
        yield "rows of another run stand in it"
    yield from _against_inputs(ids, of_shards, inputs)


def _against_inputs(ids: Sorter, of_shards: Sorter, inputs: SortedFile) -> Iterator[str]:
    """Rows per shard, and ids: none twice, and those of loose images, which follow from their URIs alone."""
    expected, differ = Sorter(_IDS), False
    for found, read in side_by_side([of_shards.parts(), inputs.parts()]):
        # A shard may lie in several row groups; of those that the run left to earlier rows there are none.
        found = _filled(found, _OF_SHARDS).group_by("uri", use_threads=False).aggregate([("rows", "sum")])
        found = found.rename_columns(_OF_SHARDS.names).sort_by("uri")
        read = _filled(read, _OF_SHARDS).select(_OF_SHARDS.names).cast(_OF_SHARDS)
        read = read.filter(pc.greater(read["rows"], 0))
        differ |= found.combine_chunks() != read.combine_chunks()
        loose = [from_printable(uri) for uri in read["uri"].to_pylist() if is_loose(uri)]
        expected.append(pa.table([[image_id(uri, "", 1) for uri in loose]], schema=_IDS))
    twice = missing = 0
    for found, wanted in side_by_side([ids.parts(), expected.parts()]):
        here, there = (_filled(table, _IDS)["image_id"].combine_chunks() for table in (found, wanted))
        twice += len(here) - len(here.unique())
        missing += len(there) - (pc.sum(pc.is_in(there, here)).as_py() or 0)
    if twice:
        yield f"{twice} image ids stand twice"
    if differ:
        yield "the rows per shard are not those of its inputs"
    if missing:
        yield f"{missing} planned images have no row"


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table if len(table) else schema.empty_table()
