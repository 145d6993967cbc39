"""What holds: of each shard that was ever published, the run whose rows stand for it now, and what was tried since.

It is what stands after the first runs (`compacted`) and what each run since then says (`said`), side by side and in
order of their shards: nothing of it is in memory but what is looked at.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.ledger.compacted import Compacted, Writer, covered, newest
from bcd_ray.ledger.equal import Equals
from bcd_ray.ledger.manifests import FIRST_VERSIONS, Manifest, digest, identity_digest, read_manifests
from bcd_ray.ledger.said import Said
from bcd_ray.ledger.schema import WITHDRAWN
from bcd_ray.ledger.standing import STANDING, Gaps, Mask, Standing, mask_of, standings
from bcd_ray.storage import StoredObject
from bcd_ray.storage.sorting import Part, in_order, side_by_side
from bcd_ray.threads import in_chunks

MOST_RUNS = 128  # whose shards are looked up one run after the other
_READERS = 16  # of their lists, at a time


@dataclass
class Missed:
    """What of some shards has no prediction now, whichever run found it."""

    not_scored: Counter[str] = field(default_factory=Counter)  # images by status
    left_out: Counter[str] = field(default_factory=Counter)  # members of shards that are no images, by suffix
    incomplete: Counter[str] = field(default_factory=Counter)  # shards with an unknown number of images, by URI

    def __add__(self, other: "Missed") -> "Missed":
        return Missed(
            self.not_scored + other.not_scored, self.left_out + other.left_out, self.incomplete + other.incomplete
        )

    def add(self, uris: pa.Array | pa.ChunkedArray, gaps: pa.Array | pa.ChunkedArray) -> None:
        """Count the gaps of shards, as `Gaps.text`, null where nothing is known."""
        some = pc.not_equal(gaps, "")
        for uri, text in zip(uris.filter(some).to_pylist(), gaps.filter(some).to_pylist(), strict=True):
            found = Gaps.of(text)
            self.not_scored.update(found.not_scored)
            self.left_out.update(found.left_out)
            self.incomplete.update([uri] if found.incomplete else [])


class Looked(NamedTuple):
    """What is known of n listed shards."""

    standing: pa.Table  # `STANDING`, (n,), null where nothing is
    same: Mask  # (n,): has the content that rows are of, by its tag, or because somebody compared
    current: Mask  # (n,): these rows are of the identity that is asked for, and no failure of the moment is among them

    @property
    def gaps(self) -> pa.ChunkedArray:
        """What of the shards as they are now has no prediction, as `Gaps.text`."""
        held, failed = self.standing["gaps"], self.standing["failed"]
        return pc.if_else(pa.array(self.current), held, pc.coalesce(failed, held))


class State:
    """What the manifests and the lists of inputs in an output say, with each run's own version of both."""

    def __init__(
        self,
        output: str,
        runs: Sequence[Manifest] | None = None,
        equal: Equals | None = None,
        like: "State | None" = None,
        anew: bool = False,
    ) -> None:
        """Of all runs, or of some, in order of their numbers.

        Args:
            equal: shards of which a later version was found to be equal to what rows are of.
            like: a state of some of these runs, of which what is open is taken over.
            anew: by the runs alone, whatever was kept of what stands.
        """
        self.output, self.equal, self._like, self._anew = output, equal or Equals(), like, anew
        self.runs = read_manifests(output) if runs is None else list(runs)  # in order of their numbers
        self.withdrawn: set[str] = set()  # contents by digest, and images of unknown content by id
        self.roots: dict[str, str] = {}  # where each lay when it was last read, by name
        self.identities: dict[str, dict[str, Any]] = {}  # of all runs, by digest
        self.features: dict[str, str] = {}  # digest of what the embeddings are of, by the run that keeps them
        for manifest in self.manifests:
            self._learn(manifest)
        there = set(storage.list_names(storage.join(output, "features"))) if self.features else set()
        self.features = {run: of for run, of in self.features.items() if f"{run}.parquet" in there}

    def _learn(self, manifest: dict[str, Any]) -> None:
        self.identities[identity_digest(manifest["identity"])] = {**FIRST_VERSIONS, **manifest["identity"]}
        self.roots |= dict(root.split("=", 1) for root in manifest.get("configuration", {}).get("root", ()))
        if withdrawn := manifest.get("withdrawn"):
            self.withdrawn.update(withdrawn["contents"], withdrawn["images"])
        if kept := manifest.get("features"):
            self.features[manifest["run_id"]] = digest(kept["identity"])

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """What runs say of themselves, in order of their numbers."""
        return [run.content for run in self.runs]

    @property
    def last_number(self) -> int:
        """The number of the last run, 0 if there is none."""
        return self.runs[-1].content["run_number"] if self.runs else 0

    def later(self) -> "State":
        """What holds now, after whatever was published since."""
        return State(self.output, equal=self.equal, like=self)

    def tables(self, since: str = "") -> Iterator[pa.Table]:
        """What stands of all shards, as `STANDING`, in order of their URIs, some thousand at a time.

        Those before `since` are left out, as far as whole tables can be.
        """
        return self._sources.tables(since)

    def of(self, uris: pa.Array) -> pa.Table:
        """What stands of some shards, by printable URI and in order, as `STANDING`; null where nothing is known."""
        found = self._sources.of(uris)
        return found.take(pc.index_in(uris, value_set=found["uri"].combine_chunks()))

    def shards_by(self, column: str, runs: Collection[str] | None = None) -> dict[str, pa.Array]:
        """The shards, by printable URI, of each run, or of some, that a column of `STANDING` names."""
        found: dict[str, list[pa.ChunkedArray]] = {}
        for table in self.tables():
            for run_id in table[column].unique().to_pylist():
                if runs is None or run_id in runs:
                    found.setdefault(run_id, []).append(table["uri"].filter(pc.equal(table[column], run_id)))
        return {
            run_id: pa.chunked_array(chain.from_iterable(each.chunks for each in parts)).combine_chunks()
            for run_id, parts in found.items()
        }

    def below(self, prefix: str) -> str | None:
        """A shard, by printable URI, of those that begin with a text; None where there is none."""
        for table in self.tables(since=prefix):
            uris = table["uri"].filter(pc.greater_equal(table["uri"], prefix))
            if len(uris):
                found = str(uris[0].as_py())
                return found if found.startswith(prefix) else None
        return None

    def look(self, listed: pa.Table, identity: str) -> Looked:
        """Hold some shards, as `LISTED` and in order, against what is published."""
        standing = self.of(listed["uri"].combine_chunks())
        same = mask_of(pc.equal(listed["etag"], standing["etag"]).fill_null(False))
        others = np.flatnonzero(mask_of(pc.is_valid(standing["uri"])) & ~same)
        if len(others):
            same[others] = self._are_same(listed.take(others), standing["etag"].take(others))
        passing = mask_of(standing["passing_failure"].fill_null(False))
        current = same & ~passing & mask_of(pc.equal(standing["identity"], identity).fill_null(False))
        return Looked(standing, same, current)

    def _are_same(self, listed: pa.Table, held: pa.ChunkedArray) -> Mask:
        """Whether shards whose tags are others have the content that rows are of all the same."""
        known = self.equal.of(listed["uri"].combine_chunks())
        compared = pc.and_(pc.equal(known["etag"], listed["etag"]), pc.equal(known["held"], held)).fill_null(False)
        tags = zip(held.to_pylist(), listed["etag"].to_pylist(), strict=True)
        mask: Mask = mask_of(compared) | np.array([storage.same_version(*each) for each in tags])
        return mask

    def find(self, shards: Iterable[StoredObject]) -> list[Standing | None]:
        """What is known of some shards."""
        uris = pa.array([storage.printable(shard.name) for shard in shards], pa.string())
        order = pc.sort_indices(uris)
        found = self.of(uris.take(order))
        return list(standings(found.take(pc.sort_indices(order))))

    def missed(self, shards: Iterable[pa.Table], identity: str) -> Missed:
        """What has no prediction of these shards, as `LISTED` and in order, as they are now."""
        found = Missed()
        for listed in shards:
            found.add(listed["uri"], self.look(listed, identity).gaps)
        return found

    def is_withdrawn(self, rows: pa.Table) -> Any:
        """Which of some rows, by `status` and `image_sha256`, are of images that are to be forgotten."""
        contents = pa.array(self.withdrawn, pa.string())
        return pc.or_(pc.equal(rows["status"], WITHDRAWN), pc.is_in(rows["image_sha256"], contents))

    def keeper(self, last: Standing, wanted: str) -> str:
        """The run that keeps embeddings of a shard that is the same, if they are of what is `wanted`, else empty.

        Of images that failed for the moment, or whose numbers were not finite, the next try may say something else.
        """
        if self.features.get(last.features) != wanted:
            return ""
        again = last.gaps and "not_finite" in Gaps.of(last.gaps).not_scored
        return "" if again or last.held.passing_failure else last.features

    def keep(self) -> None:
        """Keep what stands in one file, where it had to be made of many runs."""
        self._sources.keep()

    @cached_property
    def _sources(self) -> "_Sources":
        like, self._like = self._like, None
        return _Sources(self.output, self.runs, like._sources if like else None, self._anew)


class _Sources:
    """What stands after the first runs, and what each since then says."""

    def __init__(self, output: str, runs: Sequence[Manifest], like: "_Sources | None", anew: bool) -> None:
        self._output, self.runs = output, runs
        self.base: Compacted | None
        self.said: list[Said]
        self._writer: Writer | None = None
        if like is not None and covered(like.runs) == covered(runs[: len(like.runs)]):
            self.base, self.said = like.base, list(like.said)
        else:
            self.base, self.said = None if anew else newest(output, runs), []
        for some in in_chunks(runs[self._count :], MOST_RUNS):
            with ThreadPoolExecutor(_READERS) as pool:
                self.said += pool.map(lambda run: Said(output, run.content), some)
            if len(self.said) > MOST_RUNS:
                self._writer = Writer(runs[: self._count], self.tables())
                self.base, self.said = self._writer.made, []

    @property
    def _count(self) -> int:
        return (self.base.runs if self.base else 0) + len(self.said)

    def tables(self, since: str = "") -> Iterator[pa.Table]:
        base: Iterable[Part] = self.base.file.parts(since) if self.base else []
        for standing, *said in side_by_side([base, *(each.parts(since) for each in self.said)]):
            if len(rows := self._after(standing, said)):
                yield in_order(rows)

    def of(self, uris: pa.Array) -> pa.Table:
        standing = self.base.file.of(uris) if self.base else STANDING.empty_table()
        return self._after(standing, (each.of(uris) for each in self.said)).combine_chunks()

    def _after(self, standing: pa.Table, said: Iterable[pa.Table]) -> pa.Table:
        standing = standing if len(standing) else STANDING.empty_table()
        for each, rows in zip(self.said, said, strict=True):
            standing = each.change(standing, rows)
        return standing

    def keep(self) -> None:
        if self._writer:
            self._writer.keep(self._output)
            self._writer = None
