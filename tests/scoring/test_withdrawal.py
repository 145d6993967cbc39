"""Images that are to be forgotten: nobody reads them any more, no run brings them back, files can be rid of them."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from ledger.nights import missed, night, shard
from ledger.test_nights import LAST_RUN
from scoring.test_scoring import jpeg, tar_of

import jobs.forget as forget_job
from bcd_ray import read, storage
from bcd_ray.errors import ConfigError
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.state import State
from bcd_ray.ledger.verification import verify
from bcd_ray.nights.table import CurrentTable
from bcd_ray.scoring.config import ForgetConfig, ScoreConfig
from bcd_ray.scoring.job import score
from bcd_ray.scoring.targets import Targets
from bcd_ray.scoring.withdrawal import Withdrawal, forget

SHARDS = [shard(uri) for uri in ("/lab/pat-1/a.jpg", "/lab/pat-1/b.jpg", "/lab/pat-2/a.jpg", "/lab/t.tar")]


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Two nights: of the second, a tar that changed."""
    folder = str(tmp_path / "output")
    night(folder, SHARDS)
    night(folder, [*SHARDS[:3], shard("/lab/t.tar", "new")])
    return folder


def held(output: str) -> list[str]:
    """Where the images are whose rows hold, which is the same for whoever asks in SQL."""
    uris = read.current(output, ["image_uri"])["image_uri"].to_pylist()
    by_sql = duckdb.sql(f"SELECT image_uri FROM '{output}/predictions/*.parquet' {LAST_RUN}").fetchall()
    assert sorted(uris) == sorted(uri for (uri,) in by_sql)
    assert verify(output) == []
    return uris


def forgotten(output: str, *images: str, **options: Any) -> Withdrawal:
    return forget(ForgetConfig(output=output, images=images, **options))


def test_a_folder_an_image_of_a_tar_and_an_id(output: str) -> None:
    assert forgotten(output, "/lab/pat-1", dry_run=True) == (None, 2, 2, 0)
    assert len(State(output).manifests) == 2
    done = forgotten(output, "/lab/pat-1", "/lab/t.tar#2.jpg", rows_of_first(output, "/lab/pat-2/a.jpg")["image_id"])
    assert (done.images, done.erased) == (4, 0)
    assert held(output) == ["/lab/t.tar#1.jpg", "/lab/t.tar#3.jpg"]
    assert done.manifest
    assert (done.manifest["run_number"], done.manifest["statuses"]) == (
        3,
        {"corrupt_image": 1, "scored": 1, "withdrawn": 4},
    )
    # The next night finds all as it was, and the exit code counts none of them.
    shards = [*SHARDS[:3], shard("/lab/t.tar", "new")]
    assert night(output, shards) is None
    assert missed(State(output), shards).not_scored == {"corrupt_image": 1}
    assert forgotten(output, "/lab/pat-1").manifest is None  # nothing is left to do
    assert night(output, [*shards, shard("/lab/new.jpg")])
    assert held(output) == ["/lab/new.jpg", "/lab/t.tar#1.jpg", "/lab/t.tar#3.jpg"]


def rows_of_first(output: str, uri: str) -> dict[str, Any]:
    (row,) = (row for row in read.current(output).to_pylist() if row["image_uri"] == uri)
    return dict(row)


@pytest.mark.parametrize("image", ["/lab/pat-3", "/lab/pat", "0" * 32])
def test_a_name_without_rows_is_told_and_nothing_is_withdrawn(output: str, image: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no row is of {image}, and nothing was withdrawn"):
        forgotten(output, "/lab/pat-1", image)
    assert len(State(output).manifests) == 2
    with pytest.raises(ConfigError, match="nothing is named"):
        forgotten(output)
    with pytest.raises(ConfigError, match="no run is published here"):
        forgotten(f"{output}-other", "/lab/pat-1")
    for path, wrong in ((tmp_path / "none", "nothing found at"), (tmp_path, "no file at .*, but a folder")):
        with pytest.raises(ConfigError, match=f"^--list: {wrong}"):
            forget(ForgetConfig(output=output, list=str(path)))


def test_a_place_goes_by_its_own_name_whatever_links_lead_there(tmp_path: Path) -> None:
    (tmp_path / "2026-11-30").mkdir()
    (tmp_path / "latest").symlink_to("2026-11-30")
    given = tuple(f"{tmp_path}/latest{rest}" for rest in ("", "/a.jpg", "/t.tar#x/1.jpg"))
    found = Targets.of(ForgetConfig(output="o", images=given), {}).places
    assert found == {each.replace("latest", "2026-11-30") for each in given}


def test_digests_are_known_in_capitals_too() -> None:
    config = ForgetConfig(output="o", images=("AB" * 32, "ab" * 16))
    assert Targets.of(config, {}) == Targets({"ab" * 32}, {"ab" * 16})


def test_erasing_leaves_nothing_in_any_file_and_what_was_broken_off_is_told(output: str, tmp_path: Path) -> None:
    names = tmp_path / "list.txt"
    names.write_bytes(b"\xef\xbb\xbf# by request of 2026-11-30\r\n/lab/pat-1\r\n\r\n/lab/t.tar#1.jpg\r\n")  # of Windows
    before = {path: path.read_bytes() for path in Path(output, "predictions").iterdir()}
    done = forget(ForgetConfig(output=output, list=str(names), erase=True))
    assert (done.images, done.erased) == (3, 2)
    left = held(output)
    assert left == ["/lab/pat-2/a.jpg", "/lab/t.tar#2.jpg", "/lab/t.tar#3.jpg"]
    for path in Path(output, "predictions").iterdir():
        rows = pq.read_table(path)
        for row in rows.to_pylist():
            if row["image_uri"] not in left:
                assert (row["status"], row["predicted_class"], row["image_sha256"]) == ("withdrawn", None, None)
    assert list(Path(output, "_work").rglob("*.parquet")) == []
    # As if the job had died between its manifest and the files.
    for path, data in before.items():
        path.write_bytes(data)
    problems = verify(output)
    assert len(problems) == 2
    assert all(
        "were to be erased from" in problem and "run jobs/forget.py --erase again" in problem for problem in problems
    )
    again = forget(ForgetConfig(output=output, list=str(names), erase=True))
    assert (again.images, again.erased) == (0, 2)
    assert held(output) == left
    assert forget(ForgetConfig(output=output, list=str(names), erase=True)).manifest is None


def test_rows_of_an_archive_that_moved_go_and_the_images_may_come_back(output: str) -> None:
    assert forgotten(output, "/lab/pat-1", moved=True).images == 2
    assert State(output).withdrawn == set()
    moved = [shard("/other/pat-1/a.jpg"), shard("/other/pat-1/b.jpg"), *SHARDS[2:3], shard("/lab/t.tar", "new")]
    manifest = night(output, moved)
    assert manifest
    assert manifest["statuses"] == {"scored": 2}
    assert sum("pat-1" in uri for uri in held(output)) == 2
    assert night(output, SHARDS[:1])  # it is there again
    assert "/lab/pat-1/a.jpg" in held(output)


def test_a_withdrawal_that_died_is_gone_on_with(output: str) -> None:
    done = forgotten(output, "/lab/pat-1")
    assert done.manifest
    whole = sorted(held(output))
    Path(output, "manifests", f"{done.manifest['run_id']}.json").unlink()
    assert Ledger(output).recover() == [done.manifest["run_id"]]
    assert sorted(held(output)) == whole
    assert forgotten(output, "/lab/pat-1").manifest is None


class _DiedError(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_whichever_write_it_dies_at_the_same_command_ends_it(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Nothing that was named is left in any file then, and nothing else is gone."""
    writes = {name: getattr(storage, name) for name in ("create", "create_from_file", "write_bytes", "delete")}
    for number in count(1):
        again, counted = str(shutil.copytree(output, tmp_path / str(number))), count(1)

        def dying(real: Callable[..., Any], counted: Iterator[int] = counted, number: int = number) -> Any:
            def write(*arguments: Any) -> Any:
                dies = next(counted) == number
                result = None if dies and when == "before" else real(*arguments)
                if dies:
                    raise _DiedError
                return result

            return write

        with monkeypatch.context() as patch:
            for name, real in writes.items():
                patch.setattr(storage, name, dying(real))
            try:
                forgotten(again, "/lab/pat-1", "/lab/t.tar", erase=True)
            except _DiedError:
                pass
            else:
                break
        forgotten(again, "/lab/pat-1", "/lab/t.tar", erase=True)
        assert held(again) == ["/lab/pat-2/a.jpg"]
        for path in Path(again, "predictions").iterdir():
            rows = pq.read_table(path)
            gone = rows.filter(pc.not_equal(rows["image_uri"], "/lab/pat-2/a.jpg"))
            assert set(gone["status"].to_pylist()) <= {"withdrawn"}
    assert number > 10


def test_the_delta_table_drops_them_and_erasing_drops_its_versions(output: str) -> None:
    table = CurrentTable(output)
    table.update()
    assert forget_job.main(ForgetConfig(output=output, images=("/lab/pat-1", "/lab/t.tar#2.jpg"))) == 0
    assert list(table.differences()) == []
    assert forget_job.main(ForgetConfig(output=output, images=("/lab/pat-2",), moved=True)) == 0
    assert list(table.differences()) == []
    left = ["/lab/t.tar#1.jpg", "/lab/t.tar#3.jpg"]
    assert sorted(DeltaTable(table.uri).to_pyarrow_table()["image_uri"].to_pylist()) == left
    assert forget_job.main(ForgetConfig(output=output, images=("/lab/pat-1",), erase=True)) == 0
    assert list(table.differences()) == []
    for version in range(DeltaTable(table.uri).version() + 1):
        uris = DeltaTable(table.uri, version).to_pyarrow_table()["image_uri"].to_pylist()
        assert not any("pat-1" in uri for uri in uris)
    assert verify(output) == []


def test_no_run_takes_a_forgotten_content_up_again(without_ray: None, bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "first.tar").write_bytes(tar_of([("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("3.jpg", b"no image")]))
    (archive / "copy.jpg").write_bytes(jpeg(1))
    config = ScoreConfig(model=str(bundle), input=(str(archive),), output=str(tmp_path / "output"))
    score(config)
    done = forgotten(config.output, f"{archive}/first.tar#1.jpg", hashlib.sha256(jpeg(5)).hexdigest())
    assert done.images == 2  # and the copy
    assert held(config.output) == [f"{archive}/first.tar#2.jpg", f"{archive}/first.tar#3.jpg"]
    shutil.copy(archive / "copy.jpg", archive / "again.jpg")
    (archive / "unseen.jpg").write_bytes(jpeg(5))
    (archive / "first.tar").touch()
    (archive / "new.jpg").write_bytes(jpeg(3))
    outcome = score(config)
    assert outcome.manifest
    assert outcome.manifest["statuses"] == {"scored": 1, "withdrawn": 2}
    assert outcome.missed.not_scored == {"not_an_image": 1}
    score(replace(config, max_pixels=config.max_pixels - 1, supersede=True))
    left = [f"{archive}/first.tar#2.jpg", f"{archive}/first.tar#3.jpg", f"{archive}/new.jpg"]
    assert held(config.output) == left
    digests = pq.read_table(Path(config.output, "predictions"))["image_sha256"]
    assert digests.to_pylist().count(hashlib.sha256(jpeg(5)).hexdigest()) == 0
    assert storage.exists(f"{config.output}/manifests/{outcome.manifest['run_id']}.json")
