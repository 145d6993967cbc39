"""What is known of labelled images before they are embedded: read in threads, decoded in processes."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Thread
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.dataset import LabelledImage
from bcd_ray.errors import JobError, StorageError
from bcd_ray.images import Limits, Rejected, decode
from bcd_ray.perceptual import perceptual_hash
from bcd_ray.shortcuts import background_colour
from bcd_ray.threads import in_chunks, map_ahead

_READERS = 16  # images whose bytes are read at a time
_CHUNK, _CHUNK_BYTES = 16, 1 << 20  # images decoded at a time, and bytes they may have before the last
# Four decode 2,000 images a second, about what one machine gets from S3; in threads, which wait for the lock of Python,
# 2,668 images take 5.2 s on two cores, not 3.2 s.
_PROCESSES = min(4, os.cpu_count() or 1)
_IN_A_THREAD = 500  # images, up to which starting processes would take longer than decoding


class ImageFacts(NamedTuple):
    """What is found out of an image before it is embedded."""

    hash: int = 0  # `perceptual.perceptual_hash`
    background: Sequence[int] = (0, 0, 0)  # `shortcuts.background_colour`
    error: str = ""  # why the image could not be read or decoded, or empty


@dataclass(frozen=True)
class Identified:
    """What is known of n images before they are embedded."""

    digests: list[str]  # sha256 of each image's bytes, "" where it could not be read
    facts: list[ImageFacts]

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(n,) perceptual hashes."""
        return np.array([each.hash for each in self.facts], np.uint64)

    @property
    def backgrounds(self) -> npt.NDArray[np.uint8]:
        """(n, 3) red, green and blue of the background."""
        return np.array([each.background for each in self.facts], np.uint8)

    @property
    def errors(self) -> list[str | None]:
        """Of each image why it could not be read or decoded, else None."""
        return [each.error or None for each in self.facts]


def identify(images: Sequence[LabelledImage], known: Mapping[str, ImageFacts]) -> Identified:
    """Read all images, and decode those that are not `known` by their digest.

    Raises:
        JobError: a process that decodes was killed.
    """
    with _decoders(len(images)) as decoders, ThreadPoolExecutor(_READERS) as readers:
        chunks = in_chunks(images, _CHUNK, lambda image: image.stored.size, _CHUNK_BYTES)
        found = map_ahead(readers, partial(_identify, known, decoders), chunks, ahead=2 * _READERS)
        try:
            digests, facts = zip(*chain.from_iterable(found), strict=True)
        except BrokenProcessPool as error:
            raise JobError("a process that decodes images was killed: look for full memory") from error
    return Identified(list(digests), list(facts))


def _decoders(images: int) -> Executor:
    if images <= _IN_A_THREAD:
        return ThreadPoolExecutor(1)
    # Spawned, not forked: the job has threads, and a lock that one of them holds would stay locked in the copy.
    return ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _identify(
    known: Mapping[str, ImageFacts], decoders: Executor, images: Sequence[LabelledImage]
) -> list[tuple[str, ImageFacts]]:
    """Of each image the sha256 of its bytes, "" if it could not be read, and what is known of it."""
    found, unknown = list[tuple[str, ImageFacts]](), dict[str, bytes]()
    for image in images:
        try:
            data = storage.read_bytes(image.stored.uri)
        except StorageError as error:
            found.append(("", ImageFacts(error=str(error))))
            continue
        digest = hashlib.sha256(data).hexdigest()
        found.append((digest, known.get(digest, ImageFacts())))
        if digest not in known:
            unknown[digest] = data
    facts = decoders.submit(_facts, unknown).result() if unknown else {}
    return [(digest, facts.get(digest, before)) for digest, before in found]


def _facts(images: Mapping[str, bytes]) -> dict[str, ImageFacts]:
    """By digest, what is found out of images."""
    found = {}
    for digest, data in images.items():
        decoded = decode(data, Limits())
        if isinstance(decoded, Rejected):
            found[digest] = ImageFacts(error=f"{decoded.status}: {decoded.error}")
        else:
            found[digest] = ImageFacts(perceptual_hash(decoded.pixels), background_colour(decoded.pixels))
    return found


def _end_with_parent() -> None:
    """A process of the pool would outlive a job that was killed, and print a traceback at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "it is no process of a pool"

    def end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end, daemon=True).start()
