"""Decoding in processes apart, which may die of their image, take too long or want too much memory.

A plain JPEG is decoded where it is: its time and memory are bounded by its size. All else goes to a helper, a process
that reads images from a pipe and stays for the next. The kernel ends it where it takes more processor time than
`Limits.max_seconds`, and refuses it more memory than its share; the image is then tried alone, with all of
`Limits.max_memory`.
"""

import atexit
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock
from typing import IO, Any

import numpy as np

from bcd_ray.archives import images
from bcd_ray.archives.formats.base import failed
from bcd_ray.archives.images import SIZE, Decoded, Limits, Pixels, Rejected
from bcd_ray.threads import Turns

Decoder = Callable[[bytes, Limits], Decoded | Rejected]

COMMAND = [sys.executable, "-P", "-c", "from bcd_ray.archives.isolation import serve; serve()"]
SHARE_BYTES = 384 << 20  # of a helper that works beside others: its libraries take 60 MB, 30 megapixels 300 MB
_WALL_FACTOR = 10  # of the processor's time by the clock on the wall, on a busy machine


def die_at_once() -> None:
    """Let a fatal signal end this process at once, whichever thread calls this.

    Ray's handler first writes a stack trace of its C++ code, which was seen to hang for minutes and take 5 GB.
    """
    set_handler = ctypes.CDLL(None).signal  # Python's own may only be called by the main thread
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for fatal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        set_handler(fatal, None)


def decode(data: bytes, limits: Limits) -> Decoded | Rejected:
    """`images.decode`, whatever the image does to the process that decodes it; several threads may call it."""
    return images.decode_plain(data, limits) or decode_apart(data, limits)


def decode_apart(data: bytes, limits: Limits) -> Decoded | Rejected:
    """`images.decode` in a helper, plain JPEGs too."""
    with _turns(limits.max_memory).turn(alone=False):
        found = _try(data, limits, min(SHARE_BYTES, limits.max_memory))
    if isinstance(found, Rejected) and found.status in ("resource_error", "crashed"):
        with _turns(limits.max_memory).turn(alone=True):  # a process also dies of what is not its image's fault
            found = _try(data, limits, limits.max_memory)
    return found


def serve() -> None:
    """What a helper does: decode what comes on standard input, until it ends. Its arguments are the `Limits`."""
    import resource

    limits = Limits(**json.loads(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.max_memory, limits.max_memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while size := sys.stdin.buffer.read(8):
        # Nobody handles these signals, so the kernel ends the process, whatever it is about.
        signal.setitimer(signal.ITIMER_PROF, limits.max_seconds)
        signal.setitimer(signal.ITIMER_REAL, _WALL_FACTOR * limits.max_seconds)
        data = None
        try:
            data = sys.stdin.buffer.read(int.from_bytes(size, "big"))
            found = images.decode(data, limits)
        except MemoryError as error:
            found = failed(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        told = {each.name: getattr(found, each.name) for each in dataclasses.fields(found) if each.name != "pixels"}
        answers.write(json.dumps(told).encode() + b"\n")
        if isinstance(found, Decoded):
            answers.write(found.pixels.tobytes())
        answers.flush()
        if data is None:  # and what was not read would be taken for the next
            return


class _Helper:
    """A process that decodes one image after the other."""

    def __init__(self, limits: Limits) -> None:
        # Memory goes back to the kernel with each image; each helper works in one thread.
        settings = {"MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        self._process = subprocess.Popen(
            [*COMMAND, json.dumps(dataclasses.asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | settings | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is its parent's
        )

    def decode(self, data: bytes) -> Decoded | Rejected | int:
        """The image, or the number of the signal that the process died of; it is of no more use then."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.write(len(data).to_bytes(8, "big"))
            self._process.stdin.write(data)
            self._process.stdin.flush()
        return _answer(self._process.stdout) or -self._process.wait()

    def end(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        self._process.kill()
        self._process.wait()


def _answer(stream: IO[bytes]) -> Decoded | Rejected | None:
    """An answer of a helper; None where it ends early."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    told: dict[str, Any] = json.loads(line)
    if "status" in told:
        return Rejected(**told)
    raw = stream.read(SIZE * SIZE * 3)
    if len(raw) < SIZE * SIZE * 3:
        return None
    pixels: Pixels = np.frombuffer(raw, np.uint8).reshape(SIZE, SIZE, 3)
    return Decoded(pixels, **told)


_idle: defaultdict[Limits, "SimpleQueue[_Helper]"] = defaultdict(SimpleQueue)
_all_turns: dict[int, Turns] = {}
_making = Lock()


def _turns(memory: int) -> Turns:
    """As many helpers work side by side as this memory holds, of all threads of this process."""
    with _making:
        return _all_turns.setdefault(memory, Turns(max(1, memory // SHARE_BYTES)))


def _try(data: bytes, limits: Limits, memory: int) -> Decoded | Rejected:
    """Decode in a helper of this memory, which goes where it is more than a share."""
    limits = dataclasses.replace(limits, max_memory=memory)
    try:
        helper = _idle[limits].get_nowait()
    except Empty:
        try:
            helper = _Helper(limits)
        except OSError as error:  # no memory for a process, or too many of them
            return failed(error)
    found: Decoded | Rejected | int = 0
    try:
        found = helper.decode(data)
    finally:
        if isinstance(found, int) or memory > SHARE_BYTES:
            helper.end()
        else:
            _idle[limits].put(helper)
    return _death(found, limits) if isinstance(found, int) else found


def _death(number: int, limits: Limits) -> Rejected:
    if number in (signal.SIGPROF, signal.SIGALRM):
        seconds = f"more than {limits.max_seconds:g} s" + (" of processor time" if number == signal.SIGPROF else "")
        return Rejected("timed_out", f"decoding it takes {seconds}: see --max-decode-seconds")
    return Rejected("crashed", "decoding it killed the process, twice, the second time alone: look with care")


@atexit.register
def end_helpers() -> None:
    """End the helpers that wait; who dies without a word leaves their pipes closed, which ends them too."""
    for waiting in _idle.values():
        while not waiting.empty():
            waiting.get().end()
