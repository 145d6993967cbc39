"""What is to be forgotten, as a person names it: images by id, by content or by URI, folders and shards whole."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.errors import ConfigError, NotFoundError
from bcd_ray.ledger.roots import Roots, named
from bcd_ray.scoring.config import ForgetConfig
from bcd_ray.scoring.inputs import lines_of
from bcd_ray.storage import StoredObject
from bcd_ray.uris import normalize, printable, real

_IMAGE, _CONTENT = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")


@dataclass
class Targets:
    """Names of each kind, and how many rows each was found in."""

    contents: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)  # printable names of images, shards and folders
    _found: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, config: ForgetConfig, roots: Roots) -> Self:
        """Those that a configuration names itself or in its list.

        Raises:
            ConfigError: there is none, or no list.
        """
        given = [*config.images]
        if config.list:
            given += _lines_of(config.list)
        if not given:
            raise ConfigError("nothing is named to be forgotten: give --images, or a --list with a name in each line")
        targets = cls()
        for each in given:
            if _CONTENT.fullmatch(each.lower()):
                targets.contents.add(each.lower())
            elif _IMAGE.fullmatch(each.lower()):
                targets.images.add(each.lower())
            else:
                targets.places.add(_place(each, roots))
        return targets

    def among(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which rows are named by their image or their place."""
        ids, uris = rows["image_id"], rows["image_uri"]
        named = pc.is_in(ids, pa.array(self.images, pa.string()))
        self._found.update(ids.filter(named).to_pylist())
        for place in self.places:
            here = pc.or_(pc.equal(uris, place), pc.starts_with(uris, f"{place}/"))
            here = pc.or_(here, pc.starts_with(uris, f"{place}#"))
            self._found[place] += pc.sum(here).as_py() or 0
            named = pc.or_(named, here)
        return named

    def refuse_unmatched(self) -> None:
        """ConfigError where one names no row; contents need none, they are not taken up all the same."""
        unmatched = [name for name in sorted(self.images | self.places) if not self._found[name]]
        if unmatched:
            raise ConfigError(f"no row is of {unmatched[0]}, and nothing was withdrawn: correct --images or --list")


def _lines_of(path: str) -> list[str]:
    try:
        lines = lines_of(storage.read_bytes(path))
    except NotFoundError as error:
        raise ConfigError(f"--list: {error}") from error
    return [line for line in lines if not line.startswith("#")]


def _place(given: str, roots: Roots) -> str:
    name, colon, _ = given.partition(":")
    if colon and name in roots:
        return printable(given.rstrip("/"))
    place = real(normalize(given))  # as rows have it, whatever links lead there
    return printable(named(StoredObject(place, 0, ""), roots).name)
