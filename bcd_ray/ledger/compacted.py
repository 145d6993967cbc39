"""What stands after many runs in one file, so that a night reads that and the few runs since.

    OUTPUT/_work/standing/NUMBER-SHA256.parquet   after run NUMBER, a row for each shard, sorted by printable URI

It is made from the manifests' files and is no more than they: where it is gone, damaged, or of a run whose manifest is
not the one that is there, they are read instead.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from bcd_ray import storage
from bcd_ray.errors import NotFoundError, StorageError
from bcd_ray.ledger.manifests import Manifest
from bcd_ray.ledger.standing import STANDING
from bcd_ray.progress import say
from bcd_ray.storage import parquet
from bcd_ray.storage.sorting import GROUP_ROWS, SortedFile

FOLDER = ("_work", "standing")
_NAME = re.compile(r"\d{8,}-([0-9a-f]{64})\.parquet")
_RUNS = b"bcd_ray.runs"  # in the metadata: of each run in order its id, and the digest of its manifest
_REMEDY = "delete it"


class Compacted(NamedTuple):
    """What stands after the first of the runs."""

    file: SortedFile
    runs: int  # how many


def newest(output: str, manifests: Sequence[Manifest]) -> Compacted | None:
    """That of the most runs, which are the first of these; None where there is none."""
    for name in sorted(storage.list_names(storage.join(output, *FOLDER)), reverse=True):
        if found := _opened(output, name, manifests):
            return found
    return None


def _opened(output: str, name: str, manifests: Sequence[Manifest]) -> Compacted | None:
    """That of a name; None where it is damaged, or not of the first of these runs."""
    if (file := _fetched(output, name)) is None:
        return None
    found = SortedFile(file, storage.join(output, *FOLDER, name), _REMEDY)
    runs = [tuple(each) for each in json.loads(found.metadata.get(_RUNS, b"[]"))]
    return Compacted(found, len(runs)) if runs == covered(manifests[: len(runs)]) else None


def is_whole(output: str, name: str) -> bool:
    """Whether that of a name has the bytes that were written."""
    return _fetched(output, name) is not None


def _fetched(output: str, name: str) -> Any:
    """The file, None where it is damaged, or gone: another run wrote a longer one."""
    parts = _NAME.fullmatch(name)
    try:
        file: Any = storage.fetch(storage.join(output, *FOLDER, name))
    except NotFoundError:
        return None
    return file if parts and hashlib.file_digest(file, "sha256").hexdigest() == parts[1] else None


class Writer:
    """Makes such a file, in the temporary folder; it goes with this object."""

    def __init__(self, manifests: Sequence[Manifest], tables: Iterable[pa.Table]) -> None:
        """`tables` are what stands after these runs, in order."""
        self._file = parquet.Appender(STANDING, GROUP_ROWS, plain=("uri", "etag"))
        for table in tables:
            self._file.append(table)
        self._sha256 = self._file.finish({_RUNS: json.dumps(covered(manifests))})
        self._number = manifests[-1].content["run_number"]
        self.made = Compacted(SortedFile.temporary(self._file), len(manifests))

    def keep(self, output: str) -> None:
        """Make it an object in place of those that were there: who reads one has fetched or opened it whole."""
        folder, name = storage.join(output, *FOLDER), f"{self._number:08d}-{self._sha256}.parquet"
        try:
            storage.write_from_file(storage.join(folder, name), self._file.finished)  # also over a damaged one
            for old in storage.list_names(folder):
                if old != name:
                    storage.delete(storage.join(folder, old))
        except StorageError as error:  # the next run tries again
            say(f"what stands is not kept in one file: {error}")


def covered(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    """What names some runs: the id of each, and the digest of its manifest."""
    return [(manifest.content["run_id"], manifest.sha256) for manifest in manifests]
