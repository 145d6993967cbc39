"""What a run is to read: the shards below its inputs, and those that a list names."""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pyarrow as pa

from bcd_ray import storage, uris
from bcd_ray.archives.listing import list_archive, walk_archive
from bcd_ray.archives.shards import kind_of
from bcd_ray.archives.suffixes import left_out_words
from bcd_ray.errors import ConfigError, NoInputError, NotFoundError
from bcd_ray.ledger.listed import Listed
from bcd_ray.ledger.roots import roots_of
from bcd_ray.progress import say
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.storage import StoredObject, parquet
from bcd_ray.threads import map_ahead
from bcd_ray.uris import hidden_part

_READERS = 16  # of what a list names: a look at an object takes some 15 ms
_FOLDERS = 1024  # that are remembered
_COLUMN = "uri"  # of a list that is a table


def list_shards(config: ScoreConfig) -> tuple[Listed, Counter[str]]:
    """The shards of all inputs, and how many files are none, by suffix; says which.

    Raises:
        ConfigError: an input is missing or holds no shard, or the output lies inside it.
    """
    entries = [ScoreConfig.spelled(entry) for entry in entries_of(config.input_list)] if config.input_list else []
    places, output = dict.fromkeys([*config.input, *entries]), uris.real(config.output)
    for uri in places:
        if f"{output}/".startswith(f"{uri}/"):
            raise ConfigError(f"--output {config.output} lies inside --input {uri}: choose another folder")
        if f"{uri}/".startswith(f"{output}/"):
            raise ConfigError(f"--input {uri} lies inside --output {config.output}: choose another folder for one")

    left_out = Counter[str]()

    @lru_cache(_FOLDERS)
    def is_in_output(folder: str) -> bool:
        return f"{uris.real(folder)}/".startswith(f"{output}/")

    def shards() -> Iterator[StoredObject]:
        for uri, of_uri, others in _walks(config.input, entries):
            count = 0
            for count, shard in enumerate(of_uri, 1):  # noqa: B007 (asked for below)
                if is_in_output(folder := shard.uri.rpartition("/")[0]):
                    raise ConfigError(
                        f"--output {config.output} is reached from --input {uri} by {folder}: take it out"
                    )
                yield shard
            if not count:
                raise NoInputError(f"--input {uri}: holds no tar, zip or Parquet file, and no image")
            left_out.update({} if _is_below_another(uri, places) else others)

    listed = Listed(roots_of(config.root))
    listed.add(shards())
    if left_out:
        say(f"{left_out.total():,} files that are neither shards nor images are left out: {left_out_words(left_out)}")
    for name in listed.roots.keys() - listed.used:
        raise ConfigError(f"--root {name}={listed.roots[name]}: no --input holds a shard below it")
    return listed, left_out


_Walk = tuple[str, Iterable[StoredObject], Counter[str]]  # a place, its shards and, behind them, what is left out


def _walks(inputs: Iterable[str], entries: Iterable[str]) -> Iterator[_Walk]:
    """Of each input, and of each entry of the list."""
    for uri in inputs:
        yield _walk(uri, "--input")
    with ThreadPoolExecutor(_READERS) as pool:
        yield from map_ahead(pool, _entry, entries, ahead=4 * _READERS)


def _entry(uri: str) -> _Walk:
    """Of an entry of a list; a file that is gone has a row that says so, since the list promised it."""
    if kind_of(uri) is None:
        return _walk(uri, "--input-list")
    try:
        found = list_archive(uri)
    except NotFoundError:
        return uri, [StoredObject(uri, 0, "missing")], Counter()
    return uri, found.shards, found.left_out


def _walk(uri: str, option: str) -> _Walk:
    left_out = Counter[str]()

    def shards() -> Iterator[StoredObject]:
        try:
            yield from walk_archive(uri, left_out)
        except NotFoundError as error:
            raise NoInputError(f"{option}: {error}") from error

    return uri, shards(), left_out


def _is_below_another(uri: str, places: Collection[str]) -> bool:
    """Whether what a place holds is listed, and what it leaves out counted, with a folder above it."""
    above = uri
    while above := above.rpartition("/")[0]:
        if above in places:
            return hidden_part(uri[len(above) + 1 :]) is None
    return False


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
            found = parquet.table_of(data, [_COLUMN])[_COLUMN].cast(pa.string()).to_pylist()
        elif lower.endswith(".csv"):
            found = [row[_COLUMN] for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig")))]
        else:
            found = lines_of(data)
    except (KeyError, ValueError, OSError, pa.ArrowException, csv.Error) as error:
        what = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"--input-list {path}: needs a column `{_COLUMN}` ({what}): write one, or a line each"
        ) from error
    entries = [entry.strip() for entry in found if entry and entry.strip()]
    if not entries:
        raise NoInputError(f"--input-list {path} names nothing")
    return entries


def lines_of(data: bytes) -> list[str]:
    """The lines of a text, without spaces around them, none empty; a name may hold what str.splitlines breaks at."""
    lines = io.StringIO(data.decode("utf-8-sig", errors="surrogateescape"), newline=None)
    return [text for line in lines if (text := line.strip())]
