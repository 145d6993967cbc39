"""Faults of processes: a driver, a worker, a node, a whole cluster is killed; an image kills whoever decodes it."""

import threading
from collections.abc import Iterator
from functools import partial

from bcd_ray import storage
from faults.case import Case, Scenario
from faults.stage import ALWAYS, UNITS, Fault, Report, Stage, jpeg, parquet_of, png, tar_of

POISON = b"POISON"  # after the end of an image, where no decoder looks but the hooks do


def scenarios(place: str) -> Iterator[Scenario]:
    """All of them, in a fixed order."""
    for maker in (_drivers, _chains, _workers, _poison, _nodes):
        yield from maker(place)


_PUBLISHED = ("predictions", "features", "inputs", "manifest")


def driver_steps(place: str) -> list[Fault]:
    """The moments around every write of the driver, in order, and after the return of each unit."""
    half_way = ("plan", *_PUBLISHED) if place == "local" else ("predictions",)

    def around(step: str) -> list[Fault]:  # `beside`: written, and not yet under its name
        middle = [Fault(f"{step} beside", "after")] if step in half_way else []
        return [Fault(step), *middle, Fault(step, "after")]

    steps = [*around("probe"), Fault("unprobe", "after"), *around("plan")]
    steps += [Fault("counted", "after", first=count) for count in range(1, UNITS + 1)]
    return steps + [step for name in (*_PUBLISHED, "roll") for step in around(name)]


def worker_steps(place: str) -> list[Fault]:
    """The moments around the write of each unit, and in the middle of it."""
    steps = [Fault("unit", when, first=count) for when in ("before", "after") for count in range(1, UNITS + 1)]
    steps += [Fault("decode", first=count) for count in range(2, 6 * UNITS, 6)]
    steps += [Fault("read", first=count) for count in (1, 3, 9, 17)]
    if place == "local":
        steps += [Fault("unit beside", "after", first=count) for count in range(1, UNITS + 1, 3)]
    return steps


def _drivers(place: str) -> Iterator[Scenario]:
    for step in driver_steps(place):
        yield Scenario("driver killed", place, str(step), partial(_kill_driver, place, [step]))


def _chains(place: str) -> Iterator[Scenario]:
    """The driver dies again and again, each time further on."""
    steps = driver_steps(place)
    for start in range(5):
        chain = steps[start::5]
        name = ", then ".join(str(step).removeprefix("SIGKILL ") for step in chain)
        yield Scenario("driver killed again and again", place, name, partial(_kill_driver, place, chain), len(chain))


def _kill_driver(place: str, steps: list[Fault], stage: Stage) -> None:
    case = Case(stage, place)
    for step in steps:
        # Units that returned before are not counted again.
        first = step.first - len(case.finished_units()) if step.step == "counted" else 1
        if first > 0:
            part_bytes = 4096 if (step.step, place) == ("predictions beside", "s3") else 0
            case.killed(Fault(step.step, step.when, first), part_bytes=part_bytes)
    case.publishes()
    case.check()


def _workers(place: str) -> Iterator[Scenario]:
    for step in worker_steps(place):
        yield Scenario("worker killed", place, str(step), partial(_kill_workers, place, (step,)))
    for first, second in ((1, 4), (2, 3), (3, 8)):
        steps = (Fault("unit", first=first), Fault("unit", "after", first=second))
        name = f"before unit {first} and after unit {second} is written"
        yield Scenario("worker killed", place, name, partial(_kill_workers, place, steps), 2)
    both = (Fault("unit", first=2), Fault("counted", "after", first=4))
    yield Scenario("worker killed", place, "and then the driver", partial(_kill_worker_and_driver, place, both), 2)
    yield Scenario("worker killed", place, "time and again at the only unit", partial(_kill_from_outside, place), 5)
    for first in (1, 4):
        step = Fault("count", first=first)
        yield Scenario("worker killed", place, f"{step} of starts", partial(_kill_workers, place, (step,)))


def _kill_workers(place: str, steps: tuple[Fault, ...], stage: Stage) -> None:
    case = Case(stage, place)
    case.publishes(*steps)
    case.check()


def _kill_from_outside(place: str, stage: Stage) -> None:
    """What dies of no image says nothing about its images."""
    case = Case(stage, place, stage.own_archive(place, "shards/0"))
    case.publishes(Fault("unit", times=5))
    case.check()


def _kill_worker_and_driver(place: str, steps: tuple[Fault, ...], stage: Stage) -> None:
    case = Case(stage, place)
    case.killed(*steps)
    case.publishes()
    case.check()


def _poison(place: str) -> Iterator[Scenario]:
    for signal in ("SIGSEGV", "SIGABRT", "SIGBUS"):
        for name in ("shards/poison.tar", "poison.parquet", "loose/poison.jpg"):
            title = f"an image of {name} that ends its process with {signal}"
            yield Scenario("poison", place, title, partial(_poison_image, place, name, signal))
    yield Scenario("poison", place, "two images of one tar", partial(_two_poison_images, place), 2)
    yield Scenario("poison", place, "an image that takes for ever", partial(_endless_image, place))
    yield Scenario("poison", place, "reading shards/1.tar", partial(_poison_shard, place, "shards/1.tar"))


def _poison_image(place: str, name: str, signal: str, stage: Stage) -> None:
    archive = stage.own_archive(place, "shards/0", "shards/1", "loose")
    _add_poison(archive, name, {3})
    case = Case(stage, place, archive)
    attempt = case.publishes(_poisoned(signal), code=3)
    inside = {"shards/poison.tar": "#3.jpg", "poison.parquet": "#row 3"}.get(name, "")
    case.check({name + inside: "crashed"})
    assert "1  crashed" in attempt.out


def _two_poison_images(place: str, stage: Stage) -> None:
    archive = stage.own_archive(place, "shards/0")
    _add_poison(archive, "shards/poison.tar", {0, 5})
    case = Case(stage, place, archive)
    case.publishes(_poisoned("SIGSEGV"), code=3)
    case.check({"shards/poison.tar#0.jpg": "crashed", "shards/poison.tar#5.jpg": "crashed"})


def _endless_image(place: str, stage: Stage) -> None:
    archive = stage.own_archive(place, "shards/0")
    storage.write_bytes(f"{archive}/loose/endless.png", png(0) + POISON)
    storage.write_bytes(f"{archive}/loose/other.png", png(1))
    case = Case(stage, place, archive, options=("--max-decode-seconds", "1"))
    case.publishes(_poisoned("spin"), code=3)
    case.check({"loose/endless.png": "timed_out"})


def _poison_shard(place: str, name: str, stage: Stage) -> None:
    case = Case(stage, place)
    attempt = case.publishes(Fault("read", match=name, times=ALWAYS), code=3)
    case.check({name: "crashed"})
    assert "1  crashed" in attempt.out


def _poisoned(signal: str) -> Fault:
    return Fault("decode", match=POISON.decode(), times=ALWAYS, action=signal)


def _add_poison(archive: str, name: str, which: set[int]) -> None:
    images = [jpeg(100 + number) + POISON * (number in which) for number in range(6)]
    data = {"tar": tar_of, "parquet": parquet_of}.get(name.rpartition(".")[2], lambda images: images[min(which)])(
        images
    )
    storage.write_bytes(f"{archive}/{name}", data)


def _nodes(place: str) -> Iterator[Scenario]:
    for step, when in (("start", "before"), ("unit", "before"), ("unit", "after")):
        for replaced in (False, True):
            title = f"{when} {step} on it, {'and replaced' if replaced else 'for good'}"
            yield Scenario("node killed", place, title, partial(_kill_node, place, step, when, replaced))
    yield Scenario("node killed", place, "the head, with the whole cluster", partial(_kill_head, place))


def _kill_node(place: str, step: str, when: str, replaced: bool, stage: Stage) -> None:
    case = Case(stage, place)
    nodes, killed, one_at_a_time = [stage.nodes.add(num_cpus=2)], threading.Event(), threading.Lock()

    def kill_once(report: Report) -> None:
        if report["node"] != nodes[0]:
            killed.wait(60)  # else the other node may do it all before
            return
        with one_at_a_time:  # an actor works at two units, which may report together
            if killed.is_set():
                return
            if replaced:
                nodes.append(stage.nodes.add(num_cpus=2))
            stage.nodes.kill(nodes[0])
            killed.set()

    stage.on_report = kill_once
    try:
        attempt = case.begin(Fault(step, when, times=ALWAYS, action="tell")).join()
    finally:
        for node in nodes[int(killed.is_set()) :]:
            stage.nodes.kill(node)
    assert killed.is_set(), attempt
    assert attempt.code == 0, attempt
    case.check()


def _kill_head(place: str, stage: Stage) -> None:
    case = Case(stage, place)
    stage.on_report = lambda report: stage.nodes.kill(report["node"])
    attempt = case.begin(Fault("unit", first=3, action="tell")).join()
    stage.nodes.close()
    stage.nodes = stage.new_nodes()
    assert attempt.fired, attempt
    assert attempt.code not in (0, 3), attempt
    case.publishes()
    case.check()
