"""One output under faults: attempts at the same command, each in its own process, and what must hold after them."""

import hashlib
import io
import json
import multiprocessing
import os
import re
import runpy
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray import read, storage
from bcd_ray.archives.images import Limits
from bcd_ray.archives.shards import image_id, kind_of, read_shards
from bcd_ray.ledger import schema
from bcd_ray.ledger.verification import clear_leftovers, verify
from bcd_ray.storage import s3
from faults import hooks
from faults.stage import ROOT, Fault, Stage, enter

_LONGEST_ATTEMPT_S = 600  # 10 s alone on two cores; minutes beside other heavy work
_OF_THE_IMAGE = ("image_sha256", "width", "height", "status", "error", "predicted_class", "confidence", "p_benign")
_OF_THE_IMAGE += ("p_early_pre_b", "p_pre_b", "p_pro_b", "p_malignant", "model_version")


@dataclass(frozen=True)
class Attempt:
    """How an attempt at the command ended."""

    code: int
    out: str
    err: str
    fired: frozenset[int]  # numbers of the faults whose event came about
    started: frozenset[str]  # units by their first shard


class Running:
    """An attempt under way."""

    def __init__(self, case: "Case", folder: Path, process: Any) -> None:
        self._case, self._folder, self._process = case, folder, process
        self._finished = case.finished_units()

    def join(self) -> Attempt:
        """Wait for its end, and check what must hold after every attempt, however it ended."""
        self._process.join(_LONGEST_ATTEMPT_S)
        err = self._folder / "err"
        if self._process.is_alive():
            self._process.kill()
            raise AssertionError(f"still running after {_LONGEST_ATTEMPT_S} s: {err.read_text()[-500:]}")
        started = self._folder / "started"
        attempt = Attempt(
            self._process.exitcode,
            (self._folder / "out").read_text(),
            err.read_text(),
            frozenset(int(path.name.split(".")[0]) for path in self._folder.glob("*.fired")),
            frozenset(started.read_text().splitlines()) if started.exists() else frozenset(),
        )
        self._case.check_attempt(attempt, self._finished)
        return attempt


class Case:
    """An archive, an output that nothing was written to yet, and a reader who looks at it all the time."""

    def __init__(
        self, stage: Stage, place: str, archive: str = "", output: str = "", options: tuple[str, ...] = ()
    ) -> None:
        self.stage, self.place, self.options = stage, place, options
        self.archive = archive or stage.archives[place]
        self.output = output or f"{stage.home(place)}/output-{uuid4().hex[:8]}"
        self.folder = stage.root / f"case-{uuid4().hex[:8]}"
        self._attempts = 0
        self._published: dict[str, str] = {}
        stage.calm()
        self._reader = _Reader(stage, self.output)

    def begin(
        self,
        *faults: Fault,
        clock_s: float = 0,
        part_bytes: int = 0,
        environment: dict[str, str] | None = None,
        second: bool = False,
        job: str = "score",
        options: tuple[str, ...] = (),
    ) -> Running:
        """Start an attempt; its faults are for its driver and all workers, those of a second copy for its driver."""
        self._attempts += 1
        folder = self.folder / str(self._attempts)
        folder.mkdir(parents=True)
        path = str(folder / "faults.json") if second else ""
        self.stage.plan(folder, faults, clock_s, part_bytes, path)
        arguments = ["--output", self.output, *options]
        if job == "score":
            arguments += ["--model", self.stage.model, "--input", self.archive]
            arguments += ["--small-run-bytes", "0", *self.options]  # what is to fail is on Ray
        variables = {**self.stage.environment, "RAY_ADDRESS": self.stage.nodes.address, **(environment or {})}
        variables |= {hooks.FAULTS: path} if second else {}
        # Of two drivers forked from one process Ray's "random" object ids are the same, and the second dies of it.
        context = multiprocessing.get_context("spawn") if second else self.stage.context
        process = context.Process(target=drive, args=(variables, arguments, str(folder), job))
        running = Running(self, folder, process)
        process.start()
        return running

    def attempt(self, *faults: Fault, **options: Any) -> Attempt:
        """`begin`, and wait for the end; every fault must have come about."""
        attempt = self.begin(*faults, **options).join()
        missed = [str(fault) for number, fault in enumerate(faults) if number not in attempt.fired]
        assert not missed, f"not injected: {missed}; {_end_of(attempt)}"
        return attempt

    def killed(self, *faults: Fault, **options: Any) -> None:
        """An attempt whose driver dies of the fault."""
        attempt = self.attempt(*faults, **options)
        assert attempt.code == -9, f"the driver was to be killed: {_end_of(attempt)}"

    def publishes(self, *faults: Fault, code: int = 0, **options: Any) -> Attempt:
        """An attempt that, with or without faults, ends well."""
        attempt = self.attempt(*faults, **options)
        assert attempt.code == code, f"exit code {code} was expected: {_end_of(attempt)}"
        return attempt

    def fails(self, *faults: Fault, code: int = 1, **options: Any) -> Attempt:
        """An attempt that ends with an error, told in one line."""
        attempt = self.attempt(*faults, **options)
        told = [line for line in attempt.err.splitlines() if not re.match(r"(run|scoring) ", line)]
        assert attempt.code == code, f"exit code {code} was expected: {_end_of(attempt)}"
        assert len(told) == 1, f"one line was expected: {attempt.err}"
        assert told[0].startswith("error: "), told
        return attempt

    def manifests(self) -> list[dict[str, Any]]:
        """Of the published runs, in order of their numbers."""
        folder = f"{self.output}/manifests"
        names = [name for name in storage.list_names(folder) if name.endswith(".json")]
        found = [json.loads(storage.read_bytes(f"{folder}/{name}")) for name in names]
        return sorted(found, key=lambda manifest: manifest["run_number"])

    def rows(self) -> pa.Table:
        """The view that holds, by the query of docs/read.md."""
        return self._view([manifest["run_id"] for manifest in self.manifests()])

    def only_run(self) -> pa.Table:
        """The published rows as they lie in the file, where there was one run."""
        (name,) = _names(f"{self.output}/predictions")
        return pq.read_table(io.BytesIO(storage.read_bytes(f"{self.output}/predictions/{name}")))

    def check(
        self, others: dict[str, str] | None = None, gone: tuple[str, ...] = (), replaced: tuple[str, ...] = ()
    ) -> None:
        """What must hold once a command has published.

        Args:
            others: statuses of images, or of whole shards, that are not scored, by their names below the archive.
            gone: shards that are no longer there, whose rows stay.
            replaced: shards that hold other images than in the base archive.
        """
        others = others or {}
        rows = self.rows()
        ids, expected = rows["image_id"].to_pylist(), self._expected_ids(others)
        kept = [key for key, uri in zip(ids, rows["shard_uri"].to_pylist(), strict=True) if self._name(uri) in gone]
        assert len(set(ids)) == len(ids), f"{len(ids) - len(set(ids))} ids stand twice"
        assert set(ids) - set(kept) == expected, f"{len(ids)} ids, {len(expected)} images"
        assert verify(self.output) == []
        self._check_contents(rows, others, replaced)
        self._check_views()
        self._check_records(rows)
        before = self._digests()
        again = self.attempt()
        # Of the state, not of the run that found nothing to do.
        assert again.code == (3 if others.keys() - set(gone) else 0), _end_of(again)
        assert "nothing to do" in again.out, again.out
        assert self._digests() == before, "a run that had nothing to do changed something"
        self._reader.stop()
        self._check_reader(before)
        clear_leftovers(self.output)
        assert self._digests() == before, "clearing leftovers changed something"
        assert verify(self.output) == []
        assert not (left := self._leftovers()), f"not cleared: {left}"

    def is_to_be_rewritten(self) -> None:
        """Published files may change from now on, as images are erased from them; nobody watches any more."""
        self._reader.stop()
        self._published = {}

    def finished_units(self) -> dict[str, tuple[str, str]]:
        """Tag and time of the units' objects, by name."""
        folder = f"{self.output}/_work/units"
        if storage.is_s3(folder):
            return {item["Key"]: (item["ETag"], str(item["LastModified"])) for item in s3.list_keys(f"{folder}/")}
        return {path.name: (_digest(path.read_bytes()), str(path.stat().st_mtime_ns)) for path in _files(Path(folder))}

    def check_attempt(self, attempt: Attempt, finished: dict[str, tuple[str, str]]) -> None:
        """Units that were finished stay as they are and are not read again; so does all that is published."""
        now = self.finished_units()
        # Those of a published run go when the next one begins.
        changed = [name for name, tags in finished.items() if now.get(name, tags) != tags]
        assert not changed, f"units written anew: {changed}"
        first_shards = self._first_shards(re.findall(r"^run (\w+): [\d,]+ of [\d,]+ units", attempt.err, re.MULTILINE))
        again = [name for name in finished if first_shards.get(_unit_name(name)) in attempt.started]
        assert not again, f"finished units were started again: {again}"
        published = self._digests()
        assert published.items() >= self._published.items(), "a published file changed or vanished"
        self._published = published

    def _first_shards(self, runs: list[str]) -> dict[str, str]:
        """The first shard of each unit of the runs' plans."""
        first: dict[str, str] = {}
        for run in runs:
            table = pq.read_table(io.BytesIO(storage.read_bytes(f"{self.output}/_work/plans/{run}.parquet")))
            for unit, uri in zip(table["unit_id"].to_pylist(), table["uri"].to_pylist(), strict=True):
                first.setdefault(unit, uri)
        return first

    def _name(self, uri: str) -> str:
        return uri[len(self.archive) + 1 :]

    def _expected_ids(self, others: dict[str, str]) -> set[str]:
        """The ids that the archive holds, found without the ledger."""
        shards = [shard for shard in storage.list_objects(self.archive) if kind_of(shard.uri)]
        whole = [shard for shard in shards if self._name(shard.uri) not in others]
        ids = [entry.image_id for entry in read_shards(whole, Limits())]
        ids += [image_id(shard.uri, "", 1) for shard in shards if self._name(shard.uri) in others]
        return set(ids)

    def _check_contents(self, rows: pa.Table, others: dict[str, str], replaced: tuple[str, ...]) -> None:
        """Each row is that of an undisturbed run, but for when and which run."""
        found = _contents(rows, self.archive)
        statuses = {name: content["status"] for name, content in found.items() if content["status"] != "scored"}
        assert statuses == others
        reference = self.stage.references.get(self.place)
        if reference is None:
            return
        undisturbed = _contents(reference, self.stage.archives[self.place])
        same = [name for name in found if name in undisturbed and name not in others and not name.startswith(replaced)]
        wrong = [name for name in same if undisturbed[name] != found[name]]
        assert not wrong, f"other rows than of an undisturbed run: {wrong}"
        if self.archive == self.stage.archives[self.place] and len(self.manifests()) == 1 and not others:
            undated = [table.drop(["scored_at"]) for table in (self.only_run(), reference)]
            assert undated[0].equals(undated[1]), "another order or other columns"

    def _check_records(self, rows: pa.Table) -> None:
        """What the package's own reader gives is the view that holds, and manifests count what lies in the files."""
        held = read.current(self.output)
        assert sorted(held["image_id"].to_pylist()) == sorted(rows["image_id"].to_pylist()), "read.current differs"
        for manifest in self.manifests():
            data = storage.read_bytes(f"{self.output}/predictions/{manifest['run_id']}.parquet")
            published = pq.read_table(io.BytesIO(data))
            assert manifest["statuses"] == Counter(published["status"].to_pylist()), manifest["statuses"]

    def _check_views(self) -> None:
        """A reader of the view that holds sees no id twice, whichever runs were there when it looked."""
        runs = [manifest["run_id"] for manifest in self.manifests()]
        for count in range(1, len(runs) + 1):
            rows = self._view(runs[:count])
            assert len(rows["image_id"].unique()) == len(rows), f"the view of {count} runs has an id twice"
            versions = rows.group_by("shard_uri").aggregate([("shard_etag", "count_distinct")])
            assert set(versions["shard_etag_count_distinct"].to_pylist()) <= {1}, "two versions of one shard"

    def _view(self, runs: list[str]) -> pa.Table:
        query = re.search(r"^SELECT [^;`]*QUALIFY[^;`]*", (ROOT / "docs" / "read.md").read_text(), re.MULTILINE)
        assert query
        with tempfile.TemporaryDirectory() as folder:
            for run in runs:
                Path(folder, f"{run}.parquet").write_bytes(
                    storage.read_bytes(f"{self.output}/predictions/{run}.parquet")
                )
            text = query.group().replace("scores/predictions/", f"{folder}/")
            return duckdb.sql(text).arrow().read_all().cast(schema.PREDICTIONS)

    def _digests(self) -> dict[str, str]:
        """All published files by name."""
        return {
            f"{part}/{name}": _digest(storage.read_bytes(f"{self.output}/{part}/{name}"))
            for part in ("predictions", "features", "manifests")
            for name in _names(f"{self.output}/{part}")
        }

    def _check_reader(self, published: dict[str, str]) -> None:
        assert not self._reader.problems, self._reader.problems
        seen = {f"predictions/{name}": digests for name, digests in self._reader.seen.items()}
        wrong = [name for name, digests in seen.items() if digests != {published.get(name)}]
        assert not wrong, f"a reader saw other content than was published: {wrong}"
        assert seen, "the reader saw nothing"

    def _leftovers(self) -> list[str]:
        """What lies in the output and is not published."""
        if storage.is_s3(self.output):
            listing = [item["Key"] for item in s3.list_keys(f"{self.output}/")]
            bucket, prefix = self.output.removeprefix("s3://").split("/", 1)
            uploads = self.stage.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
            found = [key.removeprefix(f"{prefix}/") for key in listing] + [upload["Key"] for upload in uploads]
        else:
            found = [str(path.relative_to(self.output)) for path in _files(Path(self.output))]
        return [name for name in found if name not in self._digests()]


@dataclass(frozen=True)
class Scenario:
    """Some faults of a kind, on disk or on S3; `play` raises AssertionError where a promise is broken."""

    kind: str
    place: str
    name: str
    play: Callable[[Stage], None]
    faults: int = 1

    def __str__(self) -> str:
        return f"{self.kind}, {self.place}: {self.name}"


class _Reader:
    """Reads all that a glob of `predictions/**/*.parquet` finds, over and over."""

    def __init__(self, stage: Stage, output: str) -> None:
        self._output = output
        self._client = stage.client
        self.seen: dict[str, set[str | None]] = {}  # digests by name
        self.problems: list[str] = []
        self._end = threading.Event()
        self._tags: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._end.wait(0.1 if storage.is_s3(self._output) else 0.02):
            self._look()

    def _look(self) -> None:
        try:
            for name, tag, data in self._objects():
                if self._tags.get(name) == tag:
                    continue
                content = data()
                self._tags[name] = tag
                self.seen.setdefault(name, set()).add(_digest(content))
                ids = pq.read_table(io.BytesIO(content))["image_id"]
                if len(ids.unique()) != len(ids):
                    self.problems.append(f"{name} has an id twice")
        except pa.ArrowException as error:
            self.problems.append(str(error))
        except Exception as error:
            if type(error).__module__.split(".")[0] != "botocore":  # the store may be down
                self.problems.append(repr(error))

    def _objects(self) -> Iterator[tuple[str, str, Any]]:
        if not storage.is_s3(self._output):
            folder = Path(self._output, "predictions")
            for path in folder.rglob("*.parquet"):
                if not path.name.startswith("."):
                    stat = path.stat()
                    yield str(path.relative_to(folder)), f"{stat.st_size} {stat.st_mtime_ns}", path.read_bytes
            return
        bucket, prefix = f"{self._output}/predictions/".removeprefix("s3://").split("/", 1)
        for item in self._client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", []):
            get = {"Bucket": bucket, "Key": item["Key"]}
            yield (
                item["Key"].removeprefix(prefix),
                item["ETag"],
                lambda get=get: self._client.get_object(**get)["Body"].read(),
            )


def drive(environment: dict[str, str], arguments: list[str], folder: str, job: str = "score") -> None:
    """The command, in this process, with hooks; what it says goes to `out` and `err` in the folder."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    enter(environment)
    tempfile.tempdir = None
    tempfile.gettempdir()  # TMPDIR may be another one now; a full one would be passed over
    hooks.install_in_driver()
    sys.argv = [f"{job}.py", *arguments]
    runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")


def _contents(rows: pa.Table, archive: str) -> dict[str, dict[str, Any]]:
    """What the rows say of the images, by their names below the archive."""
    names = [uri[len(archive) + 1 :] for uri in rows["image_uri"].to_pylist()]
    contents = rows.select(_OF_THE_IMAGE).to_pylist()
    assert len(set(names)) == len(names)
    return dict(zip(names, contents, strict=True))


def _end_of(attempt: Attempt) -> str:
    return f"exit code {attempt.code}, {attempt.err[-600:]!r}"


def _names(folder: str) -> list[str]:
    return [name for name in storage.list_names(folder) if not name.startswith(".")]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def _unit_name(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".parquet")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
