"""What kills its process must cost one image only: attempts are counted, and later ones decode in processes apart."""

import ctypes
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Any

from bcd_ray.images import Decoded, Limits, Rejected, decode

MAX_ATTEMPTS = 3  # of a unit: at full speed, then twice with each image in a process apart
_TRIES_APART = 2  # of an image: a process can also die of something that is not its image's fault

Decoder = Callable[[bytes, Limits], Decoded | Rejected]


def start_counter() -> Any:
    """A Ray actor: `count(name)` says how many times it was called with this name, `known(name)` how many times before.

    It lives on the driver's node: a node that goes would else end the job. One whose process dies starts from nothing.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    again = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(num_cpus=0, scheduling_strategy=here, **again)(_StartCounter).remote()


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
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    task = ray.remote(num_cpus=0, max_retries=0)(_decode_or_die)
    for _ in range(_TRIES_APART):
        try:
            result: Decoded | Rejected = ray.get(task.remote(data, limits))
            return result
        except (OutOfMemoryError, WorkerCrashedError):
            continue
    return Rejected(
        "crashed", f"decoding it killed the process, {_TRIES_APART} times of {_TRIES_APART}: look with care"
    )


def _decode_or_die(data: bytes, limits: Limits) -> Decoded | Rejected:
    die_at_once()
    return decode(data, limits)


class Turns:
    """Lets several threads work side by side, and one that may kill the process only while no other does.

    Who works beside a killer dies with it, and would be taken for one.
    """

    def __init__(self, side_by_side: int) -> None:
        self._all, self._free, self._asking = side_by_side, Semaphore(side_by_side), Lock()

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for a place, or for all of them."""
        places = self._all if alone else 1
        with self._asking:  # one at a time, or two could hold half of the places each, for ever
            for _ in range(places):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(places)


class _StartCounter:
    def __init__(self) -> None:
        self._counts = Counter[str]()

    def count(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]

    def known(self, name: str) -> int:
        return self._counts[name]
