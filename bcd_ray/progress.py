"""What a person sees while a job runs, on standard error."""

import sys
import time

_LINE_EVERY_S = 10.0  # where output goes to a log file, a line each ten seconds


class Progress:
    """Counts images on standard error: in place on a terminal, a line each ten seconds in a log."""

    def __init__(self, verb: str, total: int | None, unit: str = "images", units: int | None = None) -> None:
        """Count up to `total` images, or, where that is not known before, also up to `units` units of work."""
        self._verb, self._total, self._unit, self._units = verb, total, unit, units
        self._done = self._calls = 0
        self._shown_done = -1
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        # When the first result came, and how many: start-up is no part of the rate.
        self._first: tuple[float, int] | None = None

    def add(self, count: int) -> None:
        """Count further images, and show the new state when it is time."""
        now = time.monotonic()
        self._done += count
        self._calls += 1
        self._first = self._first or (now, self._done)
        if now - self._shown > (0.2 if self._terminal else _LINE_EVERY_S):
            self._shown = now
            self._show(now)

    def finish(self) -> None:
        """Show the last state, and end the line."""
        if self._terminal or self._shown_done != self._done:
            self._show(time.monotonic())
        if self._terminal:
            print(file=sys.stderr)

    def _show(self, now: float) -> None:
        of_total = f"/{self._total:,}" if self._total else ""
        of_units = f"  {self._calls:,}/{self._units:,} units" if self._units else ""
        text = f"{self._verb}  {self._done:,}{of_total} {self._unit}{of_units}  {now - self._started:.0f} s"
        self._shown_done = self._done
        if self._first and now - self._first[0] > 2:  # results come in bursts: over less it says nothing
            text += f"  {(self._done - self._first[1]) / (now - self._first[0]):.0f}/s"
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            say(text)


def say(text: str) -> None:
    """A line about what the job does now, on standard error."""
    print(one_line(text), file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Text that does nothing to a terminal, whatever names are in it: what cannot be printed is shown as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
