"""What becomes of a unit whose process died: how carefully it is begun again, and which image is to blame.

A process that dies says nothing about the images that it had under way: a node may go, other programs may take the
memory, somebody may kill it. So a unit is begun again with each image decoded in a process apart, then image by image,
and only what killed while it was alone is given up.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.parts import Part
from bcd_ray.archives.shards import Entry, given_up, read_shards
from bcd_ray.ledger.seen import Seen
from bcd_ray.scoring.copies import Copies
from bcd_ray.storage import StoredObject

ONE_BY_ONE = 3  # the attempt from which images are read and scored one after the other; the one before decodes apart
_PROOFS = 2  # deaths while an image was alone, after which it is given up
_MOST_DEATHS = 10  # of a unit that no image is to blame for, after which the next run is to try
_Death = Literal["crashed", "interrupted", "node"]  # of itself, by want of memory, with its node


class Start(NamedTuple):
    """How a unit is to be begun."""

    attempt: int = 1  # node losses are not counted
    fatal: dict[str, str] = {}  # noqa: RUF012 (never changed) the status of each step that is to be left out
    hopeless: bool = False


FIRST = Start()
APART = Start(attempt=2)


def nobody(step: str) -> None:
    """Is told of steps where none counts."""


def start_counter(deadline: float = math.inf) -> Any:
    """A Ray actor of a `_StartCounter`; seconds since the epoch from which no unit is to be begun.

    It lives on the driver's node: a node that goes would else end the job. One whose process dies starts from nothing.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    again = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(num_cpus=0, scheduling_strategy=here, **again)(_StartCounter).remote(deadline)


class Entries:
    """The entries of a unit, read in the way that its start asks for."""

    def __init__(
        self,
        shards: tuple[StoredObject, ...],
        limits: Limits,
        start: Start = FIRST,
        tell: Callable[[str], None] = nobody,
        part: Part | None = None,
    ) -> None:
        """`tell` is called with the name of each step before it is taken, where images are read one by one."""
        self._shards, self._limits, self._start, self._tell, self._part = shards, limits, start, tell, part
        self.one_by_one = start.attempt >= ONE_BY_ONE
        self.seen = Seen()

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._read():
            self.seen.add([entry.image_id])
            yield entry

    def scored(self) -> None:
        """All images given so far are scored: what comes now is no image's fault."""
        if self.one_by_one:
            self._tell("")

    def _read(self) -> Iterator[Entry]:
        if self._start.hopeless:
            error = "the process was killed time and again, by no image of its own: look for full memory"
            return given_up(self._shards, Rejected("interrupted", error))
        if not self.one_by_one:
            return read_shards(self._shards, self._limits, self.seen.left_out, self._part)
        return (entry for shard in self._shards for entry in self._one_by_one(shard))

    def _one_by_one(self, shard: StoredObject) -> Iterator[Entry]:
        entries = iter(read_shards((shard,), self._limits, self.seen.left_out, self._part))
        for number in count():
            reading, scoring = f"reading {number} of {shard.uri}", f"scoring {number} of {shard.uri}"
            if reading in self._start.fatal:  # nothing behind it can be reached
                yield from given_up((shard,), self._rejected(reading))
                return
            self._tell(reading)
            entry = next(entries, None)
            if entry is None:
                self.scored()
                return
            if scoring in self._start.fatal:
                yield replace(entry, content=self._rejected(scoring))
            else:
                self._tell(scoring)
                yield entry

    def _rejected(self, step: str) -> Rejected:
        status = self._start.fatal[step]
        why = "it took more memory than there was" if status == "interrupted" else "look with care"
        return Rejected(status, f"{step.split()[0]} it alone killed the process, {_PROOFS} times of {_PROOFS}: {why}")


@dataclass
class _Unit:
    """What is known of a unit's starts."""

    worker: str = ""
    node: str = ""
    step: str = ""  # the one under way, where it is alone
    kills: int = 0  # of its machine's kernel, for want of memory, when it was begun
    deaths: int = 0
    blamed: dict[str, Counter[str]] = field(default_factory=dict)  # kinds of death by step


class _StartCounter:
    """Of every unit: its starts, and what its processes died of; and what all actors computed."""

    def __init__(self, deadline: float = math.inf) -> None:
        self._deadline = deadline
        self._units: dict[str, _Unit] = {}

    def count(self, name: str, worker: str = "", node: str = "", kills: int = 0) -> Start | None:
        """A start of a unit in a worker process of a node: the one before, if there was one, died.

        None where no further unit is to be begun, by the clock of the driver's machine.
        `kills` are the node's `memory_kills` by now: where there were more since, the kernel may have ended it.
        """
        if time.time() >= self._deadline:
            return None
        unit = self._units.get(name)
        if unit is None:
            unit = self._units[name] = _Unit()
        elif unit.worker != worker:  # else it is the same process, which failed and lives
            kind = death_of(unit.worker, unit.node)
            if kind == "crashed" and unit.node == node and unit.kills < kills:
                kind = "interrupted"
            unit.deaths += kind != "node"
            if unit.step and kind != "node":
                unit.blamed.setdefault(unit.step, Counter())[kind] += 1
        unit.worker, unit.node, unit.step, unit.kills = worker, node, "", kills
        proven = {step: kinds for step, kinds in unit.blamed.items() if kinds.total() >= _PROOFS}
        fatal = {step: "crashed" if kinds["crashed"] >= _PROOFS else "interrupted" for step, kinds in proven.items()}
        return Start(1 + unit.deaths, fatal, unit.deaths - _PROOFS * len(fatal) >= _MOST_DEATHS)

    def at(self, name: str, step: str) -> None:
        """A unit takes a step, and nothing else is under way in its process."""
        self._units.setdefault(name, _Unit()).step = step

    def known(self, name: str) -> bool:
        """Whether a unit was begun before."""
        return name in self._units

    def exchange(self, *copies: Any) -> Any:
        """As `Copies.exchange`; here, since an actor of its own would be a process of its own."""
        return self._copies.exchange(*copies)

    @cached_property
    def _copies(self) -> Copies:
        return Copies()


def memory_kills() -> int:
    """How many processes the kernel of this machine ended for want of memory since it was started; 0 if not known."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def death_of(worker: str, node: str) -> _Death:
    """What a worker process died of, by what Ray's head knows.

    Ray's public `ray.util.state.get_worker` asks the dashboard, which a stand-alone job does not start; this asks where
    the dashboard does.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    if not any(each["NodeID"] == node and each["Alive"] for each in ray.nodes()):
        return "node"
    found = state._connect_and_get_accessor().get_worker_info(ray.WorkerID(bytes.fromhex(worker)))
    exit_type = gcs_pb2.WorkerTableData.FromString(found).exit_type if found else None
    return "interrupted" if exit_type == common_pb2.WorkerExitType.NODE_OUT_OF_MEMORY else "crashed"
