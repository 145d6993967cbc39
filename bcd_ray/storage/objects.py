"""An object of a store as a listing gives it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was listed: its size in bytes and a tag that changes with its content."""

    uri: str
    size: int
    etag: str
