"""What a run takes the place of: nothing that is equal, and a whole archive only where that is meant."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scoring.test_scoring import jpeg, tar_of

from bcd_ray import read, storage
from bcd_ray.errors import ConfigError
from bcd_ray.evaluation.config import ExplainConfig
from bcd_ray.evaluation.explaining import explain
from bcd_ray.ledger.state import State
from bcd_ray.ledger.verification import verify
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import look, score
from bcd_ray.storage import local


@pytest.fixture
def nightly(without_ray: None, bundle: Path, tmp_path: Path) -> ScoreConfig:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "monday.tar").write_bytes(tar_of([("1.jpg", jpeg(20)), ("2.jpg", jpeg(21)), ("3.jpg", b"")]))
    return ScoreConfig(model=str(bundle), input=(str(archive),), output=str(tmp_path / "output"))


def listed(folder: str) -> list[storage.StoredObject]:
    return list(storage.list_objects(folder))


def test_other_settings_supersede_an_archive_when_they_are_told_to(nightly: ScoreConfig) -> None:
    score(nightly)
    (Path(nightly.input[0]) / "tuesday.tar").write_bytes(tar_of([("1.jpg", jpeg(22))]))
    others = replace(nightly, max_pixels=nightly.max_pixels + 1)
    before = listed(nightly.output)
    looked = look(replace(others, dry_run=True))
    why = "max_pixels 100000000 -> 100000001"
    assert (looked.reasons, looked.superseded_shards, looked.rescored_shards) == ({"new": 1, why: 1}, 1, 1)
    with pytest.raises(ConfigError, match=rf"1 of 1 published shards would be scored anew \({why}\): give --supersede"):
        score(others)
    assert listed(nightly.output) == before
    manifest = score(replace(others, supersede=True)).manifest
    assert manifest is not None
    assert (manifest["reasons"], manifest["superseded_shards"]) == ({"new": 1, why: 1}, 1)
    # The working state of the night before is gone, and what there is now is this night's.
    assert len(list(Path(nightly.output, "_work/plans").iterdir())) == 1
    assert len(list(Path(nightly.output, "_work/units").iterdir())) == 2


def test_what_only_looks_changed_keeps_its_rows_and_what_only_looks_the_same_does_not(
    nightly: ScoreConfig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(nightly.input[0])
    tar, image = archive / "monday.tar", archive / "loose.jpg"
    image.write_bytes(jpeg(30))
    score(nightly)
    capfd.readouterr()
    whole = tar.read_bytes()
    tar.write_bytes(whole)  # a restore
    os.utime(image)
    for equal in (True, False):  # the second night knows, and reads nothing
        assert score(nightly).manifest is None
        assert ("2 shards were compared and are equal" in capfd.readouterr().err) == equal
    # Other content of the same size under the same time.
    times = image.stat()
    image.write_bytes(jpeg(31).ljust(times.st_size, b"\0")[: times.st_size])
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    manifest = score(nightly).manifest
    assert manifest is not None
    assert manifest["reasons"] == {"other content": 1}
    # The same where a file system keeps no time of change: it is found by digests, where those are asked for.
    monkeypatch.setattr(local, "_etag", lambda found: "tag")
    monkeypatch.setattr(storage, "same_version", lambda recorded, listed: True)
    tar.write_bytes(whole.replace(b"1.jpg", b"4.jpg"))
    assert look(nightly).reasons == {}
    assert look(replace(nightly, compare_digests=True)).reasons == {"other content": 1}


def test_below_a_named_root_an_archive_that_moved_is_the_same_one(
    nightly: ScoreConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, after = Path(nightly.input[0]), tmp_path / "mounted" / "elsewhere"
    (before / "deep").mkdir()
    (before / "deep" / "loose.jpg").write_bytes(jpeg(30))
    config = replace(nightly, root=(f"lab={before}",))
    score(config)
    rows = read.current(nightly.output, ["image_id", "shard_uri"])
    assert rows["shard_uri"].to_pylist() == ["lab:/deep/loose.jpg", *["lab:/monday.tar"] * 3]
    with pytest.raises(ConfigError, match=rf"{before} are published below the root lab: give --root lab={before}"):
        score(nightly)

    after.parent.mkdir()
    shutil.copytree(before, after)
    shutil.rmtree(before)
    moved = replace(config, input=(str(after),), root=(f"lab={after}",))
    assert score(moved).manifest is None
    assert "2 shards were compared and are equal" in capfd.readouterr().err
    with pytest.raises(ConfigError, match=rf"{after} are published below the root lab: give --root lab={after}"):
        score(replace(moved, root=()))
    (after / "deep" / "loose.jpg").write_bytes(jpeg(31))
    assert score(moved).manifest
    now = read.current(nightly.output, ["image_id", "shard_uri"])
    assert now.equals(rows)
    assert verify(nightly.output) == []
    assert State(nightly.output).roots == {"lab": str(after)}
    explained = explain(ExplainConfig(model=nightly.model, scores=nightly.output, output=str(tmp_path / "maps")))
    assert explained["left_out"] == {}
    assert {image["image_uri"].partition("#")[0] for image in explained["images"]} <= set(rows["shard_uri"].to_pylist())


def test_a_root_comes_first_or_not_at_all(nightly: ScoreConfig) -> None:
    archive = nightly.input[0]
    for root, said in (
        ("lab", "write NAME=URI"),
        (f"s3={archive}", "write NAME=URI"),
        (f"lab={archive}/monday.tar", "no --input holds a shard below it"),
    ):
        with pytest.raises(ConfigError, match=said):
            score(replace(nightly, root=(root,)))
    with pytest.raises(ConfigError, match="given twice"):
        replace(nightly, root=(f"lab={archive}", f"other={archive}"))
    score(nightly)
    with pytest.raises(ConfigError, match=r"monday\.tar is published under this URI, and all would stand twice"):
        score(replace(nightly, root=(f"lab={archive}",)))
