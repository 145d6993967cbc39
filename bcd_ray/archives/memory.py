"""Who may take how much of an actor's memory, so that it stays under `--actor-memory` whatever is in an archive.

    an actor = its own + UNITS_AT_A_TIME * (4 windows + a reader of its own process) + helpers that decode

A window holds the encoded images of one stage of a unit: of loose images that are read, of chunks that are filled, of
the image that comes next, of the chunks that are worked on. A tar or zip is read in the actor, by a decompressor with a
window of 128 MB or from a directory of 80 MB; a Parquet file by a process with a bound of its own, which is larger.
"""

from typing import NamedTuple

from bcd_ray.errors import ConfigError

UNITS_AT_A_TIME = 2  # of an actor: while one opens its shard or writes its rows, the other keeps the cores busy
# Python and the engine take 0.3 GB on 8 threads, Ray 0.1 GB; plain JPEGs up to 0.25 GB; the rest is for rows and slack.
_OWN_BYTES = 1 << 30
_WINDOW_BYTES = 64 << 20
_READER_SHARE = 8
_LEAST_DECODING, _BYTES_A_PIXEL = 384 << 20, 8  # RGB, a copy of it, and what a library needs besides


class Shares(NamedTuple):
    """Bytes for the helpers that decode, all together, and for one that reads Parquet."""

    decoding: int
    parquet: int


def window(max_bytes: int) -> int:
    """Bytes of encoded images that each stage of reading may hold: those of one, or of many small ones."""
    return max(max_bytes, _WINDOW_BYTES)


def share_out(memory: int, max_bytes: int, max_pixels: int) -> Shares:
    """What this much memory, in bytes, leaves to helpers where images have so many bytes and pixels at most.

    Raises:
        ConfigError: it does not do for the largest image.
    """
    windows = UNITS_AT_A_TIME * 4 * window(max_bytes)
    least = max(_LEAST_DECODING, _BYTES_A_PIXEL * max_pixels)
    reader = memory // _READER_SHARE
    decoding = memory - _OWN_BYTES - windows - UNITS_AT_A_TIME * reader
    if decoding < least:
        needed = (_OWN_BYTES + windows + least) * _READER_SHARE // (_READER_SHARE - UNITS_AT_A_TIME) + 1
        raise ConfigError(
            f"--actor-memory must be at least {needed} for images of {max_bytes:,} bytes and {max_pixels:,} pixels: "
            "give more, or lower --max-image-bytes or --max-pixels"
        )
    return Shares(decoding, reader)
