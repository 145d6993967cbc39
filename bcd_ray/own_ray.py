"""The Ray that a stand-alone job starts on its machine and ends with it.

It leaves nothing behind that another Ray of this user would meet: no token in the home folder, which from then on
`ray start --head` would want, and no well-known port, without which `ray job submit` to another head fails.
"""

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

from bcd_ray.errors import ConfigError
from bcd_ray.progress import say

_STARTS_WITHIN_S = 300  # Ray's own 30 s are not enough for a machine that is busy
_SAID_AFTER_S = 20
_WAITS = {  # the same for what starts Ray's parts
    "RAY_gcs_server_port_wait_time_s": _STARTS_WITHIN_S,
    "RAY_raylet_start_wait_time_s": 10,  # of each time that `_patiently` asks: the raylet may have died since
    "RAY_worker_register_timeout_seconds": _STARTS_WITHIN_S,
    "RAY_agent_register_timeout_ms": 1000 * _STARTS_WITHIN_S,
}
# Of Ray's temporary folder, for its sockets: Linux takes 107 bytes, /session_DATE_TIME_PID/sockets/plasma_store and
# a number have up to 66 of them.
_MOST_BYTES = 41
_SHORT = "/tmp/ray"


@contextmanager
def environment() -> Iterator[None]:
    """What the processes of the Ray that is started within are told, and a token that stands in no file."""
    token = {}
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    waits = {name: str(value) for name, value in _WAITS.items() if name not in os.environ}
    with patch.dict(os.environ, token | waits):
        _forget_tokens()
        try:
            yield
        finally:
            _forget_tokens()


def start(**options: Any) -> None:
    """Start Ray, and wait longer than it would, with a line where that is needed.

    Raises:
        ConfigError: there is no place for its temporary files.
    """
    import ray
    from ray._private import parameter, services

    logging.getLogger("ray").setLevel(logging.ERROR)
    folder = temporary_folder()
    with ExitStack() as stack:
        stack.enter_context(patch.object(services, "get_node", partial(_patiently, services.get_node)))
        # `ray.init` has no argument for these: 0 lets the agent choose a port, where it would take 52365 as every
        # `ray start` does; a monitor is for clusters that grow, and takes a second of a core and 100 MB; another of
        # 45 MB would read logs for a driver that does not ask for them.
        others = {"no_monitor": True, "include_log_monitor": False}
        params = partial(parameter.RayParams, dashboard_agent_listen_port=0, **others)
        stack.enter_context(patch.object(parameter, "RayParams", params))
        # The server of the dashboard, also without one, asks three clouds whether it is theirs.
        stack.enter_context(patch.object(services, "start_api_server", lambda *_, **__: (None, None)))
        settings = {"include_dashboard": False, "num_cpus": _cpus(), "_temp_dir": folder, **options}
        _insistently(lambda: ray.init("local", **settings))


@contextmanager
def lean_data() -> Iterator[None]:
    """Ray Data without the actors that serve a dashboard and clusters: three processes of 290 MB.

    One counts for a dashboard, one knows on which node an actor is, and one asks for more nodes.
    """
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
    from ray.data._internal.execution.operators import actor_pool_map_operator as pool

    def nothing(*_: Any, **__: Any) -> None:
        """In place of what is told to a dashboard."""

    with ExitStack() as stack:
        for name in ("update_execution_metrics", "update_iteration_metrics", "register_dataset_to_stats_actor"):
            stack.enter_context(patch.object(stats._StatsManager, name, nothing))
        new_id = partial(secrets.token_hex, 16)
        stack.enter_context(patch.object(stats._StatsManager, "gen_dataset_id_from_stats_actor", new_id))
        stack.enter_context(patch.object(pool, "get_or_create_actor_location_tracker", _NoTracker))
        stack.enter_context(patch.object(pool, "get_actor_locations", _on_this_node))
        stack.enter_context(patch.object(autoscaler, "DefaultAutoscalingCoordinator", _OneNode))
        yield


@contextmanager
def lean_train() -> Iterator[None]:
    """Ray Train without the actor that would free the cores of a job that died: they end with its Ray.

    It asks the dashboard whether the job lives and, where there is none, may hold up its end by 12 s.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2.api import data_parallel_trainer

    with patch.object(data_parallel_trainer, "PlacementGroupCleanerCallback", ControllerCallback):
        yield


class _NoTracker:
    """Is told by each actor where it is, as the handle of Ray's own tracker is."""

    @property
    def update_actor_location(self) -> "_NoTracker":
        return self

    def remote(self, *_: Any) -> None:
        """Of one node nobody has to be told."""


def _on_this_node(actors: Iterable[str]) -> dict[str, str]:
    import ray

    return dict.fromkeys(actors, ray.get_runtime_context().get_node_id())


class _OneNode:
    """Gives whoever asks for nodes the one there is."""

    def __init__(self, **_: Any) -> None:
        import ray

        self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}

    def request_resources(self, *_: Any, **__: Any) -> None:
        """There are no more."""

    def cancel_request(self) -> None:
        """Nothing was asked for."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        return self._nodes


def temporary_folder() -> str:
    """Where Ray puts its sockets and logs, and what it spills: the default, or another with a line."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    folder = os.path.join(os.path.abspath(os.environ.get(name, "/tmp")), "ray")
    if len(os.fsencode(folder)) > _MOST_BYTES:
        if name == "RAY_TMPDIR":
            raise ConfigError(f"RAY_TMPDIR={os.environ[name]}: too long a path for Ray's sockets: name a shorter one")
        say(f"TMPDIR is too long a path for Ray's sockets: Ray uses {_SHORT}; RAY_TMPDIR names another folder for it")
        folder = _SHORT
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        cause = f"{name}={os.environ[name]}" if name else folder
        raise ConfigError(f"{cause}: Ray cannot keep its files there ({error}): set RAY_TMPDIR to a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"Ray cannot write to {folder}: set RAY_TMPDIR to a short path of a folder of yours")
    return folder


def _cpus() -> int | None:
    """None for Ray's own count; 1 where that is none, under a quota of less than a CPU."""
    from ray._private.utils import get_num_cpus

    if get_num_cpus(override_docker_cpu_warning=True) >= 1:
        return None
    say("this job's control group has less than one CPU, which Ray takes for none: it runs with one, slowly")
    return 1


def _insistently(init: Callable[[], Any]) -> None:
    """`ray.init`, again where a part of Ray gave up waiting for another, for which no setting gives it more time."""
    import psutil

    began, before = time.monotonic(), set(psutil.Process().children(recursive=True))
    while True:
        try:
            init()
            return
        except Exception as error:  # bare, of Ray's
            if "timed out during startup" not in str(error) or time.monotonic() - began > _STARTS_WITHIN_S:
                raise
        say("this machine is busy: a part of Ray did not start in time, and all are started again")
        for left in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                left.kill()


def _patiently(get_node: Callable[..., Any], *which: Any) -> Any:
    """`services.get_node`, which fails until the node is up; `ray.init` would ask for 30 s."""
    import psutil

    began, said = time.monotonic(), False
    while True:
        try:
            return get_node(*which)
        except RuntimeError:
            passed = time.monotonic() - began
            found = [child for child in psutil.Process().children() if "raylet" in child.name()]
            alive = any(child.status() != psutil.STATUS_ZOMBIE for child in found)
            if passed > _STARTS_WITHIN_S or not alive:
                raise
            if passed > _SAID_AFTER_S and not said:
                said = True
                say(f"this machine is busy: Ray has been starting for {passed:.0f} s, and has {_STARTS_WITHIN_S}")
            time.sleep(0.2)


def _forget_tokens() -> None:
    """Ray reads its token once a process."""
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()
