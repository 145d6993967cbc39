"""Faults around the job: requests that fail, a store or a disk that is gone or full, archives and clocks that change,
a second copy of the same command."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from bcd_ray import storage
from faults.case import Attempt, Case, Scenario
from faults.stage import ALWAYS, UNITS, Fault, Report, Stage, jpeg, parquet_of, tar_of
from faults.store import BUCKET, Rule

DAY_S = 86_400.0
_TARGETS = {  # requests by what they are for: method, where, and what below it
    "list the archive": ("GET", "?archive", ""),
    "read a tar": ("GET", "archive", "/shards/2.tar"),
    "read a Parquet file": ("GET", "archive", "/table.parquet"),
    "read a loose image": ("GET", "archive", "/loose/3.jpg"),
    "probe": ("PUT", "output", "/_work/.write-check"),
    "delete the probe": ("DELETE", "output", "/_work/.write-check"),
    "list the manifests": ("GET", "?output", "/manifests"),
    "write the plan": ("PUT", "output", "/_work/plans/"),
    "read the plan": ("GET", "output", "/_work/plans/"),
    "list the units": ("GET", "?output", "/_work/units"),
    "write a unit": ("PUT", "output", "/_work/units/"),
    "read a unit": ("GET", "output", "/_work/units/"),
    "write the predictions": ("PUT", "output", "/predictions/"),
    "write the features": ("PUT", "output", "/features/"),
    "write the inputs": ("PUT", "output", r"/manifests/.*\.inputs\.parquet"),
    "write the manifest": ("PUT", "output", r"/manifests/.*\.json"),
}
_FAILURES = {"500": 1, "503": 2, "reset": 1, "lost": 1, "stall": 1, "cut": 1, "stall-body": 1}  # and how often each
_READING = [name for name, (method, _, _) in _TARGETS.items() if method == "GET"]
_PUBLISHED = ("predictions", "features", "inputs", "manifest")


def scenarios(place: str) -> Iterator[Scenario]:
    """All of them, in a fixed order."""
    makers = (_clocks, _copies, _archives, _disks) if place == "local" else (_clocks, _copies, _archives)
    makers += (_requests, _refusals, _store) if place == "s3" else ()
    for maker in makers:
        yield from maker(place)


def _requests(place: str) -> Iterator[Scenario]:
    """Requests that fail once or twice and then do not."""
    for kind, times in _FAILURES.items():
        targets = _READING if kind in ("cut", "stall-body") else list(_TARGETS)
        for start in range(3):
            some = targets[start::3]
            name = f"{kind}{' twice' * (times == 2)} to " + ", ".join(some)
            yield Scenario("request failed", place, name, partial(_fail_requests, dict.fromkeys(some, kind)), len(some))
    ways = ["503", "lost", "stall", "cut", "lost", "reset", "stall-body", "lost", "500"]  # in the order of the targets
    mixed = dict(zip(_TARGETS, [*ways, "503", "lost", "stall", "503", "reset", "lost", "reset"], strict=True))
    yield Scenario("request failed", place, "each once, in all ways", partial(_fail_requests, mixed), len(mixed))
    for step in ("plan", "unit", "predictions"):
        name = f"credentials expire before {step} is written and are renewed"
        yield Scenario("request failed", place, name, partial(_expire, step))


def _fail_requests(failures: dict[str, str], stage: Stage) -> None:
    case = Case(stage, "s3")
    rules = {target: Rule(kind, _pattern(case, target), _FAILURES[kind]) for target, kind in failures.items()}
    stage.proxy.rules = list(rules.values())
    case.publishes()
    missed = [target for target, rule in rules.items() if rule.hits < rule.times]
    assert not missed, f"not injected: {missed}"
    case.check()


def _pattern(case: Case, target: str) -> str:
    method, where, below = _TARGETS[target]
    uri = case.archive if where.endswith("archive") else case.output
    path = re.escape(uri.removeprefix(f"s3://{BUCKET}/")) + below
    return rf"^{method} /{BUCKET}/?\?.*prefix={path}/?(&|$)" if where[0] == "?" else rf"^{method} /{BUCKET}/{path}"


def _expire(step: str, stage: Stage) -> None:
    case = Case(stage, "s3")
    refused = threading.Event()

    def renew() -> None:
        stage.set_credentials("renewed")
        refused.set()

    def expire(report: Report) -> None:
        stage.proxy.rules = [Rule("400", "", ALWAYS, signed_by="lab", at=4, call=renew)]

    stage.on_report = expire
    case.publishes(Fault(step, action="tell"))
    assert refused.is_set()
    stage.calm()
    case.check()


def _refusals(place: str) -> Iterator[Scenario]:
    """Requests that fail for good, until someone sees to it."""
    for target in ("read a tar", "read a Parquet file", "read a loose image"):
        yield Scenario("request refused", place, f"403 to {target}", partial(_refuse_reading, target))
    for target in (name for name in _TARGETS if name.startswith("write ")):
        yield Scenario("request refused", place, f"403 to {target}", partial(_refuse_writing, target))


def _refuse_reading(target: str, stage: Stage) -> None:
    case = Case(stage, "s3")
    stage.proxy.rules = [Rule("403", _pattern(case, target), ALWAYS)]
    name = _TARGETS[target][2].lstrip("/")
    for run in (1, 2):
        hits = stage.proxy.rules[0].hits
        attempt = case.publishes(code=3)
        assert re.search(r"\b1  read_error", attempt.out), attempt.out
        assert stage.proxy.rules[0].hits == hits + 1, "a refusal is no fault to be tried again"
        assert [manifest["run_number"] for manifest in case.manifests()] == list(range(1, run + 1))
    stage.calm()
    case.publishes()
    runs = {row["run_number"] for row in case.rows().to_pylist() if row["shard_uri"] == f"{case.archive}/{name}"}
    assert runs == {3}
    case.check()


def _refuse_writing(target: str, stage: Stage) -> None:
    case = Case(stage, "s3")
    stage.proxy.rules = [Rule("403", _pattern(case, target), ALWAYS)]
    case.fails()
    assert not any(name.endswith(".json") for name in storage.list_names(f"{case.output}/manifests"))
    stage.calm()
    case.publishes()
    case.check()


def _store(place: str) -> Iterator[Scenario]:
    for step, first in (("plan", 1), ("unit", 1), ("unit", 5), ("predictions", 1), ("manifest", 1)):
        fault = Fault(step, first=first, action="tell")
        name = f"kill -9 and start again, before {step}{f' number {first}' * (first > 1)} is written"
        yield Scenario("S3 server killed", place, name, partial(_restart_store, fault))


def _restart_store(fault: Fault, stage: Stage) -> None:
    case = Case(stage, "s3")
    starting: list[threading.Thread] = []

    def restart(report: Report) -> None:
        stage.store.kill()
        starting.append(threading.Thread(target=stage.store.start))
        starting[0].start()  # it takes seconds: requests fail until then

    stage.on_report = restart
    case.publishes(fault)
    starting[0].join()
    case.check()


def _archives(place: str) -> Iterator[Scenario]:
    for name in ("shards/2.tar", "table.parquet", "loose/3.jpg"):
        for vanishes in (True, False):
            title = f"{name} {'vanishes' if vanishes else 'is replaced'} after it was listed"
            yield Scenario("archive changed", place, title, partial(_change_after_listing, place, name, vanishes))
    yield Scenario("archive changed", place, "a shard vanishes for good after it was listed", partial(_vanish, place))
    for step in (None, Fault("plan", "after"), Fault("counted", "after"), Fault("predictions", "after")):
        title = f"grows, driver {f'killed {step.when} {step.step}' if step else 'not killed'}"
        yield Scenario("archive changed", place, title, partial(_grow, place, step), 6 if step else 3)


def _change_after_listing(place: str, name: str, vanishes: bool, stage: Stage) -> None:
    case = Case(stage, place, stage.own_archive(place))
    uri = f"{case.archive}/{name}"
    whole = storage.read_bytes(uri)

    def change(report: Report) -> None:
        storage.delete(uri)
        if not vanishes:
            storage.write_bytes(uri, _other_content(name))

    stage.on_report = change
    attempt = case.publishes(Fault("plan", "after", action="tell"), code=3)
    assert re.search(rf"\b1  {'missing' if vanishes else 'changed'}", attempt.out), attempt.out
    if vanishes:
        storage.write_bytes(uri, whole)
    again = case.publishes()
    assert again.started == {uri}, again.started
    case.check(replaced=() if vanishes else (name,))


def _other_content(name: str, night: int = 0) -> bytes:
    images = [jpeg(200 + 10 * night + number) for number in range(5)]
    return {"tar": tar_of, "quet": parquet_of}.get(name.rpartition(".")[2][-4:], lambda images: images[0])(images)


def _vanish(place: str, stage: Stage) -> None:
    """Nothing brings it back: its row says so, and stays."""
    case = Case(stage, place, stage.own_archive(place))
    stage.on_report = lambda report: storage.delete(f"{case.archive}/shards/2.tar")
    case.publishes(Fault("plan", "after", action="tell"), code=3)
    case.check({"shards/2.tar": "missing"}, gone=("shards/2.tar",))


def _grow(place: str, step: Fault | None, stage: Stage) -> None:
    """Each night a shard and an image arrive and a shard changes in place; the last night another one has vanished.

    If the driver is killed, one more shard arrives before the command runs again.
    """
    case = Case(stage, place, stage.own_archive(place, "shards/0", "shards/1", "loose"))
    for night in range(3):
        new = [f"shards/night-{night}.tar", f"zone/night-{night}.jpg"] if night else []
        for name in [*new, "shards/1.tar"]:
            storage.write_bytes(f"{case.archive}/{name}", _other_content(name, night))
        if night == 2:
            storage.delete(f"{case.archive}/shards/0.tar")
        if step:
            case.killed(step)
            storage.write_bytes(f"{case.archive}/zone/late-{night}.tar", _other_content("tar"))
        attempt = case.publishes()
        if night and not step:
            assert attempt.started == {f"{case.archive}/{name}" for name in [*new, "shards/1.tar"]}, attempt.started
    manifests = case.manifests()
    numbers = [manifest["run_number"] for manifest in manifests]
    assert len(set(numbers)) == len(numbers)
    assert step or numbers == [1, 2, 3]
    assert sum(manifest["superseded_shards"] for manifest in manifests) == 2
    case.check(replaced=("shards/1.tar",), gone=("shards/0.tar",))


def _disks(place: str) -> Iterator[Scenario]:
    yield Scenario("disk not mounted", place, "links of the archive lead nowhere for a night", _unmount)
    for step in (Fault("plan"), Fault("unit"), Fault("unit", first=6), *(Fault(name) for name in _PUBLISHED)):
        name = f"before {step.step}{f' number {step.first}' * (step.first > 1)} is written"
        yield Scenario("disk full", place, name, partial(_fill_disk, step))
    yield Scenario("disk full", place, "that of temporary files", partial(_fill_temporary_disk))


def _unmount(stage: Stage) -> None:
    """What was scored holds, the exit code says that it could not be read; once it is back nothing is to be done."""
    case = Case(stage, "local", stage.own_archive("local", "shards/0", "loose"))
    case.publishes()
    folder, disk = Path(case.archive, "loose"), Path(f"{case.archive}-disk")
    folder.rename(disk)
    folder.mkdir()
    for image in disk.iterdir():
        (folder / image.name).symlink_to(f"{disk}-elsewhere/{image.name}")
    attempt = case.publishes(code=3)
    assert "6 shards could not be read this time: their earlier rows hold" in attempt.out, attempt.out
    assert case.rows()["status"].to_pylist() == ["scored"] * 12
    assert case.manifests()[1]["undelivered"] == {"missing": 6}
    shutil.rmtree(folder)
    disk.rename(folder)
    case.check()


def _fill_disk(step: Fault, stage: Stage) -> None:
    with small_disk(stage.root / f"disk-{uuid4().hex[:8]}") as disk:
        case = Case(stage, "local", output=str(disk / "output"))
        stage.on_report = lambda report: fill(disk)
        case.fails(replace(step, action="tell"))
        (disk / "filler").unlink()
        case.publishes()
        case.check()


def _fill_temporary_disk(stage: Stage) -> None:
    with small_disk(stage.root / f"disk-{uuid4().hex[:8]}") as disk:
        case = Case(stage, "local")
        stage.on_report = lambda report: fill(disk)
        case.fails(Fault("counted", "after", first=UNITS, action="tell"), environment={"TMPDIR": str(disk)})
        (disk / "filler").unlink()
        case.publishes(environment={"TMPDIR": str(disk)})
        case.check()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MB; PermissionError where this process may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write to a disk until it takes no more."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def _clocks(place: str) -> Iterator[Scenario]:
    for before, after in ((0.0, -DAY_S), (0.0, DAY_S), (DAY_S, -DAY_S)):
        for step in (Fault("plan", "after"), Fault("counted", "after", first=3), Fault("predictions", "after")):
            name = f"jumps by {(after - before) / DAY_S:+.0f} days after a kill {step.when} {step.step}"
            yield Scenario("clock jumps", place, name, partial(_jump, place, step, before, after), 2)


def _jump(place: str, step: Fault, before: float, after: float, stage: Stage) -> None:
    case = Case(stage, place)
    case.killed(step, clock_s=before)
    case.publishes(clock_s=after)
    case.check()


def _copies(place: str) -> Iterator[Scenario]:
    yield Scenario("two copies", place, "started together", partial(_together, place))
    held = [Fault("plan"), Fault("unit", first=3)]
    held += [Fault(name, when) for name in _PUBLISHED for when in ("before", "after") if name + when != "manifestafter"]
    for step in held:
        name = f"one waits {step.when} {step.step} until the other is done"
        yield Scenario("two copies", place, name, partial(_hold, place, step))
    for step in (Fault("counted", "after", first=2), Fault("predictions", "after")):
        name = f"one is killed {step.when} {step.step}"
        yield Scenario("two copies", place, name, partial(_one_dies, place, step), 2)


def _together(place: str, stage: Stage) -> None:
    case = Case(stage, place)
    copies = [case.begin(), case.begin(second=True)]
    codes = [copy.join().code for copy in copies]
    assert codes == [0, 0]
    assert len(case.manifests()) == 1
    case.check()


def _hold(place: str, step: Fault, stage: Stage) -> None:
    case = Case(stage, place)
    others: list[Attempt] = []
    node = stage.nodes.add(num_cpus=2) if step.step == "unit" else ""  # the one that waits keeps its CPUs

    def run_other(report: Report) -> None:
        others.append(case.begin(second=True).join())

    stage.on_report = run_other
    try:
        case.publishes(replace(step, action="tell"))
    finally:
        if node:
            stage.nodes.kill(node)
    assert others[0].code == 0, others
    assert len(case.manifests()) == 1
    case.check()


def _one_dies(place: str, step: Fault, stage: Stage) -> None:
    case = Case(stage, place)
    copies = [case.begin(step), case.begin(second=True)]
    ends = [copy.join() for copy in copies]
    assert [end.code for end in ends] == [-9, 0], ends
    assert len(case.manifests()) == 1
    case.check()
