"""What holds after bad nights: the rows that readers get, the exit code's count, and the manifest."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import duckdb
import pyarrow.parquet as pq
import pytest
from ledger.nights import FACTS, IDENTITY, blind, missed, night, shard, work, write

from bcd_ray import read, storage
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.ledger import ledger as ledger_module
from bcd_ray.ledger import units as units_module
from bcd_ray.ledger.expiry import KEPT, expire
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.state import State
from bcd_ray.ledger.units import Unit, Units
from bcd_ray.ledger.verification import verify
from bcd_ray.scoring.access import check_access, folders_of
from bcd_ray.storage import StoredObject, parquet, sorting

IMAGES = [shard(f"/lab/{name}.jpg") for name in "abcdef"]
GONE = {image.uri: "missing" for image in IMAGES}
LAST_RUN = (
    "QUALIFY dense_rank() OVER (PARTITION BY shard_uri ORDER BY run_number DESC, run_id DESC) = 1"
    " AND status <> 'withdrawn'"
)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "output")


def holds(output: str) -> Counter[str]:
    """Statuses of the rows that hold, which are the same for whoever asks in SQL for the last run of each shard."""
    statuses = Counter(read.current(output, ["status"])["status"].to_pylist())
    last = f"SELECT * FROM '{output}/predictions/*.parquet' {LAST_RUN}"
    by_sql = duckdb.sql(f"SELECT status, count(*) FROM ({last}) GROUP BY 1")
    assert statuses == dict(by_sql.fetchall())
    assert verify(output) == []
    return statuses


def not_scored(output: str, shards: list[StoredObject]) -> dict[str, int]:
    """What the exit code goes by."""
    return missed(State(output), shards).not_scored


def unmounted(shards: list[StoredObject]) -> list[StoredObject]:
    return [shard(each.uri, "missing") for each in shards]


def test_a_run_without_work_tells_what_holds(output: str) -> None:
    shards = [*IMAGES, shard("/lab/g.tar")]
    night(output, shards, {"/lab/a.jpg": "not_an_image"})
    for _ in range(2):
        assert not_scored(output, shards) == {"not_an_image": 1, "corrupt_image": 1}
        assert night(output, shards) is None
    assert not_scored(output, IMAGES[1:]) == {}  # of other inputs


def test_a_run_that_died_before_its_manifest_is_told_as_well(output: str) -> None:
    manifest = night(output, IMAGES, {"/lab/a.jpg": "not_an_image"})
    assert manifest
    Path(output, "manifests", f"{manifest['run_id']}.json").unlink()
    assert night(output, IMAGES) is None  # recovered, and no work is left
    assert not_scored(output, IMAGES) == {"not_an_image": 1}


def test_failures_of_a_night_take_no_place(output: str) -> None:
    night(output, IMAGES)
    manifest = night(output, unmounted(IMAGES), GONE)
    assert manifest
    assert holds(output) == {"scored": 6}
    assert (manifest["kept_shards"], manifest["undelivered"], manifest["statuses"]) == (6, {"missing": 6}, {})
    assert not_scored(output, unmounted(IMAGES)) == {"missing": 6}
    assert night(output, unmounted(IMAGES), GONE)  # tried again, as long as it fails
    assert not_scored(output, unmounted(IMAGES)) == {"missing": 6}
    # The disk is back: what was scored is current again.
    assert night(output, IMAGES) is None
    assert not_scored(output, IMAGES) == {}


def test_a_new_content_that_cannot_be_read_leaves_the_old_rows(output: str) -> None:
    night(output, [shard("/lab/g.tar"), *IMAGES])
    new = [shard("/lab/g.tar", "new"), *IMAGES]
    night(output, new, {"/lab/g.tar#2.jpg": "changed"})
    assert holds(output) == {"scored": 8, "corrupt_image": 1}
    assert not_scored(output, new)["changed"] == 1
    night(output, new, {"/lab/g.tar#3.jpg": "scored"})
    assert holds(output) == {"scored": 9}
    assert not_scored(output, new) == {}


def test_a_part_of_a_shard_is_better_than_none_and_more_is_better_than_less(output: str) -> None:
    tar = [shard("/lab/g.tar")]
    night(output, tar, {"/lab/g.tar": "read_error"})
    assert holds(output) == {"read_error": 1}
    night(output, tar, {"/lab/g.tar#3.jpg": "read_error"})
    assert holds(output) == {"scored": 2, "read_error": 1}
    night(output, tar, {"/lab/g.tar": "read_error"})
    assert holds(output) == {"scored": 2, "read_error": 1}
    night(output, tar)
    assert holds(output) == {"scored": 2, "corrupt_image": 1}


def test_too_many_failures_end_a_run_unpublished_and_the_next_one_tries_again(output: str) -> None:
    night(output, IMAGES[:2])
    lost = {image.uri: "missing" for image in IMAGES[2:]}
    with pytest.raises(JobError, match=r"4 of 6 images could not be read \(4 missing\).*mount or mend"):
        night(output, IMAGES, lost, max_undelivered=0.5)
    assert len(State(output).manifests) == 1
    assert night(output, IMAGES, max_undelivered=0.5)
    assert holds(output) == {"scored": 6}


def test_a_shard_that_is_lost_counts_all_its_images(output: str) -> None:
    night(output, [shard("/lab/g.tar"), *IMAGES[:2]])
    with pytest.raises(JobError, match="3 of 5 images"):
        night(output, [shard("/lab/g.tar", "new"), *IMAGES[:2]], {"/lab/g.tar": "missing"}, max_undelivered=0.5)


def test_failures_that_an_earlier_version_published_hold_nothing_up(output: str) -> None:
    """The reader goes by the same rule, also where rows of a bad night lie in the folder."""
    night(output, IMAGES)
    ledger = Ledger(output)
    plan = ledger.plan(unmounted(IMAGES), IDENTITY)
    work(ledger, plan, GONE)
    ledger.publish(blind(plan))
    assert read.current(output)["status"].to_pylist() == ["scored"] * 6


def test_columns_of_the_view_and_an_output_without_runs(output: str) -> None:
    with pytest.raises(ConfigError, match="no run is published here"):
        read.current(output)
    night(output, IMAGES)
    assert read.current(output, ["image_uri", "status"]).column_names == ["image_uri", "status"]
    assert read.current(output)["shard_uri"].to_pylist() == [image.uri for image in IMAGES]


def test_a_node_without_the_mount_is_named(tmp_path: Path) -> None:
    archive, mount = tmp_path / "archive", tmp_path / "mount"
    archive.mkdir()
    (archive / "a.jpg").touch()
    units = [Unit(str(number), (shard(f"{archive}/{number}.jpg"),)) for number in range(50)]
    assert folders_of(Units.of(units)) == [str(archive)]
    assert folders_of(Units.of([Unit("", (shard("s3://lab/a.jpg"),))])) == []
    check_access([str(archive)], str(tmp_path / "output"))
    with pytest.raises(JobError, match=r"node .*: .*/mount: No such file or directory here: mount it there"):
        check_access([str(mount)], str(tmp_path / "output"))
    mount.mkdir()
    with pytest.raises(JobError, match="is empty here"):
        check_access([str(mount)], str(tmp_path / "output"))
    with pytest.raises(JobError, match=r"node .*: cannot write to the output"):
        check_access([], str(archive / "a.jpg"))


def test_two_runs_at_a_time_get_two_numbers_and_the_later_plan_holds(output: str) -> None:
    night(output, IMAGES[:1])
    ledger = Ledger(output)
    earlier = ledger.plan([shard("/lab/a.jpg", "second"), *IMAGES[1:]], IDENTITY)
    later = ledger.plan([shard("/lab/a.jpg", "third")], IDENTITY)
    assert earlier.run_number == later.run_number == 2
    earlier, later = ledger.begin(earlier, FACTS), ledger.begin(later, FACTS)
    assert (earlier.run_number, later.run_number) == (2, 3)
    assert ledger.begin(ledger.plan([shard("/lab/a.jpg", "third")], IDENTITY), FACTS) == later  # the same command again
    for plan in (later, earlier):  # whichever ends first
        work(ledger, plan)
        ledger.publish(plan)
    current = read.current(output)
    assert dict(zip(current["shard_uri"].to_pylist(), current["shard_etag"].to_pylist(), strict=True)) == {
        image.uri: "third" if image.uri == "/lab/a.jpg" else "etag" for image in IMAGES
    }
    assert holds(output) == {"scored": 6}
    # The next one comes after both, and none of the three can vanish unseen.
    assert night(output, [*IMAGES, shard("/lab/g.tar")])
    for manifest in State(output).manifests[:3]:
        path = Path(output, "manifests", f"{manifest['run_id']}.json")
        path.rename(path.with_suffix(".away"))
        assert any(f"run {manifest['run_id']}: is gone" in problem for problem in verify(output))
        path.with_suffix(".away").rename(path)


def test_a_run_that_was_ended_on_another_engine_says_what_made_its_rows(output: str) -> None:
    ledger = Ledger(output)
    plan = ledger.begin(ledger.plan([*IMAGES, shard("/lab/g.tar")], IDENTITY), FACTS)
    loose = next(iter(plan.units))
    write(ledger, loose, made_by={"engine": "torch", "versions": {"torch": "2"}})
    work(ledger, plan, engine="openvino")
    assert ledger.publish(plan)["made_by"] == [
        {"rows": 3, "engine": "openvino", "versions": {}},
        {"rows": 6, "engine": "torch", "versions": {"torch": "2"}},
    ]


def test_rows_of_an_earlier_model_are_made_anew_when_it_comes_back(output: str) -> None:
    models = [{"model_version": name * 64} for name in "aba"]
    units = []
    for model in models:
        plan = Ledger(output).plan(IMAGES, model)
        assert list(Ledger(output).unfinished(plan)) == list(plan.units)
        units += plan.units
        assert night(output, IMAGES, identity=model)
    assert len({unit.unit_id for unit in units}) == 3


def test_a_unit_that_lost_rows_is_not_published(output: str) -> None:
    images = [shard(f"/lab/{number:04d}.tar") for number in range(3)]
    ledger = Ledger(output)
    plan = ledger.begin(ledger.plan(images, IDENTITY), FACTS)
    work(ledger, plan)
    path = Path(output, "_work/units", f"{list(plan.units)[1].unit_id}.parquet")
    rows = pq.read_table(path)
    for fewer in (rows.slice(1), rows.slice(1).replace_schema_metadata(None), rows.replace_schema_metadata(None)):
        pq.write_table(fewer, path)
        with pytest.raises(JobError, match=rf"the rows of unit {path.stem} are not those of its plan: delete it"):
            ledger.publish(plan)
    assert not list(Path(output).glob("predictions/*"))
    path.unlink()
    work(ledger, plan)
    assert ledger.publish(plan)["statuses"] == {"scored": 6, "corrupt_image": 3}


def test_working_state_goes_when_its_run_is_published_or_old(output: str) -> None:
    def left() -> tuple[int, int]:
        return tuple(len(storage.list_names(f"{output}/_work/{part}")) for part in ("plans", "units"))

    night(output, IMAGES)
    ledger = Ledger(output)
    abandoned = ledger.begin(ledger.plan([shard("/lab/x.tar")], IDENTITY), FACTS)
    work(ledger, abandoned)
    current = ledger.begin(ledger.plan([shard("/lab/y.tar")], IDENTITY), FACTS)
    work(ledger, current)
    assert left() == (3, 3)
    assert expire(output, current.run_id) == 2  # what the published run needed
    assert left() == (2, 2)
    assert ledger.publish(abandoned)["statuses"] == {"scored": 2, "corrupt_image": 1}
    storage.delete(f"{output}/_work/units/{next(abandoned.units.ids())}.parquet")
    assert ledger.publish(abandoned)["run_id"] == abandoned.run_id  # a copy that comes late finds it done
    other = ledger.begin(ledger.plan([shard("/lab/z.tar")], IDENTITY), FACTS)
    assert expire(output, current.run_id, datetime.now(UTC) + KEPT + timedelta(minutes=1)) == 2  # also the other's plan
    assert left() == (1, 1)
    assert not ledger.unfinished(current)
    assert ledger.unfinished(other)


def test_an_image_more_or_less_renames_one_unit(output: str) -> None:
    """Of 20,000 loose images; counted off they were named anew from there to the end."""

    def units(numbers: list[int]) -> set[str]:
        images = [shard(f"/lab/{number // 1000:03d}/slide-{number:05d}.jpg") for number in numbers]
        plan = Ledger(output).plan(images, IDENTITY)
        assert max(len(unit.shards) for unit in plan.units) <= 512
        return {unit.unit_id for unit in plan.units}

    numbers = list(range(20_000))
    before = units(numbers)
    assert 60 < len(before) < 120
    for place in (0, 777, 12_345, 19_999):
        assert len(before - units(numbers[:place] + numbers[place + 1 :])) <= 2
    assert len(before - units([*numbers, 20_000])) <= 1


def test_a_plan_that_does_not_fit_into_memory_is_the_same(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = [shard(f"/lab/{number:03d}/a.tar") for number in range(0, 300, 50)]
    loose = [shard(f"/lab/{number:03d}/{number}.jpg") for number in range(300)]
    night(output, [*tars[:4], *loose[:200]], {tars[0].uri: "missing"})
    listed = [*tars, *loose, replace(loose[0], etag="other")]

    def planned() -> Plan:
        return Ledger(output).plan(listed, {**IDENTITY, "network_version": 1, "other": 1}, FACTS["features"])

    whole = planned()
    monkeypatch.setattr(sorting, "_SPILLED_BYTES", 1)
    monkeypatch.setattr(units_module, "_AT_A_TIME", 1)
    spilled = planned()
    assert whole.run_id == spilled.run_id
    assert (list(whole.units), whole.units.numbers) == (list(spilled.units), spilled.units.numbers)
    assert whole.reasons == {"other None -> 1": 202, "failed for the moment before": 1, "other content": 1, "new": 102}
    assert whole.units.numbers[:3] == (len(list(whole.units)), 306, 300)
    assert whole.units.numbers.earlier_rows == 3 * 3 + 1 + 200
    kept, to_read = whole.units.kept, whole.units.to_read
    assert [*kept, *to_read] == sorted(whole.units, key=lambda unit: not unit.features)
    assert (kept.numbers.shards, to_read.numbers.shards) == (202, 104)


def test_units_are_read_many_at_a_time_and_published_in_order(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    met, read_bytes = Barrier(4, timeout=20), storage.read_bytes

    def together(uri: str) -> bytes:
        if "/_work/units/" in uri:
            met.wait()  # breaks if fewer are read at a time
        return read_bytes(uri)

    tars = [shard(f"/lab/{number:02d}.tar") for number in range(16)]
    monkeypatch.setattr(storage, "read_bytes", together)
    assert night(output, tars)
    (path,) = Path(output, "predictions").iterdir()
    uris = pq.read_table(path)["shard_uri"].to_pylist()
    assert uris == sorted(uris)
    assert set(uris) == {tar.uri for tar in tars}


def test_units_of_several_chunks_are_published_like_others(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, statuses = [shard(f"/lab/{name}.tar") for name in "abc"], {"/lab/b.tar": "missing"}
    whole = night(output, shards, statuses)
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 1)  # rows come two at a time; a tar has three
    monkeypatch.setattr(ledger_module, "_SMALL_UNIT_BYTES", 0)
    by_chunk = night(f"{output}-by-chunk", shards, statuses)
    assert whole is not None
    assert by_chunk is not None
    for name in ("statuses", "review", "predicted_classes", "undelivered", "incomplete_shards"):
        assert by_chunk[name] == whole[name]
    rows = [pq.read_table(each["outputs"][0]["uri"], columns=["image_id", "status"]) for each in (whole, by_chunk)]
    assert rows[0] == rows[1]
    unit = next(
        each for each in Path(f"{output}-by-chunk/_work/units").iterdir() if pq.read_metadata(each).num_rows > 1
    )
    assert pq.read_metadata(unit).num_row_groups == 2
    assert not verify(f"{output}-by-chunk")
