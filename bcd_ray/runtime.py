"""The Ray session of a job, how many actors its cores carry, and the progress that a person sees."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bcd_ray import own_ray
from bcd_ray.causes import cause_of, raised_by_ray
from bcd_ray.errors import BcdRayError, ConfigError, JobError
from bcd_ray.hearing import workers_heard
from bcd_ray.progress import say
from bcd_ray.uris import printable

_ACTOR_ON_GPU_MIB = 1600  # 1.2 GB were measured on an H200
_MOST_ON_A_GPU = 16
_MOST_THREADS = 8  # of an actor: of a larger machine's cores several take eight each
_MOST_ACTORS = 1000  # to reckon with, where an autoscaler knows no limit
LAST_WORDS = (
    "error: killed from outside, or ended by Ray's core because its cluster died: look for full memory and for nodes "
    "that went (Ray's logs are in /tmp/ray/session_latest/logs); the same command goes on where it was"
)


@dataclass(frozen=True)
class ActorPool:
    """Actors for a Ray Data stage: their number, the threads of each, and the CPUs and GPUs that each reserves.

    It begins with `least`; `most` is what the cluster is known to carry one day, and where `grows`, there may be more.
    """

    least: int
    most: int
    threads: int
    cpus: float
    gpus: float = 0.0
    grows: bool = False

    def options(self, calls: int = 1, tasks: int = 0) -> dict[str, Any]:
        """Arguments for `Dataset.map_batches`, where an actor runs `calls` batches at a time, and as many wait for it.

        Of few `tasks` it gets fewer: those that start first would take what is for actors that are yet to start.
        """
        share = tasks // (2 * self.most) if tasks and self.most > 1 else 2 * calls
        from ray.data import ActorPoolStrategy

        compute = ActorPoolStrategy(
            min_size=self.least,
            max_size=None if self.grows else self.most,
            max_tasks_in_flight_per_actor=max(1, min(share, 2 * calls)),
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=calls > 1,
        )
        return {"compute": compute, "num_cpus": self.cpus, "num_gpus": self.gpus}


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or `ray start`, or start Ray on this machine for the time of the job.

    Raises:
        ConfigError: nothing listens at RAY_ADDRESS, it wants a token, or the workers would run other code than this.
        JobError: Ray does not start, or something failed on a worker.
    """
    _check_folder()
    # Read by the Ray processes that are started here; on a cluster its start commands set them (see cluster.yaml).
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 whatever else runs takes the cores
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray 2.60 prints an error for every actor of a Ray Data pool, though nothing is wrong and nothing can be done.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray
    from ray.data import DataContext

    started = not ray.is_initialized()
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is raised too
    with ExitStack() as stack:
        if started:
            stack.enter_context(_last_words())
            if not (joined := cluster_address()):
                stack.enter_context(own_ray.environment())
                stack.enter_context(own_ray.lean_data())
            stack.callback(ray.shutdown)
            _connect(joined)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        stack.enter_context(workers_heard())
        try:
            yield
        except Exception as error:
            if not raised_by_ray(error):
                raise
            raise _job_error(error) from error


def _check_folder() -> None:
    """Ray's workers import from the folder where the job was begun before all others, unlike the job's own process."""
    mine, there = Path(__file__).parent, Path.cwd() / Path(__file__).parent.name
    if (there / "runtime.py").is_file() and not there.samefile(mine):
        raise ConfigError(
            f"{printable(str(there))} is another bcd_ray than this job's, {printable(str(mine))}, and Ray's workers "
            "would take it: run the job from another folder, or install that one"
        )


def on_cluster() -> bool:
    """Whether the job runs on a cluster that others started, or would, rather than on a Ray of its own."""
    import ray

    if ray.is_initialized():
        node = ray._private.worker._global_node  # None behind ray://
        return node is None or not node.head
    return bool(cluster_address())


def ray_runs() -> bool:
    """Whether there is a Ray to join, so that none would have to be started."""
    import ray

    return ray.is_initialized() or bool(cluster_address())


def own_cores() -> int:
    """Cores of this machine, as far as its control group gives them, for the threads of one process."""
    from ray._private.utils import get_num_cpus

    return max(1, min(_MOST_THREADS, int(get_num_cpus(override_docker_cpu_warning=True))))


def cluster_address() -> str:
    """Of the cluster of RAY_ADDRESS, or of `ray start` on this machine; empty where the job starts Ray itself."""
    from ray._private.services import find_bootstrap_address

    address = os.environ.get("RAY_ADDRESS") or find_bootstrap_address(None) or ""
    return "" if address == "local" else address


def _check_address(address: str) -> None:
    """Ray itself would try for minutes to reach HOST:PORT or ray://HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(f"RAY_ADDRESS={address}: no Ray there ({error}): correct or unset it") from error


def _connect(address: str) -> None:
    """Join the cluster of an address, or start Ray here where there is none."""
    import ray

    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _stderr_silenced(), _sigterm_kept(), _any_arguments(), _stdout_kept():
            if address:
                _check_address(address)
                ray.init(address, **quiet)
            else:
                own_ray.start(**quiet)
    except BcdRayError:
        raise
    except Exception as error:  # Ray raises of many types, a bare Exception among them
        if "AuthenticationError" in f"{type(error).__name__} {error.__cause__!r}":
            raise ConfigError(
                "this Ray wants another token, or any: set RAY_AUTH_MODE=token, with its own in ~/.ray/auth_token or "
                "in RAY_AUTH_TOKEN"
            ) from error
        what = " ".join(str(error).split())[:200]
        if "RAY_ADDRESS" in os.environ and address:
            raise ConfigError(f"RAY_ADDRESS={address}: no Ray there ({what}): correct or unset it") from error
        if address:
            remedy = "end what is left of it with `ray stop`, or set RAY_ADDRESS=local for a Ray of the job's own"
            raise JobError(f"no Ray at {address}, where `ray start` began one ({what}): {remedy}") from error
        raise JobError(f"Ray does not start ({what}): try again when this machine is less busy") from error


@contextmanager
def _last_words() -> Iterator[None]:
    """Have a process beside say so if this one ends in here without a word.

    Ray's C++ core does that to a driver whose cluster dies: exit code 1, nothing written, no `finally` reached.
    """
    command = ["sh", "-c", 'read -r _ || echo "$0" >&2', LAST_WORDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as beside:
        try:
            yield
        finally:  # whatever went wrong is told by the one who catches it
            beside.communicate(b"\n")


def _job_error(error: BaseException) -> JobError:
    """What went wrong on a worker, in one line."""
    import ray

    logs = ray._private.worker.global_worker.node.get_logs_dir_path() if ray.is_initialized() else "Ray's logs"
    return JobError(f"{cause_of(error)} (more in {logs}); the same command goes on where it was")


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """This process's way to end on SIGTERM, also when Ray connected: its own are exit code 15 and a C++ stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    with patch("ray._private.utils.set_sigterm_handler"):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, kept)


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Ray would print its raylet's words, of each actor that an interruption ends, among the job's own lines."""
    with patch("ray._private.worker.listen_error_messages"):  # the target of a thread
        yield


@contextmanager
def _any_arguments() -> Iterator[None]:
    """Ray writes the command line down as UTF-8, which a file name in it need not be."""
    from ray._private import utils

    entrypoint = printable(utils.get_entrypoint_name())
    with patch.object(utils, "get_entrypoint_name", lambda: entrypoint):
        yield


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Ray's C++ core announces its log level on file descriptor 2 when it starts; errors still come as exceptions.

    Lines of this package are still seen.
    """
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        with open(saved, "w", errors="backslashreplace", closefd=False) as seen, patch.object(sys, "stderr", seen):
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def actor_pool(most: int = 0, on_gpu: bool = False) -> ActorPool:
    """One actor per machine, or per eight cores of a large one, with as many threads as cores.

    On GPUs, one actor per core, or, where more would share a GPU than its memory holds, fewer of more cores each, whose
    threads wait for each other in Python: 8 of two cores score two thirds of what 16 of one do on an H200.

    Ray counts a machine's cores, and heeds the limits of control groups. Each actor reserves three quarters of its
    cores: Ray Data's own tasks need a share too, and an actor pool that takes every CPU waits for ever.

    On a cluster that others started the pool grows with the nodes that join.

    Args:
        most: the largest number of actors on a cluster that grows; 0 for no limit but its cores.
        on_gpu: whether each takes a share of a GPU.
    """
    nodes, to_come = _nodes(with_gpus=on_gpu), _nodes_to_come(with_gpus=on_gpu)
    if not nodes and not to_come:
        say("waiting for the cluster: none of its nodes has a CPU; goes on when one joins")
        while not (nodes := _nodes(with_gpus=on_gpu)):
            time.sleep(1)
    resources = [node["Resources"] for node in nodes]
    if on_gpu:
        cores = min(each["CPU"] / each["GPU"] for each in resources)  # of a GPU
        threads = math.ceil(cores / _most_on_a_gpu(nodes))
        sharing = max(1, int(cores // threads))
        gpus, counts = 1 / sharing, [sharing * int(each["GPU"]) for each in resources]
        later = [(sharing * int(each["GPU"]), count) for each, count in to_come]
    else:
        cpus = [each["CPU"] for each in resources] or [each["CPU"] for each, _ in to_come]
        threads = int(min([_MOST_THREADS, *cpus]))
        gpus, counts = 0.0, [int(each["CPU"] // (0.75 * threads)) for each in resources]
        later = [(int(each["CPU"] // (0.75 * threads)), count) for each, count in to_come]
    fit = max(1, sum(counts))
    known = max(fit, most or min(_MOST_ACTORS, sum(carried * count for carried, count in later)))
    say_if_taken(CPU=0.75 * threads, GPU=gpus)
    return ActorPool(fit, known, threads, 0.75 * threads, gpus, grows=not most and on_cluster())


def _nodes_to_come(with_gpus: bool) -> list[tuple[dict[str, float], int]]:
    """What the cluster's autoscaler may start: of each kind of node its resources, and how many at most."""
    import ray

    config = None if ray.util.client.ray.is_connected() else ray._private.state.state.get_cluster_config()
    kinds = [(dict(kind.resources), kind.max_count) for kind in (config.node_group_configs if config else ())]
    needed = "GPU" if with_gpus else "CPU"
    return [
        (resources, count if count >= 0 else _MOST_ACTORS)
        for resources, count in kinds
        if resources.get(needed, 0) >= 1 and resources.get("CPU", 0) >= 1 and count
    ]


def _nodes(with_gpus: bool) -> list[dict[str, Any]]:
    """The machines of the cluster that can carry actors."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    return [node for node in nodes if node["Resources"].get("GPU", 0) >= 1] if with_gpus else nodes


def _most_on_a_gpu(nodes: list[dict[str, Any]]) -> int:
    """How many actors the memory of the smallest GPU of these machines holds; 1 where it is not known."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    ask = ray.remote(num_cpus=0)(_gpu_memory)
    found = ray.get([ask.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in nodes])
    return max(1, min(_MOST_ON_A_GPU, int(min(found) // _ACTOR_ON_GPU_MIB)))


def _gpu_memory() -> float:
    """MiB of the smallest GPU of this machine, 0 where that is not known."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return min(float(line) for line in done.stdout.splitlines())
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0.0


def say_if_taken(**needs: float) -> None:
    """Say what the job waits for, where other jobs hold the cluster's `CPU` or `GPU`: Ray waits without a word."""
    import ray

    for _ in range(30):  # an actor that has just ended holds its cores for up to a second
        free = ray.available_resources()
        lacking = [name for name, count in needs.items() if free.get(name, 0.0) < count]
        if not lacking:
            return
        time.sleep(0.1)
    of_all = ray.cluster_resources()
    texts = [f"{needs[name]:g} {name}, {free.get(name, 0):g} of {of_all.get(name, 0):g} free" for name in lacking]
    say(f"waiting for the cluster: needs {' and '.join(texts)}; goes on when other jobs end or nodes join")


def gpu_count() -> int:
    """GPUs of the cluster as it is now, as far as their machines have a core for each to work with."""
    return sum(int(node["Resources"]["GPU"]) for node in _nodes(with_gpus=True))


def library_versions() -> dict[str, str]:
    """Versions of what computes the numbers, for the record of a model or a run."""
    from importlib.metadata import version

    from bcd_ray import __version__

    names = ("ray", "torch", "openvino", "numpy", "pillow", "opencv-python-headless", "pyarrow", "simplejpeg")
    return {"bcd_ray": __version__, "python": sys.version.split()[0], **{name: version(name) for name in names}}
