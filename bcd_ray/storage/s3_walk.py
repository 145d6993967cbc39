"""Listing S3 folder by folder, several at a time: a page of 1,000 keys takes a store some 100 ms, one after the other.

A folder is opened where its keys are many and lie in few folders: those are then listed beside each other. Nothing is
built on the order of keys, which stores differ in.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from bcd_ray.storage import s3

_LISTERS = 16
_MOST_FOLDERS = 4  # in a page of a folder that is opened: those of fewer keys cost more requests than they save time
_Page = dict[str, Any]


class _Task(NamedTuple):
    """A page that is asked for: of all keys below a folder, or, where it is to be opened, of what lies in it."""

    uri: str  # with the slash at its end
    token: str = ""  # of a page that comes after another
    keys_first: _Page | None = None  # the first page of all keys, where the folder is to be opened

    def page(self) -> _Page:
        options = {"ContinuationToken": self.token} if self.token else {}
        return s3.list_page(self.uri, **options, **({"Delimiter": "/"} if self.keys_first else {}))

    def found(self, page: _Page) -> tuple[list[_Page], list["_Task"]]:
        """What a page gives: keys, and further tasks."""
        keys, after = page.get("Contents", []), page.get("NextContinuationToken", "")
        if self.keys_first is None:
            if after and not self.token and 0 < len(_folders(self.uri, keys)) <= _MOST_FOLDERS:
                return [], [_Task(self.uri, keys_first=page)]
            return keys, [_Task(self.uri, after)] if after else []
        if after:  # much lies in it: all keys are gone on with, from the page that is there
            return self.keys_first["Contents"], [_Task(self.uri, self.keys_first["NextContinuationToken"])]
        bucket = "/".join(self.uri.split("/", 3)[:3])
        return keys, [_Task(f"{bucket}/{each['Prefix']}") for each in page.get("CommonPrefixes", [])]


def walk_keys(uri: str) -> Iterator[dict[str, Any]]:
    """The listed objects of a folder, whose URI ends with a slash, in any order: `Key`, `Size`, `ETag`."""
    waiting, running = deque([_Task(uri)]), dict[Future[_Page], _Task]()
    with ThreadPoolExecutor(_LISTERS) as pool:
        while waiting or running:
            while waiting and len(running) < _LISTERS:
                task = waiting.popleft()
                running[pool.submit(task.page)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                keys, tasks = running.pop(future).found(future.result())
                waiting.extend(tasks)
                yield from keys


def _folders(uri: str, keys: list[dict[str, Any]]) -> set[str]:
    start = len(uri.split("/", 3)[3])
    return {folder for key in keys if (folder := key["Key"][start:].rpartition("/")[0].partition("/")[0])}
