"""What `jobs/verify.py` finds wrong with a published output, and that it finds nothing where nothing is."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger.nights import IDENTITY, missed, night, shard, work

from bcd_ray import read
from bcd_ray.errors import JobError
from bcd_ray.ledger import schema
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.state import State
from bcd_ray.ledger.verification import clear_leftovers, verify

JOB = Path(__file__).parents[2] / "jobs" / "verify.py"
OUTPUTS = Path(__file__).parent / "outputs"  # two nights each, written by the versions in the name
KEEP = "keep one of the present versions: `python tests/ledger/keep_output.py`"
NIGHTS = (("/lab/a.jpg", "/lab/b.jpg", "/lab/c.tar"), ("/lab/d.jpg",), ("/lab/e.tar",))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Three nights of one archive, published by the ledger."""
    folder = tmp_path / "output"
    for number in range(len(NIGHTS)):
        night(str(folder), [shard(uri) for uris in NIGHTS[: number + 1] for uri in uris])
    return folder


def manifest_of(output: Path, run_number: int) -> Path:
    for path in (output / "manifests").glob("*.json"):
        if json.loads(path.read_text())["run_number"] == run_number:
            return path
    raise AssertionError(f"no run {run_number}")


def changed_manifest(output: Path, run_number: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = manifest_of(output, run_number)
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def other_rows(output: Path, run_number: int, change: Callable[[pa.Table], pa.Table]) -> None:
    """Other rows in a run's file, and in the manifest what follows from its bytes."""

    def describe(manifest: dict[str, Any]) -> None:
        path = Path(manifest["outputs"][0]["uri"])
        pq.write_table(change(pq.read_table(path)), path)
        data = path.read_bytes()
        manifest["outputs"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    changed_manifest(output, run_number, describe)


def test_a_whole_output_is_found_whole_also_where_it_was_copied(output: Path, tmp_path: Path) -> None:
    assert verify(str(output)) == []
    copy = tmp_path / "elsewhere"
    shutil.move(output, copy)
    assert verify(str(copy)) == []
    assert clear_leftovers(str(copy)) == 3 + 3 + 4  # numbers, plans and units
    assert verify(str(copy)) == []


def first_row_of_another_shard(rows: pa.Table) -> pa.Table:
    uris = rows["shard_uri"].to_pylist()
    return rows.set_column(
        rows.schema.get_field_index("shard_uri"), rows.schema.field("shard_uri"), [uris[:1] * len(uris)]
    )


def first_row_twice(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows.slice(0, 1), rows.slice(0, 1), rows.slice(2)])


def without_first_row(rows: pa.Table) -> pa.Table:
    return rows.slice(1)


def of_another_run(rows: pa.Table) -> pa.Table:
    names = pa.array(["0" * 16] * len(rows), pa.string())
    return rows.set_column(rows.schema.get_field_index("run_id"), rows.schema.field("run_id"), names)


def all_benign(rows: pa.Table) -> pa.Table:
    classes = pc.if_else(pc.is_valid(rows["predicted_class"]), "benign", rows["predicted_class"])
    return rows.set_column(
        rows.schema.get_field_index("predicted_class"), rows.schema.field("predicted_class"), classes
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (first_row_of_another_shard, ["the rows per shard are not those of its inputs"]),
        (first_row_twice, ["1 image ids stand twice", "the rows per shard", "1 planned images have no row"]),
        (
            without_first_row,
            ["the numbers of rows", "the counts of statuses", "the rows per shard", "1 planned images"],
        ),
        (of_another_run, ["rows of another run stand in it"]),
        (all_benign, ["the counts of predicted_classes are not those of the manifest"]),
        (lambda rows: rows.drop_columns(["certainty"]), ["the columns are not those of schema version"]),
    ],
)
def test_rows_that_do_not_fit_are_told(output: Path, change: Callable[[pa.Table], pa.Table], found: list[str]) -> None:
    other_rows(output, 1, change)
    problems = verify(str(output))
    run = json.loads(manifest_of(output, 1).read_text())["run_id"]
    assert all(problem.startswith(f"run {run}: ") for problem in problems)
    assert all(any(text in problem for problem in problems) for text in found), problems


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"statuses": {"scored": 5}}, "the counts of statuses are not those of the manifest"),
        ({"review": {"rows": 1}}, "the counts of review are not those of the manifest"),
        ({"manifest_version": 0}, "its manifest is of version 0, unknown here"),
        ({"manifest_version": 2}, "its manifest is not of version 2"),
    ],
)
def test_a_manifest_that_does_not_fit_is_told(output: Path, change: dict[str, Any], found: str) -> None:
    changed_manifest(output, 1, lambda manifest: manifest.update(change))
    problem, chain = verify(str(output))
    assert found in problem
    assert "its manifest is not the one that run" in chain


def test_files_that_are_gone_or_unknown_are_told(output: Path) -> None:
    rows = output / "predictions" / f"{manifest_of(output, 1).stem}.parquet"
    copy = rows.with_name("copy.parquet")
    shutil.copy(rows, copy)
    taken_in = "predictions/copy.parquet: of no run, and readers take it for one: move it away"
    assert verify(str(output)) == [taken_in]
    copy.rename(copy.with_stem("0" * 16))
    unknown = f"predictions/{'0' * 16}.parquet: no manifest names it; run the scoring command again"
    assert verify(str(output)) == [unknown]
    copy.with_stem("0" * 16).unlink()
    rows.rename(copy)
    gone, told = verify(str(output))
    assert f"nothing found at {rows}" in gone
    assert told == taken_in


def test_what_others_lay_beside_the_published_files_stops_nothing(output: Path) -> None:
    for name in (
        "predictions/Thumbs.db",
        "predictions/summary.csv",
        "predictions/@eaDir/a.parquet",
        "manifests/a.json",
    ):
        path = output / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xd0\xcf")
    assert verify(str(output)) == []
    assert night(str(output), [shard("/lab/new.jpg")])
    assert verify(str(output)) == []


def test_names_that_look_alike_have_a_row_each_and_survive_a_recovery(output: Path) -> None:
    uris = ["/lab/\udcff.jpg", r"/lab/\udcff.jpg", r"/lab/\\udcff.jpg"]
    manifest = night(str(output), [shard(uri) for uri in sorted(uris)])
    assert manifest
    assert manifest["statuses"] == {"scored": 3}
    (output / "manifests" / f"{manifest['run_id']}.json").unlink()
    assert night(str(output), [shard(uri) for uri in sorted(uris)]) is None
    assert verify(str(output)) == []


def test_a_run_that_is_gone_with_its_manifest_is_told(output: Path) -> None:
    manifest, after = manifest_of(output, 2), manifest_of(output, 3)
    for path in (
        manifest,
        manifest.with_suffix(".inputs.parquet"),
        output / "predictions" / f"{manifest.stem}.parquet",
    ):
        path.unlink()
    told = f"run {manifest.stem}: is gone, though run {after.stem} came after it: restore its files from a copy"
    assert verify(str(output)) == [told]


def test_the_last_run_cannot_go_or_change_unseen_either(output: Path) -> None:
    manifest = manifest_of(output, 3)
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"engine": {}', b'"engine": {"name": "torch"}'))
    told = f"run {manifest.stem}: its manifest is not the one that was published: restore it from a copy"
    assert verify(str(output)) == [told]
    for path in output.glob(f"*/{manifest.stem}*"):
        path.unlink()
    gone = f"run {manifest.stem}: is gone, though it was published as run 3: restore its files from a copy"
    assert verify(str(output)) == [gone]
    # Nor when others came after it.
    night(str(output), [shard("/lab/later.jpg")])
    assert verify(str(output)) == [gone]


def test_a_run_that_died_before_its_entry_in_the_roll_is_entered_by_the_next(output: Path) -> None:
    entries = sorted(output.glob("manifests/published/*"))
    entries[1].unlink()
    run_id = entries[1].name.split("-")[1]
    told = f"run {run_id}: manifests/published/ does not name it: run the scoring command again, which enters it"
    assert verify(str(output)) == [told]
    entries[-1].unlink()
    assert verify(str(output)) == [told], "of the last, nobody knows whether its writer died just now"
    night(str(output), [shard("/lab/later.jpg")])
    assert sorted(output.glob("manifests/published/*"))[:3] == entries


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_published_byte_can_change_unseen(output: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(output.glob("*/*.parquet"))))
    before = path.read_bytes()
    place, flipped = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(before[:place] + bytes([before[place] ^ flipped]) + before[place + 1 :])
    try:
        (problem,) = verify(str(output))
        assert f"{path} is not the file that was published" in problem
    finally:
        path.write_bytes(before)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_is_told_in_a_line(output: Path, data: st.DataObject) -> None:
    path = manifest_of(output, 2)
    before = path.read_bytes()
    place, flipped = data.draw(st.integers(0, len(before) - 3)), data.draw(st.integers(0, 255))
    path.write_bytes(before[:place] + (bytes([before[place] ^ flipped]) + before[place + 1 :] if flipped else b""))
    try:
        problems = verify(str(output))
    except JobError as error:
        problems = [str(error)]
        assert "restore it from a copy" in problems[0]
    finally:
        path.write_bytes(before)
    assert problems or flipped  # a manifest holds no digest of its own: another engine in it, say, is not seen
    assert all("\n" not in problem for problem in problems)


def test_damaged_state_is_told_with_what_to_do(output: Path) -> None:
    ledger = Ledger(str(output))
    shards = [shard("/lab/f.jpg")]
    plan = ledger.plan(shards, IDENTITY)
    work(ledger, plan)
    unit = output / "_work" / "units" / f"{next(plan.units.ids())}.parquet"
    unit.write_bytes(b"PAR1, cut off")
    with pytest.raises(JobError, match=r"units/.* is damaged .*: delete it"):
        ledger.publish(plan)
    unit.unlink()
    assert list(ledger.unfinished(plan)) == list(plan.units)
    inputs = manifest_of(output, 1).with_suffix(".inputs.parquet")
    inputs.write_bytes(inputs.read_bytes()[:-1])
    with pytest.raises(JobError, match=r"inputs.parquet is damaged .*: restore it from a copy"):
        ledger.plan(shards, IDENTITY)


def test_what_the_command_says_and_returns(output: Path) -> None:
    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, str(JOB), "--output", str(output), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert run() == (0, f"all that is published in {output} is as its manifests say\n")
    manifest = manifest_of(output, 3)
    kept = manifest.read_bytes()
    manifest.unlink()
    code, said = run("--clear-leftovers")
    assert code == 1
    assert "no manifest names it; run the scoring command again" in said
    with pytest.raises(JobError, match="died just before its manifest"):
        clear_leftovers(str(output))
    assert len(list(output.glob("_work/*/*.parquet"))) == 3 + 4  # nothing was cleared
    manifest.write_bytes(kept)
    code, said = run("--clear-leftovers")
    assert (code, said.splitlines()[-1]) == (0, "10 leftovers deleted")


def test_an_output_without_runs_is_told(tmp_path: Path) -> None:
    told = f"{tmp_path / 'nothing'}: no run is published here: give the --output of a scoring job that ended"
    assert verify(str(tmp_path / "nothing")) == [told]


def test_an_output_of_each_version_is_kept() -> None:
    """Of the present one too: whoever changes what it means, and does not raise it, fails above or below."""
    versions = {tuple(map(int, re.findall(r"\d+", path.name))) for path in OUTPUTS.iterdir()}
    assert {manifest for manifest, _ in versions} == set(range(2, schema.MANIFEST_VERSION + 1)), KEEP
    assert {columns for _, columns in versions} == set(range(3, schema.SCHEMA_VERSION + 1)), KEEP


@pytest.mark.parametrize("kept", sorted(path.name for path in OUTPUTS.iterdir()))
def test_outputs_of_earlier_versions_are_verified_by_their_own_and_go_on(kept: str, tmp_path: Path) -> None:
    output = str(shutil.copytree(OUTPUTS / kept, tmp_path / kept))
    assert verify(output) == []
    assert len(read.current(output)) == 5
    shards = [shard(uri) for uri in ("/lab/a.jpg", "/lab/c.tar", "/lab/d.jpg")]
    assert missed(State(output), shards).not_scored == {"corrupt_image": 1}
    assert night(output, shards) is None  # nothing is scored anew
    manifest = night(output, [*shards, shard("/lab/e.jpg")])
    assert manifest
    assert manifest["run_number"] == 3
    assert verify(output) == []
    assert len(read.current(output)) == 6
