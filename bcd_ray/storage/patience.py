"""How often, and for how long, a store that fails for the moment is asked again, and what is said meanwhile."""

import os
import random
import time
from threading import Lock

from bcd_ray.errors import ConfigError
from bcd_ray.progress import say

_ATTEMPTS = 12  # with pauses of at most 20 s between them: one and a half minutes; AWS_MAX_ATTEMPTS says otherwise
_MOST_S = 20.0  # for each attempt on average: of 12 none begins after four minutes
_SAID_AFTER_S, _SAID_EVERY_S = 5.0, 30.0
_counting = Lock()
_retries, _said = [0], [-_SAID_EVERY_S]


def attempts() -> int:
    """How often a request is made at most; ConfigError for an odd setting."""
    given = os.environ.get("AWS_MAX_ATTEMPTS") or str(_ATTEMPTS)
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"AWS_MAX_ATTEMPTS={given}: give a number of at least 1, or unset it")
    return int(given)


def take_retries() -> int:
    """How many requests of this process, and of its helpers, were tried again since this was asked last."""
    with _counting:
        found, _retries[0] = _retries[0], 0
    return found


def count_retries(count: int) -> None:
    """Count requests that were tried again, here or by a helper."""
    with _counting:
        _retries[0] += count


def say_waiting(text: str) -> None:
    """Say what a request of this process, or of a helper, waits for, unless that was said a moment ago."""
    if _may_speak():
        say(text)


class Patience:
    """Of one request: how often it failed, and since when it is tried."""

    def __init__(self) -> None:
        self.failed, self._attempts, self._began = 0, attempts(), time.monotonic()

    def is_over(self, endpoint: str, failure: Exception) -> bool:
        """After a failure: whether to give up; else this waits, and says so once it takes long."""
        self.failed += 1
        passed, most = time.monotonic() - self._began, _MOST_S * self._attempts
        if self.failed >= self._attempts or passed > most:
            return True
        count_retries(1)
        if passed > _SAID_AFTER_S:
            what = f"{type(failure).__name__}, attempt {self.failed} of {self._attempts}, {passed:.0f} s"
            say_waiting(f"waiting for the store at {endpoint} ({what}): gives up within {most + 60:.0f} s")
        time.sleep(min(20, random.uniform(0.5, 1) * 0.2 * 2**self.failed))
        return False


def _may_speak() -> bool:
    """Whether nobody in this process spoke a moment ago: many threads may wait for one store."""
    with _counting:
        now = time.monotonic()
        if now - _said[0] < _SAID_EVERY_S:
            return False
        _said[0] = now
    return True
