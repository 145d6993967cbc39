"""The line that a person sees of an error of Ray's names what went wrong, and neither Ray's wrapping nor its advice."""

import json
from pathlib import Path
from typing import Any

import pytest

from bcd_ray import causes, runtime
from bcd_ray.archives.formats.colour import Space
from bcd_ray.errors import ConfigError, JobError, StorageError

_RAY = "\x1b[36mray::MapBatches(Scorer)()\x1b[39m (pid=7, ip=192.0.2.1)\n"
_FRAME = '  File "/x/y.py", line 3, in f\n    f()\n    ^^^\n'
_DIRECT = "\n\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
_KEY = f"{_RAY}{_FRAME}KeyError: 'k'"
_OURS = f"{_RAY}{_FRAME}bcd_ray.errors.StorageError: /x: cannot be read: mend the disk"
_UDF = f"{_RAY}ray.exceptions.UserCodeException: UDF failed to process a data block.\nTo change retry attempts, …"
_DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tpid: 7\nIts node has died."
_OF_A_TASK = f"{_RAY}{_FRAME}         ~~^^^\nray.exceptions.RayTaskError(StorageError): "


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (_KEY + _DIRECT + _UDF, "KeyError: 'k'"),
        (_KEY + _DIRECT + _OURS + _DIRECT + _UDF, "/x: cannot be read: mend the disk"),
        (_KEY + _DURING + f"{_RAY}{_FRAME}ValueError: no" + _DIRECT + _UDF, "ValueError: no"),
        (_KEY + _DIRECT + f"{_RAY}{_FRAME}OSError: [Errno 5] I/O" + _DIRECT + _UDF, "KeyError: 'k'"),
        (f"{_RAY}{_FRAME}ValueError: one\ntwo\n  three" + _DIRECT + _UDF, "ValueError: one two three"),
        (_OF_A_TASK + _KEY + _DIRECT + _OURS, "/x: cannot be read: mend the disk"),
        (f"The actor died because of an error in its creation task, {_OURS}", "/x: cannot be read: mend the disk"),
        (_DIED, "The actor died unexpectedly before finishing this task. Its node has died."),
        ("  + Exception Group Traceback (most recent call last):\n  | G: 2\n    | OSError: b\n    +---", "OSError: b"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_cause_is_named_in_a_line(text: str, line: str) -> None:
    assert causes.cause_of(RuntimeError(text)) == line


def test_the_cause_of_a_failed_training_is_that_of_its_worker() -> None:
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    failures = {1: RuntimeError(_KEY + _DIRECT + _OURS)}
    assert (
        causes.cause_of(WorkerGroupError("[Rank 1 Error Snippet]:\n…", failures)) == "/x: cannot be read: mend the disk"
    )
    assert causes.cause_of(ControllerError(RuntimeError(_DIED))).startswith("The actor died unexpectedly")


def test_what_ray_raises_is_told_from_what_this_package_does() -> None:
    import ray
    from ray._private.services import canonicalize_bootstrap_address
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    with pytest.raises(ValueError, match="Invalid address") as of_ray:
        canonicalize_bootstrap_address("x")
    assert causes.raised_by_ray(of_ray.value)
    assert causes.raised_by_ray(WorkerGroupError("killed", {}))
    assert causes.raised_by_ray(ControllerError(RuntimeError("killed")))
    assert not causes.raised_by_ray(ValueError("ours"))
    within = dict[str, Any]()
    exec(
        compile("def call(function, *what): function(*what)", str(Path(ray.__file__).with_name("x.py")), "exec"), within
    )
    with pytest.raises(ValueError, match="Expecting") as of_a_library:
        within["call"](json.loads, "{")
    assert causes.raised_by_ray(of_a_library.value)
    with pytest.raises(ValueError, match="a gamma of 9") as ours:
        within["call"](Space, 9)
    assert not causes.raised_by_ray(ours.value)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("library", ["core", "data"])
def test_an_error_of_this_package_on_a_worker_is_told_as_it_is(library: str) -> None:
    import ray

    def fail(batch: object) -> object:  # within, since workers do not have this file
        try:
            raise ConfigError("cannot write")
        except ConfigError as error:
            raise StorageError("node a: cannot write: mount it") from error

    def failing() -> None:
        with runtime.ray_session():
            if library == "core":
                ray.get(ray.remote(max_retries=0)(fail).remote(0))
            ray.data.range(1).map_batches(fail).materialize()

    with pytest.raises(JobError, match=r"^node a: cannot write: mount it \(more in \S+\); [^\n]+$"):
        failing()
