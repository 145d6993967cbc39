"""What every job's command line promises: options that add up, streams that can be written, signals, exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bcd_ray.cli import add_up
from bcd_ray.errors import EXIT_HUNG_UP, EXIT_INTERRUPTED, EXIT_TERMINATED
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.scoring.config import ScoreConfig

_JOB = """
import sys
from dataclasses import dataclass
from bcd_ray.cli import run

@dataclass(frozen=True)
class Config:
    words: tuple[str, ...] = ()
    wait: bool = False
    fail: str = ""

def main(config):
    if config.fail:
        raise eval(config.fail)
    import signal
    print(*config.words)
    if config.wait:
        print("waiting", file=sys.stderr, flush=True)
        signal.pause()
    return 3

run(Config, main)
"""


def start(*options: str | bytes, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _JOB, *options], **streams)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--input", "a", "b", "--model", "m"], ["--model", "m", "--input", "a", "b"]),
        (["--input", "a", "--model", "m", "--input", "b", "c"], ["--model", "m", "--input", "a", "b", "c"]),
        (["--input=a", "--input=b=c"], ["--input", "a", "b=c"]),
        (["--model", "a", "--model", "b"], ["--model", "a", "--model", "b"]),
        (["--input"], ["--input"]),
        (["--help"], ["--help"]),
    ],
)
def test_an_option_of_several_values_adds_up(given: list[str], expected: list[str]) -> None:
    assert add_up(ScoreConfig, given) == expected


def test_options_of_every_job_add_up() -> None:
    assert add_up(EvaluateConfig, ["--split", "random", "--split", "blocked"]) == ["--split", "random", "blocked"]


def test_a_reader_that_went_changes_no_exit_code() -> None:
    read, write = os.pipe()
    os.close(read)
    with start("--words", "a", stdout=write, stderr=subprocess.PIPE) as job:
        os.close(write)
        _, said = job.communicate(timeout=60)
    assert (job.returncode, said) == (3, b"")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "OSError(28, 'No space left on device', '/x')",
            "No space left on device: '/x': make room on that disk, or set",
        ),
        ("OSError(24, 'Too many open files')", "Too many open files: raise the limit of open files (ulimit -n)"),
        (
            "FileNotFoundError(2, 'No usable temporary directory found in [...]')",
            "found in [...]: set TMPDIR to a folder",
        ),
        ("MemoryError()", "there is not enough memory: end other programs"),
        ("RuntimeError('plugin.cpp:54: std::bad_alloc')", "there is not enough memory: end other programs"),
    ],
)
def test_what_the_machine_lacks_is_told_in_a_line(error: str, said: str) -> None:
    with start("--fail", error, stderr=subprocess.PIPE) as job:
        _, lines = job.communicate(timeout=60)
    assert job.returncode == 1
    assert len(lines.splitlines()) == 1
    assert said in lines.decode()


def test_closed_streams_are_no_failure(tmp_path: Path) -> None:
    command = f'"$0" -c "$1" --words a >&- 2>&- <&-; echo $? >{tmp_path}/code'
    subprocess.run(["bash", "-c", command, sys.executable, _JOB], timeout=60, check=True)
    assert (tmp_path / "code").read_text() == "3\n"


def test_words_that_are_no_utf_8_are_shown() -> None:
    with start("--words", b"pr\xe4parat", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.communicate(timeout=60) == (b"pr\\udce4parat\n", b"")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, EXIT_TERMINATED, "terminated by SIGTERM"),
        (signal.SIGINT, EXIT_INTERRUPTED, "interrupted"),
        (signal.SIGHUP, EXIT_HUNG_UP, "its terminal was closed (nohup lets a job go on)"),
    ],
)
def test_a_signal_ends_the_job_with_its_code_and_a_line(number: signal.Signals, code: int, words: str) -> None:
    with start("--wait", stderr=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stderr
        assert job.stderr.readline() == b"waiting\n"
        job.send_signal(number)
        _, said = job.communicate(timeout=60)
    assert job.returncode == code == 128 + number
    # What was being written when the signal came may be there twice.
    assert said.decode().removeprefix("waiting\n") == f"error: {words}; the same command goes on where it was\n"


def test_nohup_lets_a_job_go_on() -> None:
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the job inherits
    try:
        job = start("--wait", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGHUP, kept)
    with job:
        assert job.stderr
        assert job.stderr.readline() == b"waiting\n"
        job.send_signal(signal.SIGHUP)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == EXIT_TERMINATED


_STALLS = """
import _thread, ctypes, sys, threading
from dataclasses import dataclass
import bcd_ray.cli

@dataclass(frozen=True)
class Config:
    pass

def say():
    print("waiting", file=sys.stderr, flush=True)

def while_it_tidies_up():
    say()
    try:
        threading.Event().wait()
    finally:
        threading.Event().wait()  # as for threads that wait for a store

def in_native_code():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    sys.setswitchinterval(1000)
    _thread.start_new_thread(say, ())  # which it comes to once this one is in there
    libc.pthread_mutex_lock(mutex)

def main(config):
    {where}()

bcd_ray.cli._TIDY_UP_S = 0.1
bcd_ray.cli.run(Config, main, at_end=lambda code, reason: print(code, reason))
"""


@pytest.mark.parametrize(
    ("number", "where"), [(signal.SIGTERM, "while_it_tidies_up"), (signal.SIGINT, "in_native_code")]
)
def test_what_does_not_hear_a_signal_is_not_waited_for(number: signal.Signals, where: str) -> None:
    command = [sys.executable, "-c", _STALLS.replace("{where}", where)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stderr
        assert job.stderr.readline() == "waiting\n"
        job.send_signal(number)
        told, said = job.communicate(timeout=60)
    assert job.returncode == 128 + number
    assert said.endswith("the same command goes on where it was\n")
    assert told.startswith(f"{128 + number} ")


def test_who_does_not_read_the_last_words_is_not_waited_for() -> None:
    script = _STALLS.replace("{where}", "while_it_tidies_up").replace("(code, reason)", "(reason * 100_000)")
    script = script.replace("_TIDY_UP_S = 0.1", "_TIDY_UP_S = bcd_ray.cli._LAST_WORDS_S = 0.1")
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stderr
        assert job.stderr.readline() == b"waiting\n"
        job.terminate()
        assert job.wait(60) == EXIT_TERMINATED
