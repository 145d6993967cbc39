"""One run at a time on an output: a lease that is renewed while its holder lives, and taken over when it does not.

    OUTPUT/_work/lease/NUMBER.json   a lease, by numbers that count up; the last one holds

A lease is taken by writing the next number where nothing is (`storage.create`): of two that try, one wins. Only its
holder writes to it again. So one that was slow for longer than its lease finds the next number, and stops. Should it
not look in time, the ledger still lets no two runs become one.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bcd_ray import storage
from bcd_ray.errors import HeldError, NotFoundError, StorageError
from bcd_ray.progress import say

LIFETIME_S = 300.0  # a store that stalls for less loses nobody a lease
_RENEWALS = 5  # within it


class Lease:
    """What this process holds of an output."""

    def __init__(self, output: str, lifetime_s: float = LIFETIME_S) -> None:
        self._folder, self._lifetime_s = storage.join(output, "_work", "lease"), lifetime_s
        self._number = 0
        self._ended = threading.Event()

    @contextmanager
    def held(self) -> Iterator["Lease"]:
        """Take the lease, renew it in a thread, and give it back.

        Raises:
            HeldError: another run that lives has it.
        """
        self._take()
        renewing = threading.Thread(target=self._renew, daemon=True)  # a store that stalls must not keep the process
        renewing.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._give_back()

    def check(self) -> None:
        """HeldError if another run took the lease over since."""
        last = max(self._numbers(), default=0)
        if last > self._number:
            raise HeldError(f"{_words(self._read(last))} took over while this one was slow: nothing is published")

    def _take(self) -> None:
        last = max(self._numbers(), default=0)
        if last:
            holder = self._read(last)
            if _lives(holder):
                raise HeldError(f"{_words(holder)} holds the output: wait for its end, or for its lease's")
            if holder.get("host"):
                say(f"{_words(holder)} died: its lease is taken over")
        self._number = last + 1
        if not storage.create(self._uri(self._number), self._content()):
            raise HeldError(f"{_words(self._read(self._number))} took the output at the same time: wait for its end")
        for number in self._numbers():
            if number < last:  # the last one stays, for its holder to see that it is not the last
                storage.delete(self._uri(number))

    def _renew(self) -> None:
        while not self._ended.wait(self._lifetime_s / _RENEWALS):
            try:
                self.check()
                storage.write_bytes(self._uri(self._number), self._content())
            except HeldError:
                return  # said before anything is published
            except StorageError as error:
                say(f"the lease could not be renewed: {error}")

    def _give_back(self) -> None:
        try:
            storage.write_bytes(self._uri(self._number), b"{}\n")
        except StorageError:  # it ends by itself
            return

    def _content(self) -> bytes:
        import psutil

        own = {"host": socket.gethostname(), "pids": _pids(), "pid": os.getpid()}
        own["began"] = psutil.Process().create_time()
        return (json.dumps(own | {"expires": time.time() + self._lifetime_s}) + "\n").encode()

    def _numbers(self) -> list[int]:
        names = [name.removesuffix(".json") for name in storage.list_names(self._folder)]
        return [int(name) for name in names if name.isdecimal()]

    def _read(self, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(storage.read_bytes(self._uri(number))))
        except (NotFoundError, ValueError):  # deleted since, or no lease
            return {}

    def _uri(self, number: int) -> str:
        return storage.join(self._folder, f"{number:08d}.json")


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a lease still counts; where its process can be seen from here, by that, whatever the time."""
    import psutil

    if holder.get("expires", 0) <= time.time():
        return False
    if holder.get("pids") != _pids():
        return True
    try:
        return bool(psutil.Process(holder["pid"]).create_time() == holder["began"])
    except psutil.NoSuchProcess:
        return False


def _pids() -> str:
    """Names what a process id is of: this start of this machine, and in a container, that container."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _words(holder: dict[str, Any]) -> str:
    return f"the run of process {holder['pid']} on {holder['host']}" if "host" in holder else "another run"
