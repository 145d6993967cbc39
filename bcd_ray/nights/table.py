"""The rows that hold, as a Delta table: OUTPUT/table, a commit for each run.

The manifests are the truth and the table follows them. A commit takes the rows of its run in, and in the same moment
those out that it supersedes; it carries the run's id as a transaction of Delta's, so that whoever comes next knows
which runs are still to be taken in. The table is partitioned by run: what a commit rewrites are the runs that lost
rows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import read, storage
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.ledger.manifests import Manifest, in_order, read_manifests
from bcd_ray.ledger.said import inputs_uri
from bcd_ray.ledger.schema import PREDICTIONS
from bcd_ray.ledger.state import State
from bcd_ray.storage import parquet, s3

# Every night can be travelled to, however long ago.
_AS_A_NEW_ONE: dict[str, Any] = {"mode": "error", "configuration": {"delta.enableExpiredLogCleanup": "false"}}
_INTO_ONE: dict[str, Any] = {"mode": "overwrite", "schema_mode": "merge"}  # a release may have brought columns
_COLOURS = re.compile(r"\x1b\[[\d;]*m")  # for terminals, in errors of the library
_COUNT = "bcd_ray.runs"  # among the transactions: its version is how many runs the table has
_COMPARED = ("image_id", "run_id", "status", "predicted_class", "review")


class CurrentTable:
    """The Delta table of an output."""

    def __init__(self, output: str) -> None:
        """ConfigError where the library is not installed."""
        try:
            import deltalake  # noqa: F401
        except ImportError as error:
            raise ConfigError("--table delta needs a library: pip install -e '.[delta]'") from error
        self._output, self.uri = output, storage.join(output, "table")
        self._options = s3.object_store_options() if storage.is_s3(output) else {}

    def exists(self) -> bool:
        """Whether there is one. The library's own way to ask stops all threads, for minutes where a store stalls."""
        return bool(storage.list_names(storage.join(self.uri, "_delta_log")))

    def update(self) -> list[str]:
        """Take in each run that is published and not in the table yet, a commit each; returns their ids.

        Raises:
            JobError: the table cannot be read or written.
        """
        runs = read_manifests(self._output)
        try:
            missing = self._missing(runs)
            state = State(self._output, [run for run in runs if run not in missing])
            for run in missing:
                state = self._take_in(run, state)
        except _errors() as error:
            remedy = "the same command takes in what is published, jobs/verify.py --rebuild-table makes it anew"
            raise JobError(f"{self.uri}: {_line(error)}; {remedy}") from error
        return [run.content["run_id"] for run in missing]

    def rebuild(self) -> list[str]:
        """Delete the table with all its versions, and make it anew from the manifests, a commit for each run."""
        for name in storage.list_names(self.uri):
            storage.delete(storage.join(self.uri, name))
        return self.update()

    def differences(self) -> Iterator[str]:
        """What is otherwise in the table than in the rows that hold, a line each."""
        remedy = "run the night again, or make it anew with --rebuild-table"
        held = read.current(self._output, _COMPARED)
        try:
            found = self._open().to_pyarrow_table(columns=list(_COMPARED)).cast(held.schema)
        except _errors() as error:
            yield f"{self.uri} cannot be read ({_line(error)}): {remedy}"
            return
        order = [(name, "ascending") for name in _COMPARED[:2]]
        if held.sort_by(order) != found.sort_by(order):
            yield f"{self.uri} has not the rows that hold ({len(found):,} for {len(held):,}): {remedy}"

    def _open(self) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(self.uri, storage_options=self._options)

    def _missing(self, runs: list[Manifest]) -> list[Manifest]:
        """The runs that the table does not have, mostly the last. It says how many it has: to ask takes 2 ms a run."""
        if not self.exists():
            return runs
        table = self._open()
        count, missing = table.transaction_version(_COUNT) or 0, list[Manifest]()
        for run in reversed(runs):
            if count + len(missing) == len(runs):
                break
            if table.transaction_version(run.content["run_id"]) is None:
                missing.insert(0, run)
        return missing

    def _take_in(self, run: Manifest, before: State) -> State:
        """Commit a run to the table of the state's runs; returns the state with it."""
        # Of two that were planned at the same time, the one planned last holds, whichever was published first.
        runs = sorted([*before.runs, run], key=lambda each: in_order(each.content))
        after, lost = State(self._output, runs, like=before), set[str]()
        uri = inputs_uri(self._output, run.content["run_id"])
        for chunk in parquet.chunks_at(uri, "restore it from a copy", ["uri"]):
            uris = chunk["uri"].combine_chunks().sort()
            held, holds = before.of(uris)["run_id"], after.of(uris)["run_id"]
            lost |= set(held.filter(pc.not_equal(held, holds.fill_null(""))).drop_null().unique().to_pylist())
        of_runs = [each.content for each in runs if each.content["run_id"] in {*lost, run.content["run_id"]}]
        self._commit(run.content, of_runs, after)
        return after

    def _commit(self, manifest: dict[str, Any], runs: list[dict[str, Any]], state: State) -> None:
        """Write the rows that hold of some runs in place of what the table has of them, in one commit."""
        from deltalake import CommitProperties, Transaction, write_deltalake

        holding = state.shards_by("run_id", [each["run_id"] for each in runs])
        batches = (batch for run_id, uris in holding.items() for batch in self._rows(run_id, uris, state))
        write_deltalake(
            self.uri,
            pa.RecordBatchReader.from_batches(PREDICTIONS.remove_metadata(), batches),
            partition_by=["run_number"],
            storage_options=self._options,
            commit_properties=CommitProperties(
                {"run_id": manifest["run_id"], "run_number": str(manifest["run_number"])},
                app_transactions=[
                    Transaction(manifest["run_id"], manifest["run_number"]),
                    Transaction(_COUNT, len(state.runs)),
                ],
            ),
            **_AS_A_NEW_ONE if len(state.runs) == 1 else {**_INTO_ONE, "predicate": _of_runs(runs)},
        )

    def _rows(self, run_id: str, wanted: pa.Array, state: State) -> Iterator[pa.RecordBatch]:
        """The rows of some shards that a run published, in the columns of now; none of what is withdrawn."""
        uri = storage.join(self._output, "predictions", f"{run_id}.parquet")
        for chunk in parquet.chunks_at(uri, "restore it from a copy"):
            rows = chunk.filter(pc.and_not(pc.is_in(chunk["shard_uri"], wanted), state.is_withdrawn(chunk)))
            lacking = {field.name: pa.nulls(len(rows), field.type) for field in PREDICTIONS}
            columns = lacking | dict(zip(rows.schema.names, rows.columns, strict=True))
            table = pa.table({name: columns[name] for name in PREDICTIONS.names})
            yield from table.cast(PREDICTIONS.remove_metadata()).to_batches()


def _of_runs(runs: Iterable[Mapping[str, Any]]) -> str:
    return f"run_number IN ({', '.join(str(run['run_number']) for run in runs)})"


def _errors() -> tuple[type[Exception], ...]:
    from deltalake.exceptions import DeltaError

    return DeltaError, OSError, pa.ArrowException


def _line(error: Exception) -> str:
    return " ".join(_COLOURS.sub("", str(error)).split())[:200]
