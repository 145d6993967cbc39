"""How often each name came in a shard, in bounded memory: there may be millions of names."""

import hashlib
import sqlite3
from typing import Self

from bcd_ray.errors import StorageError

_COUNT = "INSERT INTO names VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"


class Occurrences:
    """Counts names in a temporary database, of which 2 MB are held in memory; for a `with` block."""

    def __init__(self) -> None:
        self.total = 0
        # A generator that nobody reads to its end may be closed in another thread.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE names (digest BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def add(self, name: str) -> int:
        """How often a name came by now, this time counted."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:16]
        try:
            (found,) = self._database.execute(_COUNT, (digest,)).fetchone()
        except sqlite3.Error as error:
            raise StorageError(f"no temporary file can be written ({error}): make room, or set TMPDIR") from error
        self.total += 1
        return int(found)
