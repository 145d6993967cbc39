"""What a run is to read: the shards below its inputs, and those that a list names."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from bcd_ray import storage, uris
from bcd_ray.archives.listing import Listing, list_archive
from bcd_ray.archives.shards import kind_of
from bcd_ray.archives.suffixes import left_out_words
from bcd_ray.errors import ConfigError, NoInputError, NotFoundError
from bcd_ray.ledger.roots import named, roots_of
from bcd_ray.progress import say
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.threads import map_ahead

_READERS = 16  # of what a list names: a look at an object takes some 15 ms
_COLUMN = "uri"  # of a list that is a table


def list_shards(config: ScoreConfig) -> tuple[list[StoredObject], Counter[str]]:
    """The shards of all inputs, each once, sorted by name, and how many files are none, by suffix; says which.

    Raises:
        ConfigError: an input is missing or holds no shard, or the output lies inside it.
    """
    found, roots = dict[str, StoredObject](), roots_of(config.root)
    left_out = Counter[str]()
    output = uris.real(config.output)
    for uri, listing in _listings(config):
        if f"{output}/".startswith(f"{uri}/"):
            raise ConfigError(f"--output {config.output} lies inside --input {uri}: choose another folder")
        if not listing.shards:
            raise NoInputError(f"--input {uri} holds no tar, zip or Parquet file, and no image")
        found |= {shard.uri: named(shard, roots) for shard in listing.shards}
        for folder in {shard.uri.rpartition("/")[0] for shard in listing.shards}:
            if f"{uris.real(folder)}/".startswith(f"{output}/"):
                raise ConfigError(f"--output {config.output} is reached from --input {uri} by {folder}: take it out")
        left_out += listing.left_out
    if left_out:
        say(f"{left_out.total():,} files that are neither shards nor images are left out: {left_out_words(left_out)}")
    for name, place in roots.items():
        if not any(shard.known_as.startswith(f"{name}:") for shard in found.values()):
            raise ConfigError(f"--root {name}={place}: no --input holds a shard below it")
    return sorted(found.values(), key=lambda shard: shard.name), left_out


def _listings(config: ScoreConfig) -> Iterator[tuple[str, Listing]]:
    """Of each input, and of each entry of the list, what it holds."""
    for uri in config.input:
        try:
            yield uri, list_archive(uri)
        except NotFoundError as error:
            raise NoInputError(f"--input: {error}") from error
    if config.input_list:
        entries = [ScoreConfig.spelled(entry) for entry in entries_of(config.input_list)]
        with ThreadPoolExecutor(_READERS) as pool:
            yield from zip(entries, map_ahead(pool, _listed, entries, ahead=4 * _READERS), strict=True)


def _listed(uri: str) -> Listing:
    """What an entry of a list holds; a file that is gone has a row that says so, since the list promised it."""
    try:
        return list_archive(uri)
    except NotFoundError as error:
        if kind_of(uri) is None:
            raise NoInputError(f"--input-list: {error}") from error
        return Listing([StoredObject(uri, 0, "missing")], Counter())


def entries_of(path: str) -> list[str]:
    """What a list names: the lines of a text, or the column `uri` of a CSV or a Parquet file.

    Raises:
        NoInputError: it is not there, or names nothing.
        ConfigError: a table has no such column.
    """
    try:
        data = storage.read_bytes(path)
    except NotFoundError as error:
        raise NoInputError(f"--input-list: {error}") from error
    lower = path.lower()
    try:
        if lower.endswith((".parquet", ".pq")):
            found = parquet.table_of(data, [_COLUMN])[_COLUMN].to_pylist()
        elif lower.endswith(".csv"):
            found = [row[_COLUMN] for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig")))]
        else:
            found = data.decode("utf-8-sig", errors="surrogateescape").splitlines()
    except (KeyError, ValueError, OSError, pa.ArrowException, csv.Error) as error:
        what = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"--input-list {path}: needs a column `{_COLUMN}` ({what}): write one, or a line each"
        ) from error
    entries = [entry.strip() for entry in found if entry and entry.strip()]
    if not entries:
        raise NoInputError(f"--input-list {path} names nothing")
    return entries
