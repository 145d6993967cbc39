"""Is a shard whose tag changed another one? Touched and restored archives are not: their digests are compared.

OUTPUT/_work/equal/SHA256.parquet   what was found equal, so that it is not read again every night
"""

import hashlib
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.shards import Entry, digest, read_shards
from bcd_ray.errors import NotFoundError
from bcd_ray.ledger.schema import WITHDRAWN
from bcd_ray.ledger.state import Equal, State
from bcd_ray.progress import Progress
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.threads import map_ahead

_READERS, _WINDOWS = 16, 4  # of shards, which hold images of so many windows together
_COLUMNS = ("image_id", "shard_uri", "image_sha256", "status")
_FOLDER = ("_work", "equal")
_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("held", pa.string())])
_Contents = dict[str, str]  # digest, or status where there is none, by image id


class Compared(NamedTuple):
    """What came out: shards that are equal to their rows, and those that are not, though their tags are the same."""

    equal: dict[str, Equal]  # by printable URI
    changed: set[str]  # names


def compare(
    state: State, shards: Iterable[StoredObject], identity: str, limits: Limits, all_of_them: bool = False
) -> Compared:
    """Read the shards whose tags are not those of their rows, and hold each image's digest against its row's.

    Args:
        identity: digest of what else changes rows: what another model is to score is not compared.
        all_of_them: those whose tags are the same too.
    """
    asked = list[tuple[StoredObject, str]]()
    for shard in shards:
        last = state.of(shard)
        holds = last is not None and last.identity == identity and not last.held.passing_failure
        if last and holds and (all_of_them or not state.is_same(shard, last)):
            asked.append((shard, last.etag))
    if not asked:
        return Compared({}, set())
    published = _published(state, {storage.printable(shard.name) for shard, _ in asked})
    progress, found = Progress("comparing", len(asked), "shards"), Compared({}, set())

    def is_equal(each: tuple[StoredObject, str]) -> bool:
        return _is_equal(each[0], published[storage.printable(each[0].name)], limits, state.withdrawn)

    def held_of(each: tuple[StoredObject, str]) -> int:
        return min(each[0].size, limits.max_bytes)

    with ThreadPoolExecutor(_READERS) as pool:
        results = map_ahead(pool, is_equal, asked, 2 * _READERS, held_of, _WINDOWS * limits.window)
        for (shard, held), equal in zip(asked, results, strict=True):
            progress.add(1)
            if equal:
                found.equal[storage.printable(shard.name)] = Equal(shard.etag, held)
            elif storage.same_version(held, shard.etag):
                found.changed.add(shard.name)
    progress.finish()
    return found


def known(output: str) -> dict[str, Equal]:
    """What was found equal before, by printable URI."""
    found = dict[str, Equal]()
    for name in storage.list_names(storage.join(output, *_FOLDER)):
        try:
            table = parquet.read(storage.join(output, *_FOLDER, name), "delete it")
        except NotFoundError:  # another run wrote a longer one
            continue
        for row in table.to_pylist():
            found[row["uri"]] = Equal(row["etag"], row["held"])
    return found


def remember(state: State) -> None:
    """Keep what is known to be equal, as far as it still holds, in one object."""
    folder = storage.join(state.output, *_FOLDER)
    before = storage.list_names(folder)
    rows = [
        {"uri": uri, **each._asdict()}
        for uri, each in sorted(state.equal.items())
        if uri in state.shards and state.shards[uri].etag == each.held
    ]
    data = parquet.bytes_of(pa.Table.from_pylist(rows, schema=_SCHEMA), compression="zstd")
    name = f"{hashlib.sha256(data).hexdigest()}.parquet"
    storage.create(storage.join(folder, name), data)
    for old in before:
        if old != name:
            storage.delete(storage.join(folder, old))


def _published(state: State, uris: Collection[str]) -> dict[str, _Contents]:
    """What the rows that hold say of the images of some shards, by printable URI."""
    found: dict[str, _Contents] = {uri: {} for uri in uris}
    of_runs: dict[str, list[str]] = {}
    for uri in uris:
        of_runs.setdefault(state.shards[uri].run_id, []).append(uri)
    for run_id, some in of_runs.items():
        file = storage.join(state.output, "predictions", f"{run_id}.parquet")
        rows = parquet.read(file, "restore it from a copy", _COLUMNS)
        rows = rows.filter(pc.is_in(rows["shard_uri"], pa.array(some, pa.string())))
        columns = (rows[name].to_pylist() for name in _COLUMNS)
        for image_id, uri, sha256, status in zip(*columns, strict=True):
            found[uri][image_id] = sha256 or status
    return found


def _is_equal(shard: StoredObject, published: _Contents, limits: Limits, withdrawn: Collection[str]) -> bool:
    """Whether a shard has just these images; what cannot be read is not."""
    left, entries = dict(published), read_shards((shard,), limits)
    return all(left.pop(entry.image_id, None) == _content(entry, withdrawn) for entry in entries) and not left


def _content(entry: Entry, withdrawn: Collection[str]) -> str:
    content = entry.content.status if isinstance(entry.content, Rejected) else digest(entry.content)
    return WITHDRAWN if content in withdrawn or entry.image_id in withdrawn else content
