"""Parts of a large shard, which are read as if each were a shard, and give together what the whole gives."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Part(NamedTuple):
    """Row groups of a Parquet file, members of a zip by their place, or bytes of a tar, from `begin` to before `end`.

    Each part has an image.
    """

    begin: int
    end: int
    size: int  # bytes
    images_before: int  # known to be in the parts before: in Parquet, where each row is one, all
    last: bool

    @property
    def first(self) -> bool:
        return self.begin == 0


class Piece(NamedTuple):
    """The least that a part is made of: a row group or a member."""

    begin: int
    size: int  # bytes
    name: str  # of what may be an image, else empty; row groups have none
    images: int  # that it has for sure


def in_parts(pieces: Iterable[Piece], end: int, least_bytes: int) -> Iterator[Part]:
    """The parts of a shard that ends with `end`, each of so many bytes but for the last."""
    begin = size = images = before = 0
    for piece in pieces:
        if size >= least_bytes and images and piece.images:
            yield Part(begin, piece.begin, size, before, last=False)
            begin, size, before, images = piece.begin, 0, before + images, 0
        size, images = size + piece.size, images + piece.images
    yield Part(begin, end, size, before, last=True)
