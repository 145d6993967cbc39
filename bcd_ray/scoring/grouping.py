"""Which shards make a unit: one that holds many images alone, loose images by the hundred."""

import zlib
from collections.abc import Iterable, Iterator

from bcd_ray.archives.shards import is_loose
from bcd_ray.storage import StoredObject

_LEAST_LOOSE, _MOST_LOOSE, _ONE_IN = 64, 512, 192  # loose images of a unit, 240 in the mean


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


def _begins_a_group(uri: str) -> bool:
    return zlib.crc32(uri.encode("utf-8", "backslashreplace")) % _ONE_IN == 0
