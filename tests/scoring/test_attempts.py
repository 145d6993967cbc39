"""What becomes of a unit whose process dies: what killed alone is given up, and what died from outside is scored."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bcd_ray import storage
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.looking import parts_of
from bcd_ray.archives.parts import Part
from bcd_ray.scoring import attempts
from bcd_ray.scoring.attempts import ONE_BY_ONE, Entries, Start
from bcd_ray.storage import StoredObject

Kill = Callable[[Start, str], str]  # of a start and a step ("" between): what the process dies of, or ""
IMAGES = 6


class _DiedError(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def shards(tmp_path: Path) -> tuple[StoredObject, ...]:
    """A tar of six images, which are no images: nothing is decoded here."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(IMAGES):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return tuple(storage.list_objects(str(tmp_path)))


@pytest.fixture
def loose(tmp_path: Path) -> tuple[StoredObject, ...]:
    """Six loose files."""
    for number in range(IMAGES):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    return tuple(storage.list_objects(str(tmp_path)))


def play(
    monkeypatch: pytest.MonkeyPatch,
    shards: tuple[StoredObject, ...],
    kill: Kill,
    most: int = 40,
    part: Part | None = None,
) -> tuple[list[str], list[int]]:
    """Begin a unit again until its process lives: the statuses of its entries, and the attempts by number."""
    counter, causes, numbers = attempts._StartCounter(), [""], []
    monkeypatch.setattr(attempts, "death_of", lambda worker, node: causes[-1])

    def step(name: str, start: Start) -> None:
        counter.at("unit", name)
        die(kill(start, name))

    def die(cause: str) -> None:
        if cause:
            causes.append(cause)
            raise _DiedError

    for process in range(most):
        start = counter.count("unit", f"worker {process}", "node")
        numbers.append(start.attempt)
        try:
            die(kill(start, "start"))
            entries = list(Entries(shards, Limits(), start, lambda name: step(name, start), part))  # noqa: B023
            die(kill(start, "write"))
        except _DiedError:
            continue
        return [one.content.status if isinstance(one.content, Rejected) else "read" for one in entries], numbers
    raise AssertionError(f"begun {most} times")


def times(count: int, cause: str, when: str = "start") -> Kill:
    left = [cause] * count
    return lambda start, step: left.pop() if left and step == when else ""


def test_an_undisturbed_unit_is_begun_once(monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...]) -> None:
    assert play(monkeypatch, shards, lambda start, step: "") == (["read"] * IMAGES, [1])


@pytest.mark.parametrize("when", ["start", "write"])
@pytest.mark.parametrize("kills", [1, 3, 9])
def test_kills_from_outside_cost_no_image(
    monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...], kills: int, when: str
) -> None:
    statuses, numbers = play(monkeypatch, shards, times(kills, "crashed", when))
    assert statuses == ["read"] * IMAGES
    assert numbers == list(range(1, kills + 2))


def test_node_losses_are_no_attempts(monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...]) -> None:
    assert play(monkeypatch, shards, times(20, "node")) == (["read"] * IMAGES, [1] * 21)


def test_a_unit_that_always_dies_is_left_to_the_next_run(
    monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...]
) -> None:
    statuses, numbers = play(
        monkeypatch, shards, lambda start, step: "crashed" if step == "start" and not start.hopeless else ""
    )
    assert statuses == ["interrupted"]
    assert len(numbers) == 11


@pytest.mark.parametrize(("cause", "status"), [("crashed", "crashed"), ("interrupted", "interrupted")])
def test_an_image_that_kills_is_found(
    monkeypatch: pytest.MonkeyPatch, loose: tuple[StoredObject, ...], cause: str, status: str
) -> None:
    def kill(start: Start, step: str) -> str:
        killers = (f"scoring 0 of {loose[1].uri}", f"scoring 0 of {loose[4].uri}", f"reading 0 of {loose[5].uri}")
        together = step == "start" and start.attempt < ONE_BY_ONE
        return cause if together or step in killers else ""

    statuses, _ = play(monkeypatch, loose, kill)
    assert statuses == ["read", status, "read", "read", status, status]


def test_a_shard_whose_reading_kills_keeps_what_comes_before(
    monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...]
) -> None:
    def kill(start: Start, step: str) -> str:
        return "crashed" if start.attempt < ONE_BY_ONE or step.startswith("reading 3 ") else ""

    assert play(monkeypatch, shards, kill)[0] == ["read"] * 3 + ["crashed"]


@pytest.mark.parametrize(
    ("killing", "statuses"), [("reading 1 ", ["read", "crashed"]), ("scoring 0 ", ["crashed", "read"])]
)
def test_a_part_of_a_shard_that_kills_keeps_what_comes_before(
    monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...], killing: str, statuses: list[str]
) -> None:
    def kill(start: Start, step: str) -> str:
        return "crashed" if start.attempt < ONE_BY_ONE or step.startswith(killing) else ""

    for part in parts_of(shards[0], 2000)[:2]:
        assert play(monkeypatch, shards, kill, part=part)[0] == statuses


def test_one_death_alone_is_no_proof(monkeypatch: pytest.MonkeyPatch, shards: tuple[StoredObject, ...]) -> None:
    died: list[str] = []

    def kill(start: Start, step: str) -> str:
        first = step.startswith("scoring") and step not in died
        died.extend([step] * first)
        return "crashed" if start.attempt < ONE_BY_ONE or first else ""

    assert play(monkeypatch, shards, kill)[0] == ["read"] * IMAGES


def test_what_the_kernel_ended_for_want_of_memory_is_no_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "death_of", lambda worker, node: "crashed")
    counter = attempts._StartCounter()
    for process, kills in enumerate((5, 6, 7)):
        start = counter.count("unit", f"worker {process}", "node", kills)
        counter.at("unit", "scoring 0 of a.tar")
    assert start.fatal == {"scoring 0 of a.tar": "interrupted"}
    for process in (3, 4):
        start = counter.count("unit", f"worker {process}", "node", 7)
        counter.at("unit", "scoring 0 of a.tar")
    assert start.fatal == {"scoring 0 of a.tar": "crashed"}


_ENDED_BY_RAY = """
import re, sys, time
import ray
from bcd_ray.runtime import ray_session
from bcd_ray.scoring.attempts import death_of
with ray_session():
    try:
        ray.get(ray.remote(max_retries=0)(lambda: time.sleep(600)).remote())
    except ray.exceptions.OutOfMemoryError as error:
        print(death_of(re.search(r"worker ID=(\\w+)", str(error))[1], ray.get_runtime_context().get_node_id()))
"""


def test_what_rays_monitor_ended_for_want_of_memory_is_no_images_fault() -> None:
    low = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50", "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "-c", _ENDED_BY_RAY], env=os.environ | low, capture_output=True, text=True, check=False
    )
    assert done.stdout == "interrupted\n", done.stderr
