"""`ray job submit` to a cluster that wants a token, as `cluster.yaml` makes one: what comes back, and what is left."""

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import IMAGES_PER_CLASS
from same_model import AS_BUNDLE, assert_same_model

from bcd_ray import storage
from bcd_ray.errors import (
    EXIT_ALARM,
    EXIT_CONFIG,
    EXIT_DEADLINE,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_MISSED,
    EXIT_UNSCORED,
)
from bcd_ray.learning.embedding import Embeddings
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import score

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent  # where `ray` and the `python` of the jobs are


@dataclass(frozen=True)
class Cluster:
    """A cluster of one node that these tests started."""

    url: str
    token: str
    environment: dict[str, str]

    def submit(self, name: str, *command: object) -> tuple[int, str]:
        """`ray job submit` as docs/operate.md has it, to its end: its exit code, and what it said."""
        words = [BIN / "ray", "job", "submit", "--submission-id", name, "--working-dir", ".", "--", "python", *command]
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout

    def post(self, name: str, *command: object) -> None:
        """What `ray job submit` asks of the cluster, with the folder that it took there for the job `train`."""
        asked = {"submission_id": name, "entrypoint": shlex.join(map(str, ("python", *command)))}
        self._ask("", json.dumps(asked | {"runtime_env": self.job("train")["runtime_env"]}).encode())

    def job(self, name: str) -> dict[str, Any]:
        """What the cluster knows of a submitted job (as `JobSubmissionClient.get_job_info` would say)."""
        return self._ask(name)

    def end_of(self, name: str) -> tuple[dict[str, Any], str]:
        """The same once the job has ended, and what it said."""
        for _ in range(1500):
            if (info := self.job(name))["status"] not in ("PENDING", "RUNNING"):
                break
            time.sleep(0.2)
        return info, self._ask(f"{name}/logs")["logs"]

    def _ask(self, path: str, data: bytes | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/jobs/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@pytest.fixture(scope="module")
def cluster(free_ports: Callable[[int], list[int]]) -> Iterator[Cluster]:
    """`ray start --head` in a temporary folder of its own, on ports of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bcd", dir="/tmp"))  # pytest's are too long for the sockets in it
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["ray-client-server-port", "runtime-env-agent-port", "metrics-export-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment = inherited | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder / 'ray'}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--object-store-memory={300 << 20}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        started = Cluster(url, token, environment | {"RAY_API_SERVER_ADDRESS": url})
        wait_until_jobs_are_taken(started, head, folder / "log")
        yield started
    finally:
        end(head, folder)


def wait_until_jobs_are_taken(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            cluster.job("")  # the list of all jobs
            return
        except (OSError, ValueError):
            pass
        try:
            head.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"the cluster did not start: {log.read_text(errors='replace')[-2000:]}")


def processes_of(folder: Path) -> list[int]:
    """The processes that have this cluster's folder in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # ended, or another user's
            continue
        if os.fsencode(folder) in known and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """End the cluster's own processes, which all name its folder, and no others (`ray stop` would end every Ray)."""
    head.kill()  # it takes more than 30 s to end when asked to, and nothing of it is kept
    head.wait()
    while left := processes_of(folder):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def trained(cluster: Cluster, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a submitted job made of the command of the shared bundle."""
    output = tmp_path_factory.mktemp("submitted") / "model"
    code, said = cluster.submit("train", "jobs/train.py", "--data", synthetic_archive, "--output", output, *AS_BUNDLE)
    assert code == 0, said
    assert f"model bundle written to {output}" in said
    assert "fitting with Ray Train's TorchTrainer, 2 workers" in said
    return output


def test_a_submitted_training_by_two_workers_gives_the_same_model(
    cluster: Cluster, trained: Path, bundle: Path, embeddings: Embeddings
) -> None:
    info = cluster.job("train")
    assert (info["status"], info["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert (trained / "model.sha256").exists()
    assert_same_model(trained, bundle, embeddings)


def test_a_submitted_scoring_publishes(cluster: Cluster, bundle: Path, synthetic_archive: Path, tmp_path: Path) -> None:
    options = ("--model", bundle, "--input", synthetic_archive / "Pre", "--output", tmp_path / "scores")
    code, said = cluster.submit("score", "jobs/score.py", *options)
    assert code == 0, said
    assert f"{IMAGES_PER_CLASS} images scored, 0 could not be scored" in said
    info = cluster.job("score")
    assert (info["status"], info["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert len(list((tmp_path / "scores/predictions").iterdir())) == 1
    assert len(list((tmp_path / "scores/manifests").glob("*.json"))) == 1


def test_a_submitted_night_ends_with_its_code_and_its_line(
    cluster: Cluster, trained: Path, bundle: Path, synthetic_archive: Path, tmp_path: Path, without_ray: None
) -> None:
    smears, alarm, published, damaged, held = (
        tmp_path / name for name in ("smears", "alarm", "published", "damaged", "held")
    )
    smears.mkdir()
    shutil.copy(next(synthetic_archive.rglob("*.jpg")), smears)
    (smears / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    score(ScoreConfig(model=str(bundle), input=(str(smears),), output=str(published)))
    storage.write_bytes(f"{damaged}/manifests/0123456789abcdef.json", b"{")
    lease = {"host": "elsewhere", "pids": "others", "pid": 1, "began": 0, "expires": time.time() + 3600}
    storage.write_bytes(f"{held}/_work/lease/00000001.json", json.dumps(lease).encode())
    nights: dict[int, tuple[object, ...]] = {
        EXIT_ALARM: (alarm, smears, "--max-review=0"),
        EXIT_UNSCORED: (published, smears),
        EXIT_CONFIG: (damaged, smears, "--days=0"),
        EXIT_FAILED: (damaged, smears),
        EXIT_DEADLINE: (tmp_path / "late", smears, "--deadline=0s"),
        EXIT_MISSED: (tmp_path / "missed", f"{tmp_path}/{{date}}", "--expect"),
        EXIT_HELD: (held, smears),
    }
    for code, (output, archive, *options) in nights.items():  # they wait for Ray most of the time
        words = ["--model", bundle, "--output", output, "--input", archive, "--progress", "json", *options]
        cluster.post(f"night-{code}", "jobs/nightly.py", *words)
    for code in nights:
        info, text = cluster.end_of(f"night-{code}")
        assert (info["status"], info["driver_exit_code"]) == ("FAILED", code), text
        lines = {line for line in text.splitlines() if line.startswith('{"record_version"')}  # Ray may repeat it
        assert [json.loads(line)["exit_code"] for line in lines] == [code]


def test_without_the_token_nothing_is_run(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.url}/api/jobs/", timeout=30)
    assert refused.value.code in (401, 403)
