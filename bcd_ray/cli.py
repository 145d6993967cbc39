"""From a command line to a configuration, and from an outcome to an exit code."""

import atexit
import errno
import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar, get_origin

import tyro

from bcd_ray.errors import (
    EXIT_CONFIG,
    EXIT_DEADLINE,
    EXIT_FAILED,
    EXIT_HUNG_UP,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    BcdRayError,
)
from bcd_ray.progress import configure, say

_Config = TypeVar("_Config")
_TIDY_UP_S, _LAST_WORDS_S = 7.0, 2.0  # after a signal; systemd and Kubernetes kill later, Ray after 10 s
_SIGNALS = {
    signal.SIGTERM: ("terminated by SIGTERM", EXIT_TERMINATED),
    signal.SIGINT: ("interrupted", EXIT_INTERRUPTED),
    signal.SIGHUP: ("its terminal was closed (nohup lets a job go on)", EXIT_HUNG_UP),
    signal.SIGALRM: ("given up after the deadline, with work under way", EXIT_DEADLINE),  # a job's own timer
}
_ROOM, _FILES = (
    "make room on that disk, or set TMPDIR to a folder on another",
    "raise the limit of open files (ulimit -n)",
)
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _ROOM,
    errno.EIO: "look at that disk",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: "end other programs, or take a larger machine",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
}
_OF_MEMORY = ("std::bad_alloc", "DefaultCPUAllocator")  # by OpenVINO and torch


def run(
    config_type: type[_Config],
    main: Callable[[_Config], int],
    arguments: Callable[[list[str]], list[str]] = list,
    at_end: Callable[[int, str], None] = lambda code, reason: None,
) -> NoReturn:
    """Parse the command line into a configuration, run the job, and exit: 0, or the code of the error.

    Args:
        arguments: what becomes of the command line before it is parsed.
        at_end: called before the exit with its code and, where something went wrong, with the reason.
    """
    _mend_streams()
    configure()
    heard = _hear_signals(at_end)
    try:
        code = main(tyro.cli(config_type, args=add_up(config_type, arguments(sys.argv[1:]))))
        at_end(code, "")
    except BaseException as error:
        if heard or isinstance(error, KeyboardInterrupt):  # whatever became of the interruption on its way through Ray
            _break_off(heard[0] if heard else signal.SIGINT, at_end)
        if isinstance(error, BcdRayError):
            at_end(error.exit_code, str(error))
            _end(str(error), error.exit_code)
        if words := _of_the_machine(error):
            at_end(EXIT_FAILED, words)
            _end(words, EXIT_FAILED)
        if not isinstance(error, SystemExit):
            at_end(EXIT_FAILED, f"a fault of the program: {type(error).__name__}")
            for line in traceback.format_exc().splitlines():
                say(line, "fault")
            sys.exit(EXIT_FAILED)
        if error.code:  # of the parser, which said why
            at_end(EXIT_CONFIG, "the command line is not understood")
        raise
    finally:
        _hear_no_more()
        gc.freeze()  # Python's last collection, through all that Ray and Matplotlib leave, takes a second
    sys.exit(code)


def add_up(config_type: type[Any], arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--input a --input b`, of an option of several values, is `--input a b`: both count.

    argparse, below tyro, would drop all but the last without a word.
    """
    several = {f"--{field.name}".replace("_", "-") for field in fields(config_type) if get_origin(field.type) is tuple}
    joined, values = list[str](), dict[str, list[str]]()
    target = joined
    for argument in arguments:
        if argument.startswith("--"):
            given, equals, value = argument.partition("=")
            name = given.replace("_", "-")
            if name not in several:
                target = joined
            else:
                target = values.setdefault(name, [])
                if not equals:
                    continue
                argument = value
        target.append(argument)
    return joined + [word for name, of_option in values.items() for word in (name, *of_option)]


def _of_the_machine(error: BaseException) -> str:
    """In one line what the machine lacks, where that is what an error is about; else empty."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OF_MEMORY):
        return "there is not enough memory: end other programs, or take a larger machine"
    if not isinstance(error, OSError):
        return ""
    lacking = "No usable temporary directory" in str(error)
    remedy = "set TMPDIR to a folder that can be written" if lacking else _REMEDIES.get(error.errno or 0, "")
    return f"{' '.join(str(error).split())}: {remedy}" if remedy else ""


def _end(words: str, code: int) -> NoReturn:
    say(words, "error")
    sys.exit(code)


def _break_off(number: int, at_end: Callable[[int, str], None]) -> NoReturn:
    """End at once: a Ray that was interrupted in its start can abort where the interpreter tidies up, with code -6."""
    words, code = _SIGNALS[signal.Signals(number)]
    whole = isinstance(getattr(getattr(sys.stderr, "buffer", None), "raw", None), _Lasting)  # no test's
    if whole:
        threading.Timer(_LAST_WORDS_S, os._exit, (code,)).start()  # whoever reads them, or their disk, may hang
    at_end(code, words)
    try:
        _end(f"{words}; the same command goes on where it was", code)
    finally:
        if whole:
            sys.stdout.flush()
            os._exit(code)


def _hear_signals(at_end: Callable[[int, str], None]) -> list[int]:
    """A list that gets the number of a signal of `_SIGNALS` when it comes; it then ends the job with all tidied up.

    By a KeyboardInterrupt, since Ray's core lets no other exception of a signal through. What does not hear it, such as
    a library in Rust that waits for a store that stalls, is not waited for: a thread hears the signal too.
    """
    received = list[int]()

    def interrupt(number: int, _: object) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # it was heard: whoever asks again must wait or kill
        received.append(number)
        raise KeyboardInterrupt

    def give_up() -> None:
        while numbers := os.read(heard, 1):
            if numbers[0] in _SIGNALS:
                time.sleep(_TIDY_UP_S)
                _break_off(numbers[0], at_end)
        os.close(heard)

    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=give_up, daemon=True).start()
    for each in _SIGNALS:
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:  # by nohup
            signal.signal(each, interrupt)
    return received


def _hear_no_more() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a timer that is left ends nothing
    os.close(signal.set_wakeup_fd(-1))


class _Lasting(io.FileIO):
    """A standard stream that takes all: a reader that went (`| head`) or a full disk fails no job."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _mend_streams() -> None:
    """Standard streams that can always be written to, closed ones (`2>&-`) and any file name included."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened gets the number, and all messages
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is sys.__stderr__:
        # What native libraries write while the interpreter ends, such as leaks in their bindings, is news for no one.
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
    for number, name in ((1, "stdout"), (2, "stderr")):
        now = getattr(sys, name)
        if now is not getattr(sys, f"__{name}__"):  # a test's
            continue
        raw = _Lasting(number, "w", closefd=False)
        lines = number == 2 or raw.isatty()
        encoding = now.encoding if now else None
        text = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
        if now:
            now.flush()
        setattr(sys, name, text)
