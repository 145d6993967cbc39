"""From a command line to a configuration, and from an outcome to an exit code."""

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar, get_origin

import tyro

from bcd_ray.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, BcdRayError
from bcd_ray.progress import one_line

_Config = TypeVar("_Config")


def run(config_type: type[_Config], main: Callable[[_Config], int]) -> NoReturn:
    """Parse the command line into a configuration, run the job, and exit: 0, or the code of the error."""
    _mend_streams()
    terminated = _hear_sigterm()
    try:
        sys.exit(main(tyro.cli(config_type, args=add_up(config_type, sys.argv[1:]))))
    except BaseException as error:
        if terminated:  # whatever became of the interruption on its way through Ray
            _break_off("terminated by SIGTERM", EXIT_TERMINATED)
        if isinstance(error, KeyboardInterrupt):
            _break_off("interrupted", EXIT_INTERRUPTED)
        if isinstance(error, BcdRayError):
            _end(str(error), error.exit_code)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # Python's last collection, through all that Ray and Matplotlib leave, takes a second


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


def _end(words: str, code: int) -> NoReturn:
    print(f"error: {one_line(words)}", file=sys.stderr)
    sys.exit(code)


def _break_off(words: str, code: int) -> NoReturn:
    """End at once: a Ray that was interrupted in its start can abort where the interpreter tidies up, with code -6."""
    try:
        _end(f"{words}; the same command goes on where it was", code)
    finally:
        if isinstance(getattr(getattr(sys.stderr, "buffer", None), "raw", None), _Lasting):  # no test's
            sys.stdout.flush()
            os._exit(code)


def _hear_sigterm() -> list[int]:
    """A list that gets the signal when it comes; it then ends the job as Ctrl-C does, with all that is tidied up.

    A KeyboardInterrupt, since Ray's core lets no other exception of a signal through.
    """
    received = list[int]()

    def interrupt(number: int, _: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it was heard: whoever asks again must wait or kill
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    return received


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
