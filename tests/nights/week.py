"""Nights of one output on S3: a driver process each, deliveries by date, and what must hold after each of them."""

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from faults.case import drive
from faults.stage import Fault, Stage, jpeg, tar_of

from bcd_ray import read, storage
from bcd_ray.errors import EXIT_ALARM, EXIT_OK, EXIT_UNSCORED
from bcd_ray.ledger.verification import verify
from bcd_ray.nights.table import CurrentTable
from nights.running import Ended
from nights.test_metrics import samples

MONDAY = date(2026, 11, 30)
_LONGEST_NIGHT_S = 600
_PUBLISHING = (EXIT_OK, EXIT_UNSCORED, EXIT_ALARM)


@dataclass
class Week:
    """An output, and the rows that it must have."""

    stage: Stage
    home: str = field(init=False)
    expected: dict[str, str] = field(default_factory=dict)  # status by image, as published
    waiting: dict[str, str] = field(default_factory=dict)  # delivered, and not published yet
    nights: int = 0

    def __post_init__(self) -> None:
        self.home = f"{self.stage.home('s3')}/week-{uuid4().hex[:8]}"
        self.folder = self.stage.root / "week"
        self.output, self.metrics = f"{self.home}/scores", self.folder / "night.prom"

    def deliver(self, day: int, name: str, images: int = 3, data: bytes | None = None) -> None:
        """Put a tar into the folder of a day, counted from Monday; `data` makes one that cannot be read."""
        uri = f"{self.home}/smears/{MONDAY + timedelta(day)}/{name}.tar"
        first = 1000 * day + 10 * len(self.waiting)
        storage.write_bytes(uri, data or tar_of([jpeg(first + number) for number in range(images)]))
        for names in (self.waiting, self.expected):
            for image in [image for image in names if image.partition("#")[0] == uri]:
                self.waiting[image] = ""  # has no row any more
        if data:
            self.waiting[uri] = "unreadable_shard"
        else:
            self.waiting |= {f"{uri}#{number}.jpg": "scored" for number in range(images)}

    def begin(self, day: int, *faults: Fault, second: bool = False, **options: Any) -> "Running":
        """Start the night of a day; `options` are the job's, and `environment` the driver's."""
        self.nights += 1
        folder = self.folder / str(self.nights)
        folder.mkdir(parents=True)
        plan = str(folder / "faults.json") if second else ""
        self.stage.plan(folder, faults, path=plan)
        given = {"model": self.stage.model, "input": f"{self.home}/smears/{{date}}", "output": self.output}
        given |= {"date": MONDAY + timedelta(day), "metrics": self.metrics, "table": "delta"}
        environment = {**self.stage.environment, "RAY_ADDRESS": self.stage.nodes.address}
        environment |= {"BCD_FAULTS": plan} if second else {}
        environment |= options.pop("environment", {})
        words = [word for name, value in (given | options).items() for word in (f"--{name}", str(value))]
        words = [word for word in words if word != "True"]
        process = self.stage.context.Process(target=drive, args=(environment, words, str(folder), "nightly"))
        process.start()
        return Running(self, folder, process)

    def night(self, day: int, *faults: Fault, code: int, **options: Any) -> Ended:
        """The night of a day, which must end with a code; then all must be as the manual says."""
        return self.begin(day, *faults, **options).join(code)

    def let_pass(self, hours: float) -> None:
        """Have so much time pass for the night under way."""
        self.stage.plan(self.folder / str(self.nights), (), clock_s=3600 * hours)

    def check(self, ended: Ended, before: float | None) -> None:
        """Rows, table, metrics and last line after a night."""
        record = ended.record
        if ended.code in _PUBLISHING:
            self.expected = {name: status for name, status in {**self.expected, **self.waiting}.items() if status}
            self.waiting = {}
        if self.expected:
            rows = read.current(self.output, ["image_uri", "status"]).to_pylist()
            assert len(rows) == len(self.expected), "a row is lost, or stands twice"
            assert {row["image_uri"]: row["status"] for row in rows} == self.expected
        if ended.code in _PUBLISHING:  # else it may have ended between its rows and its manifest
            assert verify(self.output) == []
            assert list(CurrentTable(self.output).differences()) == []
        if record["run_number"]:
            manifests = storage.list_names(f"{self.output}/manifests")
            assert f"{record['run_id']}.json" in manifests
        found = samples(self.metrics)
        assert found["bcd_ray_exit_code"] == {"": ended.code}
        success = found.get("bcd_ray_last_success_timestamp_seconds", {}).get("")
        assert (success != before) == (ended.code in _PUBLISHING), "the time of the last night that came to its end"


@dataclass(frozen=True)
class Running:
    """A night under way."""

    week: Week
    folder: Path
    process: Any

    def join(self, code: int) -> Ended:
        """Wait for its end; one that was killed told nobody."""
        before = _last_success(self.week.metrics)
        self.process.join(_LONGEST_NIGHT_S)
        out, err = (self.folder / "out").read_text(), (self.folder / "err").read_text()
        ended = Ended(self.process.exitcode, out, err)
        assert ended.code == code, f"exit code {ended.code} in place of {code}: {out[-500:]} {err[-1500:]}"
        if code >= 0:
            self.week.check(ended, before)
        return ended


class Gate:
    """Holds whoever reports until it is opened, and says when somebody waits."""

    def __init__(self, stage: Stage) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()
        stage.on_report = self._report

    def _report(self, report: dict[str, Any]) -> None:
        self.reached.set()
        self._opened.wait(_LONGEST_NIGHT_S)

    def open(self) -> None:
        """Let all go on."""
        self._opened.set()


def _last_success(path: Path) -> float | None:
    with suppress(FileNotFoundError):
        return samples(path).get("bcd_ray_last_success_timestamp_seconds", {}).get("")
    return None
