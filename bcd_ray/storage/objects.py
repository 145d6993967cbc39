"""An object of a store as a listing gives it, and what a listing leaves out."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was listed: its size in bytes and a tag that changes with its content."""

    uri: str
    size: int
    etag: str


@dataclass(frozen=True)
class Unlisted:
    """What a listing left out, by name; a folder stands for all that is in it.

    `hidden` begins with a dot or is a system's own (`uris.hidden_part`); `closed` are folders that may not be listed.
    """

    hidden: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
