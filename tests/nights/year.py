"""A year of nights on one output, one after the other: `python tests/nights/year.py --nights 365`.

Each night a tar arrives, every seventh night one of the week before is delivered anew, and jobs/nightly.py's own
function scores what is new, in this process and without Ray. At the end every image has its row, in the files and in
the Delta table; and it says how long a night took at the start and at the end.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults.stage import jpeg, tar_of, write_model

from bcd_ray import read
from bcd_ray.cli import run
from bcd_ray.errors import EXIT_FAILED, EXIT_OK
from bcd_ray.ledger.verification import verify
from bcd_ray.nights.config import NightlyConfig
from bcd_ray.nights.job import night
from bcd_ray.nights.record import Record
from bcd_ray.nights.table import CurrentTable

_FIRST = date(2026, 1, 1)
_AVERAGED = 10


@dataclass(frozen=True)
class YearConfig:
    """Play nights of one output, and check what they left."""

    nights: int = 365
    """How many."""
    images: int = 2
    """Of each delivery."""


def main(config: YearConfig) -> int:
    """Play them; exit code 1 where a row is lost or stands twice."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, expected = _play(config, Path(folder))
        output = f"{folder}/scores"
        found = read.current(output, ["image_uri"])["image_uri"].to_pylist()
        problems = [*verify(output), *CurrentTable(output).differences()]
        problems += ["rows are lost, or stand twice"] if sorted(found) != sorted(expected) else []
    first, last = (statistics.median(part) for part in (seconds[:_AVERAGED], seconds[-_AVERAGED:]))
    print(f"{config.nights} nights, {len(found):,} images; a night took {first:.1f} s at first, {last:.1f} s at last")
    for problem in problems:
        print(problem)
    return EXIT_FAILED if problems else EXIT_OK


def _play(config: YearConfig, folder: Path) -> tuple[list[float], set[str]]:
    """Seconds of each night, and the images that were delivered."""
    model, seconds, expected = write_model(folder / "model"), list[float](), set[str]()
    for number in range(config.nights):
        day = _FIRST + timedelta(number)
        expected |= _deliver(folder, day, config.images, seed=number)
        if number % 7 == 6:
            _deliver(folder, day - timedelta(3), config.images, seed=10_000 + number)
        options = {"model": model, "output": f"{folder}/scores", "date": str(day), "expect": True, "table": "delta"}
        began = time.monotonic()
        code = night(NightlyConfig(input=(f"{folder}/smears/{{date}}",), **options), record := Record())  # type: ignore[arg-type]
        seconds.append(time.monotonic() - began)
        if code != EXIT_OK:
            raise SystemExit(f"night {number + 1} ended with {code}: {record.reason}")
    return seconds, expected


def _deliver(folder: Path, day: date, images: int, seed: int) -> set[str]:
    path = folder / "smears" / str(day) / "a.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of([jpeg(100 * seed + number) for number in range(images)]))
    return {f"{path}#{number}.jpg" for number in range(images)}


if __name__ == "__main__":
    run(YearConfig, main)
