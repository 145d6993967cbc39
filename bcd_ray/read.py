"""Reading what was scored: `current("scores")` gives the rows that hold, `embeddings("scores")` what they rest on."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import ConfigError
from bcd_ray.ledger.features import FEATURES
from bcd_ray.ledger.state import State
from bcd_ray.storage import parquet
from bcd_ray.storage.parquet_rows import ParquetRows
from bcd_ray.uris import normalize

_LOOKED_AT = ("shard_uri", "status", "image_sha256")
_REMEDY = "restore it from a copy"
_SHARD = pa.field("shard_uri", pa.string())


def current(output: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows that hold, in order of their shards: those of each shard's last run that could read it.

    Images that were withdrawn have none.

    A plain read of `OUTPUT/predictions` also gives the rows that a later run has taken the place of.

    Args:
        output: the --output of jobs/score.py, a path or `s3://`.
        columns: some of `bcd_ray.ledger.schema.COLUMNS`; all if None.

    Raises:
        ConfigError: no run is published there.
        JobError: a published file is damaged.
    """
    output = normalize(output)
    state = _state(output)
    shards, tables = state.shards_by("run_id"), []
    wanted = None if columns is None else list(dict.fromkeys([*columns, *_LOOKED_AT]))
    for manifest in state.manifests:
        uri = storage.join(output, "predictions", f"{manifest['run_id']}.parquet")
        held = shards.get(manifest["run_id"], pa.array([], pa.string()))
        for rows in parquet.chunks_at(uri, _REMEDY, wanted):
            holds = pc.and_not(pc.is_in(rows["shard_uri"], held), state.is_withdrawn(rows))
            tables.append(rows.filter(holds))
    table = pa.concat_tables(tables, promote_options="default").sort_by("shard_uri")
    return table if columns is None else table.select(list(columns))


def embeddings(output: str) -> pa.Table:
    """What the network said of each scored image that holds, in order of shards, where a run kept it.

    Columns are `image_id`, `image_sha256` and `embedding`, a list of float32, of one length for one backbone. Takes and
    raises what `current` does.
    """
    output = normalize(output)
    state = _state(output)
    shards, tables = state.shards_by("features", state.features), [FEATURES.append(_SHARD).empty_table()]
    forgotten = pa.array(state.withdrawn, pa.string())
    for run_id, held in shards.items():
        names = [storage.join(output, folder, f"{run_id}.parquet") for folder in ("predictions", "features")]
        with ParquetRows(names[0], _REMEDY, _LOOKED_AT) as published:
            start = 0
            for kept in parquet.chunks_at(names[1], _REMEDY, FEATURES.names):
                rows = published.slice(start, start + len(kept))
                start += len(kept)
                withdrawn = pc.or_(state.is_withdrawn(rows), pc.is_in(kept["image_id"], forgotten))
                holds = pc.and_not(pc.is_in(rows["shard_uri"], held), withdrawn)
                wanted = pc.and_(holds, pc.is_valid(kept["embedding"]))
                tables.append(kept.append_column(_SHARD, rows["shard_uri"]).filter(wanted))
    return pa.concat_tables(tables).sort_by("shard_uri").select(FEATURES.names)


def _state(output: str) -> State:
    state = State(output)
    if not state.manifests:
        raise ConfigError(f"{output}: no run is published here: give the --output of a scoring job that ended")
    return state
