"""How often a unit was begun, and who may die beside whom: what kills its process must cost one image only."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Any

MAX_ATTEMPTS = 3  # of a unit: at full speed, then twice with each image in a process apart


def start_counter() -> Any:
    """A Ray actor: `count(name)` says how many times it was called with this name, `known(name)` how many times before.

    It lives on the driver's node: a node that goes would else end the job. One whose process dies starts from nothing.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    again = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(num_cpus=0, scheduling_strategy=here, **again)(_StartCounter).remote()


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
