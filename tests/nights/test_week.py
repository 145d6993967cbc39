"""Seven nights on S3 and several nodes, with all that goes wrong in a year: no row is lost, none stands twice."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.stage import ALWAYS, Fault, Report, Stage, write_model
from faults.storages import fill, small_disk
from faults.store import Rule

from bcd_ray.errors import (
    EXIT_CONFIG,
    EXIT_DEADLINE,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_MISSED,
    EXIT_OK,
    EXIT_UNSCORED,
)
from nights.week import Gate, Week

pytest.importorskip("deltalake")
MON, TUE, WED, THU, FRI, SAT, SUN = range(7)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Week]:
    """The output that all nights of this file are of, one after the other."""
    stage = Stage(tmp_path_factory.mktemp("week"))
    try:
        yield Week(stage)
    finally:
        stage.close()


@pytest.fixture(autouse=True)
def _calm(week: Week) -> Iterator[None]:
    yield
    week.stage.calm()


def test_monday_the_first_night(week: Week) -> None:
    for name in "abc":
        week.deliver(MON, name)
    assert week.night(MON, code=EXIT_OK, expect=True).record["statuses"] == {"scored": 9}


def test_tuesday_a_corrupt_shard_and_a_node_that_goes(week: Week) -> None:
    week.deliver(TUE, "a")
    week.deliver(TUE, "broken", data=b"no tar at all" * 100)
    spot = week.stage.nodes.add(num_cpus=2)
    gone: list[str] = []

    def lose(report: Report) -> None:
        if report["node"] == spot and not gone:
            gone.append(spot)
            week.stage.nodes.kill(spot)

    week.stage.on_report = lose
    ended = week.night(TUE, Fault("start", times=ALWAYS, action="tell"), code=EXIT_UNSCORED)
    assert (ended.record["statuses"], ended.record["new_shards"]) == ({"scored": 3, "unreadable_shard": 1}, 2)
    if not gone:
        week.stage.nodes.kill(spot)


def test_wednesday_a_shard_mended_and_a_driver_killed(week: Week) -> None:
    week.deliver(TUE, "broken")
    week.deliver(WED, "a")
    week.night(WED, Fault("predictions", "after"), code=-9)
    again = week.night(WED, code=EXIT_OK)
    assert "its rows were there, its manifest was not; published now" in again.err
    assert again.record["reason"] == "nothing new"


def test_thursday_a_model_is_promoted_and_a_node_joins(week: Week) -> None:
    for name in "abcd":
        week.deliver(THU, name)
    model = write_model(week.stage.root / "promoted", seed=1)
    refused = week.night(THU, code=EXIT_CONFIG, model=model)
    assert "--supersede" in refused.record["reason"]
    week.stage.on_report = lambda report: joined or joined.append(week.stage.nodes.add(num_cpus=2))  # type: ignore[func-returns-value]
    joined: list[str] = []
    ended = week.night(THU, Fault("start", first=2, action="tell"), code=EXIT_OK, model=model, supersede=True)
    assert joined
    assert ended.record["superseded_shards"] == 6
    week.stage.model = model


def test_friday_a_missed_delivery_and_an_overlapping_start(week: Week) -> None:
    assert "nothing is at" in week.night(FRI, code=EXIT_MISSED, expect=True).record["reason"]
    week.deliver(FRI, "a")
    gate = Gate(week.stage)
    first = week.begin(FRI, Fault("unit", action="tell"), expect=True)
    assert gate.reached.wait(300)
    second = week.begin(FRI, second=True)
    second.process.join()
    gate.open()
    assert second.process.exitcode == EXIT_HELD
    assert "holds the output" in (second.folder / "err").read_text()
    first.join(EXIT_OK)


def test_saturday_the_deadline_comes_in_the_middle(week: Week) -> None:
    for name in "abcdefgh":
        week.deliver(SAT, name, images=1)
    week.stage.on_report = lambda report: week.let_pass(hours=2)
    record = week.night(SAT, Fault("unit", first=2, action="tell"), code=EXIT_DEADLINE, deadline="1h").record
    assert 0 < record["units_done"] < record["units"]


def test_sunday_a_store_that_stalls_and_a_disk_that_is_full(week: Week, tmp_path: Path) -> None:
    week.deliver(SUN, "a")
    try:
        with small_disk(tmp_path / "disk") as disk:
            week.stage.on_report = lambda report: fill(disk)
            step = Fault("counted", "after", action="tell")
            full = week.night(SUN, step, code=EXIT_FAILED, environment={"TMPDIR": str(disk)})
            assert "make room in" in full.record["reason"], full.err
    except PermissionError:  # where no disk can be mounted
        pass
    week.deliver(SUN, "b")
    week.stage.proxy.rules = [Rule("stall", "GET .*/smears/.*/b.tar"), Rule("503", "PUT .*/predictions/", 2)]
    ended = week.night(SUN, code=EXIT_OK, expect=True)
    assert ended.record["statuses"]["scored"] >= 3
    assert ended.record["retries"] >= 3
    assert re.findall(r"^node .+: waiting for the store at http://.+", ended.err, re.MULTILINE), ended.err


def test_the_same_week_again_finds_nothing_to_do(week: Week) -> None:
    assert week.night(SUN, code=EXIT_OK).record["reason"] == "nothing new"
