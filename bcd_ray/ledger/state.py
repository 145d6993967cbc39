"""What holds: of each shard that was ever published, the run whose rows stand for it now, and what was tried since."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import JobError
from bcd_ray.ledger.schema import WITHDRAWN
from bcd_ray.storage import StoredObject, parquet

_READERS = 16  # of manifests, at a time
RUN_ID = re.compile("[0-9a-f]{16}")
# What came into identities later, as it was before: an upgrade alone scores nothing anew.
_FIRST_VERSIONS = {"network_version": 1}
NotScored = tuple[tuple[str, int], ...]  # rows by status


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


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a shard: the rows that hold, and the last try where that changed nothing."""

    run_id: str  # whose rows hold
    run_number: int
    etag: str  # of the content that they are of
    identity: str
    held: Rows
    gaps: "Gaps"
    tried: int  # the last run that read it
    failed: "Gaps | None" = None  # of that run, where its rows were not taken
    features: str = ""  # the run that keeps embeddings of that content


class Equal(NamedTuple):
    """Two tags of a shard, of one content."""

    etag: str  # as it was listed
    held: str  # when the rows that hold were made


class Gaps(NamedTuple):
    """What of a shard has no prediction, as a run found it."""

    not_scored: NotScored
    left_out: str = "{}"  # members that are no images by suffix, as JSON
    incomplete: bool = False  # nobody knows how many images the shard holds


@dataclass(frozen=True)
class Missed:
    """What of some shards has no prediction now, whichever run found it."""

    not_scored: Counter[str] = field(default_factory=Counter)  # images by status
    left_out: Counter[str] = field(default_factory=Counter)  # members of shards that are no images, by suffix
    incomplete: Counter[str] = field(default_factory=Counter)  # shards with an unknown number of images, by URI


class State:
    """What the manifests and the lists of inputs in an output say, with each run's own version of both."""

    def __init__(
        self,
        output: str,
        equal: Mapping[str, "Equal"] | None = None,
        manifests: Iterable[dict[str, Any]] | None = None,
    ) -> None:
        """Of all runs, or of some, in order of their numbers.

        `equal` are shards, by printable URI, of which a later version was found to be equal to what rows are of.
        """
        self.output, self.equal = output, dict(equal or {})
        self.manifests: list[dict[str, Any]] = []  # in order of their numbers
        self.shards: dict[str, Standing] = {}  # by printable URI
        self.withdrawn: set[str] = set()  # contents by digest, and images of unknown content by id
        self.roots: dict[str, str] = {}  # where each lay when it was last read, by name
        self.identities: dict[str, dict[str, Any]] = {}  # of all runs, by digest
        self.features: dict[str, str] = {}  # digest of what the embeddings are of, by the run that keeps them
        for manifest in (each.content for each in read_manifests(output)) if manifests is None else manifests:
            self.add(manifest)
        there = set(storage.list_names(storage.join(output, "features"))) if self.features else set()
        self.features = {run: of for run, of in self.features.items() if f"{run}.parquet" in there}

    @property
    def last_number(self) -> int:
        """The number of the last run, 0 if there is none."""
        return self.manifests[-1]["run_number"] if self.manifests else 0

    def of(self, shard: StoredObject) -> Standing | None:
        """What is known of a shard."""
        return self.shards.get(storage.printable(shard.name))

    def is_current(self, shard: StoredObject, identity: str) -> bool:
        """Whether the rows that hold are of this content and identity, and no failure of the moment is among them."""
        last = self.of(shard)
        return (
            last is not None
            and not last.held.passing_failure
            and last.identity == identity
            and self.is_same(shard, last)
        )

    def is_same(self, shard: StoredObject, last: Standing) -> bool:
        """Whether a shard has the content that rows are of, by its tag, or because somebody compared."""
        known = self.equal.get(storage.printable(shard.name))
        return storage.same_version(last.etag, shard.etag) or known == Equal(shard.etag, last.etag)

    def is_withdrawn(self, rows: pa.Table) -> Any:
        """Which of some rows, by `status` and `image_sha256`, are of images that are to be forgotten."""
        contents = pa.array(self.withdrawn, pa.string())
        return pc.or_(pc.equal(rows["status"], WITHDRAWN), pc.is_in(rows["image_sha256"], contents))

    def keeper(self, shard: StoredObject, wanted: str) -> str:
        """The run that keeps embeddings of a shard as it is now, if they are of what is `wanted`, else empty.

        Of images that failed for the moment, or whose numbers were not finite, the next try may say something else.
        """
        last = self.of(shard)
        if last is None or self.features.get(last.features) != wanted or not self.is_same(shard, last):
            return ""
        again = last.held.passing_failure or "not_finite" in dict(last.gaps.not_scored)
        return "" if again else last.features

    def missed(self, shards: Iterable[StoredObject], identity: str) -> Missed:
        """What has no prediction of these shards as they are now."""
        found = Missed()
        for shard in shards:
            if last := self.of(shard):
                gaps = last.gaps if self.is_current(shard, identity) else last.failed or last.gaps
                found.not_scored.update(dict(gaps.not_scored))
                if gaps.left_out != "{}":
                    found.left_out.update(json.loads(gaps.left_out))
                if gaps.incomplete:
                    found.incomplete[shard.name] += 1
        return found

    def add(self, manifest: dict[str, Any]) -> None:
        """Take in a run that comes after those that are known."""
        self.manifests.append(manifest)
        run_id, number, identity = manifest["run_id"], manifest["run_number"], identity_digest(manifest["identity"])
        self.identities[identity] = {**_FIRST_VERSIONS, **manifest["identity"]}
        self.roots |= dict(root.split("=", 1) for root in manifest.get("configuration", {}).get("root", ()))
        withdrawn = manifest.get("withdrawn")
        if withdrawn:
            self.withdrawn.update(withdrawn["contents"], withdrawn["images"])
        if kept := manifest.get("features"):
            self.features[run_id] = digest(kept["identity"])
        for read in read_inputs(self.output, manifest):
            failed = sum(count for _, count in read.gaps.not_scored)
            rows = Rows(read.rows, read.rows - failed - read.withdrawn, read.passing_failure)
            earlier = self.shards.get(read.uri)
            if withdrawn and earlier:
                self._withdraw(read, rows, earlier, manifest)
            elif read.holds and rows.supersede(earlier.held if earlier else None):
                self.shards[read.uri] = Standing(
                    run_id, number, read.etag, identity, rows, read.gaps, number, features=read.features
                )
            elif earlier:
                self.shards[read.uri] = replace(earlier, tried=number, failed=read.gaps)

    def _withdraw(self, read: "Read", rows: Rows, earlier: Standing, manifest: dict[str, Any]) -> None:
        """Take a shard's same rows, but for those withdrawn; one that moved, and lost all, is unknown from now on."""
        if manifest["configuration"]["moved"] and read.withdrawn == read.rows:
            del self.shards[read.uri]
            return
        gaps = earlier.gaps._replace(not_scored=read.gaps.not_scored)
        run_id, number = manifest["run_id"], manifest["run_number"]
        standing = replace(earlier, run_id=run_id, run_number=number, tried=number, held=rows, gaps=gaps)
        self.shards[read.uri] = standing


class Manifest(NamedTuple):
    """What a run published, and the digest of the file that says so."""

    content: dict[str, Any]
    sha256: str


def read_manifests(output: str) -> list[Manifest]:
    """The manifests of all published runs, in order of their numbers; what is not named as one is passed over."""
    folder = storage.join(output, "manifests")
    names = [name for name in storage.list_names(folder) if is_of_a_run(name, ".json")]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(manifest_of, (storage.join(folder, name) for name in names)))
    return sorted(found, key=lambda manifest: in_order(manifest.content))


def in_order(manifest: Mapping[str, Any]) -> tuple[int, str]:
    """What manifests are sorted by: of two of one number the later id holds, as for every reader."""
    return manifest["run_number"], manifest["run_id"]


def ends_of_chain(manifests: Sequence[Manifest]) -> list[dict[str, str]]:
    """Run id and digest of each manifest that none names as the one before it: one, or of runs at the same time some.

    A manifest names those that were the ends when it was written, so that none of them can change or go unseen.
    """
    named = {each["run_id"] for manifest in manifests for each in manifest.content.get("previous", [])}
    ends = [manifest for manifest in manifests if manifest.content["run_id"] not in named]
    return [{"run_id": manifest.content["run_id"], "sha256": manifest.sha256} for manifest in ends]


def is_of_a_run(name: str, suffix: str) -> bool:
    """Whether a name is RUN_ID and a suffix: whatever else lies in a published folder is somebody else's."""
    return name.endswith(suffix) and bool(RUN_ID.fullmatch(name.removesuffix(suffix)))


def manifest_of(uri: str) -> Manifest:
    """A manifest; JobError where it is damaged."""
    data = storage.read_bytes(uri)
    try:
        manifest = dict[str, Any](json.loads(data))
        manifest["run_number"], manifest["run_id"], manifest["identity"]
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(f"{uri} is damaged or no manifest: restore it from a copy, or move away what is none") from error
    return Manifest(manifest, hashlib.sha256(data).hexdigest())


class Read(NamedTuple):
    """What a run says of a shard that it read."""

    uri: str  # printable
    etag: str
    rows: int  # published
    passing_failure: bool
    holds: bool  # whether its rows were taken, and not those of an earlier run kept
    gaps: Gaps
    withdrawn: int  # rows
    features: str  # the run that keeps its embeddings, empty where none does


def read_inputs(output: str, manifest: dict[str, Any]) -> Iterator[Read]:
    """The shards that a run read, whatever version wrote them down."""
    # By name, not by the recorded URI: an output may have been moved.
    uri = storage.join(output, "manifests", f"{manifest['run_id']}.inputs.parquet")
    table = parquet.read(uri, "restore it from a copy")
    columns = [table[name].to_pylist() for name in ("uri", "etag", "rows", "passing_failure")]
    if "holds" in table.schema.names:
        names = ("not_scored", "left_out", "incomplete")
        failed, *others = (table[name].to_pylist() for name in names)
        forgotten = [dict(each).get(WITHDRAWN, 0) for each in failed]
        failed = [tuple(each for each in some if each[0] != WITHDRAWN) for some in failed]
        columns += [table["holds"].to_pylist(), list(map(Gaps, failed, *others)), forgotten]
    else:  # manifest version 2: all rows were published
        by_shard, nothing = _not_scored(output, manifest), [0] * len(table)
        gaps = [Gaps(tuple(by_shard.get(uri, {}).items())) for uri in columns[0]]
        columns += [[True] * len(table), gaps, nothing]
    kept = table["features"].fill_null("").to_pylist() if "features" in table.schema.names else [""] * len(table)
    return map(Read, *columns, kept)


def _not_scored(output: str, manifest: dict[str, Any]) -> dict[str, Counter[str]]:
    """By shard and status the rows of a run that are not scored."""
    if not unscored(manifest["statuses"]):
        return {}
    uri = storage.join(output, "predictions", f"{manifest['run_id']}.parquet")
    rows = parquet.read(uri, "restore it from a copy", ["shard_uri", "status"])
    rows = rows.filter(pc.not_equal(rows["status"], "scored"))
    found: dict[str, Counter[str]] = {}
    for shard, status in zip(rows["shard_uri"].to_pylist(), rows["status"].to_pylist(), strict=True):
        found.setdefault(shard, Counter())[status] += 1
    return found


def digest(value: Any) -> str:
    """A name for a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def identity_digest(identity: dict[str, Any]) -> str:
    """A name for what changes the rows besides the shards."""
    return digest({**_FIRST_VERSIONS, **identity})


def unscored(statuses: dict[str, int]) -> int:
    """How many images of a manifest's `statuses` could not be scored."""
    return sum(count for status, count in statuses.items() if status not in ("scored", WITHDRAWN))
