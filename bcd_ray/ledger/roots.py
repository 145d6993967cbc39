"""Roots with a name: below one, rows and ids go by NAME:/PATH, so that an archive that moved is still the same one.

OUTPUT/_work/roots/NAME   where a root lay in the last run, also where that published nothing
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from bcd_ray import storage, uris
from bcd_ray.errors import ConfigError
from bcd_ray.storage import StoredObject

_ROOT = re.compile(r"(?P<name>[a-z][a-z0-9_-]+)=(?P<place>.+)", re.DOTALL)
_SCHEMES = ("s3", "file")
_FOLDER = ("_work", "roots")
Roots = Mapping[str, str]  # where each lies now, by name


def roots_of(given: Iterable[str]) -> dict[str, str]:
    """The roots of options NAME=URI.

    Raises:
        ConfigError: an option is none, or a name or a place is given twice.
    """
    found = dict[str, str]()
    for text in given:
        parts = _ROOT.fullmatch(text)
        if not parts or parts["name"] in _SCHEMES:
            raise ConfigError(f"--root {text!r}: write NAME=URI, the name in small letters, as in archive=/mnt/archive")
        place = uris.real(uris.normalize(parts["place"]))
        if parts["name"] in found or place in found.values():
            raise ConfigError(f"--root {text!r}: its name or its place is given twice")
        found[parts["name"]] = place
    return found


def named(shard: StoredObject, roots: Roots) -> StoredObject:
    """The shard under the name that the innermost root around it gives."""
    around = [(place, name) for name, place in roots.items() if shard.uri.startswith(f"{place}/")]
    if not around:
        return shard
    place, name = max(around)
    return replace(shard, known_as=f"{name}:{shard.uri[len(place) :]}")


def place_of(name: str, roots: Roots) -> str:
    """The URI of what rows call by a name."""
    root, colon, path = name.partition(":")
    return f"{roots[root]}{path}" if colon and root in roots else name


def keep(output: str, roots: Roots) -> None:
    """Write down where roots lie now."""
    for name, place in roots.items():
        storage.write_bytes(storage.join(output, *_FOLDER, name), uris.printable(place).encode())


def kept(output: str) -> dict[str, str]:
    """Where roots lay in the last run that they had another place in than in the one before."""
    folder = storage.join(output, *_FOLDER)
    places = {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_names(folder)}
    return {name: uris.from_printable(place.decode()) for name, place in places.items()}
