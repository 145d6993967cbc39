"""What was computed of contents, so that a copy of one costs no decoder and no network."""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

# Some 5 kB each in a temporary file, 1.4 GB at most, and 150 bytes in memory.
_MOST = 1 << 18
_DIGEST_BYTES = 32
_MOST_UNTOLD = 1 << 10  # 5 MB, of a unit that asks nothing
_PART_BYTES = 80 << 10  # more than 100 kB in an argument go through Ray's object store, at twice the cost of a call
_Floats = npt.NDArray[np.float32]
_Found = tuple[list[str], _Floats]  # digests, and the numbers (n, d) of each


class Copies:
    """Numbers by digest, of the last contents that were computed; threads may share them.

    Where a temporary file cannot be written, none are kept.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most, self._lock = most, Lock()
        self._places, self._keys = dict[int, int](), list[int]()  # places by the first bytes of a digest, and reverse
        self._size = self._next = 0
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with this object)
        except OSError:
            self._most = 0

    def find(self, digest: str) -> _Floats | None:
        """The numbers (d,) of a content; None where it is not known."""
        key = bytes.fromhex(digest)
        with self._lock:
            if (place := self._places.get(_short(key))) is None:
                return None
            record = os.pread(self._file.fileno(), self._size, place * self._size)
        return np.frombuffer(record, np.float32, offset=_DIGEST_BYTES) if record.startswith(key) else None

    def add(self, digests: Sequence[str], numbers: _Floats) -> None:
        """Keep the numbers (n, d) of n contents; of more than fit the first go."""
        keys = [bytes.fromhex(digest) for digest in digests]
        records = [key + row.tobytes() for key, row in zip(keys, numbers, strict=True)]
        with self._lock:
            for key, record in zip(keys, records, strict=True):
                if self._most:
                    self._add(key, record)

    def exchange(self, wanted: Sequence[str], digests: Sequence[str], *numbers: _Floats) -> _Found:
        """`add` some, their numbers in parts, and `find` those that are wanted, as far as they are known."""
        self.add(digests, np.concatenate(numbers))
        found = {digest: known for digest in wanted if (known := self.find(digest)) is not None}
        return list(found), np.array(list(found.values()), np.float32)

    def _add(self, key: bytes, record: bytes) -> None:
        self._size, place = len(record), self._next  # of all the same
        try:
            os.pwrite(self._file.fileno(), record, place * self._size)
        except OSError:  # no room
            self._most = 0
            self._places.clear()
            return
        if place == len(self._keys):
            self._keys.append(0)
        elif self._places.get(self._keys[place]) == place:
            del self._places[self._keys[place]]
        self._keys[place] = _short(key)
        self._places[_short(key)] = place
        self._next = (place + 1) % self._most


class SharedCopies(Copies):
    """Those of an actor, which learns from the others', and they from it, many in one call."""

    def __init__(self, exchange: Callable[..., _Found]) -> None:
        """`exchange` is a `Copies.exchange`, of what all of them computed."""
        super().__init__()
        self._exchange, self._untold = exchange, deque[tuple[str, _Floats]](maxlen=_MOST_UNTOLD)

    def add(self, digests: Sequence[str], numbers: _Floats) -> None:
        """Keep the numbers (n, d) of n contents that were computed here, and tell the others when next asking them."""
        super().add(digests, numbers)
        with self._lock:
            self._untold.extend(zip(digests, numbers, strict=True))

    def ask(self, digests: Sequence[str]) -> None:
        """Keep what others computed of these contents."""
        unknown = [digest for digest in digests if self.find(digest) is None]
        with self._lock:
            untold = list(self._untold)
            self._untold.clear()
        if unknown or untold:
            numbers = np.array([each for _, each in untold], np.float32)
            parts = np.array_split(numbers, 1 + numbers.nbytes // _PART_BYTES)
            super().add(*self._exchange(unknown, [digest for digest, _ in untold], *parts))


def _short(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
