"""What the tests share: an S3 store, a Ray session, drawn images and a model; each is made when first asked for."""

import fcntl
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

IMAGES_PER_CLASS = 18
READER = ("reader-key", "reader-secret")  # credentials that may list and read, not write
_LAB = ("lab-key", "lab-secret")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite in two processes, which wait for Ray and stores in turns; a choice of it in one, which shares."""
    return 2 if config.args == config.getini("testpaths") else 0


_LONGEST = ("faults", "jobs", "week", "job_submit", "benchmarks", "scoring", "cache", "unfreezing", "quantization")
_LONGEST += ("engine", "storage", "night")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one of them would go on alone at the end."""
    places = {f"test_{name}.py": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


LOOK_UPS = """
import socket, sys
_asked = socket.getaddrinfo
def getaddrinfo(host, *others, **more):
    with open({file!r}, "a") as names:
        names.write(f"{{host}} by {{' '.join(sys.argv)[:200]!r}}\\n")
    return _asked(host, *others, **more)
socket.getaddrinfo = getaddrinfo
"""  # for a sitecustomize.py: writes down which names Python asks for


SILENT_IN = ("CI", "TF_BUILD", "JENKINS_URL")  # where OpenVINO's telemetry is silent anyway


# The dashboard of a cluster that somebody started asks this of a cloud, whatever it is told; a job's own Ray has none.
OF_A_CLUSTER = ("metadata.google.internal", "ray/dashboard/dashboard.py")


def foreign_names(file: Path) -> list[str]:
    """What was asked for that is not this machine, and by which command."""
    own = ("localhost", socket.gethostname(), "None", "")
    foreign = [line for line in _lines(file) if (name := line.partition(" ")[0]) not in own and not _is_address(name)]
    return [line for line in foreign if not all(part in line for part in OF_A_CLUSTER)]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def _nobody_phones_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, no job that it runs, and no process that they start looks up a name but this machine's."""
    folder = tmp_path_factory.mktemp("look-ups")
    (folder / "sitecustomize.py").write_text(LOOK_UPS.format(file=str(folder / "names")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        for name in SILENT_IN:
            patch.delenv(name, raising=False)
        patch.setattr(socket, "getaddrinfo", socket.getaddrinfo)  # puts the real one back at the end
        exec((folder / "sitecustomize.py").read_text(), {})
        yield
    assert foreign_names(folder / "names") == []


@pytest.fixture(scope="session")
def of_all(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all processes that the suite is played in."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "of-all"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _made_once(path: Path) -> Iterator[bool]:
    """Whether what is to stand at a path has to be made, which the other processes wait for."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not path.exists()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(of_all: Path) -> Iterator[None]:
    """No test reads or writes the embeddings that the user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(of_all / "cache"))
        yield


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Finds ports of 127.0.0.1 that nothing listens on."""

    def find(count: int) -> list[int]:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]

    return find


@pytest.fixture(scope="session")
def weed(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Callable[[], None]]:
    """SeaweedFS, which checks signatures; AWS_* of this process lead to it. To be called before it is used."""
    folder = tmp_path_factory.mktemp("weed")
    actions = {"lab": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read", "List"]}
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions[name]}
        for name, (key, secret) in (("lab", _LAB), ("reader", READER))
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    names = [f"{server}.port{kind}" for server in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        "-s3",
        f"-dir={folder}",
        f"-s3.config={folder / 's3.json'}",
        "-ip=127.0.0.1",
    ]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-volume.max=20"]
    command += ["-master.volumeSizeLimitMB=256", "-master.telemetry=false"]  # it would report home
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports['s3.port']}")
        patch.setenv("AWS_ACCESS_KEY_ID", _LAB[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", _LAB[1])
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no one to ask for a role
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            yield partial(_make_bucket, process, folder / "log")
        finally:
            process.kill()  # its data are no longer needed, and a polite end takes it 15 s
            process.wait()


@pytest.fixture(scope="session")
def s3(weed: Callable[[], None]) -> str:
    """The URI of an empty bucket of this store."""
    weed()
    return "s3://archive"


def _make_bucket(process: subprocess.Popen[bytes], log: Path) -> None:
    """Create the bucket as soon as the store takes an object."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10))
    for _ in range(600):
        try:
            client.create_bucket(Bucket="archive")
            client.put_object(Bucket="archive", Key="probe", Body=b"probe")
            client.delete_object(Bucket="archive", Key="probe")
            return
        except (BotoCoreError, ClientError) as error:
            last = error
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"SeaweedFS is not ready ({last}): {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def s3_client(s3: str) -> Any:
    """The store itself, for what `bcd_ray.storage` has no function for."""
    import boto3

    return boto3.client("s3")


@pytest.fixture(scope="session")
def ray_cluster(weed: object) -> Iterator[None]:
    """One Ray session of 2 CPUs, which `runtime.ray_session` joins; its workers inherit AWS_* and so know the store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        from bcd_ray import own_ray

        # The server of the dashboard, also without one, asks three clouds whether it is theirs: of other Rays too.
        patch.setattr("ray._private.services.start_api_server", lambda *_, **__: (None, None))
        with own_ray.environment():  # as jobs start theirs: a busy machine is waited for
            own_ray.start(num_cpus=2, log_to_driver=False, logging_level="error")
            yield
            ray.shutdown()


@pytest.fixture(scope="session")
def synthetic_archive(of_all: Path) -> Path:
    """A folder per class with drawn smears; only to be read."""
    from bcd_ray.learning.synthetic import write_synthetic_archive

    folder = of_all / "smears"
    with _made_once(folder) as lacking:
        if lacking:
            write_synthetic_archive(folder, IMAGES_PER_CLASS)
    return folder


@pytest.fixture(scope="session")
def bundle(ray_cluster: None, synthetic_archive: Path, of_all: Path) -> Path:
    """A model trained on the synthetic archive, as `same_model.AS_BUNDLE` says; only to be read."""
    from bcd_ray.learning.config import TrainConfig
    from bcd_ray.learning.job import train

    output, options = of_all / "model", {"augmented_views": 1, "epochs": 5, "representation": "field"}
    with _made_once(output) as lacking:
        if lacking:
            train(TrainConfig(data=str(synthetic_archive), output=str(output), **options))
    return output


@pytest.fixture(scope="session")
def embeddings(bundle: Path, synthetic_archive: Path) -> Any:
    """Of the synthetic archive by the model trained on it, (n, d): those that the training kept."""
    from bcd_ray.learning.config import TrainConfig
    from bcd_ray.learning.dataset import list_labelled
    from bcd_ray.learning.embedding import Embedder
    from bcd_ray.model.bundle import load_bundle

    kept = TrainConfig(data=str(synthetic_archive), output="none").cache
    with Embedder(list_labelled(str(synthetic_archive)), load_bundle(str(bundle)).model, kept) as embedder:
        return embedder.embed([0]).embeddings[0]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a job's file in this process, by its name and options: the same command line and exit code, sooner."""
    from nights.running import run_file

    return partial(run_file, patch=monkeypatch, captured=capsys)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images are scored in this process, as where no Ray runs: the same rows, seconds sooner than by actors."""
    monkeypatch.setattr("bcd_ray.scoring.executing.ray_runs", lambda: False)


@pytest.fixture
def nightly(without_ray: None, ray_cluster: None, in_process: Any) -> Any:
    """Runs jobs/nightly.py, as `in_process` does; what is too little to start Ray for, without it."""
    return partial(in_process, "nightly")
