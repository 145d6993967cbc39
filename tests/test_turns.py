"""Turns: threads work side by side, and one that may kill the process only alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

from bcd_ray.threads import Turns


def test_as_many_as_there_are_places_work_side_by_side() -> None:
    turns, met = Turns(2), Barrier(2, timeout=10)

    def work(_: int) -> int:
        with turns.turn(alone=False):
            return met.wait()  # breaks if the other is not let in

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(work, range(2))) == [0, 1]


def test_one_that_wants_to_be_alone_waits_for_the_others_and_they_for_it() -> None:
    turns, inside, leave = Turns(2), Event(), Event()
    order: list[str] = []

    def first() -> None:
        with turns.turn(alone=False):
            inside.set()
            leave.wait(10)
            order.append("first")

    def alone() -> None:
        with turns.turn(alone=True):
            order.append("alone")

    with ThreadPoolExecutor(3) as pool:
        works = [pool.submit(first)]
        assert inside.wait(10)
        works += [pool.submit(alone), pool.submit(alone)]  # two that want all places do not block each other
        leave.set()
        for work in works:
            work.result(10)
    assert order == ["first", "alone", "alone"]
    with turns.turn(alone=True):  # all places are free again
        pass
