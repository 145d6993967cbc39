"""A night from its command line to its last line: what is scored, and the code that a scheduler gets."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from bcd_ray import read, storage
from bcd_ray.errors import (
    EXIT_ALARM,
    EXIT_CONFIG,
    EXIT_DEADLINE,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_INTERRUPTED,
    EXIT_MISSED,
    EXIT_OK,
    EXIT_TERMINATED,
    EXIT_UNSCORED,
)
from bcd_ray.model.bundle import load_bundle, save_bundle
from bcd_ray.nights import job
from bcd_ray.scoring.job import Outcome, score
from nights.running import ROOT, Job, last_line

NIGHT = date(2026, 11, 30)


@pytest.fixture
def lab(tmp_path: Path, bundle: Path) -> Path:
    """Where the model, a file of options and the deliveries are."""
    (tmp_path / "nightly.toml").write_text(
        f"model = '{bundle}'\noutput = '{tmp_path}/scores'\ninput = ['{tmp_path}/smears/{{date:%Y/%m/%d}}']\n"
        f"date = {NIGHT}\nmax_actors = 1\n"
    )
    return tmp_path


@pytest.fixture
def deliver(lab: Path, synthetic_archive: Path) -> Callable[..., None]:
    """Puts two smears into the folder of a day."""
    smears = sorted(synthetic_archive.glob("*/*.jpg"))

    def copy(day: date, first: int = 0) -> None:
        folder = lab / "smears" / day.strftime("%Y/%m/%d")
        folder.mkdir(parents=True, exist_ok=True)
        for smear in smears[first : first + 2]:
            shutil.copy(smear, folder)

    return copy


def test_a_night_and_a_quiet_one(lab: Path, deliver: Callable[..., None], nightly: Job) -> None:
    deliver(NIGHT - timedelta(1))
    deliver(NIGHT, 2)
    ended = nightly("--config", lab / "nightly.toml", "--expect")
    assert (ended.code, ended.record["reason"]) == (EXIT_OK, "published")
    assert (ended.record["images"], ended.record["statuses"], ended.record["new_shards"]) == (4, {"scored": 4}, 4)
    assert sum(ended.record["classes"].values()) == 4
    assert ended.record["units"] == ended.record["units_done"] == 1
    assert json.loads(Path(ended.record["manifest"]).read_text())["run_id"] == ended.record["run_id"]
    again = nightly("--config", lab / "nightly.toml", "--expect")
    assert (again.code, again.record["reason"], again.record["run_id"]) == (EXIT_OK, "nothing new", None)
    later = nightly("--config", lab / "nightly.toml", "--date", NIGHT + timedelta(30))
    assert later.code == EXIT_OK
    assert later.record["reason"].startswith(f"nothing is at {lab}/smears/2026/12/30")


def test_a_delivery_that_is_missed(lab: Path, deliver: Callable[..., None], nightly: Job) -> None:
    deliver(NIGHT - timedelta(1))
    ended = nightly("--config", lab / "nightly.toml", "--expect")
    assert ended.code == EXIT_MISSED
    assert ended.err.splitlines()[-1] == f"error: {ended.record['reason']}"
    grows = ("--config", lab / "nightly.toml", "--input", lab / "smears", "--date", "today", "--expect")
    another_day = (*grows[:-2], date.today() + timedelta(2), "--expect")
    assert nightly(*another_day).record["reason"] == "published", "whenever that is"
    assert nightly(*grows).record["reason"] == "nothing new"
    tomorrow = nightly(*another_day)
    assert (tomorrow.code, tomorrow.record["reason"][:22]) == (EXIT_MISSED, "--expect: nothing is n")
    assert nightly(*grows[:3], lab / "none", "--expect").code == EXIT_MISSED
    assert nightly(*grows[:3], lab / "none").code == EXIT_CONFIG


def test_the_deadline_leaves_nothing_partial_and_the_next_night_goes_on(
    lab: Path, deliver: Callable[..., None], nightly: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(NIGHT)
    with monkeypatch.context() as patch:
        patch.setattr(job, "deadline_at", lambda text, now: now - timedelta(seconds=1))
        ended = nightly("--config", lab / "nightly.toml", "--deadline", "1s")
    assert ended.code == EXIT_DEADLINE
    assert ended.record["reason"] == "stopped at the deadline, 1 of 1 units to go: the next run goes on"
    assert (ended.record["units"], ended.record["units_done"], ended.record["statuses"]) == (1, 0, {})
    assert not (lab / "scores/predictions").exists()
    tomorrow = nightly("--config", lab / "nightly.toml", "--date", NIGHT + timedelta(1), "--deadline", "5h")
    assert (tomorrow.code, tomorrow.record["run_id"]) == (EXIT_OK, ended.record["run_id"])
    assert read.current(str(lab / "scores")).num_rows == 2


_GIVEN_UP_AT_ONCE = """
import runpy
from bcd_ray.model.bundle import load_bundle, save_bundle
from bcd_ray.nights import job
job._UNDER_WAY_S = 0
runpy.run_path("jobs/nightly.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("ends", "code", "words"),
    [
        ("deadline", EXIT_DEADLINE, "given up after the deadline, with work under way"),
        ("SIGTERM", EXIT_TERMINATED, "terminated by SIGTERM"),
        ("SIGINT", EXIT_INTERRUPTED, "interrupted"),
    ],
)
def test_a_night_that_waits_for_a_store_can_be_ended(tmp_path: Path, ends: str, code: int, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        variables = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        variables |= {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        command = [sys.executable, "-c", _GIVEN_UP_AT_ONCE, "--model", "s3://lab/model", "--input", "s3://lab/smears"]
        command += ["--output", str(tmp_path / "scores"), *["--deadline=1s"] * (ends == "deadline")]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if ends != "deadline":
                silent.accept()
                process.send_signal(getattr(signal, ends))
            out, err = process.communicate(timeout=120)
    assert (process.returncode, last_line(out)["exit_code"], last_line(out)["reason"]) == (code, code, words)
    assert err.splitlines() == [f"error: {words}; the same command goes on where it was"]


def test_a_night_keeps_the_table_and_mends_it(
    lab: Path, deliver: Callable[..., None], nightly: Job, in_process: Job
) -> None:
    pytest.importorskip("deltalake")
    options = ("--config", lab / "nightly.toml", "--table", "delta")
    deliver(NIGHT)
    assert nightly(*options).code == EXIT_OK
    assert in_process("verify", "--output", lab / "scores").code == EXIT_OK
    deliver(NIGHT, 2)
    assert nightly(*options[:2]).code == EXIT_OK  # as if it had died before its commit
    told = in_process("verify", "--output", lab / "scores")
    assert (told.code, f"{lab}/scores/table has not the rows that hold (2 for 4)" in told.out) == (EXIT_FAILED, True)
    assert nightly(*options).record["reason"] == "nothing new"
    assert in_process("verify", "--output", lab / "scores").code == EXIT_OK
    (lab / "scores/table/_delta_log/00000000000000000001.json").write_text("{")
    deliver(NIGHT, 4)
    broken = nightly(*options)
    assert (broken.code, broken.record["statuses"]) == (EXIT_FAILED, {"scored": 2}), "rows come first"
    anew = in_process("verify", "--output", lab / "scores", "--rebuild-table")
    assert (anew.code, f"3 runs taken into {lab}/scores/table" in anew.out) == (EXIT_OK, True)


def test_a_list_of_the_night_s_images(lab: Path, deliver: Callable[..., None], nightly: Job) -> None:
    deliver(NIGHT)
    images = sorted(map(str, (lab / "smears").rglob("*.jpg")))
    (lab / "list.txt").write_text("\n".join([images[0], f"{lab}/smears/Doe, J.jpg"]))
    (lab / "nightly.toml").write_text((lab / "nightly.toml").read_text().replace("input = ", "# input = "))
    ended = nightly("--config", lab / "nightly.toml", "--input-list", lab / "list.txt")
    assert (ended.code, ended.record["statuses"]) == (EXIT_UNSCORED, {"missing": 1, "scored": 1})
    assert "Doe" not in ended.err
    assert nightly("--config", lab / "nightly.toml", "--input-list", lab / "none", "--expect").code == EXIT_MISSED


def test_a_dry_run_says_what_a_night_would_take(lab: Path, deliver: Callable[..., None], nightly: Job) -> None:
    options = ("--config", lab / "nightly.toml", "--dry-run", "--hourly-cost", "3.6")
    assert nightly(*options).record["reason"].startswith(f"nothing is at {lab}/smears/2026/11/30")
    deliver(NIGHT)
    first = nightly(*options)
    assert "would score 2 shards" in first.record["reason"]
    assert (first.code, first.record["estimate"]["seconds"]) == (EXIT_OK, None)
    assert not (lab / "scores").exists()
    assert nightly(*options[:2]).record["estimate"] is None
    deliver(NIGHT, 2)
    found = nightly(*options).record["estimate"]
    sizes = [path.stat().st_size for path in sorted((lab / "smears").rglob("*.jpg"))]
    assert (found["shards"], found["current_shards"], found["bytes"]) == (2, 2, sum(sizes[2:]))
    assert found["images"] == round(2 * sum(sizes[2:]) / sum(sizes[:2]))
    assert found["cost"] == pytest.approx(found["seconds"] / 1000, abs=0.01)


def test_a_dry_run_knows_what_is_of_kept_embeddings(
    lab: Path, bundle: Path, deliver: Callable[..., None], nightly: Job
) -> None:
    other = load_bundle(str(bundle))
    head = (2 * other.model.tensors["head.weight"], other.model.tensors["head.bias"])
    save_bundle(str(lab / "other"), other.model.with_head(*head), other.triage, {}, {})
    options = ("--config", lab / "nightly.toml")
    deliver(NIGHT)
    first = nightly(*options).record
    refused = nightly(*options, "--model", lab / "other", "--dry-run").record
    kept = refused["estimate"]
    assert "; but 2 of 2 published shards would be scored anew" in refused["reason"]
    assert (kept["shards"], kept["kept_shards"], kept["bytes"], kept["images"]) == (2, 2, 0, 2), "as if they were read"
    assert nightly(*options, "--model", lab / "other", "--supersede").record["statuses"] == first["statuses"]
    back = nightly(*options, "--dry-run", "--supersede").record
    assert "published shards would be scored anew" not in back["reason"]
    assert "would score 2 shards, 2 of them from kept embeddings, and read 0.0 MB" in back["reason"]
    assert back["estimate"]["images"] == 2
    deliver(NIGHT, 2)
    new = sum(path.stat().st_size for path in (lab / "smears").rglob("*.jpg")) - first["read_bytes"]
    read = nightly(*options, "--model", lab / "other", "--dry-run").record["estimate"]
    assert (read["shards"], read["kept_shards"], read["bytes"]) == (2, 0, new)
    assert read["images"] == round(2 * new / first["read_bytes"]), "at the rate of the run that read"


def test_one_run_at_a_time(
    lab: Path, deliver: Callable[..., None], nightly: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(NIGHT)
    lease = {"host": "elsewhere", "pids": "others", "pid": 1, "began": 0, "expires": time.time() + 60}
    content = json.dumps(lease).encode()
    folder = f"{lab}/scores/_work/lease"
    storage.write_bytes(f"{folder}/00000001.json", content)
    held = nightly("--config", lab / "nightly.toml")
    assert (held.code, held.record["run_id"]) == (EXIT_HELD, None)
    storage.write_bytes(f"{folder}/00000001.json", b"{}")

    def taken_over(*arguments: Any) -> Outcome:
        assert storage.create(f"{folder}/00000003.json", content)
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "score", taken_over)
        lost = nightly("--config", lab / "nightly.toml")
    assert (lost.code, lost.record["units_done"]) == (EXIT_HELD, 1)
    assert not (lab / "scores/predictions").exists()


def test_what_is_published_is_judged(lab: Path, deliver: Callable[..., None], nightly: Job) -> None:
    deliver(NIGHT)
    (lab / "smears/2026/11/30/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    alarm = nightly("--config", lab / "nightly.toml", "--max-review", "0.1")
    assert alarm.code == EXIT_ALARM
    assert "of the rows need review, more than --max-review 0.1; 1 images are not scored" in alarm.record["reason"]
    assert alarm.record["review_share"] >= 0.33
    state = nightly("--config", lab / "nightly.toml", "--max-review", "0.1")
    assert (state.code, state.record["not_scored"]) == (EXIT_UNSCORED, {"corrupt_image": 1})
    assert nightly("--config", lab / "nightly.toml", "--max-unscored", "1").code == EXIT_OK


def test_every_end_has_its_line(lab: Path, nightly: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = nightly("--config", lab / "nightly.toml", "--days", "many")
    assert (wrong.code, wrong.record["reason"]) == (EXIT_CONFIG, "the command line is not understood")
    assert nightly("--config", lab / "none.toml").code == EXIT_CONFIG
    (lab / "smears").write_bytes(b"")
    monkeypatch.setattr(job, "inputs_of", lambda config: storage.read_bytes(str(lab / "smears/gone")))
    failed = nightly("--config", lab / "nightly.toml")
    assert (failed.code, failed.record["reason"]) == (
        EXIT_FAILED,
        f"nothing found at {lab}/smears/gone: check the path",
    )


def test_a_night_that_is_terminated_says_so_and_goes_on(lab: Path, synthetic_archive: Path, nightly: Job) -> None:
    for copy in range(2):
        shutil.copytree(synthetic_archive, lab / f"smears/2026/11/30/{copy}")
    command = [sys.executable, "jobs/nightly.py", "--config", str(lab / "nightly.toml"), "--engine", "openvino"]
    command += ["--small-run-bytes", "0"]  # with Ray
    variables = {**os.environ, "RAY_ADDRESS": "local"}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert any("units done before" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_TERMINATED
    assert len(out.splitlines()) == 1
    assert last_line(out)["exit_code"] == EXIT_TERMINATED
    assert last_line(out)["units_done"] < last_line(out)["units"]
    assert err.splitlines()[-1] == "error: terminated by SIGTERM; the same command goes on where it was"
    again = nightly(*command[2:])
    assert (again.code, again.record["statuses"]) == (EXIT_OK, {"scored": 2 * 72})
