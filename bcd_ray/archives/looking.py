"""A look into a large shard, for where it can be divided without reading it."""

from collections.abc import Iterable, Iterator

from bcd_ray import storage
from bcd_ray.archives.images import Limits
from bcd_ray.archives.occurrences import Occurrences
from bcd_ray.archives.parquets import look_into_parquet
from bcd_ray.archives.parts import Part, Piece, in_parts
from bcd_ray.archives.shards import kind_of
from bcd_ray.archives.streams import NAME_CHARS, UnreadableError, is_compressed
from bcd_ray.archives.tars import pieces_of_tar
from bcd_ray.archives.zips import pieces_of_zip
from bcd_ray.errors import StorageError
from bcd_ray.storage import StoredObject

# A part is read with the footer of its Parquet file or the directory of its zip: 65,000 members take half a second.
_MOST_PARTS, _MOST_PARTS_OF_ZIP = 64, 16
_HEADERS_BYTES = 4096  # read at a time
# In the mean, of members of a tar on S3: each header is a GET, which takes as long as to read some megabytes.
_LEAST_BYTES_ON_S3 = 4 << 20


def parts_of(shard: StoredObject, least_bytes: int) -> tuple[Part, ...]:
    """The parts of a tar, zip or Parquet shard, of so many bytes at least; none where it has to be read as a whole.

    They follow from the shard's content. It is read whole where it is damaged or compressed, where it repeats a name,
    since ids count how often a name came before, and where to look would take as long as to read it.
    """
    kind = kind_of(shard.uri)
    most = _MOST_PARTS_OF_ZIP if kind == "zip" else _MOST_PARTS
    least_bytes = max(least_bytes, shard.size // most)
    try:
        if kind == "parquet":
            groups = look_into_parquet(shard, Limits())
            found = tuple(in_parts(groups, len(groups), least_bytes))
        else:
            with storage.open_stream(shard, _HEADERS_BYTES) as stream, Occurrences() as names:
                if kind == "zip":
                    members = list(pieces_of_zip(stream))
                    found = tuple(in_parts(_once(members, names), len(members), least_bytes))
                elif is_compressed(stream):
                    found = ()
                else:
                    least_of_member = _LEAST_BYTES_ON_S3 if storage.is_s3(shard.uri) else 0
                    pieces = _once(pieces_of_tar(stream, least_of_member), names)
                    found = tuple(in_parts(pieces, shard.size, least_bytes))
    except (StorageError, UnreadableError):  # the rows of the shard will say so
        return ()
    return found if len(found) > 1 else ()


def _once(pieces: Iterable[Piece], names: Occurrences) -> Iterator[Piece]:
    for piece in pieces:
        if piece.name and (len(piece.name) > NAME_CHARS or names.add(piece.name) > 1):
            raise UnreadableError("a name comes more than once")
        yield piece
