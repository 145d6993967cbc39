"""The shards that a run is to read, each once and in order of their names, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import ConfigError
from bcd_ray.ledger.roots import Roots, named, place_of
from bcd_ray.ledger.standing import mask_of
from bcd_ray.storage import StoredObject
from bcd_ray.storage.sorting import Sorter
from bcd_ray.threads import in_chunks
from bcd_ray.uris import from_printable

LISTED = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string())])  # what rows call it, printable
_AT_A_TIME = 32_768


class Listed:
    """Shards by what rows and ids call them; larger lists are in temporary files, which go with this.

    Attributes:
        roots: those below which shards go by other names than their URIs.
        used: the names of those of them that a shard lies below.
    """

    def __init__(self, roots: Roots | None = None) -> None:
        self.roots, self.used, self._sorter = roots or {}, set[str](), Sorter(LISTED)

    @classmethod
    def of(cls, shards: Iterable[StoredObject]) -> Self:
        """Some shards."""
        listed = cls()
        listed.add(shards)
        return listed

    def add(self, shards: Iterable[StoredObject]) -> None:
        """Take in shards in any order; of those of one name the last holds."""
        for some in in_chunks(shards, _AT_A_TIME):
            if self.roots:
                some = [named(shard, self.roots) for shard in some]
                self.used.update(shard.known_as.partition(":")[0] for shard in some)
            self.add_table(table_of(some))

    def add_table(self, table: pa.Table) -> None:
        """Take in shards as `LISTED`."""
        self._sorter.append(table)

    def tables(self) -> Iterator[pa.Table]:
        """All of them as `LISTED`, some thousand at a time."""
        for table in self._sorter.tables():
            uris = table["uri"]
            last = np.append(mask_of(pc.not_equal(uris[:-1], uris[1:])), True)
            yield table if last.all() else table.filter(last)

    def __iter__(self) -> Iterator[StoredObject]:
        return (shard for table in self.tables() for shard in shards_of(table, self.roots))


def table_of(shards: Iterable[StoredObject]) -> pa.Table:
    """Shards as `LISTED`."""
    shards = list(shards)
    uris = [storage.printable(shard.name) for shard in shards]
    return pa.table([uris, [shard.size for shard in shards], [shard.etag for shard in shards]], schema=LISTED)


def shards_of(table: pa.Table, roots: Roots) -> Iterator[StoredObject]:
    """Those of a table that has the columns of `LISTED`, below such roots."""
    uris, sizes, etags = (table[name].to_pylist() for name in LISTED.names)
    names = list(map(from_printable, uris))
    places = [place_of(name, roots) for name in names] if roots else names
    known_as = ("" if place == name else name for place, name in zip(places, names, strict=True))
    return map(StoredObject, places, sizes, etags, repeat(0.0), known_as)


def refuse_other_names(listed: Listed, published_below: Callable[[str], str | None], published_roots: Roots) -> None:
    """ConfigError where images of what is listed are published under other names, and would all stand twice.

    Args:
        published_below: finds a published shard, by printable URI, of those that begin with a text (`State.below`).
        published_roots: those of earlier runs.
    """
    for table in listed.tables() if published_roots else ():
        uris = _uris(table["uri"], listed.roots)
        before = _names(uris, published_roots)
        other = pc.and_(pc.not_equal(before, uris), pc.not_equal(before, table["uri"]))
        if pc.any(other).as_py():
            name = before.filter(other)[0].as_py().partition(":")[0]
            place = published_roots[name]
            raise ConfigError(f"images of {place} are published below the root {name}: give --root {name}={place}")
    for name, place in listed.roots.items():
        if uri := published_below(f"{storage.printable(place)}/"):
            raise ConfigError(
                f"--root {name}: {uri} is published under this URI, and all would stand twice: leave --root out, "
                f"begin another output, or withdraw these rows with jobs/forget.py --moved"
            )


def _uris(names: pa.ChunkedArray, roots: Roots) -> pa.ChunkedArray:
    """As `place_of`, printable."""
    for name, place in roots.items():
        names = _replaced(names, f"{name}:", storage.printable(place))
    return names


def _names(uris: pa.ChunkedArray, roots: Roots) -> pa.ChunkedArray:
    """As `named`, printable: the innermost root holds."""
    names = uris
    for name, place in sorted(roots.items(), key=lambda root: root[1]):
        place = storage.printable(place)
        names = pc.if_else(pc.starts_with(uris, f"{place}/"), _replaced(uris, place, f"{name}:"), names)
    return names


def _replaced(texts: pa.ChunkedArray, start: str, by: str) -> pa.ChunkedArray:
    """Texts that begin with `start` and a slash, with another beginning."""
    return pc.if_else(pc.starts_with(texts, f"{start}/"), pc.utf8_replace_slice(texts, 0, len(start), by), texts)
