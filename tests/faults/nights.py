"""Nights after nights: archives that only look changed, settings changed by mistake, runs and images that go."""

import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from bcd_ray import read, storage
from bcd_ray.ledger.verification import verify
from faults.case import Case, Scenario
from faults.stage import Fault, Stage, jpeg, tar_of

_FORGOTTEN = "shards/2.tar"


def scenarios(place: str) -> Iterator[Scenario]:
    """All of them, in a fixed order."""
    if place == "local":
        for step in (None, Fault("counted", "after", first=3), Fault("predictions", "after")):
            name = f"all files, driver {f'killed {step.when} {step.step}' if step else 'not killed'}"
            yield Scenario("archive touched", place, name, partial(_touch, place, step), 1 + bool(step))
    yield Scenario("other settings", place, "for a night, by mistake", partial(_mistake, place))
    for when in ("alone", "and another run after it"):
        yield Scenario("run deleted", place, f"the last one, {when}", partial(_delete_last, place, when != "alone"))
    for step in _steps_of_forgetting():
        name = f"{_FORGOTTEN}, the job killed {step.when} {step.step}{' again' * (step.first > 1)}"
        yield Scenario("images forgotten", place, name, partial(_forget, place, step))


def _steps_of_forgetting() -> list[Fault]:
    """The moments around its writes; the second of the predictions puts a file of an earlier run anew."""
    steps = [Fault("plan", "after"), Fault("unit"), Fault("unit", "after")]
    for name in ("predictions", "inputs", "manifest", "roll"):
        steps += [Fault(name), Fault(name, "after")]
    return [*steps, Fault("predictions", first=2), Fault("predictions", "after", first=2)]


def _touch(place: str, step: Fault | None, stage: Stage) -> None:
    case = Case(stage, place, stage.own_archive(place))
    if step:
        case.killed(step)
        _touch_all(case.archive)
    case.publishes()
    case.check()
    case = Case(stage, place, case.archive, case.output)
    before = [manifest["run_id"] for manifest in case.manifests()]
    _touch_all(case.archive)
    attempt = case.publishes()
    assert "shards were compared and are equal to what was scored" in attempt.err, attempt.err
    assert not attempt.started, attempt.started
    assert [manifest["run_id"] for manifest in case.manifests()] == before
    case.check()


def _touch_all(folder: str) -> None:
    for path in Path(folder).rglob("*"):
        os.utime(path)


def _mistake(place: str, stage: Stage) -> None:
    case = Case(stage, place)
    case.publishes()
    before = case.rows().sort_by("image_id")
    case.fails(code=2, options=("--max-pixels", "99"))
    assert case.rows().sort_by("image_id").equals(before)
    case.check()


def _delete_last(place: str, later: bool, stage: Stage) -> None:
    case = Case(stage, place, stage.own_archive(place))
    case.publishes()
    case.check()
    run_id = case.manifests()[-1]["run_id"]
    names = [f"predictions/{run_id}.parquet", f"manifests/{run_id}.json", f"manifests/{run_id}.inputs.parquet"]
    kept = {f"{case.output}/{name}": storage.read_bytes(f"{case.output}/{name}") for name in names}
    for uri in kept:
        storage.delete(uri)
    case = Case(stage, place, case.archive, case.output)
    case.is_to_be_rewritten()
    if later:  # of the same archive it would be the same run again
        storage.write_bytes(f"{case.archive}/shards/new.tar", tar_of([jpeg(300)]))
        case.publishes()
    problems = verify(case.output)
    assert any(f"run {run_id}: is gone, though it was published as run 1" in problem for problem in problems), problems
    for uri, data in kept.items():
        storage.write_bytes(uri, data)
    assert verify(case.output) == []


def _forget(place: str, step: Fault, stage: Stage) -> None:
    """Whenever it dies, the same command ends it, and from then on nothing is left of the images in any file."""
    case = Case(stage, place)
    case.publishes()
    case.is_to_be_rewritten()
    forgotten = f"{case.archive}/{_FORGOTTEN}"
    rows = case.rows().to_pylist()
    digests = {row["image_sha256"] for row in rows if row["shard_uri"] == forgotten}
    left = {row["image_id"] for row in rows if row["image_sha256"] not in digests}
    options = ("--images", forgotten, "--erase")
    case.killed(step, job="forget", options=options)
    case.is_to_be_rewritten()
    case.publishes(job="forget", options=options)
    assert digests
    assert None not in digests
    assert verify(case.output) == []
    assert set(read.current(case.output, ["image_id"])["image_id"].to_pylist()) == left
    for name in storage.list_names(f"{case.output}/predictions"):
        table = pq.read_table(io.BytesIO(storage.read_bytes(f"{case.output}/predictions/{name}")))
        assert not digests & set(table["image_sha256"].to_pylist()), name
    case.is_to_be_rewritten()
    attempt = case.publishes()
    assert "nothing to do" in attempt.out, attempt.out
    assert not attempt.started, attempt.started
