"""An object of a store as a listing gives it, and what a listing leaves out."""

import re
from dataclasses import dataclass, field

_WITHOUT_CTIME = re.compile("[0-9a-f]+-[0-9a-f]+")  # of local files, as they were tagged before


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was listed: its size in bytes, a tag that changes with its content, and when it was written.

    `modified` counts seconds since 1970, and is 0 where that is not known. `known_as` is what rows and ids call it, if
    not by its URI.
    """

    uri: str
    size: int
    etag: str
    modified: float = field(default=0.0, compare=False)
    known_as: str = ""

    @property
    def name(self) -> str:
        """What rows and ids call it."""
        return self.known_as or self.uri


@dataclass(frozen=True)
class Unlisted:
    """What a listing left out, by name; a folder stands for all that is in it.

    `hidden` begins with a dot or is a system's own (`uris.hidden_part`); `closed` are folders that may not be listed.
    """

    hidden: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)


def same_version(recorded: str, listed: str) -> bool:
    """Whether a tag that was written down and one that is listed now are of one version of an object."""
    if recorded == listed:
        return True
    return bool(_WITHOUT_CTIME.fullmatch(recorded)) and listed.startswith(f"{recorded}-")
