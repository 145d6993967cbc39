"""Is a shard whose tag changed another one? Touched and restored archives are not: their digests are compared."""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.shards import Entry, digest, read_shards
from bcd_ray.ledger.equal import Equal
from bcd_ray.ledger.held import WaitingShards
from bcd_ray.ledger.schema import WITHDRAWN
from bcd_ray.ledger.standing import Standing
from bcd_ray.ledger.state import State
from bcd_ray.progress import Progress
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.threads import map_ahead

_READERS, _WINDOWS = 16, 4  # of shards, which hold images of so many windows together
_COLUMNS = ("image_id", "shard_uri", "image_sha256", "status")
_Contents = dict[str, str]  # digest, or status where there is none, by image id


class Compared(NamedTuple):
    """What came out, by printable URI."""

    equal: dict[str, Equal]
    changed: set[str]  # that are not, though their tags are the same


def compare(state: State, waiting: WaitingShards, identity: str, limits: Limits, all_of_them: bool = False) -> Compared:
    """Read the shards whose tags are not those of their rows, and hold each image's digest against its row's.

    Args:
        identity: digest of what else changes rows: what another model is to score is not compared.
        all_of_them: those whose tags are the same too.
    """
    asked = list[tuple[StoredObject, Standing]]()
    for table in waiting.tables():
        of_identity = pc.equal(pc.struct_field(table["last"], "identity"), identity)
        ask = pc.and_not(of_identity, pc.struct_field(table["last"], "passing_failure"))
        ask = ask if all_of_them else pc.and_not(ask, table["same"])
        asked += ((shard, last) for shard, last, _ in waiting.of(table.filter(ask)) if last)
    if not asked:
        return Compared({}, set())
    published = _published(state.output, asked)
    progress, found = Progress("comparing", len(asked), "shards"), Compared({}, set())

    def is_equal(each: tuple[StoredObject, Standing]) -> bool:
        return _is_equal(each[0], published[storage.printable(each[0].name)], limits, state.withdrawn)

    def held_of(each: tuple[StoredObject, Standing]) -> int:
        return min(each[0].size, limits.max_bytes)

    with ThreadPoolExecutor(_READERS) as pool:
        results = map_ahead(pool, is_equal, asked, 2 * _READERS, held_of, _WINDOWS * limits.window)
        for (shard, last), equal in zip(asked, results, strict=True):
            progress.add(1)
            if equal:
                found.equal[storage.printable(shard.name)] = Equal(shard.etag, last.etag)
            elif storage.same_version(last.etag, shard.etag):
                found.changed.add(storage.printable(shard.name))
    progress.finish()
    return found


def _published(output: str, asked: Iterable[tuple[StoredObject, Standing]]) -> dict[str, _Contents]:
    """What the rows that hold say of the images of some shards, by printable URI."""
    found, of_runs = dict[str, _Contents](), dict[str, list[str]]()
    for shard, last in asked:
        uri = storage.printable(shard.name)
        found[uri] = {}
        of_runs.setdefault(last.run_id, []).append(uri)
    for run_id, some in of_runs.items():
        file, wanted = storage.join(output, "predictions", f"{run_id}.parquet"), pa.array(some, pa.string())
        for chunk in parquet.chunks_at(file, "restore it from a copy", _COLUMNS):
            rows = chunk.filter(pc.is_in(chunk["shard_uri"], wanted))
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
