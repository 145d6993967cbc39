"""Where images come from, and whether their day was trained on: one image cannot tell, all of a source together can.

A source is what `--source-pattern` finds in an image's URI, such as a slide or a scanner; where it finds nothing, and
without one, a shard, or the folder of loose images. Sources of too few images are judged together, as one: slides of
ten images each, of one night, come from one microscope more often than not.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.archives.shards import is_loose

SOURCE_COLUMNS = ("image_uri", "shard_uri", "certainty")
UNFAMILIAR, TOO_SMALL = "unfamiliar_source", "small_source"
_NAMED = 100  # unfamiliar sources that the manifest names; the rows name all


def source_of(shard_uri: str) -> str:
    """The shard itself, or the folder that a loose image lies in."""
    return shard_uri.rpartition("/")[0] if is_loose(shard_uri) else shard_uri


class Sources:
    """The sources of a run, by the mean certainty of their scored images in its units."""

    def __init__(self, limit: Mapping[str, Any] | None, pattern: str = "", review_small: bool = True) -> None:
        """`limit` is `source` of `Triage.settings`; without one no source is sent to review.

        `pattern` is `--source-pattern`; `review_small` says that sources that are too small, all together, are sent.
        """
        self._limit, self._pattern, self._review_small = limit, re.compile(pattern) if pattern else None, review_small
        self._sums = dict[str, tuple[float, int]]()

    def added(self, rows: pa.Table) -> pa.Table:
        """The rows, of `SOURCE_COLUMNS` at least; all rows of the run have to be added before any is judged."""
        if not self._limit:
            return rows
        table = pa.table({"source": self._of(rows), "certainty": rows["certainty"]})
        sums = table.group_by("source", use_threads=False).aggregate([("certainty", "sum"), ("certainty", "count")])
        for source, total, count in zip(*(column.to_pylist() for column in sums.columns), strict=True):
            before = self._sums.get(source, (0.0, 0))
            self._sums[source] = before[0] + (total or 0.0), before[1] + count
        return rows

    def _of(self, rows: pa.Table) -> list[str]:
        """The source of each row."""
        of_shards = {shard: source_of(shard) for shard in rows["shard_uri"].unique().to_pylist()}
        sources = [of_shards[shard] for shard in rows["shard_uri"].to_pylist()]
        if self._pattern is None:
            return sources
        found = map(self._pattern.search, rows["image_uri"].to_pylist())
        return [
            (match[1 if match.re.groups else 0] or source) if match else source
            for match, source in zip(found, sources, strict=True)
        ]

    @cached_property
    def _verdicts(self) -> tuple[dict[str, str], dict[str, Any]]:
        """The reason of each source that is sent to review, and what the manifest says of them all."""
        assert self._limit
        least, images = self._limit["certainty"], self._limit["images"]
        small = {source: sums for source, sums in self._sums.items() if 0 < sums[1] < images}
        total, count = (sum(each) for each in zip(*small.values(), strict=True)) if small else (0.0, 0)
        together = total / count if count >= images else None
        found = {
            source: UNFAMILIAR
            for source, sums in self._sums.items()
            if sums[1] >= images and not sums[0] / sums[1] >= least
        }
        if together is not None and not together >= least:
            found |= dict.fromkeys(small, UNFAMILIAR)
        large = sum(sums[1] >= images for sums in self._sums.values())
        judged_together, too_few = (0, len(small)) if together is None else (len(small), 0)
        told = {
            "judged": large + judged_together,
            "judged_together": judged_together,
            "too_few_images": too_few,
            "unfamiliar": len(found),
            "unfamiliar_first": sorted(found)[:_NAMED],
        }
        if together is None and self._review_small:
            found |= dict.fromkeys(small, TOO_SMALL)
        return found, told

    def judged(self, rows: pa.Table) -> pa.Table:
        """Rows of which those that are scored, and of a source that nobody knows, are sent to review."""
        verdicts = self._verdicts[0] if self._limit else {}
        if not verdicts:
            return rows
        scored = pc.equal(rows["status"], "scored").to_pylist()
        also = [verdicts.get(source) if ok else None for source, ok in zip(self._of(rows), scored, strict=True)]
        given = zip(rows["review_reasons"].to_pylist(), also, strict=True)
        reasons = [[*names, reason] if reason else names for names, reason in given]
        for name, values in (
            ("review", pc.or_(rows["review"], pa.array([reason is not None for reason in also]))),
            ("review_reasons", pa.array(reasons, rows.schema.field("review_reasons").type)),
        ):
            rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
        return rows

    def told(self) -> dict[str, Any] | None:
        """For the manifest, or None where nobody knows."""
        return self._verdicts[1] if self._limit else None
