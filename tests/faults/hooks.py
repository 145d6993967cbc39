"""What a driver and its workers do on reaching a step of a run: die, or report and wait; where a test asks for it.

The file that `BCD_FAULTS` names says what is asked for, anew for each attempt at a run. Each step of the
protocol is an event (`step`, `when`, `subject`); the test's faults are matched against it, and the events that match
are counted over all processes, so that "the third unit" is the third whoever does it.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FAULTS = "BCD_FAULTS"
READ_TIMEOUT_S = 2.0  # of S3 requests, for stalls; botocore's 60 would only be slower

_STEPS = {  # by a part of the URI that is written
    "/.write-check-": "probe",
    "/_work/plans/": "plan",
    "/_work/units/": "unit",
    "/predictions/": "predictions",
    ".inputs.parquet": "inputs",
    "/manifests/published/": "roll",
    "/manifests/": "manifest",
    "/features/": "features",
}


def install() -> None:
    """Make the steps of this process events. Ray runs it in each worker, before anything else is imported."""
    import botocore.config

    from bcd_ray import storage
    from bcd_ray.archives import images, isolation, parquets
    from bcd_ray.scoring import attempts
    from bcd_ray.storage import local, patience, s3

    patience._SAID_AFTER_S = 1.0
    botocore.config.Config.OPTION_DEFAULTS["read_timeout"] = READ_TIMEOUT_S
    sooner = f"import botocore.config; botocore.config.Config.OPTION_DEFAULTS['read_timeout'] = {READ_TIMEOUT_S}"
    parquets.COMMAND[-1] = f"{sooner}; {parquets.COMMAND[-1]}"
    for name in ("create", "create_from_file", "write_bytes", "write_from_file"):
        setattr(storage, name, _around(getattr(storage, name), _step_of))
    storage.delete = _around(storage.delete, lambda uri: f"un{_step_of(uri)}")
    storage.open_stream = _around(storage.open_stream, _read_of)
    local._write_beside = _around(local._write_beside, lambda uri, _: f"{_step_of(uri)} beside")
    s3._upload_parts = _parts_as_events(s3._upload_parts)
    attempts.read_shards = _start_as_event(attempts.read_shards)
    attempts.time = SimpleNamespace(time=lambda: time.time() + _plan()["clock_s"])  # type: ignore[assignment]
    _decoders.append(images.decode_plain)
    images.decode_plain = decode_plain
    isolation.COMMAND[-1] = f"from faults import hooks; hooks.install(); {isolation.COMMAND[-1]}"
    attempts._StartCounter.count = _around(attempts._StartCounter.count, lambda *_: "count")  # type: ignore[method-assign]


def install_in_driver() -> None:
    """`install`, and the steps that only the driver makes."""
    from bcd_ray.ledger import ledger
    from bcd_ray.progress import Progress
    from bcd_ray.storage import parquet, s3

    install()
    add = Progress.add

    def counted(self: Progress, count: int) -> None:
        add(self, count)
        if self._verb == "scoring":
            _event("counted", "after", "")

    Progress.add = counted  # type: ignore[method-assign]
    ledger.datetime = _Clock  # type: ignore[misc,assignment]
    parquet._SPOOLED_BYTES = 1  # as of a large run, which needs temporary files
    s3._PART_BYTES = _plan()["part_bytes"] or s3._PART_BYTES


def _read_of(listed: Any, *_: Any) -> str:
    return "plan read" if "/_work/plans/" in listed.uri else "read"


def decode_plain(data: bytes, limits: Any) -> Any:
    """Every image's first step as an event; the subject is the end of the data, where tests put their mark."""
    _event("decode", "before", data[-16:].decode("latin1"))
    return _decoders[0](data, limits)


_decoders: list[Callable[..., Any]] = []  # the real one


class _Clock:
    """Stands for the class datetime where the package asks for the time."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(seconds=_plan()["clock_s"])


def _plan() -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(Path(os.environ[FAULTS]).read_text())
    return plan


def _event(step: str, when: str, subject: str) -> None:
    plan = _plan()
    for number, fault in enumerate(plan["faults"]):
        if (fault["step"], fault["when"]) == (step, when) and fault["match"] in subject:
            occurrence = _occurrence(plan["folder"], number)
            if fault["first"] <= occurrence < fault["first"] + fault["times"]:
                Path(plan["folder"], f"{number}.fired").touch()
                _act(fault["action"], plan, {"fault": number, "step": step, "when": when, "subject": subject})


def _occurrence(folder: str, number: int) -> int:
    """How often this event happened by now, in any process: each takes the next free number."""
    occurrence = 1
    while True:
        try:
            os.close(os.open(f"{folder}/{number}.{occurrence}", os.O_CREAT | os.O_EXCL))
            return occurrence
        except FileExistsError:
            occurrence += 1


def _act(action: str, plan: dict[str, Any], report: dict[str, Any]) -> None:
    if action == "tell":
        report |= {"pid": os.getpid(), "node": _node()}
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(plan["tell"])
            line.sendall(json.dumps(report).encode() + b"\n")
            line.recv(1)  # the test did what it wanted to do
    elif action == "spin":  # in the process apart, where there is a deadline
        while sys.argv[0] == "-c":
            pass
    else:
        os.kill(os.getpid(), getattr(signal, action))
        signal.pause()  # it is under way


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _step_of(uri: Any, *_: Any) -> str:
    return next((step for part, step in _STEPS.items() if part in uri), "other")


def _around(real: Callable[..., Any], step_of: Callable[..., str]) -> Callable[..., Any]:
    """The function with an event before and after."""

    @wraps(real)  # Ray looks at the signature of an actor's methods
    def wrapped(*arguments: Any) -> Any:
        step, subject = step_of(*arguments), str(getattr(arguments[0], "uri", arguments[0]))
        _event(step, "before", subject)
        result = real(*arguments)
        _event(step, "after", subject)
        return result

    return wrapped


def _parts_as_events(real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def wrapped(uri: str, *arguments: Any) -> Iterator[Any]:
        for part in real(uri, *arguments):
            _event(f"{_step_of(uri)} beside", "after", uri)
            yield part

    return wrapped


def _start_as_event(real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Also notes which shards are read, for tests that want to know what was not."""

    def wrapped(shards: Any, *arguments: Any) -> Iterator[Any]:
        from bcd_ray.scoring import worker

        worker.datetime = _Clock  # type: ignore[misc,assignment]
        with open(f"{_plan()['folder']}/started", "a") as started:
            started.write(f"{shards[0].uri}\n")
        _event("start", "before", shards[0].uri)
        return real(shards, *arguments)

    return wrapped
