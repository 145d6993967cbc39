"""What a person sees while a job runs, on standard error, or a program that collects lines."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

_LINE_EVERY_S = 10.0  # where output goes to a log file, a line each ten seconds
_LEAST_SECRET = 8  # letters; what is shorter would mask words
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
_USER_OF_A_URL = re.compile(r"(?<=://)[^/@\s]+@")
Style = Literal["auto", "bar", "plain", "json"]


@dataclass
class _Log:
    """How lines are written by this process."""

    style: Style = "auto"
    run_id: str | None = None
    names: re.Pattern[str] | None = None  # what is not to be shown
    through: Callable[[str], None] | None = None  # who is told in place of standard error
    in_place: bool = False  # whether a line is open that is written over


_log = _Log()


def configure(style: Style = "auto", hidden_below: Iterable[str] = ()) -> None:
    """Say how lines are written from now on, and below which places no name is to be seen in them."""
    _log.style, _log.run_id, _log.in_place = style, None, False
    places = "|".join(re.escape(place) for place in hidden_below)
    _log.names = re.compile(rf"({places}).+(?=: )|({places}).+") if places else None


def of_run(run_id: str) -> None:
    """Lines in JSON carry the id of this run from now on."""
    _log.run_id = run_id


def say_through(tell: Callable[[str], None]) -> None:
    """Whatever this process says from now on is told to the one who shows it."""
    _log.through = tell


class Progress:
    """Counts images on standard error: in place on a terminal, a line each ten seconds in a log."""

    def __init__(self, verb: str, total: int | None, unit: str = "images", units: int | None = None) -> None:
        """Count up to `total` images, or, where that is not known before, also up to `units` units of work."""
        self._verb, self._total, self._unit, self._units = verb, total, unit, units
        self._done = self._calls = 0
        self._shown_done = -1
        self._in_place = _log.style == "bar" or (_log.style == "auto" and sys.stderr.isatty())
        self._started = self._shown = time.monotonic()
        # When the first result came, and how many: start-up is no part of the rate.
        self._first: tuple[float, int, int] | None = None

    def add(self, count: int) -> None:
        """Count further images, and show the new state when it is time."""
        now = time.monotonic()
        self._done += count
        self._calls += 1
        self._first = self._first or (now, self._done, self._calls)
        if now - self._shown > (0.2 if self._in_place else _LINE_EVERY_S):
            self._shown = now
            self._show(now)

    def finish(self) -> None:
        """Show the last state, and end the line."""
        if self._in_place or self._shown_done != self._done:
            self._show(time.monotonic())
        if self._in_place:
            print(file=sys.stderr)
            _log.in_place = False

    def _show(self, now: float) -> None:
        of_total = f"/{self._total:,}" if self._total else ""
        of_units = f"  {self._calls:,}/{self._units:,} units" if self._units else ""
        text = f"{self._verb}  {self._done:,}{of_total} {self._unit}{of_units}  {now - self._started:.0f} s"
        self._shown_done = self._done
        rate, left = self._pace(now)
        if rate is not None:
            text += f"  {rate:.0f}/s"
        if left:
            text += f"  {timedelta(seconds=round(left))} left"
        if self._in_place:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            _log.in_place = True
        else:
            known = {"done": self._done, "total": self._total, "units_done": self._calls, "units": self._units}
            say(text, known=known | {"per_second": rate, "seconds_left": left})

    def _pace(self, now: float) -> tuple[float | None, float | None]:
        """Images a second and seconds to go, as far as they are known."""
        if not self._first or now - self._first[0] <= 2:  # results come in bursts: over less they say nothing
            return None, None
        began, done, calls = self._first
        rate = (self._done - done) / (now - began)
        if self._total:
            return rate, (self._total - self._done) / rate if rate else None
        paces = (self._calls - calls) / (now - began)
        return rate, (self._units - self._calls) / paces if self._units and paces else None


def say(text: str, level: str = "info", known: Mapping[str, Any] | None = None) -> None:
    """A line about what the job does now, on standard error; in JSON with what else is known."""
    if _log.through:
        _log.through(text)
        return
    words = shown(text)
    if _log.style == "json":
        facts = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "run_id": _log.run_id}
        words = json.dumps({**facts, "message": words, **(known or {})})
    elif level == "error":
        words = f"error: {words}"
    print(f"\r\x1b[K{words}" if _log.in_place else words, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """A text in one line, without secrets, and without names that are not to be seen."""
    for secret in (os.environ.get(name, "") for name in _SECRETS):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    text = _USER_OF_A_URL.sub("***@", text)
    if _log.names:
        text = _log.names.sub(lambda found: f"{found[1] or found[2]}…", text)
    return one_line(text)


def one_line(text: str) -> str:
    """Text that does nothing to a terminal, whatever names are in it: what cannot be printed is shown as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
