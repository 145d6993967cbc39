"""Which shards make a unit: one that holds many images alone, loose images by the hundred."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from bcd_ray.archives.shards import is_loose
from bcd_ray.storage import StoredObject

_LEAST_LOOSE, _MOST_LOOSE, _ONE_IN = 64, 512, 192  # loose images of a unit, 240 in the mean
_LEAST_KEPT = 32  # of those that follow each other: of fewer, to read some costs less than further units


def groups(shards: Iterable[StoredObject]) -> Iterator[list[StoredObject]]:
    """A shard alone, loose images that follow each other together: the rows of all units are then in order.

    What a group begins with is decided by its name, not by counting: where an image comes or goes, the groups behind it
    stay what they are, and what was done of them is found.
    """
    loose: list[StoredObject] = []
    for shard in shards:
        is_image = is_loose(shard.uri)
        full = len(loose) == _MOST_LOOSE or (len(loose) >= _LEAST_LOOSE and _begins_a_group(shard.name))
        if loose and (not is_image or full):
            yield loose
            loose = []
        if is_image:
            loose.append(shard)
        else:
            yield [shard]
    if loose:
        yield loose


def split(
    group: list[StoredObject], features: Sequence[str]
) -> Iterator[tuple[tuple[StoredObject, ...], tuple[str, ...]]]:
    """A group in parts, in its order: those of which embeddings are kept, with the runs that did, and those to be read.

    `features` are these runs, empty where there is none. Few that are kept among those to be read are read with them.
    """
    parts = [list(part) for _, part in groupby(zip(group, features, strict=True), key=lambda each: bool(each[1]))]
    few = len(group) > 1 and len(parts) > 1
    to_read = [[(each, "") for each, _ in part] if few and len(part) < _LEAST_KEPT else part for part in parts]
    joined = [each for part in to_read for each in part]
    for kept, part in groupby(joined, key=lambda each: bool(each[1])):
        shards, runs = zip(*part, strict=True)
        yield shards, runs if kept else ()


def _begins_a_group(uri: str) -> bool:
    return zlib.crc32(uri.encode("utf-8", "backslashreplace")) % _ONE_IN == 0
