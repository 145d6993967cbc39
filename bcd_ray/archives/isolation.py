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
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import IO, Any

import numpy as np

from bcd_ray.archives import helpers, images
from bcd_ray.archives.formats.base import failed
from bcd_ray.archives.helpers import FROM_OUTSIDE, Helper
from bcd_ray.archives.images import SIZE, Decoded, Limits, Pixels, Rejected
from bcd_ray.threads import Turns

Decoder = Callable[[bytes, Limits], Decoded | Rejected]

COMMAND = [sys.executable, "-P", "-c", "from bcd_ray.archives.isolation import serve; serve()"]
SHARE_BYTES = 384 << 20  # of a helper that works beside others: its libraries take 60 MB, 30 megapixels 300 MB
_LARGE_PIXELS = 20_000_000  # of an image whose decoder may lack memory in a share: 30 take 300 MB
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
    found = images.decode_plain(data, limits)
    if found is None or (isinstance(found, Rejected) and found.status == "out_of_memory"):
        return decode_apart(data, limits)
    return found


def decode_apart(data: bytes, limits: Limits) -> Decoded | Rejected:
    """`images.decode` in a helper, plain JPEGs too."""
    with _turns(limits.max_memory).turn(alone=False):
        found = _try(data, limits, min(SHARE_BYTES, limits.max_memory))
    if isinstance(found, Rejected) and _deserves_more(found):
        with _turns(limits.max_memory).turn(alone=True):  # a process also dies of what is not its image's fault
            end_helpers()  # they hold memory while they wait
            found = _try(data, limits, limits.max_memory)
    return found


def _deserves_more(found: Rejected) -> bool:
    """Whether an image may do better alone, with all memory: some libraries call it damaged where they get none."""
    large = (found.width or 0) * (found.height or 0) >= _LARGE_PIXELS
    dead = found.status in ("out_of_memory", "resource_error", "interrupted", "crashed")
    return dead or (found.status == "corrupt_image" and large)


def serve() -> None:
    """What a helper does: decode what comes on standard input, until it ends. Its arguments are the `Limits`."""
    limits = Limits(**json.loads(sys.argv[1]))
    answers = helpers.begin(limits.max_memory)
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


def _asked(helper: Helper, data: bytes) -> Decoded | Rejected | int:
    """What a helper makes of an image, or the number of the signal that it died of; it is of no more use then."""
    with suppress(BrokenPipeError):
        helper.questions.write(len(data).to_bytes(8, "big"))
        helper.questions.write(data)
        helper.questions.flush()
    return _answer(helper.answers) or -helper.process.wait()


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


_idle = helpers.Idle()
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
        helper = _idle.take(limits, lambda: helpers.start(COMMAND, json.dumps(dataclasses.asdict(limits))))
    except OSError as error:  # no memory for a process, or too many of them
        return failed(error)
    found: Decoded | Rejected | int = 0
    try:
        found = _asked(helper, data)
    finally:
        if isinstance(found, int) or memory > SHARE_BYTES:
            helper.end()
        else:
            _idle.put(limits, helper)
    return _death(found, limits) if isinstance(found, int) else found


def _death(number: int, limits: Limits) -> Rejected:
    if number in (signal.SIGPROF, signal.SIGALRM):
        seconds = f"more than {limits.max_seconds:g} s" + (" of processor time" if number == signal.SIGPROF else "")
        return Rejected("timed_out", f"decoding it takes {seconds}: see --max-decode-seconds")
    if number in FROM_OUTSIDE:
        return Rejected("interrupted", "the process that decoded it was killed from outside: look for full memory")
    return Rejected("crashed", "decoding it killed the process, twice, the second time alone: look with care")


@atexit.register
def end_helpers() -> None:
    """End the helpers that wait; who dies without a word leaves their pipes closed, which ends them too."""
    _idle.end()
