"""The doctor: a line a check, ok or what to do, and the exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bcd_ray import storage
from bcd_ray.errors import EXIT_FAILED, EXIT_OK
from bcd_ray.nights import doctor

CHECKS = ["versions", "machine", "shared memory", "temporary room", "open files", "input", "output", "metrics", "model"]
CHECKS += ["ray", "engine", "speed"]


@pytest.fixture
def examined(
    ray_cluster: None,
    bundle: Path,
    synthetic_archive: Path,
    s3: str,
    tmp_path: Path,
    in_process: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, dict[str, dict[str, Any]]]]:
    """Runs the doctor, and gives its exit code and what it says of each check."""
    monkeypatch.setattr(doctor, "_PROBE_IMAGES_PER_CLASS", 2)
    monkeypatch.setattr(doctor, "_LEAST_ROOM", 1)

    def examine(**options: object) -> tuple[int, dict[str, dict[str, Any]]]:
        given = {"model": bundle, "input": synthetic_archive, "output": f"{s3}/{tmp_path.name}/scores", **options}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        ended = in_process("doctor", *words, "--json")
        return ended.code, {check["name"]: check for check in json.loads(ended.out)}

    return examine


def test_all_is_well(examined: Callable[..., Any], s3: str, tmp_path: Path) -> None:
    code, found = examined()
    assert list(found) == CHECKS
    assert [check["words"] for check in found.values() if not check["ok"]] == []
    assert code == EXIT_OK
    assert "72 shards and loose images" in found["input"]["words"]
    assert "some 72 images of the input take 0:0" in found["speed"]["words"]
    assert storage.list_names(f"{s3}/{tmp_path.name}/scores") == [], "it leaves nothing behind"


def test_what_fails_is_told_with_what_to_do_and_the_rest_goes_on(
    examined: Callable[..., Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "model")
    (tmp_path / "model/model.json").write_text("{}")
    monkeypatch.setattr(doctor, "_LEAST_FILES", 1 << 40)
    code, found = examined(
        model=tmp_path / "model",
        input=tmp_path / "none",
        output="s3://nobucket/scores",
        metrics=tmp_path / "no/night.prom",
    )
    assert code == EXIT_FAILED
    failed = {name: check["words"] for name, check in found.items() if not check["ok"]}
    assert failed.keys() == {"open files", "input", "output", "metrics", "model", "engine", "speed"}
    assert failed["metrics"].endswith(
        "/no/night.prom: No such file or directory: make its folder, which this user may write to"
    )
    assert "`ulimit -n 65536`" in failed["open files"]
    assert failed["input"] == f"--input: nothing found at {tmp_path}/none: check the path"
    assert "cannot write to the output: nothing found at s3://nobucket" in failed["output"]
    assert "model.json does not match model.sha256" in failed["model"]


def test_a_store_whose_clock_is_off_is_told(examined: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    modified_at = storage.modified_at
    monkeypatch.setattr(storage, "modified_at", lambda uri: modified_at(uri) + 120)
    _, found = examined()
    assert not found["output"]["ok"]
    assert "off: set the clocks (NTP)" in found["output"]["words"]


def test_packed_shards_are_counted_by_the_first(tmp_path: Path, synthetic_archive: Path) -> None:
    shutil.make_archive(str(tmp_path / "a"), "tar", synthetic_archive / "Benign")
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    shutil.copy(next(synthetic_archive.glob("*/*.jpg")), tmp_path)
    shards = doctor.list_archive(str(tmp_path)).shards
    assert doctor._images(shards, doctor.Limits()) == 2 * 18 + 1


def test_lines_for_a_person(
    in_process: Callable[..., Any], tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda config: [doctor.Check("a", True, "b"), doctor.Check("c", False, "d")])
    ended = in_process("doctor", "--model", tmp_path, "--input", tmp_path, "--output", tmp_path)
    assert (ended.code, ended.out.splitlines()) == (EXIT_FAILED, ["ok    a               b", "FAIL  c               d"])
