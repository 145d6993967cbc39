"""What all cases share: a model, an archive on disk and on S3, a Ray cluster, an S3 store behind a proxy."""

import io
import json
import multiprocessing
import os
import shutil
import socketserver
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bcd_ray import storage
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.bundle import EMBEDDING_SIZE, pretrained, save_bundle
from bcd_ray.model.triage import Triage
from bcd_ray.storage import s3
from faults import hooks
from faults.store import BUCKET, KEYS, Proxy, Store, plain_client

ROOT = Path(__file__).parents[2]
ALWAYS = 1_000_000
UNITS = 8  # of the base archive
_PRELOADED = ["ray", "ray.data", "ray.cluster_utils", "boto3", "tyro", "bcd_ray.scoring.job", "faults.hooks"]
Report = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something that happens at a step of the protocol; `first` counts the events that match, from 1."""

    step: str
    when: str = "before"
    first: int = 1
    times: int = 1
    match: str = ""  # part of what the step is about: a URI, the end of an image's bytes
    action: str = "SIGKILL"  # another signal, or `tell`: report to the test and wait

    def __str__(self) -> str:
        which = f" {self.match}" * bool(self.match) + f" number {self.first}" * (self.first > 1)
        return f"{self.action} {self.when} {self.step}{which}{', every time' * (self.times > 1)}"


class Nodes:
    """A Ray cluster in a process of its own, so that it leaves no trace in the test's."""

    def __init__(self, context: Any, environment: dict[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # it holds sockets, whose paths must be short
        self._line, theirs = context.Pipe()
        variables = environment | {"RAY_TMPDIR": self._folder}
        self._process = context.Process(target=_serve_nodes, args=(theirs, variables))
        self._process.start()
        theirs.close()
        self.address = ""

    def add(self, **options: Any) -> str:
        """Start a node, the first one as the head, and return its id."""
        self._line.send(("add", options))
        self.address, node = self._line.recv()
        return str(node)

    def kill(self, node: str) -> None:
        """kill -9 of all processes of a node."""
        self._line.send(("kill", node))
        self._line.recv()

    def close(self) -> None:
        """Stop all nodes."""
        self._line.close()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def enter(environment: dict[str, str]) -> None:
    """Make it this process's; the test's own way to the store is none of it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.pop(name, None)
    os.environ.update(environment)


def _serve_nodes(line: Connection, environment: dict[str, str]) -> None:
    enter(environment)
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(), {}
    with suppress(EOFError), open(f"{os.environ['RAY_TMPDIR']}/err", "w") as errors:
        os.dup2(errors.fileno(), 2)
        while True:
            verb, argument = line.recv()
            if verb == "add":
                node = cluster.add_node(**argument)
                nodes[node.node_id] = node
                line.send((cluster.address, node.node_id))
            else:
                cluster.remove_node(nodes.pop(argument), allow_graceful=False)
                line.send(None)
    cluster.shutdown()


class Stage:
    """Made once and used by many cases, one after the other; the environment of this process leads to its store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = write_model(root / "model")
        self.store = Store(root / "store")
        self.store.begin()
        self.proxy = Proxy(self.store.port)
        self.client = plain_client(f"http://127.0.0.1:{self.store.port}")
        self._credentials, self._faults = root / "credentials", root / "faults.json"
        self.on_report: Callable[[Report], None] = lambda report: None
        self._listener = _listen(root / "tell", lambda report: self.on_report(report))
        self._own_environment = dict(os.environ)
        os.environ.update({"AWS_ACCESS_KEY_ID": "lab", "AWS_SECRET_ACCESS_KEY": KEYS["lab"]})
        os.environ.update({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.store.port}", "AWS_REGION": "us-east-1"})
        s3.client.cache_clear()
        self.calm()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        with _environment({"PYTHONPATH": _python_path(), "RAY_BACKEND_LOG_LEVEL": "fatal"}):
            first = self.context.Process(target=len, args=("",))  # with it the server of forks starts
            first.start()
            first.join()
        self.nodes = self.new_nodes()
        self.store.wait()
        self.references: dict[str, pa.Table] = {}  # predictions of undisturbed runs over the archives

    @cached_property
    def archives(self) -> dict[str, str]:
        """The base archive on disk and in the store; only to be read."""
        archives = {place: f"{self.home(place)}/archive" for place in ("local", "s3")}
        for archive in archives.values():
            for name, data in base_archive().items():
                storage.write_bytes(f"{archive}/{name}", data)
        return archives

    def close(self) -> None:
        """End all that was started."""
        self.nodes.close()
        self._listener.shutdown()
        self.proxy.shutdown()
        self.store.kill()
        os.environ.clear()
        os.environ.update(self._own_environment)
        s3.client.cache_clear()

    def home(self, place: str) -> str:
        """Where data go at a place: `local` or `s3`."""
        return f"s3://{BUCKET}/{self.root.name}" if place == "s3" else str(self.root / "data")

    @property
    def environment(self) -> dict[str, str]:
        """What drivers and workers have in theirs."""
        return {
            "PYTHONPATH": _python_path(),
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # Ray's own 60 would only be slower
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_SHARED_CREDENTIALS_FILE": str(self._credentials),
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            hooks.FAULTS: str(self._faults),
        }

    def new_nodes(self) -> Nodes:
        """A Ray cluster of one node of 2 CPUs, whose workers run the hooks and reach the store through the proxy."""
        from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

        settings = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        settings |= {"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "1000"}
        settings[WORKER_PROCESS_SETUP_HOOK_ENV_VAR] = "faults.hooks.install"
        nodes = Nodes(self.context, self.environment | settings)
        nodes.add(num_cpus=2, include_dashboard=False)
        return nodes

    def calm(self) -> None:
        """No faults of any kind from now on."""
        self.proxy.rules = []
        self.on_report = lambda report: None
        self.set_credentials("lab")
        self.plan(self.root, ())

    def set_credentials(self, key: str) -> None:
        """Put these into the file from which drivers and workers take theirs."""
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {KEYS[key]}\n"
        storage.write_bytes(str(self._credentials), text.encode())

    def plan(
        self, folder: Path, faults: tuple[Fault, ...], clock_s: float = 0, part_bytes: int = 0, path: str = ""
    ) -> None:
        """What the hooks do from now on; they count and note in the folder. The path: another plan, for one driver."""
        asked = {"folder": str(folder), "tell": str(self.root / "tell"), "faults": [asdict(fault) for fault in faults]}
        asked |= {"clock_s": clock_s, "part_bytes": part_bytes}
        storage.write_bytes(path or str(self._faults), json.dumps(asked).encode())

    def own_archive(self, place: str, *parts: str) -> str:
        """A copy of the base archive, or of its files whose names begin with one of the parts, to be changed."""
        uri = f"{self.home(place)}/archive-{uuid4().hex[:8]}"
        for name, data in base_archive().items():
            if not parts or name.startswith(parts):
                storage.write_bytes(f"{uri}/{name}", data)
        return uri


def jpeg(number: int) -> bytes:
    """A drawn smear."""
    sink = io.BytesIO()
    Image.fromarray(draw_smear(number % 4, seed=number)).save(sink, "JPEG")
    return sink.getvalue()


def png(number: int) -> bytes:
    """A drawn smear in a form that is decoded in a process apart."""
    sink = io.BytesIO()
    Image.fromarray(draw_smear(number % 4, seed=number)).save(sink, "PNG")
    return sink.getvalue()


def tar_of(images: list[bytes]) -> bytes:
    """A tar of images."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def parquet_of(images: list[bytes]) -> bytes:
    """A Parquet shard of images."""
    sink = io.BytesIO()
    ids = [f"row {number}" for number in range(len(images))]
    pq.write_table(pa.table({"image_id": ids, "image": images}), sink)
    return sink.getvalue()


_drawn: dict[str, bytes] = {}


def base_archive() -> dict[str, bytes]:
    """Files by name: five tars, a Parquet file, two groups of loose images; 8 units of 6 images."""
    if not _drawn:
        images = [jpeg(number) for number in range(48)]
        _drawn.update({f"shards/{number}.tar": tar_of(images[6 * number : 6 * number + 6]) for number in range(5)})
        _drawn["table.parquet"] = parquet_of(images[30:36])
        _drawn.update({f"loose/{number}.jpg": images[36 + number] for number in range(6)})
        _drawn.update({f"zone/{number}.jpg": images[42 + number] for number in range(6)})
    return _drawn


def write_model(folder: Path, seed: int = 0) -> str:
    """An untrained head over the pretrained backbone: what it says is as good as any to be compared."""
    weight = np.random.default_rng(seed).normal(0, 0.05, (4, EMBEDDING_SIZE)).astype(np.float32)
    model = pretrained("keras").with_head(weight, np.zeros(4, np.float32))
    save_bundle(str(folder), model, Triage.without_limits(EMBEDDING_SIZE), {}, {})
    return str(folder)


def _listen(path: Path, told: Callable[[Report], None]) -> socketserver.BaseServer:
    """Call `told` for each report of the hooks, whose process goes on when it returns."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            told(json.loads(self.rfile.readline()))
            with suppress(OSError):  # it may have been killed meanwhile
                self.wfile.write(b".")

    server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _python_path() -> str:
    return os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
