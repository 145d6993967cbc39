"""What a run says of the shards that it read, whatever version wrote it down."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.ledger.manifests import identity_digest, unscored
from bcd_ray.ledger.standing import SAID, after_run, said_of
from bcd_ray.storage import parquet
from bcd_ray.storage.sorting import Part, SortedFile

_COLUMNS = ("uri", "etag", "rows", "passing_failure", "holds", "not_scored", "left_out", "incomplete", "features")
_REMEDY = "restore it from a copy"


def inputs_uri(output: str, run_id: str) -> str:
    """Where a run's shards are listed: by name, not by the recorded URI, since an output may have been moved."""
    return storage.join(output, "manifests", f"{run_id}.inputs.parquet")


class Said:
    """The shards of a run."""

    def __init__(self, output: str, manifest: Mapping[str, Any]) -> None:
        """JobError where the list of them is damaged."""
        self._output, self._manifest = output, manifest
        self._identity = identity_digest(manifest["identity"])
        uri = inputs_uri(output, manifest["run_id"])
        self._file = SortedFile(storage.fetch(uri), uri, _REMEDY, _COLUMNS)

    def parts(self, since: str = "") -> Iterator[Part]:
        """What it says of all of them, as `standing.SAID`, in order of their URIs; as `SortedFile.parts`."""
        return (part.changed(self._said) for part in self._file.parts(since))

    def of(self, uris: pa.Array) -> pa.Table:
        """What it says of those of some shards, in order, that it read."""
        found = self._file.of(uris)
        return self._said(found) if len(found) else SAID.empty_table()

    def change(self, before: pa.Table, said: pa.Table) -> pa.Table:
        """What stands of some shards after it."""
        withdrawal = bool(self._manifest.get("withdrawn"))
        return after_run(before, said, withdrawal, withdrawal and self._manifest["configuration"]["moved"])

    def _said(self, table: pa.Table) -> pa.Table:
        run_id, number = self._manifest["run_id"], self._manifest["run_number"]
        failed = {} if "holds" in table.schema.names else self._failed
        return said_of(table, run_id, number, self._identity, failed)

    @cached_property
    def _failed(self) -> dict[str, Counter[str]]:
        """By shard and status the rows that are not scored, of a run of manifest version 2: all were published."""
        found: dict[str, Counter[str]] = {}
        if unscored(self._manifest["statuses"]):
            uri = storage.join(self._output, "predictions", f"{self._manifest['run_id']}.parquet")
            for chunk in parquet.chunks_at(uri, _REMEDY, ["shard_uri", "status"]):
                rows = chunk.filter(pc.not_equal(chunk["status"], "scored"))
                for shard, status in zip(rows["shard_uri"].to_pylist(), rows["status"].to_pylist(), strict=True):
                    found.setdefault(shard, Counter())[status] += 1
        return found
