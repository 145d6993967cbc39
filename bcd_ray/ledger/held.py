"""What is published of the shards that a run is to read, and which of them wait for it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.ledger.listed import LISTED, Listed, shards_of
from bcd_ray.ledger.roots import Roots
from bcd_ray.ledger.standing import STANDING, Standing, mask_of, standings
from bcd_ray.ledger.state import Missed, State
from bcd_ray.storage import StoredObject
from bcd_ray.storage.sorting import Sorter

_WAITING = LISTED.append(pa.field("same", pa.bool_())).append(pa.field("last", pa.struct(STANDING)))


class Waiting(NamedTuple):
    """A shard that is not published as it is now, or is to be compared."""

    shard: StoredObject
    last: Standing | None
    is_same: bool  # has the content that rows are of, as far as its tag says


class WaitingShards:
    """The shards that wait, in order of their names; many are in temporary files, which go with this."""

    def __init__(self, roots: Roots) -> None:
        self.roots, self._sorter, self.size = roots, Sorter(_WAITING), 0

    def add(self, listed: pa.Table, same: pa.Array, last: pa.Table) -> None:
        """Take in shards as `LISTED` and what stands of them, as `STANDING`."""
        self.add_table(listed.append_column("same", same).append_column("last", last.to_struct_array()))

    def add_table(self, table: pa.Table) -> None:
        """Take in what `tables` gave."""
        if len(table):
            self._sorter.append(table.cast(_WAITING))
            self.size += pc.sum(table["size"]).as_py()

    def tables(self) -> Iterator[pa.Table]:
        """All of them, some thousand at a time."""
        return self._sorter.tables()

    def __len__(self) -> int:
        return self._sorter.rows

    def __iter__(self) -> Iterator[Waiting]:
        return (each for table in self.tables() for each in self.of(table))

    def of(self, table: pa.Table) -> Iterator[Waiting]:
        """Those of a table."""
        last = standings(pa.Table.from_struct_array(table["last"].combine_chunks()))
        return map(Waiting, shards_of(table, self.roots), last, table["same"].to_pylist())


@dataclass
class Held:
    """The shards of a run."""

    waiting: WaitingShards
    shards: int = 0
    current_shards: int = 0
    current_images: int = 0
    missed: Missed = field(default_factory=Missed)  # of those that are current

    def settle(self, equal: Collection[str], changed: Collection[str]) -> None:
        """Take what came of comparing, by printable URI: equal shards are current, changed ones not the same."""
        waiting, self.waiting = self.waiting, WaitingShards(self.waiting.roots)
        of_equal, of_changed = (pa.array(uris, pa.string()) for uris in (equal, changed))
        for table in waiting.tables():
            settled = pc.is_in(table["uri"], of_equal)
            held = table.filter(settled)
            self.current_shards += len(held)
            self.current_images += pc.sum(pc.struct_field(held["last"], "rows")).as_py() or 0
            self.missed.add(held["uri"], pc.struct_field(held["last"], "gaps"))
            same = pc.and_not(table["same"], pc.is_in(table["uri"], of_changed))
            self.waiting.add_table(table.set_column(3, "same", same).filter(pc.invert(settled)))


def hold_against(state: State, listed: Listed, identity: str, all_of_them: bool = False) -> Held:
    """Go through what is listed and what is published, side by side.

    Args:
        identity: digest of what else changes rows.
        all_of_them: those that are current wait too.
    """
    found = Held(WaitingShards(listed.roots))
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
        found.waiting.add(table.filter(wait), pa.array(looked.same[wait]), looked.standing.filter(wait))
    return found
