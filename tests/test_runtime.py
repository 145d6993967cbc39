"""Ray as a job starts it: nothing of it is seen outside, left behind or waited for in vain."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import LOOK_UPS, SILENT_IN, foreign_names

from bcd_ray import own_ray, runtime
from bcd_ray.errors import ConfigError

_SESSION = """
import sys
from bcd_ray.runtime import on_cluster, ray_session
import ray, ray.data, openvino, psutil
class Twice:
    def __call__(self, batch):
        return {"id": 2 * batch["id"]}

assert not on_cluster()
with ray_session():
    assert not on_cluster()
    @ray.remote
    def work():
        import bcd_ray, openvino
        return len(openvino.Core().available_devices)
    assert ray.get(work.remote())
    doubled = ray.data.range(20).map_batches(Twice, compute=ray.data.ActorPoolStrategy(size=1))
    assert sum(row["id"] for row in doubled.iter_rows()) == 380
    actors = [each["ActorClassName"] for each in ray._private.state.actors().values()]
    assert len(actors) == 1, actors  # and none of Ray Data's own, each a process of 60 to 110 MB
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    listen = [each for each in psutil.net_connections("tcp") if each.status == "LISTEN"]
    assert own & {each.pid for each in listen}  # of the job's Ray, and not of one beside it
    assert not own & {each.pid for each in listen if each.laddr.port == 52365}, "the agent's port is held"
"""


@pytest.fixture
def folder() -> Any:
    made = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's are too long for what is tried here
    yield made
    shutil.rmtree(made)


def test_a_job_of_its_own_asks_no_host_and_leaves_nothing_in_the_home_folder(folder: Path) -> None:
    (folder / "stub").mkdir()
    (folder / "home").mkdir()
    (folder / "stub/sitecustomize.py").write_text(LOOK_UPS.format(file=str(folder / "names")))
    long = folder / ("scratch" * 12)  # as schedulers make them
    long.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= {
        "RAY_ADDRESS": "local",
        "HOME": str(folder / "home"),
        "TMPDIR": str(long),
        "PYTHONPATH": f"{folder / 'stub'}:{Path(__file__).parents[1]}",
    }
    for name in SILENT_IN:
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", _SESSION], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = f"TMPDIR is too long a path for Ray's sockets: Ray uses {own_ray._SHORT}; RAY_TMPDIR names another folder"
    assert done.stderr == f"{said} for it\n"
    assert foreign_names(folder / "names") == []
    assert list((folder / "home").iterdir()) == []


def test_where_ray_keeps_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    assert own_ray.temporary_folder() == str(folder / "ray")
    monkeypatch.setenv("RAY_TMPDIR", str(folder / ("long" * 20)))
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=.*too long"):
        own_ray.temporary_folder()
    (folder / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(folder / "file"))
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=.*file: Ray cannot keep its files there"):
        own_ray.temporary_folder()


def test_a_token_stands_in_no_file_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with own_ray.environment():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_busy_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import psutil

    answers = [RuntimeError("not yet"), RuntimeError("not yet"), {"up": True}]

    def get_node(*which: str) -> dict[str, bool]:
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer  # type: ignore[return-value]

    status = [psutil.STATUS_SLEEPING]
    raylet = SimpleNamespace(children=lambda: [SimpleNamespace(name=lambda: "raylet", status=lambda: status[0])])
    monkeypatch.setattr(psutil, "Process", lambda: raylet)
    monkeypatch.setattr(own_ray, "_SAID_AFTER_S", -1)
    assert own_ray._patiently(get_node, "gcs", "node") == {"up": True}
    assert capsys.readouterr().err.startswith("this machine is busy: Ray has been starting")
    status[0] = psutil.STATUS_ZOMBIE  # it died
    answers.append(RuntimeError("not yet"))
    with pytest.raises(RuntimeError, match="not yet"):
        own_ray._patiently(get_node, "gcs", "node")


def test_less_than_one_cpu_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import utils

    monkeypatch.setattr(utils, "get_num_cpus", lambda **_: 0)
    assert own_ray._cpus() == 1
    assert "less than one CPU" in capsys.readouterr().err
    monkeypatch.setattr(utils, "get_num_cpus", lambda **_: 2)
    assert own_ray._cpus() is None


def test_a_ray_of_which_a_part_gave_up_is_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    left = list[subprocess.Popen[bytes]]()

    def init() -> None:
        left.append(subprocess.Popen(["sleep", "600"]))
        if len(left) == 1:
            raise Exception("The current node timed out during startup. This could happen because")
        if len(left) == 3:
            raise Exception("another fault")

    own_ray._insistently(init)
    assert len(left) == 2
    assert left[0].wait(10) == -signal.SIGKILL
    assert "a part of Ray did not start in time, and all are started again" in capsys.readouterr().err
    with pytest.raises(Exception, match="another fault"):
        own_ray._insistently(init)
    for each in left[1:]:
        each.kill()
        each.wait()


def pool_of(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], to_come: list[Any], joined: bool, most: int = 0
) -> runtime.ActorPool:
    found = [{"Resources": resources} for resources in nodes]
    monkeypatch.setattr(runtime, "_nodes", lambda with_gpus: found)
    monkeypatch.setattr(runtime, "_nodes_to_come", lambda with_gpus: to_come)
    monkeypatch.setattr(runtime, "on_cluster", lambda: joined)
    monkeypatch.setattr(runtime, "say_if_taken", lambda **_: None)
    return runtime.actor_pool(most)


def test_the_pool_grows_with_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [({"CPU": 16.0}, 16)]  # those of cluster.yaml, none of them started
    begun = pool_of(monkeypatch, [], workers, joined=True)
    assert (begun.least, begun.most, begun.threads, begun.grows) == (1, 32, 8, True)
    assert begun.options()["compute"].max_size == float("inf")
    small = pool_of(monkeypatch, [], [({"CPU": 4.0}, 2)], joined=True)
    assert (small.threads, small.cpus) == (4, 3.0)  # eight would fit on none of them
    assert pool_of(monkeypatch, [], workers, joined=True, most=5).options()["compute"].max_size == 5
    alone = pool_of(monkeypatch, [{"CPU": 2.0}], [], joined=False)
    assert (alone.least, alone.most, alone.grows) == (1, 1, False)
    assert alone.options()["compute"].max_size == 1


def test_another_copy_of_the_package_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "bcd_ray"
    copy.mkdir()
    (copy / "runtime.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"is another bcd_ray .* from another folder"), runtime.ray_session():
        pass
