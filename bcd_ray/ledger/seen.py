"""What was read of a unit, counted by its reader: its rows must be of these images, each once and in this order."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping

LEFT_OUT = b"left_out"  # in the metadata of a unit's rows, and the two below
_MEMBERS, _IDS = b"members", b"ids"


class Seen:
    """Counts images, digests their ids, and has the members that are none, by suffix, in `left_out`."""

    def __init__(self) -> None:
        self.images, self._ids, self.left_out = 0, hashlib.sha256(), Counter[str]()

    def add(self, image_ids: Iterable[str]) -> None:
        """These come next. The reader gives no id twice (see `shards.image_id`)."""
        ids = list(image_ids)
        self.images += len(ids)
        self._ids.update("".join(ids).encode())

    def record(self) -> dict[bytes, str]:
        """What stands in the metadata of the rows."""
        left_out = json.dumps(self.left_out, sort_keys=True)
        return {_MEMBERS: str(self.images), _IDS: self._ids.hexdigest(), LEFT_OUT: left_out}

    def agrees(self, metadata: Mapping[bytes, bytes]) -> bool:
        """Whether the images are those of a record."""
        own = self.record()
        return all(metadata.get(name) == own[name].encode() for name in (_MEMBERS, _IDS))
