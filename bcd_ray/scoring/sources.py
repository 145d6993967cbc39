"""Where images come from, and whether their day was trained on: one image cannot tell, all of a source together can.

A source is a shard, or the folder of loose images.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.archives.shards import is_loose

SOURCE_COLUMNS = ("shard_uri", "certainty")
_REASON = "unfamiliar_source"
_NAMED = 100  # unfamiliar sources that the manifest names; the rows name all


def source_of(shard_uri: str) -> str:
    """The shard itself, or the folder that a loose image lies in."""
    return shard_uri.rpartition("/")[0] if is_loose(shard_uri) else shard_uri


class Sources:
    """The sources of a run, by the mean certainty of their scored images in its units."""

    def __init__(self, limit: Mapping[str, Any] | None) -> None:
        """`limit` is `source` of `Triage.settings`; without one no source is unfamiliar."""
        self._limit = limit
        self._sums = dict[str, tuple[float, int]]()

    def added(self, rows: pa.Table) -> pa.Table:
        """The rows, of `SOURCE_COLUMNS` at least; all rows of the run have to be added before any is judged."""
        if not self._limit:
            return rows
        of_shards = rows.group_by("shard_uri", use_threads=False).aggregate(
            [("certainty", "sum"), ("certainty", "count")]
        )
        for shard, total, count in zip(*(column.to_pylist() for column in of_shards.columns), strict=True):
            source = source_of(shard)
            before = self._sums.get(source, (0.0, 0))
            self._sums[source] = before[0] + (total or 0.0), before[1] + count
        return rows

    def _unfamiliar(self) -> dict[str, float]:
        if not self._limit:
            return {}
        least, images = self._limit["certainty"], self._limit["images"]
        means = {source: total / count for source, (total, count) in self._sums.items() if count >= images}
        return {source: mean for source, mean in means.items() if mean < least}

    def judged(self, rows: pa.Table) -> pa.Table:
        """Rows of which those that are scored, and of an unfamiliar source, are sent to review."""
        unfamiliar = self._unfamiliar()
        shards = [shard for shard in rows["shard_uri"].unique().to_pylist() if source_of(shard) in unfamiliar]
        if not shards:
            return rows
        sent = pc.and_(pc.is_in(rows["shard_uri"], pa.array(shards, pa.string())), pc.equal(rows["status"], "scored"))
        given = zip(rows["review_reasons"].to_pylist(), sent.to_pylist(), strict=True)
        reasons = [[*names, _REASON] if also else names for names, also in given]
        for name, values in (
            ("review", pc.or_(rows["review"], sent)),
            ("review_reasons", pa.array(reasons, rows.schema.field("review_reasons").type)),
        ):
            rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
        return rows

    def told(self) -> dict[str, Any] | None:
        """For the manifest, or None where nobody knows."""
        if not self._limit:
            return None
        unfamiliar = self._unfamiliar()
        few = sum(count < self._limit["images"] for _, count in self._sums.values())
        return {
            "judged": len(self._sums) - few,
            "too_few_images": few,
            "unfamiliar": len(unfamiliar),
            "unfamiliar_first": sorted(unfamiliar)[:_NAMED],
        }
