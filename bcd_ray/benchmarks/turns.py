"""The job and its ceiling in turns of seconds, each stopped while the other runs.

Whole programs one after another say little of a ratio on a shared machine, whose speed varies by a third from one
minute to the next: in turns that meets both alike.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.measure import Marks, check_ended, family
from bcd_ray.benchmarks.speed import (
    Bench,
    bench,
    circumstances,
    job_command,
    marks_in,
    marks_of_job,
    pack_on_s3,
    peer_command,
)
from bcd_ray.errors import JobError
from bcd_ray.progress import say

Turn = tuple[float, float]  # the clock at its start and end
_TURN_S = 5.0
_DRAWS = 2000  # of the bootstrap


def compare_in_turns(config: BenchmarkConfig, turn_s: float = _TURN_S) -> dict[str, Any]:
    """Images a second of the ceiling and of the job, from S3 too where `config.s3` is set, each in turns of its own.

    A model that looks at cells has a job of whole fields for its ceiling.

    Returns:
        `rounds`: turns of each, from its first results on, before one of them is done. `programs`: of each its images a
        second and `of_ceiling`, what share of the ceiling's that is, with its 95 % interval from a bootstrap over the
        rounds.
    """
    with bench(config) as made, tempfile.TemporaryDirectory() as name:
        inputs = {"job": made.shards}
        if config.s3:
            inputs["job, shards on S3"] = pack_on_s3(made, config)
        folders = {each: Path(name, str(number)) for number, each in enumerate(("ceiling", *inputs))}
        programs = {"ceiling": Program(peer_command(made, "ceiling", made.shards), folders["ceiling"])}
        marks = dict[str, Marks]()
        if config.representation != "field":
            of_fields = replace(made, representation="field")
            programs["ceiling"] = _job(of_fields, made.shards, folders["ceiling"])
        for each, shards in inputs.items():
            programs[each] = _job(made, shards, folders[each])
        # Each job starts a Ray of its own: one that runs here already would not stop with it.
        turns = take_turns(programs, turn_s, {"RAY_ADDRESS": "local"})
        for each, program in programs.items():
            if program.to_its_end:
                marks[each] = marks_of_job(str(folders[each] / "rows"))
            else:
                marks[each] = marks_in(program.stdout.read_text().rpartition("\n")[0])
    return circumstances(config) | {"images": made.images, "turn_s": turn_s} | ratios(turns, marks)


def _job(made: Bench, shards: str, folder: Path) -> "Program":
    command = job_command(made, shards, str(folder / "rows"))
    return Program(command, folder, "rows/_work/units/*", to_its_end=True)


@dataclass
class Program:
    """A program and all that it starts, of which each process is stopped but for its turns.

    `first_results` is a pattern of files below `folder` of which it has one when it has begun, as its standard output.
    Where it does not go on `to_its_end`, it is killed when another ends.
    """

    command: Sequence[str]
    folder: Path
    first_results: str = "stdout"
    to_its_end: bool = False
    _known: set[int] = field(default_factory=set)

    @property
    def stdout(self) -> Path:
        return self.folder / "stdout"

    @property
    def has_begun(self) -> bool:
        return any(path.stat().st_size for path in self.folder.glob(self.first_results))

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @contextmanager
    def started(self, environment: Mapping[str, str]) -> Iterator[None]:
        """The program, stopped after its first results; killed at the end.

        Raises:
            JobError: it failed.
        """
        self.folder.mkdir()
        self._stderr = self.folder / "stderr"
        with self.stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                self.command, stdout=stdout, stderr=stderr, env={**os.environ, **environment}
            )
        try:
            while not (self.has_begun or self.ended):
                time.sleep(0.1)
            self._stop()
            self._check()
            yield
        finally:
            _send(signal.SIGKILL, self._pids())
            self._process.wait()

    def run(self, seconds: float | None) -> Turn:
        """Let it run for a turn, or to its end if that comes before. JobError if it failed."""
        start = time.time()
        _send(signal.SIGCONT, self._pids())
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._stop()
        self._check()
        return start, time.time()

    def _check(self) -> None:
        check_ended(self.command, self._process.returncode, self._stderr.read_text())

    def _stop(self) -> None:
        stopped = set[int]()
        while more := self._pids() - stopped:  # it may start one meanwhile
            _send(signal.SIGSTOP, more)
            stopped |= more

    def _pids(self) -> set[int]:
        return set(family(self._process.pid, self._known))


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def take_turns(programs: Mapping[str, Program], turn_s: float, environment: Mapping[str, str]) -> dict[str, list[Turn]]:
    """Run programs in turns until one ends, and each of those that go on to their end alone then.

    Returns:
        The turns of each, as many of all of them.

    Raises:
        JobError: one of them failed.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in programs}
    with ExitStack() as stack:
        # Ended by SIGTERM, it would leave programs behind that are stopped for ever.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        for program in programs.values():
            stack.enter_context(program.started(environment))
        order = list(programs)
        while not any(program.ended for program in programs.values()):
            for name in order:
                turns[name].append(programs[name].run(turn_s))
            order.reverse()  # what one leaves behind, pages to be written say, is to meet the others alike
        for program in programs.values():
            if program.to_its_end:
                program.run(None)
    return turns


def ratios(turns: Mapping[str, Sequence[Turn]], marks: Mapping[str, Marks]) -> dict[str, Any]:
    """Images a second of each program in its turns, and their ratio to `ceiling`'s: see `compare_in_turns`.

    Raises:
        JobError: too few turns.
    """
    rounds = len(turns["ceiling"]) - 1  # in the last, one of them ends
    if rounds < 3:
        raise JobError(f"too few turns ({rounds}): measure with more images")
    images, seconds = dict[str, np.ndarray[Any, Any]](), dict[str, np.ndarray[Any, Any]]()
    for name in turns:
        done_at = _done_at_each_start(np.array(turns[name]), *np.array(marks[name]).T)
        images[name], seconds[name] = np.diff(done_at), np.diff(turns[name])[:-1, 0]
    each_once, drawn = np.arange(rounds), np.random.default_rng(0).integers(0, rounds, (_DRAWS, rounds))

    def rate(name: str, of: Any) -> Any:
        return images[name][of].sum(-1) / seconds[name][of].sum(-1)

    programs = {}
    for name in turns:
        speed = float(rate(name, each_once))
        share = speed / float(rate("ceiling", each_once))
        low, high = np.quantile(rate(name, drawn) / rate("ceiling", drawn), [0.025, 0.975]).tolist()
        programs[name] = {"images_per_s": speed, "of_ceiling": [share, low, high]}
        say(f"{name:20} {speed:6.1f} images/s  {share:.3f} of the ceiling ({low:.3f} to {high:.3f})")
    return {"rounds": rounds, "programs": programs}


def _done_at_each_start(turns: Any, when: Any, done: Any) -> Any:
    """Images that a program had done at the start of each of its turns (n, 2), by its marks.

    Between two marks images are taken to come evenly in the program's own time, which stands still out of its turns: a
    shard of 512 images takes as long as a turn.
    """
    own = np.concatenate([[0], np.cumsum(turns[:, 1] - turns[:, 0])])
    when_in_own = np.interp(when, turns.ravel(), np.column_stack([own[:-1], own[1:]]).ravel())
    inside = (when > turns[0, 0]) & (when < turns[-1, 1])
    before = done[when <= turns[0, 0]].max(initial=0)
    return np.interp(own[:-1], np.concatenate([[0], when_in_own[inside]]), np.concatenate([[before], done[inside]]))
