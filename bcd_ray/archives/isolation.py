"""Decoding in a process apart, which may die of its image."""

import ctypes
import signal
from collections.abc import Callable

from bcd_ray.archives.images import Decoded, Limits, Rejected, decode

_PROOFS = 2  # deaths after which an image is given up: a process can also die of something that is not its fault
_TRIES_APART = 6  # want of memory and a node that goes say nothing about an image

Decoder = Callable[[bytes, Limits], Decoded | Rejected]


def die_at_once() -> None:
    """Let a fatal signal end this process at once, whichever thread calls this.

    Ray's handler first writes a stack trace of its C++ code, which was seen to hang for minutes and take 5 GB.
    """
    set_handler = ctypes.CDLL(None).signal  # Python's own may only be called by the main thread
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for fatal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        set_handler(fatal, None)


def decode_apart(data: bytes, limits: Limits) -> Decoded | Rejected:
    """`images.decode` in a Ray worker process that does nothing else, and may die of it."""
    import ray
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

    task, deaths = ray.remote(num_cpus=0, max_retries=0)(_decode_or_die), 0
    for _ in range(_TRIES_APART):
        try:
            result: Decoded | Rejected = ray.get(task.remote(data, limits))
            return result
        except WorkerCrashedError:
            deaths += 1
            if deaths == _PROOFS:
                error = f"decoding it killed the process, {_PROOFS} times of {_PROOFS}: look with care"
                return Rejected("crashed", error)
        except (LocalRayletDiedError, NodeDiedError, OutOfMemoryError):
            continue
    return Rejected("interrupted", f"decoding it was broken off {_TRIES_APART} times, by want of memory or lost nodes")


def _decode_or_die(data: bytes, limits: Limits) -> Decoded | Rejected:
    die_at_once()
    return decode(data, limits)
