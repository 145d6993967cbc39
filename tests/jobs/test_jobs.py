"""The command lines: exit codes, one-line errors that name the remedy, and what training and packing promise."""

import errno
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import IMAGES_PER_CLASS
from same_model import AS_BUNDLE, assert_same_model, metrics_of

from bcd_ray import runtime, storage
from bcd_ray.archives.config import PackConfig
from bcd_ray.archives.images import Limits
from bcd_ray.archives.packing import pack
from bcd_ray.archives.shards import read_shard
from bcd_ray.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_UNSCORED
from bcd_ray.labels import CLASSES
from bcd_ray.learning.audit import SHORTCUTS
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.embedding import Embeddings
from bcd_ray.learning.head import FitConfig, Parts, fit_head
from bcd_ray.learning.job import train
from bcd_ray.learning.spoiling import SPOILT
from bcd_ray.model.bundle import load_bundle
from bcd_ray.scoring import job as scoring_job

ROOT = Path(__file__).parents[2]
# All that a good run may say on standard error.
SAID = re.compile(
    r"(embedding|scoring|packing)  [\d,]+(/[\d,]+)? (images|views)(  [\d,]+/[\d,]+ units)?  \d+ s"
    r"(  \d+/s)?(  [\d:]+ left)?"
    r"|run [0-9a-f]{16}: [\d,]+ of [\d,]+ units done before; engine openvino: the cluster has no GPU"
    r"|[\d,]+ files that are (neither shards nor images|no images) are left out: .*"
    r"|embedding  [\d,]+ of [\d,]+ (images|views) are in the cache"
    r"|\d+ training and \d+ test images, \d+ in neither part; .*"
    r"|fitting the head in this process .*"
)


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """Its one-line error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err
        return line.removeprefix("error: ")


Job = Callable[..., Ended]


def with_its_own_ray() -> dict[str, str]:
    """An environment with nothing set for Ray by these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return environment | {"RAY_ADDRESS": "local"}  # not a cluster that someone else runs on this machine


Process = subprocess.Popen[str]


def begin(job: str, *arguments: object, **variables: str) -> Process:
    """A job as a user runs it: its own process, its own Ray unless `variables` of its environment say otherwise."""
    environment = with_its_own_ray() | variables
    command = [sys.executable, f"jobs/{job}.py", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def join(process: Process) -> Ended:
    """How it ended."""
    said = process.communicate(timeout=300)
    return Ended(process.returncode, *said)


def as_process(job: str, *arguments: object, **variables: str) -> Ended:
    """Run a job to its end, as `begin` does."""
    return join(begin(job, *arguments, **variables))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    """Runs a job's file in this process: the same command line and exit code, ten seconds sooner."""

    def run(job: str, *arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, said.out, said.err)

    return run


@pytest.fixture
def small_archive(synthetic_archive: Path, tmp_path: Path) -> Path:
    """Six smears of each class in a folder of its own, to be changed."""
    folder = tmp_path / "smears"
    for source in sorted(synthetic_archive.glob("*/synthetic-000[1-6].jpg")):
        (folder / source.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / source.parent.name)
    return folder


# Processes of their own


@pytest.fixture(scope="module")
def without_token(
    ray_cluster: None, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A job that is to join a cluster whose token it has not: Ray tries for 20 s, while other processes are tested."""
    import ray

    options = ("--input", synthetic_archive, "--output", tmp_path_factory.mktemp("packed") / "shards")
    with begin("pack", *options, RAY_ADDRESS=ray.get_runtime_context().gcs_address) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def trained(
    without_token: Process, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    """The command of the shared bundle again, in a process and a Ray session of its own."""
    output = tmp_path_factory.mktemp("trained") / "model"
    return as_process("train", "--data", synthetic_archive, "--output", output, *AS_BUNDLE), output


def assert_says_no_more_than_progress(ended: Ended) -> None:
    lines = ended.err.splitlines()
    assert lines
    assert [line for line in lines if not SAID.fullmatch(line)] == []


def test_train_as_a_process(trained: tuple[Ended, Path]) -> None:
    ended, output = trained
    assert ended.code == EXIT_OK
    assert_says_no_more_than_progress(ended)
    assert re.match(r"20 images: accuracy \d+\.\d%, macro precision", ended.out)
    assert ended.out.endswith(f"model bundle written to {output}\n")
    names = storage.list_names(str(output))
    assert {"model.safetensors", "model.json", "model.sha256", "MODEL_CARD.md", "metrics.json"} <= set(names)
    figures = ("confusion_matrix", "gallery", "training_curves")
    assert {f"figures/{name}.png" for name in figures} <= set(names)
    check = subprocess.run(["sha256sum", "-c", "model.sha256"], cwd=output, capture_output=True, text=True, check=True)
    assert check.stdout == "model.safetensors: OK\nmodel.json: OK\n"


def test_pack_and_score(bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job) -> None:
    packed = in_process("pack", "--input", small_archive, "--output", tmp_path / "shards", "--images-per-shard", 10)
    assert packed.code == EXIT_OK
    assert packed.out == f"24 images packed into 3 shards in {tmp_path / 'shards'}\n"
    assert_says_no_more_than_progress(packed)

    scores = ("--model", bundle, "--output", tmp_path / "scores", "--input", tmp_path / "shards")
    scored = as_process("score", *scores, "--small-run-bytes", 0)  # with a Ray of its own
    assert scored.code == EXIT_OK
    assert "24 images scored, 0 could not be scored" in scored.out
    assert_says_no_more_than_progress(scored)
    (predictions,) = (tmp_path / "scores/predictions").iterdir()
    assert f"predictions  {predictions}\n" in scored.out
    assert f"manifest     {tmp_path / 'scores/manifests' / predictions.stem}.json\n" in scored.out


def rows_of(output: Path) -> pd.DataFrame:
    """What was published, without what differs from run to run."""
    return pd.read_parquet(output / "predictions").drop(columns=["run_id", "scored_at"])


def test_few_images_are_scored_without_ray_and_alike(
    bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job
) -> None:
    options = ("--model", bundle, "--input", small_archive, "--output")
    ended = as_process("score", *options, tmp_path / "here")
    assert ended.code == EXIT_OK
    assert "too little to start Ray for" in ended.err
    with_ray = in_process("score", *options, tmp_path / "ray")
    assert "too little" not in with_ray.err
    pd.testing.assert_frame_equal(rows_of(tmp_path / "here"), rows_of(tmp_path / "ray"))


def test_what_a_job_of_few_images_died_of_is_left_to_ray(
    without_ray: None,
    bundle: Path,
    small_archive: Path,
    tmp_path: Path,
    in_process: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(work: object) -> None:
        raise SystemExit(-9)

    options = ("--model", bundle, "--input", small_archive, "--output", tmp_path / "scores")
    with monkeypatch.context() as patch:
        patch.setattr(scoring_job, "here", die)
        assert in_process("score", *options).code == -9
    again = in_process("score", *options)
    assert again.code == EXIT_OK
    assert "0 of 1 units done before" in again.err
    assert "too little" not in again.err
    assert len(rows_of(tmp_path / "scores")) == 24


def test_a_cluster_that_dies_is_told_in_a_line(bundle: Path, synthetic_archive: Path, tmp_path: Path) -> None:
    options = ("--model", bundle, "--input", synthetic_archive, "--output", tmp_path / "scores", "--small-run-bytes", 0)
    command = [sys.executable, "jobs/score.py", *map(str, options)]
    with subprocess.Popen(command, cwd=ROOT, env=with_its_own_ray(), stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr
        told = [""]
        while ": 0 of 1 units done before" not in told[-1]:
            told.append(job.stderr.readline())
            assert told[-1], "".join(told)
        subprocess.run(["pkill", "-KILL", "-P", str(job.pid), "raylet"], check=True)
        said = job.stderr.read()
    assert job.returncode == EXIT_FAILED
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [runtime.LAST_WORDS]


def test_cores_that_another_job_holds_are_waited_for_aloud(
    bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Holder:
        def holds(self) -> bool:
            return True

    holder = ray.remote(num_cpus=1)(Holder).remote()
    assert ray.get(holder.holds.remote())
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        ray.kill(holder)

    monkeypatch.setattr(runtime, "say", say)
    ended = in_process("score", "--model", bundle, "--input", small_archive, "--output", tmp_path / "scores")
    assert [line.partition(";")[0] for line in said] == ["waiting for the cluster: needs 1.5 CPU, 1 of 2 free"]
    assert "24/24 images" in ended.err
    assert ended.code == EXIT_OK


def test_a_cluster_that_wants_a_token_says_so(without_token: Process) -> None:
    refused = join(without_token)
    assert refused.code == EXIT_CONFIG
    assert refused.error().startswith("this Ray wants another token, or any: set RAY_AUTH_MODE=token")


def test_a_cluster_that_is_not_there(
    bundle: Path, synthetic_archive: Path, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    options = ("--model", bundle, "--input", synthetic_archive, "--output", tmp_path / "scores")
    ended = as_process("score", *options, RAY_ADDRESS=address)
    assert ended.code == EXIT_CONFIG
    assert ended.error().startswith(f"RAY_ADDRESS={address}: no Ray there (")
    assert not (tmp_path / "scores/manifests").exists()


def test_wrong_usage(tmp_path: Path, in_process: Job) -> None:
    unknown = in_process("score", "--model", "m", "--input", "i", "--output", "o", "--no-such-option", "1")
    assert unknown.code == EXIT_CONFIG
    assert "--no-such-option" in unknown.err
    missing = in_process("train", "--data", tmp_path / "none", "--output", tmp_path / "model")
    assert missing.code == EXIT_CONFIG
    assert missing.err == f"error: --data: nothing found at {tmp_path}/none: check the path\n"
    assert missing.out == ""


def test_every_option_has_its_help(in_process: Job) -> None:
    text = " ".join(in_process("train", "--help").out.replace("│", " ").split())
    assert "Folder of labelled images, one folder per class" in text
    assert "the same seed gives the same metrics" in text


# Exit codes and errors


def test_evaluate(ray_cluster: None, bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job) -> None:
    ended = in_process("evaluate", "--model", bundle, "--data", small_archive, "--output", tmp_path / "evaluated")
    assert ended.code == EXIT_OK
    assert ended.out.startswith("24 images: accuracy")
    assert ended.out.endswith(f"metrics and figures written to {tmp_path / 'evaluated'}\n")
    assert_says_no_more_than_progress(ended)
    assert {"metrics.json", "figures/confusion_matrix.png"} <= set(storage.list_names(str(tmp_path / "evaluated")))


def test_evaluate_on_spoilt_images(
    ray_cluster: None, bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job
) -> None:
    output = tmp_path / "evaluated"
    ended = in_process("evaluate", "--model", bundle, "--data", small_archive, "--output", output, "--spoil")
    assert ended.code == EXIT_OK
    spoilt = json.loads((output / "metrics.json").read_text())["spoilt"]
    assert set(spoilt) == {*SPOILT, "beyond_use"}
    assert "Whether spoilt images are noticed" in (output / "report.html").read_text()
    # Nobody could judge these; the limits come from training images, which look like what was spoilt.
    assert spoilt["underexposed_0.2"]["review"] == spoilt["blurred_8"]["review"] == 1
    assert spoilt["beyond_use"]["ways"] == sum(each.get("accuracy", 1) < 0.8 for each in spoilt.values())


def test_unscored_images_and_how_many_may_be(
    without_ray: None, bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job
) -> None:
    (small_archive / "Pre" / "empty.jpg").touch()
    (small_archive / "Pro" / "text.jpg").write_text("no image")
    (small_archive / "notes.txt").write_text("no shard")
    command = ("--model", bundle, "--input", small_archive, "--output")
    ended = in_process("score", *command, tmp_path / "strict", "--max-unscored", 1)
    assert ended.code == EXIT_UNSCORED
    assert "24 images scored, 2 could not be scored" in ended.out
    assert re.search(r"^ +1  empty_file$", ended.out, re.MULTILINE)
    assert "1 files that are neither shards nor images are left out: 1 .txt" in ended.err
    assert len(list((tmp_path / "strict/predictions").iterdir())) == 1  # published all the same

    again = in_process("score", *command, tmp_path / "strict")
    assert again.code == EXIT_UNSCORED  # of what holds, not of what this run did
    first, counted = again.out.splitlines()[:2]
    assert first == f"nothing to do: all 26 shards are published in {tmp_path / 'strict'}"
    assert counted == "2 images of these inputs are not scored as they are now"

    assert in_process("score", *command, tmp_path / "lenient", "--max-unscored", 2).code == EXIT_OK


@pytest.mark.parametrize("job", ["train", "evaluate", "explain", "pack", "score"])
def test_what_is_left_out_counts_against_a_limit_in_every_job(
    bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    (small_archive / "film.mp4").write_bytes(b"no image")
    (small_archive / "labels.csv").write_text("name,label\n" * 100)
    closed, scandir = small_archive / "Pre/closed", os.scandir
    closed.mkdir()

    def refusing(path: Any) -> Any:
        if path == str(closed):  # the tests may run as root, who may list all
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    options: dict[str, tuple[object, ...]] = {
        "train": ("--data", small_archive, "--epochs", 1, "--augmented-views", 0, "--no-audit", *AS_BUNDLE[-2:]),
        "evaluate": ("--model", bundle, "--data", small_archive),
        "explain": ("--model", bundle, "--input", small_archive, "--limit", 1),
        "pack": ("--input", small_archive),
        "score": ("--model", bundle, "--input", small_archive),
    }
    ended = in_process(job, *options[job], "--output", tmp_path / "output", "--max-left-out", 1)
    assert ended.code == EXIT_UNSCORED, ended
    assert "1 .mp4, 1 folders without permission, 1 .csv" in ended.out + ended.err
    assert f"{closed} is left out with all that is in it (Permission denied): let this user read it" in ended.err


def test_the_audit_stands_beside_the_model_wherever_its_figures_do(trained: tuple[Ended, Path]) -> None:
    ended, output = trained
    found = json.loads((output / "metrics.json").read_text())["shortcuts"]
    assert set(found) == set(SHORTCUTS)
    figure = found["corners"]["balanced_accuracy"]
    assert 0 <= figure["value"] <= 1
    assert figure["interval"] is None  # one block a class
    for text in (ended.out, *((output / name).read_text() for name in ("MODEL_CARD.md", "report.html"))):
        assert f"corners {100 * figure['value']:.1f} (no interval)" in text


def test_without_the_audit_the_model_is_the_same(
    small_archive: Path, tmp_path: Path, in_process: Job, ray_cluster: None
) -> None:
    models = []
    for option in ("--audit", "--no-audit"):
        output = tmp_path / option
        ended = in_process("train", "--data", small_archive, "--output", output, *AS_BUNDLE, option)
        models.append((output / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    assert "shortcuts: Not measured for this model" in ended.out
    assert "shortcuts" not in json.loads((output / "metrics.json").read_text())


def test_a_job_that_fails(small_archive: Path, tmp_path: Path, in_process: Job, ray_cluster: None) -> None:
    for path in small_archive.rglob("*.jpg"):
        path.write_bytes(b"no image")
    ended = in_process("train", "--data", small_archive, "--output", tmp_path / "model")
    assert ended.code == EXIT_FAILED
    assert ended.error().startswith("too few readable images to split")
    assert "not_an_image" in ended.error()
    assert not (tmp_path / "model/model.sha256").exists()


def test_a_worker_that_fails(bundle: Path, small_archive: Path, tmp_path: Path, in_process: Job) -> None:
    (tmp_path / "scores/_work").mkdir(parents=True)
    (tmp_path / "scores/_work/units").touch()  # where the workers need a folder
    ended = in_process("score", "--model", bundle, "--input", small_archive, "--output", tmp_path / "scores")
    assert ended.code == EXIT_FAILED
    assert re.search(r"scores/_work/units.*File exists", ended.error())
    assert not (tmp_path / "scores/predictions").exists()


def test_storage_that_fails(s3: str, in_process: Job, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.sha256").symlink_to("/proc/self/mem")  # of which the system cannot read the first bytes
    ended = in_process("score", "--model", tmp_path / "model", "--input", "i", "--output", tmp_path / "o")
    assert ended.code == EXIT_FAILED
    assert f"{tmp_path}/model/model.sha256: Input/output error" in ended.error()


def test_a_path_that_leads_nowhere(in_process: Job, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    ended = in_process("score", "--model", tmp_path / "loop", "--input", "i", "--output", tmp_path / "o")
    assert ended.code == EXIT_CONFIG
    assert "Too many levels of symbolic links): check the path" in ended.error()


@dataclass(frozen=True)
class Places:
    """Where the commands of `MISTAKES` point to."""

    bundle: Path
    smears: Path
    tmp: Path


def tampered(places: Places) -> Path:
    copy = places.tmp / "tampered"
    shutil.copytree(places.bundle, copy)
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    return copy


def of_other_classes(places: Places) -> Path:
    import hashlib

    copy = places.tmp / "other"
    shutil.copytree(places.bundle, copy)
    info = json.loads((copy / "model.json").read_text()) | {"classes": ["cat", "dog"]}
    (copy / "model.json").write_text(json.dumps(info))
    digests = {name: hashlib.sha256((copy / name).read_bytes()) for name in ("model.safetensors", "model.json")}
    (copy / "model.sha256").write_text("".join(f"{digest.hexdigest()}  {name}\n" for name, digest in digests.items()))
    return copy


def in_part(places: Places) -> Path:
    copy = places.tmp / "part"
    shutil.copytree(places.bundle, copy)
    (copy / "model.safetensors").unlink()
    return copy


def empty(places: Places) -> Path:
    (places.tmp / "empty").mkdir()
    return places.tmp / "empty"


def without_images(places: Places) -> Path:
    (empty(places) / "readme.txt").write_text("no image")
    return places.tmp / "empty"


def one_class(places: Places) -> Path:
    return places.smears / "Benign"


def a_file(places: Places) -> Path:
    (places.tmp / "file").write_text("a file")
    return places.tmp / "file"


def inside(places: Places) -> Path:
    return places.smears / "scores"


def around(places: Places) -> Path:
    return places.smears.parent


def below_a_file(places: Places) -> Path:
    return a_file(places) / "below"


Option = str | Callable[[Places], Path]
# Job, the options that differ from a good command, and the words with which the error tells what to do.
MISTAKES: list[tuple[str, dict[str, Option], str]] = [
    ("score", {"--input": "/no/such/folder"}, r"--input: nothing found at /no/such/folder: check the path"),
    ("score", {"--input": empty}, r"--input: nothing found at .*/empty: check the path"),
    ("score", {"--input": without_images}, r"--input .*/empty: holds no tar, zip or Parquet file, and no image"),
    ("score", {"--input": "s3://no-such-bucket/a"}, r"nothing found at s3://no-such-bucket/a/? .*check bucket"),
    ("score", {"--input": "hdfs://a/b"}, r"only local paths and s3://"),
    ("score", {"--input": ""}, r"an empty path was given"),
    ("score", {"--model": "/no/such/model"}, r"/no/such/model is no model bundle .*give the --output of jobs/train"),
    ("score", {"--model": empty}, r"is no model bundle .*give the --output of jobs/train"),
    ("score", {"--model": a_file}, r"is no model bundle .*give the --output of jobs/train"),
    ("score", {"--model": in_part}, r"is no model bundle .*model\.safetensors"),
    ("score", {"--model": tampered}, r"model\.safetensors does not match model\.sha256.*copy the bundle again"),
    ("score", {"--model": of_other_classes}, r"written by another release of bcd_ray"),
    ("score", {"--output": below_a_file}, r"cannot write to the output: .*/file/below"),
    ("score", {"--output": "s3://no-such-bucket/a"}, r"cannot write to the output: .*no-such-bucket.*check bucket"),
    ("score", {"--output": inside}, r"--output .*/scores lies inside --input .*choose another folder"),
    ("score", {"--output": around}, r"--input .* lies inside --output .*choose another folder"),
    ("score", {"--max-unscored": "-1"}, r"--max-unscored must be at least 0"),
    ("score", {"--max-pixels": "0"}, r"--max-pixels must be at least 1"),
    ("train", {"--data": "/no/such/folder"}, r"--data: nothing found at /no/such/folder: check the path"),
    ("train", {"--data": one_class}, r"fewer than two classes.*: it needs a folder per class, such as Benign"),
    ("explain", {"--output": inside}, r"--output .*/scores lies inside --input .*choose another folder"),
    ("pack", {"--output": inside}, r"--output .*/scores lies inside --input .*choose another folder"),
    ("train", {"--output": below_a_file}, r"cannot write to the output"),
    ("train", {"--output": lambda places: places.bundle}, r"holds results already: choose another folder"),
    ("score", {"--max-decode-seconds": "nan"}, r"--max-decode-seconds must be at least 1, and finite"),
    ("score", {"--max-undelivered": "nan"}, r"--max-undelivered must be at least 0, and finite"),
    ("train", {"--learning-rate": "inf"}, r"--learning-rate must be above 0, and finite"),
    ("train", {"--epochs": "0"}, r"--epochs must be at least 1"),
    ("train", {"--learning-rate": "0"}, r"--learning-rate must be above 0"),
    ("train", {"--label-smoothing": "1"}, r"--label-smoothing must be at least 0 and below 1"),
    (
        "train",
        {"--split": "grouped"},
        r"--split grouped needs --group-pattern or --group-table.*patient, slide",
    ),
    ("train", {"--block": "0"}, r"--block must be at least 1"),
    ("train", {"--learning-rate": "nan"}, r"--learning-rate must be above 0"),
    ("train", {"--test-fraction": "1"}, r"--test-fraction must be between 0 and 1"),
    ("train", {"--workers": "-1"}, r"--workers must be at least 0"),
    ("evaluate", {"--model": empty}, r"is no model bundle"),
    ("evaluate", {"--data": empty}, r"--data: nothing found"),
    ("evaluate", {"--output": lambda places: places.bundle}, r"holds results already"),
    ("evaluate", {"--output": below_a_file}, r"cannot write to the output"),
    ("pack", {"--input": "/no/such/folder"}, r"--input: nothing found at /no/such/folder: check the path"),
    ("pack", {"--input": without_images}, r"is no folder of JPEG, PNG, TIFF or BMP files"),
    ("pack", {"--output": lambda places: places.bundle}, r"is not empty: choose a new folder"),
    ("pack", {"--output": below_a_file}, r"cannot write to the output"),
    ("pack", {"--images-per-shard": "0"}, r"--images-per-shard must be at least 1"),
]


@pytest.mark.parametrize(("job", "mistake", "remedy"), MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_line_that_says_what_to_do(
    s3: str,
    bundle: Path,
    small_archive: Path,
    tmp_path: Path,
    in_process: Job,
    job: str,
    mistake: dict[str, Option],
    remedy: str,
) -> None:
    places = Places(bundle, small_archive, tmp_path)
    good: dict[str, dict[str, Option]] = {
        "score": {"--model": str(bundle), "--input": str(small_archive), "--output": str(tmp_path / "output")},
        "train": {"--data": str(small_archive), "--output": str(tmp_path / "output")},
        "evaluate": {"--model": str(bundle), "--data": str(small_archive), "--output": str(tmp_path / "output")},
        "pack": {"--input": str(small_archive), "--output": str(tmp_path / "output")},
        "explain": {"--model": str(bundle), "--input": str(small_archive), "--output": str(tmp_path / "output")},
    }
    options = good[job] | mistake
    given = {name: value if isinstance(value, str) else str(value(places)) for name, value in options.items()}
    ended = in_process(job, *(word for pair in given.items() for word in pair))
    assert ended.code == EXIT_CONFIG
    assert re.search(remedy, ended.error())
    assert ended.err.count("\n") == 1
    assert ended.out == ""
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").iterdir())


# Training


def test_the_same_seed_gives_the_same_model(
    trained: tuple[Ended, Path], bundle: Path, embeddings: Embeddings, tmp_path: Path
) -> None:
    _, output = trained
    assert_same_model(output, bundle, embeddings)
    assert load_bundle(str(output)).info["data_fingerprint"] == load_bundle(str(bundle)).info["data_fingerprint"]


def test_every_row_is_trained_on_with_any_number_of_workers_and_no_file_is_left(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Row i lights up input i alone, so the weights of an input move only if its row was seen. 74 rows in batches
    # of 8 on four workers leave a remainder, with which two of them have nothing to do.
    views, rows = 2, 37
    train_rows = np.zeros((views, rows, 1280), np.float32)
    for view in range(views):
        train_rows[view, np.arange(rows), view * rows + np.arange(rows)] = 1
    labels = np.arange(rows) % len(CLASSES)
    config = FitConfig(epochs=1, learning_rate=0.01, label_smoothing=0.1, batch_size=8, workers=0, seed=3)
    parts = Parts(train_rows, labels, train_rows[0], labels)
    alone, by_many = (fit_head(parts, replace(config, workers=workers)) for workers in (0, 50))
    assert "the cluster has cores for 4 of 50 workers" in capsys.readouterr().err

    for fitted in (alone, by_many):
        moved = np.abs(fitted.weight).max(axis=0)  # from zero
        assert (moved[: views * rows] > 1e-4).all()
        assert (moved[views * rows :] == 0).all()
        np.testing.assert_allclose(fitted.logits(train_rows[0]), alone.logits(train_rows[0]), atol=1e-3)
        assert len(fitted.history) == 1
        assert fitted.history[0] == pytest.approx(alone.history[0], rel=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_split_and_metrics_cover_all_images(bundle: Path) -> None:
    metrics = metrics_of(bundle)
    split = metrics["split"]
    assert len(split["train"]) + len(split["test"]) == 4 * IMAGES_PER_CLASS
    assert not set(split["train"]) & set(split["test"])
    assert metrics["images"] == len(split["test"]) == sum(map(sum, metrics["confusion_matrix"]))
    assert metrics["counts"]["usable"] == 4 * IMAGES_PER_CLASS
    assert metrics["unreadable"] == {}
    assert [row["epoch"] for row in metrics["history"]] == [1, 2, 3, 4, 5]
    card = (bundle / "MODEL_CARD.md").read_text()
    assert f"accuracy {metrics['accuracy']:.1%}" in card


@pytest.mark.parametrize("split", ["blocked", "forward", "grouped"])
def test_every_protocol_trains(bundle: Path, synthetic_archive: Path, tmp_path: Path, split: Any) -> None:
    options = {"block": 3, "embargo": 1, "augmented_views": 0, "epochs": 1, "group_pattern": r"\d\.jpg"}
    options |= {"representation": "field"}
    config = TrainConfig(str(synthetic_archive), str(tmp_path / "model"), split=split, **options)
    metrics = train(config)
    parts = {part: set(metrics["split"][part]) for part in ("train", "test")}
    assert not parts["train"] & parts["test"]
    counted = len(parts["train"]) + len(parts["test"]) + metrics["counts"]["left_out"]
    assert counted == metrics["counts"]["usable"] == 4 * IMAGES_PER_CLASS
    if split == "grouped":
        digits = {part: {name[-5] for name in names} for part, names in parts.items()}
        assert not digits["train"] & digits["test"]
    else:
        assert metrics["counts"]["left_out"]
        assert "not of patients" in metrics["protocol"] or "not a split of patients" in metrics["protocol"]
    low, high = metrics["with_intervals"]["accuracy"]["interval"] or (0, 1)
    assert low <= metrics["accuracy"] <= high
    assert metrics["protocol"] in (tmp_path / "model/MODEL_CARD.md").read_text()


def test_images_that_cannot_be_read_are_listed(
    small_archive: Path, tmp_path: Path, in_process: Job, ray_cluster: None
) -> None:
    (small_archive / "Early/empty.jpg").touch()
    (small_archive / "Pre/gone.jpg").symlink_to(tmp_path / "elsewhere")
    (small_archive / "Pro/text.png").write_text("no image")
    latin = os.fsdecode(os.fsencode(small_archive) + b"/Pro/caf\xe9.jpg")  # a name from a system without UTF-8
    shutil.copy(small_archive / "Pro/synthetic-0001.jpg", latin)
    command = ("--data", small_archive, "--output", tmp_path / "model", "--epochs", 1, "--augmented-views", 0)
    ended = in_process("train", *command)
    assert ended.code == EXIT_UNSCORED
    assert "3 images could not be used: see metrics.json" in ended.out
    metrics = metrics_of(tmp_path / "model")
    assert metrics["unreadable"].keys() == {"Early/empty.jpg", "Pre/gone.jpg", "Pro/text.png"}
    assert "empty_file" in metrics["unreadable"]["Early/empty.jpg"]
    assert "not_an_image" in metrics["unreadable"]["Pro/text.png"]
    assert metrics["counts"]["images"] == 28
    assert metrics["counts"]["usable"] == 25
    assert metrics["counts"]["byte_identical_copies"] == 1


# Packing

# Names that are hard on WebDataset, which cuts a member's key at the first dot of the file's name.
HARD_NAMES = ("a.b.jpg", "a_b.jpg", "a_b.png", "a_b-2.jpg", "v1.0/x.jpg", "v1.0/x.y.JPG", "Pre/x..jpg", "Pre/ü é.tif")
_WEBDATASET_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


@pytest.fixture
def loose(small_archive: Path) -> dict[str, bytes]:
    """The small archive with hard names added: each image's bytes by its name."""
    for number, name in enumerate(HARD_NAMES):
        (small_archive / name).parent.mkdir(parents=True, exist_ok=True)
        (small_archive / name).write_bytes(f"image {number}".encode())
    (small_archive / "notes.txt").write_text("no image")
    return {
        str(p.relative_to(small_archive)): p.read_bytes()
        for p in small_archive.rglob("*.*")
        if p.suffix != ".txt" and p.is_file()
    }


def packed_bytes(source: Path, output: Path, **options: Any) -> dict[str, bytes]:
    pack(PackConfig(input=str(source), output=str(output), **options))
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_packing_twice_gives_the_same_bytes(
    ray_cluster: None, loose: dict[str, bytes], small_archive: Path, tmp_path: Path, kind: str
) -> None:
    first = packed_bytes(small_archive, tmp_path / "first", format=kind, images_per_shard=10)
    assert list(first) == [f"shard-00000{number}.{kind}" for number in range(4)]
    os.utime(small_archive / "Pre/synthetic-0001.jpg", (0, 0))
    assert packed_bytes(small_archive, tmp_path / "second", format=kind, images_per_shard=10) == first


def test_a_tar_is_what_webdataset_expects(
    ray_cluster: None, loose: dict[str, bytes], small_archive: Path, tmp_path: Path
) -> None:
    packed_bytes(small_archive, tmp_path / "shards", images_per_shard=10)
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "shards").iterdir()):
        previous = None
        with tarfile.open(path) as tar:
            for member in tar:
                match = _WEBDATASET_KEY.fullmatch(member.name)
                assert match, member.name
                key, suffix = match.groups()
                assert key == previous or key not in samples, f"{key} is met twice"
                content = tar.extractfile(member)
                assert content
                samples.setdefault(key, {})[suffix] = content.read()
                previous = key
    assert len(samples) == len(loose)
    images = [data for sample in samples.values() for suffix, data in sample.items() if suffix != "cls"]
    assert sorted(images) == sorted(loose.values())
    for name, number in (("Benign", 0), ("Early", 1), ("Pre", 2), ("Pro", 3)):
        assert samples[f"{name}/synthetic-0001"]["jpg"] == loose[f"{name}/synthetic-0001.jpg"]
        assert samples[f"{name}/synthetic-0001"]["cls"] == str(number).encode()
    assert "cls" not in samples["v1.0/x"]  # no class folder, no label


def test_a_parquet_shard_holds_names_bytes_and_labels(
    ray_cluster: None, loose: dict[str, bytes], small_archive: Path, tmp_path: Path
) -> None:
    packed_bytes(small_archive, tmp_path / "shards", format="parquet")
    (path,) = (tmp_path / "shards").iterdir()
    rows = pq.read_table(path).to_pylist()
    assert {row["image_id"]: row["image"] for row in rows} == loose
    labels = {row["image_id"]: row["label"] for row in rows}
    assert labels["Pre/synthetic-0001.jpg"] == "pre_b"
    assert labels["v1.0/x.jpg"] is None


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_scoring_reads_back_what_was_packed(
    ray_cluster: None, loose: dict[str, bytes], small_archive: Path, tmp_path: Path, kind: str
) -> None:
    packed_bytes(small_archive, tmp_path / "shards", format=kind, images_per_shard=10)
    entries = [
        entry for shard in storage.list_objects(str(tmp_path / "shards")) for entry in read_shard(shard, Limits())
    ]
    contents = [entry.content for entry in entries]
    assert sorted(content for content in contents if isinstance(content, bytes)) == sorted(loose.values())
    assert len({entry.image_id for entry in entries}) == len(loose)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_image_that_cannot_be_packed_is_named(
    ray_cluster: None, small_archive: Path, tmp_path: Path, in_process: Job, kind: str
) -> None:
    (small_archive / "Pre/gone.jpg").symlink_to(tmp_path / "elsewhere")
    os.link(small_archive / "Pre/synthetic-0001.jpg", os.fsencode(small_archive) + b"/Pre/caf\xe9.jpg")
    ended = in_process("pack", "--input", small_archive, "--output", tmp_path / "shards", "--format", kind)
    assert ended.code == EXIT_UNSCORED
    assert "25 images packed into 1 shards" in ended.out
    assert f"not packed: nothing found at {small_archive}/Pre/gone.jpg" in ended.out
