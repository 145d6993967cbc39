"""Whether a node reaches the archive and the output: one without the mount would find every image missing."""

import os
import socket
from collections.abc import Iterable
from itertools import islice

from bcd_ray import storage
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.ledger.units import Units

_FOLDERS = 8  # that are looked into


def folders_of(units: Units) -> list[str]:
    """Some local folders that the units' shards lie in."""
    some = islice(units, 0, None, -(-len(units) // _FOLDERS))
    return sorted({os.path.dirname(unit.shards[0].uri) for unit in some if not storage.is_s3(unit.shards[0].uri)})


def check_access(folders: Iterable[str], output: str) -> None:
    """JobError, with this node's name, where a folder is not there or empty, or the output cannot be written."""
    for folder in folders:
        try:
            with os.scandir(folder) as found:
                problem = "is empty" if next(found, None) is None else ""
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            raise JobError(f"node {socket.gethostname()}: {folder}: {problem} here: mount it there as everywhere else")
    try:
        storage.check_writable(storage.join(output, "_work"))
    except ConfigError as error:
        raise JobError(f"node {socket.gethostname()}: {error}") from error
