"""Rows of forgotten images: they keep their place, and say nothing else."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.ledger.schema import WITHDRAWN

_KEPT = ("image_id", "image_uri", "shard_uri", "shard_etag", "model_version", "run_id", "run_number", "scored_at")
_BLANK: dict[str, Any] = {"status": WITHDRAWN, "review": False, "review_reasons": []}


def blanked(rows: pa.Table, theirs: pa.ChunkedArray) -> pa.Table:
    """The rows, of which `theirs` say nothing any more."""
    for index, each in enumerate(rows.schema):
        if each.name not in _KEPT:
            blank = pa.scalar(_BLANK.get(each.name), each.type)
            rows = rows.set_column(index, each, pc.if_else(theirs, blank, rows[each.name]))
    return rows
