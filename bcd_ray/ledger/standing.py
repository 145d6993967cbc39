"""What stands of a shard, by itself and as a row of a table; and how what a run says changes it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.ledger.schema import WITHDRAWN

Mask = npt.NDArray[np.bool_]
STANDING = pa.schema(
    [
        ("uri", pa.string()),  # printable
        ("run_id", pa.string()),
        ("run_number", pa.int64()),
        ("etag", pa.string()),
        ("identity", pa.string()),
        ("rows", pa.int64()),
        ("scored", pa.int64()),
        ("passing_failure", pa.bool_()),
        ("gaps", pa.string()),  # `Gaps.text`
        ("tried", pa.int64()),
        ("failed", pa.string()),  # the same, or null
        ("features", pa.string()),
    ]
)
# What a run says of the shards that it read, as they would stand; and whether its rows were taken, and not those of an
# earlier run kept, and all of them withdrawn.
SAID = STANDING.append(pa.field("holds", pa.bool_())).append(pa.field("gone", pa.bool_()))


class Rows(NamedTuple):
    """How many rows a run has of a shard, and what they are worth."""

    rows: int
    scored: int
    passing_failure: bool  # a failure of the moment is among them

    def supersede(self, earlier: "Rows | None") -> bool:
        """Whether they are taken in place of earlier ones: a failure of the moment takes nobody's place."""
        return (
            earlier is None or not self.passing_failure or (earlier.passing_failure and self.scored >= earlier.scored)
        )


class Gaps(NamedTuple):
    """What of a shard has no prediction, as a run found it."""

    not_scored: Mapping[str, int]  # rows by status
    left_out: Mapping[str, int] = {}  # members that are no images, by suffix
    incomplete: bool = False  # nobody knows how many images the shard holds

    @property
    def text(self) -> str:
        """For a column; empty where nothing lacks."""
        told = {name: value for name, value in self._asdict().items() if value}
        return json.dumps(told, sort_keys=True) if told else ""

    @classmethod
    def of(cls, text: str) -> "Gaps":
        """Those of such a text."""
        return cls(**{"not_scored": {}, **json.loads(text or "{}")})


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a shard: the rows that hold, and the last try where that changed nothing."""

    run_id: str  # whose rows hold
    etag: str  # of the content that they are of
    identity: str
    held: Rows
    gaps: str  # `Gaps.text`
    tried: int  # the last run that read it
    failed: str | None = None  # gaps of that run, where its rows were not taken
    features: str = ""  # the run that keeps embeddings of that content


def standings(rows: pa.Table) -> Iterable[Standing | None]:
    """Rows of `STANDING`, None for those that are null."""
    names = ("run_id", "etag", "identity", "rows", "scored", "passing_failure", "gaps", "tried", "failed", "features")
    for run_id, etag, identity, count, scored, passing, *others in zip(*_lists(rows, names), strict=True):
        yield None if run_id is None else Standing(run_id, etag, identity, Rows(count, scored, passing), *others)


def mask_of(column: Any) -> Mask:
    """A column of true and false, none of them null."""
    mask: Mask = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return mask.astype(bool)


def after_run(before: pa.Table, said: pa.Table, withdrawal: bool, moved: bool) -> pa.Table:
    """What stands of some shards, as `STANDING`, after a run said so of some of them, as `SAID`; in any order.

    Args:
        withdrawal: the run withdrew images, and took of each shard the same rows otherwise.
        moved: of shards that are elsewhere now; those that lost all rows are unknown from then on.
    """
    if not len(said):
        return before
    place = pc.index_in(said["uri"], value_set=before["uri"].combine_chunks()).combine_chunks()
    known = mask_of(pc.is_valid(place))
    place = place.fill_null(0).to_numpy()
    taken = mask_of(said["holds"])
    if withdrawal:
        mine, theirs = said.filter(known), before.take(place[known])
        less = _withdrawn(theirs, mine).filter(~(mask_of(mine["gone"]) & moved))
        return pa.concat_tables([_without(before, place[known]), less, _standing(said, taken & ~known)])
    if known.any():
        passing, scored = mask_of(before["passing_failure"])[place], before["scored"].to_numpy()[place]
        better = ~mask_of(said["passing_failure"]) | (passing & (said["scored"].to_numpy() >= scored))
        taken &= better | ~known
        before = _tried(before, said, place, known & ~taken)
    return pa.concat_tables([_without(before, place[known & taken]), _standing(said, taken)])


def _tried(before: pa.Table, said: pa.Table, place: npt.NDArray[np.int64], which: Mask) -> pa.Table:
    """What stands, with the last try of those shards whose rows were not taken."""
    if not which.any():
        return before
    source = np.arange(len(before))
    source[place[which]] = len(before) + np.flatnonzero(which)
    for name, of_run in (("tried", "tried"), ("failed", "gaps")):
        both = pa.chunked_array([*before[name].chunks, *said[of_run].chunks]).combine_chunks()
        before = before.set_column(before.schema.get_field_index(name), name, both.take(pa.array(source)))
    return before


def _withdrawn(before: pa.Table, said: pa.Table) -> pa.Table:
    """The same shards, row by row, with their rows as a withdrawal published them."""
    for name in ("run_id", "run_number", "rows", "scored", "passing_failure", "tried"):
        before = before.set_column(before.schema.get_field_index(name), name, said[name])
    both = zip(*(map(Gaps.of, table["gaps"].to_pylist()) for table in (before, said)), strict=True)
    gaps = pa.array([earlier._replace(not_scored=now.not_scored).text for earlier, now in both], pa.string())
    return before.set_column(before.schema.get_field_index("gaps"), "gaps", gaps)


def _standing(said: pa.Table, which: Mask) -> pa.Table:
    rows = said.select(STANDING.names)
    return rows if which.all() else rows.filter(which)


def _without(rows: pa.Table, places: npt.NDArray[np.int64]) -> pa.Table:
    if not len(places):
        return rows
    left = np.ones(len(rows), bool)
    left[places] = False
    return rows.filter(left)


def _lists(rows: pa.Table, names: Iterable[str]) -> list[list[Any]]:
    return [rows[name].to_pylist() for name in names]


def said_of(
    table: pa.Table, run_id: str, number: int, identity: str, failed: Mapping[str, Mapping[str, int]]
) -> pa.Table:
    """Rows of `SAID` from some of a run's inputs, whatever version wrote them down.

    `failed` is by shard and status the rows that are not scored, where the inputs do not say so (manifest version 2).
    """
    count, names = len(table), table.schema.names
    lost, forgotten, gaps = np.zeros(count, np.int64), np.zeros(count, np.int64), np.full(count, "", object)
    for place, found in _gaps(table) if "holds" in names else _gaps_of(table["uri"].to_pylist(), failed):
        not_scored = dict(found.not_scored)
        forgotten[place] = not_scored.pop(WITHDRAWN, 0)
        lost[place] = sum(not_scored.values())
        gaps[place] = found._replace(not_scored=not_scored).text
    rows = table["rows"].to_numpy()
    columns = {
        "uri": table["uri"],
        "run_id": pa.repeat(pa.scalar(run_id), count),
        "run_number": pa.repeat(pa.scalar(number, pa.int64()), count),
        "etag": table["etag"],
        "identity": pa.repeat(pa.scalar(identity), count),
        "rows": table["rows"],
        "scored": rows - lost - forgotten,
        "passing_failure": table["passing_failure"],
        "gaps": pa.array(gaps, pa.string()),
        "tried": pa.repeat(pa.scalar(number, pa.int64()), count),
        "failed": pa.nulls(count, pa.string()),
        "features": table["features"].fill_null("") if "features" in names else pa.repeat(pa.scalar(""), count),
        "holds": table["holds"] if "holds" in names else pa.repeat(pa.scalar(True), count),
        "gone": (forgotten == rows) & (forgotten > 0),
    }
    return pa.table(columns, SAID)


def _gaps(table: pa.Table) -> Iterable[tuple[int, Gaps]]:
    """Of those shards of which something lacks, which they are and what."""
    not_scored = table["not_scored"].combine_chunks()
    some = np.diff(not_scored.offsets.to_numpy()) > 0
    some |= mask_of(pc.or_(pc.not_equal(table["left_out"], "{}"), table["incomplete"]))
    places = np.flatnonzero(some)
    columns = (table[name].take(pa.array(places)).to_pylist() for name in ("not_scored", "left_out", "incomplete"))
    for place, failed, left_out, incomplete in zip(places.tolist(), *columns, strict=True):
        yield place, Gaps(dict(failed), json.loads(left_out), incomplete)


def _gaps_of(uris: list[str], failed: Mapping[str, Mapping[str, int]]) -> Iterable[tuple[int, Gaps]]:
    for place, uri in enumerate(uris):
        if uri in failed:
            yield place, Gaps(failed[uri])
