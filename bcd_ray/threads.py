"""Work in threads whose results come in order, with memory bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, Semaphore
from typing import Any, TypeVar

_THREADS_A_CORE = 2  # that call an engine: while one waits for the network, another decodes
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
    weight: Callable[[_Item], int] = lambda item: 0,
    most_weight: int = 0,
) -> Iterator[_Result]:
    """Results in order while at most `ahead` calls are under way or waiting, so that memory stays bounded.

    Their items weigh at most `most_weight` together, but for one that weighs more alone.
    """
    waiting: deque[tuple[Any, int]] = deque()
    weighs = 0
    for item in items:
        own = weight(item)
        while waiting and weighs + own > most_weight:
            result, done = waiting.popleft()
            yield result.result()
            weighs -= done
        waiting.append((pool.submit(function, item), own))
        weighs += own
        if len(waiting) >= ahead:
            result, done = waiting.popleft()
            yield result.result()
            weighs -= done
    while waiting:
        yield waiting.popleft()[0].result()


def keep_blas_to_its_thread() -> AbstractContextManager[Any]:
    """Have BLAS compute in the thread that calls it, for good or for a `with` block, where threads fill the cores.

    Its helpers wait for more to do by spinning: on 16 cores an image took 1.9 core milliseconds beside its network, not
    0.8.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


class EngineThreads:
    """The threads of a process that decode images and call an engine of `cores` cores, in turn."""

    def __init__(self, cores: int) -> None:
        self._pool, self._ahead = ThreadPoolExecutor(_THREADS_A_CORE * cores), 2 * _THREADS_A_CORE * cores

    def map(
        self,
        function: Callable[[_Item], _Result],
        items: Iterable[_Item],
        weight: Callable[[_Item], int] = lambda item: 0,
        most_weight: int = 0,
    ) -> Iterator[_Result]:
        """As `map_ahead`; several threads may call it at a time."""
        return map_ahead(self._pool, function, items, self._ahead, weight, most_weight)


def in_chunks(
    items: Iterable[_Item], most: int, weight: Callable[[_Item], int] = lambda item: 0, most_weight: int = 0
) -> Iterator[list[_Item]]:
    """Lists of `most` items in order, or of fewer that weigh at most `most_weight`, or of one that weighs more."""
    chunk, weighs = list[_Item](), 0
    for item in items:
        own = weight(item)
        if chunk and weighs + own > most_weight:
            yield chunk
            chunk, weighs = [], 0
        chunk.append(item)
        weighs += own
        if len(chunk) == most:
            yield chunk
            chunk, weighs = [], 0
    if chunk:
        yield chunk


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
