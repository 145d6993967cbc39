"""Temporary files, and a disk that has no room for them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bcd_ray.errors import StorageError


@contextmanager
def temporary_files_told() -> Iterator[None]:
    """StorageError that names the remedy, where a temporary file cannot be written."""
    try:
        yield
    except OSError as error:
        remedy = f"make room in {tempfile.gettempdir()}, or set TMPDIR"
        raise StorageError(f"no temporary file can be written ({error}): {remedy}") from error
