"""Faults at the steps of a scoring run; after each, every image has one row and nobody saw part of a run.

This is a part of all scenarios; `python tests/fault_campaign.py --faults 200` plays as many as you like.
"""

from collections.abc import Iterator

import pytest
from faults.case import Scenario
from faults.catalogue import all_scenarios, set_references
from faults.stage import Stage

PLAYED = (  # the beginnings of their names
    "driver killed again and again, local: before probe",
    "driver killed again and again, s3: after plan",
    "worker killed, local: SIGKILL after unit beside number 4",
    "worker killed, s3: and then the driver",
    "worker killed, local: time and again at the only unit",
    "poison, local: an image of shards/poison.tar that ends its process with SIGSEGV",
    "poison, s3: reading shards/1.tar",
    "poison, local: an image that takes for ever",
    "node killed, local: after unit on it, for good",
    "request failed, s3: each once, in all ways",
    "request failed, s3: credentials expire before unit",
    "request refused, s3: 403 to read a tar",
    "S3 server killed, s3: kill -9 and start again, before unit number 5",
    "archive changed, local: shards/2.tar is replaced",
    "disk full, local: before unit number 6",
    "clock jumps, local: jumps by -2 days after a kill after counted",
    "two copies, local: started together",
    "two copies, s3: one waits before predictions",
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One Ray cluster and one S3 store for all scenarios."""
    stage = Stage(tmp_path_factory.mktemp("faults"))
    try:
        set_references(stage)
        yield stage
    finally:
        stage.close()


def _played(name: str) -> Scenario:
    (found,) = [scenario for scenario in all_scenarios() if str(scenario).startswith(name)]
    return found


@pytest.mark.parametrize("name", PLAYED)
def test_nothing_is_lost_and_nothing_twice(name: str, stage: Stage) -> None:
    try:
        _played(name).play(stage)
    except PermissionError as error:  # a small disk has to be mounted
        pytest.skip(str(error))
