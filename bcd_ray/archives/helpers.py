"""Processes of this package that read what may harm its reader: started, asked through pipes, bounded by the kernel."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import IO, NamedTuple

_READY = b"ready\n"
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # no library ends its process by these; the kernel does, without memory


class Helper(NamedTuple):
    """A process, and the pipes to and from it."""

    process: "subprocess.Popen[bytes]"
    questions: IO[bytes]
    answers: IO[bytes]

    def end(self) -> None:
        """End the process."""
        for pipe in (self.questions, self.answers):
            with suppress(BrokenPipeError):
                pipe.close()
        self.process.kill()
        self.process.wait()


class Idle:
    """Helpers of one kind that wait for their next question, by what they were started with; threads may share it."""

    def __init__(self) -> None:
        self._waiting = defaultdict[Hashable, SimpleQueue[Helper]](SimpleQueue)

    def take(self, started_with: Hashable, start_one: Callable[[], Helper]) -> Helper:
        """One that waits, or else a new one."""
        try:
            return self._waiting[started_with].get_nowait()
        except Empty:
            return start_one()

    def put(self, started_with: Hashable, helper: Helper) -> None:
        """Let a helper that was taken wait."""
        self._waiting[started_with].put(helper)

    def end(self) -> None:
        """End the helpers that wait."""
        for waiting in self._waiting.values():
            while not waiting.empty():
                waiting.get().end()


def start(command: Sequence[str], argument: str) -> Helper:
    """Start a helper, which is to call `begin` first; OSError where it does not come so far: no image's fault."""
    # Memory goes back to the kernel with each image; each helper works in one thread.
    settings = {"MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    settings["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    process = subprocess.Popen(
        [*command, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=kept | settings | {"PYTHONPATH": os.pathsep.join(filter(os.path.isabs, sys.path))},
        start_new_session=True,  # Ctrl-C is its parent's
    )
    assert process.stdin
    assert process.stdout
    helper = Helper(process, process.stdin, process.stdout)
    if process.stdout.readline() != _READY:
        helper.end()
        raise OSError(errno.ECHILD, "a helper process ends before it begins: look for full memory, or install anew")
    return helper


def begin(memory: int) -> IO[bytes]:
    """In a helper: bound its memory, in bytes, and return where its answers go; what a library prints is none."""
    for bound in (signal.SIGPROF, signal.SIGALRM):  # whoever started the job may ignore them, which programs inherit
        signal.signal(bound, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answers.write(_READY)
    answers.flush()
    return answers
