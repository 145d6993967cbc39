"""A program as a whole: its speed, and the processor time and memory of it and of all that it starts."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bcd_ray.errors import JobError

Marks = Sequence[tuple[float, int]]  # the clock in seconds, and the images done by then, both growing
_SAMPLE_S = 0.5
_PAUSE = 100  # to measure memory took 55 ms of the job: twice a second took 5 % of two cores
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """What a program used of the machine, sampled while it ran: twice a second, memory less often where that costs."""

    started: float = 0.0  # the clock in seconds
    wall_s: float = 0.0
    peak_gb: float = 0.0  # proportional set size of all its processes together
    cpu_of: dict[str, float] = field(default_factory=dict)  # seconds, by process

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu_of.values())


def run_program(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None, pause: int = _PAUSE
) -> tuple[str, Usage]:
    """Run a program to its end: what it wrote to standard output, and what it used. JobError if it fails.

    Between two looks at its memory so many times as long passes as a look takes.
    """
    usage, known, memory_due = Usage(started=time.time()), set[int](), 0.0
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while True:
        try:
            output, errors = process.communicate(timeout=_SAMPLE_S)
            break
        except subprocess.TimeoutExpired:
            _sample(process.pid, known, usage)
            if (began := time.time()) >= memory_due:
                usage.peak_gb = max(usage.peak_gb, sum(map(_pss_gb, known)))
                memory_due = time.time() + pause * (time.time() - began)
    usage.wall_s = time.time() - usage.started
    check_ended(command, process.returncode, errors)
    return output, usage


def check_ended(command: Sequence[str], code: int | None, errors: str) -> None:
    """JobError if a program ended with another code than 0, with the end of what it wrote to standard error."""
    if code:
        raise JobError(f"{' '.join(command)} ended with {code}: {errors[-500:]}")


def steady_rate(marks: Marks) -> float:
    """Images a second while between 20 % and 80 % of the images are done, by least squares: no start, no end."""
    when, done = np.array(marks).T
    middle = (done >= 0.2 * done[-1]) & (done <= 0.8 * done[-1])
    if len(np.unique(when[middle])) < 3:
        raise JobError(f"too few results for a rate ({len(marks)}): measure with more images")
    return float(np.polyfit(when[middle] - when[0], done[middle], 1)[0])


def family(root: int, known: set[int]) -> dict[int, list[str]]:
    """By process, the fields after its name in /proc/PID/stat, of all that descend from `root` or did: see `known`.

    All that are found are added to `known`, since a process stays one of the program's when its parent ends.
    """
    fields = dict[int, list[str]]()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            fields[int(path.name)] = (path / "stat").read_text().rpartition(")")[2].split()
    found = ({root} | known) & fields.keys()
    while more := {pid for pid, of_pid in fields.items() if int(of_pid[1]) in found} - found:
        found |= more
    known |= found
    return {pid: fields[pid] for pid in found}


def _sample(root: int, known: set[int], usage: Usage) -> None:
    """Add the processes of `family` to `known`, and their time to `usage`."""
    for pid, fields in family(root, known).items():
        usage.cpu_of[f"{pid}-{fields[19]}"] = (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def _pss_gb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e6
    return 0.0
