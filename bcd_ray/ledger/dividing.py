"""A large shard as several units, which are one again when they are published: readers see no difference."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from bcd_ray.archives.looking import parts_of
from bcd_ray.archives.parquets import end_readers
from bcd_ray.archives.shards import is_loose
from bcd_ray.errors import JobError
from bcd_ray.ledger.features import EMBEDDING
from bcd_ray.ledger.manifests import digest
from bcd_ray.ledger.units import Unit
from bcd_ray.threads import in_chunks

# Smaller shards end soon enough: 64 MB are 1,600 usual images, some seconds of two cores.
LARGE_BYTES, PART_BYTES = 64 << 20, 16 << 20
_ONE_IN = 128  # of all bytes: of more shards than that, the one that ends last delays the end by little
_READERS = 8  # of the directories of large shards
_AT_A_TIME = 256  # units
_Read = dict[str, Any]  # a row of `reconciling.READ`
_Units = Iterable[tuple[Unit, Iterable[pa.Table]]]  # with their rows by the chunk
_Reader = Callable[[Unit, Iterable[pa.Table]], list[_Read]]


def divided(units: Iterable[Unit], size: int) -> Iterator[Unit]:
    """The units, of so many bytes, of which a large shard that is to be read becomes a unit for each of its parts.

    Parts follow from the shard's content: the next attempt at a run finds the same.
    """
    least = max(LARGE_BYTES, size // _ONE_IN)

    def is_large(unit: Unit) -> bool:
        return unit.size >= least and not unit.features and not is_loose(unit.shards[0].uri)

    with ThreadPoolExecutor(_READERS) as pool:
        for some in in_chunks(units, _AT_A_TIME):
            large = [unit for unit in some if is_large(unit)]
            parts = dict(zip((unit.unit_id for unit in large), pool.map(_parts, large), strict=True))
            yield from chain.from_iterable(parts.get(unit.unit_id, (unit,)) for unit in some)
    end_readers()  # which would hold some 50 MB each while the units are scored


def _parts(unit: Unit) -> tuple[Unit, ...]:
    parts = parts_of(unit.shards[0], PART_BYTES)
    units = (
        replace(unit, unit_id=digest([unit.unit_id, part])[:32], part=part, undivided=unit.unit_id) for part in parts
    )
    return tuple(units) or (unit,)


class Joined:
    """The shards of a run, each once, with what all of its parts say of it.

    Whoever reads a shard whole reads nothing behind what cannot be read: what parts read there is not published.
    """

    def __init__(self) -> None:
        self._ended, self._bare = set[str](), set[str]()  # ids of undivided units
        self._behind = set[str]()  # ids of units

    def shards(self, units: _Units, read: _Reader) -> Iterator[_Read]:
        """Rows of `reconciling.READ`, of units in the plan's order, of which `read` makes them."""
        for _, rows in groupby(self._read(units, read), key=itemgetter("uri")):
            first, *others = rows
            if any(other["unit_id"] != first["unit_id"] for other in others):
                raise JobError("the plan lists a shard twice: report this")
            yield self._joined([first, *others]) if others else first

    def publishes(self, unit: Unit) -> bool:
        """Whether the rows of a unit are published, once all shards are read."""
        return unit.unit_id not in self._behind

    def published(self, unit: Unit, rows: pa.Table) -> pa.Table:
        """Rows of a unit, without embeddings where not all parts of the shard have them."""
        if unit.undivided in self._bare and EMBEDDING.name in rows.schema.names:
            return rows.drop_columns([EMBEDDING.name])
        return rows

    def _read(self, units: _Units, read: _Reader) -> Iterator[_Read]:
        for unit, chunks in units:
            if unit.undivided in self._ended:
                self._behind.add(unit.unit_id)
                continue
            rows = read(unit, chunks)
            if unit.part and rows[0]["incomplete"]:
                self._ended.add(unit.undivided)
            yield from rows

    def _joined(self, parts: Sequence[_Read]) -> _Read:
        not_scored, left_out = Counter[str](), Counter[str]()
        for part in parts:
            not_scored.update(dict(part["not_scored"]))
            left_out.update(json.loads(part["left_out"]))
        features = {part["features"] for part in parts}
        if len(features) > 1:
            self._bare.add(parts[0]["unit_id"])
        return {
            **parts[0],
            "rows": sum(part["rows"] for part in parts),
            "passing_failure": any(part["passing_failure"] for part in parts),
            "incomplete": any(part["incomplete"] for part in parts),
            "not_scored": list(not_scored.items()),
            "left_out": json.dumps(left_out, sort_keys=True),
            "features": features.pop() if len(features) == 1 else None,
        }
