"""What is published of the shards that a run is to read, and which of them wait for it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.ledger.listed import Listed
from bcd_ray.ledger.standing import Standing, mask_of, standings
from bcd_ray.ledger.state import Missed, State
from bcd_ray.storage import StoredObject
from bcd_ray.uris import printable


class Waiting(NamedTuple):
    """A shard that is not published as it is now, or is to be compared."""

    shard: StoredObject
    last: Standing | None
    is_same: bool  # has the content that rows are of, as far as its tag says


@dataclass
class Held:
    """The shards of a run. Only those that wait are in memory."""

    shards: int = 0
    current_shards: int = 0
    current_images: int = 0
    missed: Missed = field(default_factory=Missed)  # of those that are current
    waiting: list[Waiting] = field(default_factory=list)

    def settle(self, equal: Collection[str], changed: Collection[str]) -> None:
        """Take what came of comparing, by printable URI: equal shards are current, changed ones not the same."""
        waiting, self.waiting, gaps = self.waiting, [], dict[str, str]()
        for each in waiting:
            uri = printable(each.shard.name)
            if each.last and uri in equal:
                self.current_shards += 1
                self.current_images += each.last.held.rows
                gaps[uri] = each.last.gaps
            else:
                self.waiting.append(each._replace(is_same=False) if uri in changed else each)
        self.missed.add(pa.array(list(gaps), pa.string()), pa.array(list(gaps.values()), pa.string()))


def hold_against(state: State, listed: Listed, identity: str, all_of_them: bool = False) -> Held:
    """Go through what is listed and what is published, side by side.

    Args:
        identity: digest of what else changes rows.
        all_of_them: those that are current wait too.
    """
    found = Held()
    for table in listed.tables():
        looked = state.look(table, identity)
        wait = ~looked.current
        if all_of_them:
            wait |= mask_of(pc.is_valid(looked.standing["uri"]))
        found.shards += len(table)
        standing, gaps = looked.standing.filter(~wait), looked.gaps.filter(pa.array(~wait))
        found.current_shards += len(standing)
        found.current_images += pc.sum(standing["rows"]).as_py() or 0
        found.missed.add(standing["uri"], gaps)
        last = standings(looked.standing.filter(wait))
        found.waiting += map(Waiting, listed.shards(table.filter(wait)), last, looked.same[wait].tolist())
    return found
