"""Failures of the moment: which take no place of better rows, and how many are too many."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.ledger import schema
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.reconciling import passing
from bcd_ray.ledger.standing import Rows


class Undelivered:
    """Rows that failed for the moment: counted against all images, and left out where better ones stand."""

    def __init__(self, plan: Plan) -> None:
        self.images = plan.current_images
        self.lost, self.units = Counter[str](), set[str]()
        self._kept = set[str]()  # shards whose earlier rows hold

    @property
    def kept(self) -> int:
        """How many shards keep their earlier rows."""
        return len(self._kept)

    def judged(self, read: pa.Table) -> pa.Table:
        """Some shards as `reconciling.READ`, of which some are found not to hold, and then to have no rows."""
        kept = set[str]()
        columns = (read[name].to_pylist() for name in ("uri", "unit_id", "rows", "not_scored", "earlier"))
        for uri, unit_id, count, not_scored, before in zip(*columns, strict=True):
            failed, earlier = dict(not_scored), before and Rows(**before)
            lost = passing(failed)
            # One row may stand for a whole shard: how many images it held is known where it was read before.
            images = max(count, earlier.rows if earlier and lost else 0)
            self.images += images
            if lost:
                self.lost[max(failed, key=lambda status: status in schema.PASSING_STATUSES)] += images - count + lost
                self.units.add(unit_id)
                if not Rows(count, count - sum(failed.values()), True).supersede(earlier):
                    kept.add(uri)
        if not kept:
            return read
        self._kept |= kept
        holds = pc.invert(pc.is_in(read["uri"], pa.array(kept, pa.string())))
        read = read.set_column(read.schema.get_field_index("holds"), "holds", holds)
        return read.set_column(read.schema.get_field_index("rows"), "rows", pc.if_else(holds, read["rows"], 0))

    def without(self, rows: pa.Table) -> pa.Table:
        """Rows without those that are not to be published."""
        if not self._kept:
            return rows
        return rows.filter(pc.invert(pc.is_in(rows["shard_uri"], pa.array(self._kept, pa.string()))))
