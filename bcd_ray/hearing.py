"""What workers have to say, on the terminal of the job that they work for: their own standard error is a log of Ray's.

The last line of any worker stands in the key-value store of Ray's head, where the job looks every few seconds. So a
hundred workers that wait for one store are one line, and no process is there for it.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from bcd_ray.progress import say, say_through

_LOOK_EVERY_S, _SAID_EVERY_S = 5.0, 30.0
_WAITED_FOR_S = 5.0  # at the end


def be_heard() -> None:
    """In a worker: what is said from now on is heard where the job was begun."""
    key, node = _key(), socket.gethostname()

    def put(text: str) -> None:
        try:
            _store().internal_kv_put(key, f"node {node}: {text}".encode(), True, None)
        except Exception:  # of whatever type; the head may be what the worker waits for
            return

    say_through(put)


@contextmanager
def workers_heard() -> Iterator[None]:
    """In a job whose Ray runs: say what workers say, a line each half minute at most."""
    over, key = Event(), _key()
    listener = Thread(target=_listen, args=(key, over), daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join(_WAITED_FOR_S)  # with a head that is gone it would wait


def _listen(key: bytes, over: Event) -> None:
    while True:
        last = over.is_set()
        try:
            if text := _store().internal_kv_get(key, None):
                _store().internal_kv_del(key, False, None)
        except Exception:  # of whatever type: the session ends, and the job says why
            return
        if text:
            say(text.decode())
            if over.wait(_SAID_EVERY_S):
                return
        elif last:
            return
        else:
            over.wait(_LOOK_EVERY_S)


def _key() -> bytes:
    import ray

    return f"bcd_ray said for {ray.get_runtime_context().get_job_id()}".encode()


def _store() -> Any:
    """Of the session that there is now: that of `ray.experimental.internal_kv` is gone with any simulated cluster."""
    from ray._private.worker import global_worker

    return global_worker.gcs_client
