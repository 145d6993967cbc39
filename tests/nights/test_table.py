"""The Delta table of the rows that hold: one commit a run, as the manifests say, whatever went wrong before."""

from contextlib import suppress
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from ledger.nights import FACTS, IDENTITY, night, shard, work

from bcd_ray import nights, read, storage
from bcd_ray.errors import JobError
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.schema import PREDICTIONS
from bcd_ray.nights.table import CurrentTable
from bcd_ray.scoring.config import ForgetConfig
from bcd_ray.scoring.withdrawal import forget

deltalake = pytest.importorskip("deltalake")
FIRST = [shard("/lab/a.tar"), shard("/lab/b.tar"), shard("/lab/c.jpg")]
SECOND = [FIRST[0], shard("/lab/b.tar", "new"), FIRST[2], shard("/lab/d.jpg")]


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output on disk and in the store."""
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}" if request.param == "s3" else str(tmp_path)


def opened(output: str, version: int | None = None) -> "deltalake.DeltaTable":
    table = CurrentTable(output)
    return deltalake.DeltaTable(table.uri, version=version, storage_options=table._options)


def rows(table: pa.Table) -> list[tuple[str, str]]:
    return sorted(zip(table["image_id"].to_pylist(), table["run_id"].to_pylist(), strict=True))


def test_a_commit_a_night_and_each_night_can_be_travelled_to(output: str) -> None:
    nights = []
    for shards in (FIRST, SECOND, SECOND, [shard(each.uri, "third") for each in SECOND]):
        manifest = night(output, shards)
        assert CurrentTable(output).update() == ([manifest["run_id"]] if manifest else [])
        nights += [rows(read.current(output))] * bool(manifest)
    assert opened(output).version() == len(nights) - 1 == 2
    assert [rows(opened(output, version).to_pyarrow_table()) for version in range(3)] == nights
    assert [each["run_number"] for each in reversed(opened(output).history())] == ["1", "2", "3"]
    assert list(CurrentTable(output).differences()) == []


def test_a_forgotten_image_leaves_the_table(output: str) -> None:
    night(output, FIRST)
    CurrentTable(output).update()
    assert forget(ForgetConfig(output=output, images=("/lab/b.tar#1.jpg",))).images == 1
    assert len(CurrentTable(output).update()) == 1
    found = rows(opened(output).to_pyarrow_table())
    assert found == rows(read.current(output))
    assert len(found) == len(rows(opened(output, 0).to_pyarrow_table())) - 1
    assert list(CurrentTable(output).differences()) == []


def test_the_columns_are_those_that_are_published(tmp_path: Path) -> None:
    output = str(tmp_path)
    for shards in (FIRST, SECOND):
        night(output, shards)
    CurrentTable(output).update()
    held = read.current(output).sort_by("image_id")
    assert opened(output).to_pyarrow_table().select(held.column_names).cast(held.schema).sort_by("image_id") == held


def test_readers_of_the_field_get_the_rows_that_hold(tmp_path: Path) -> None:
    output = str(tmp_path)
    for shards in (FIRST, SECOND):
        night(output, shards)
        CurrentTable(output).update()
    table, expected = opened(output), rows(read.current(output))
    frames = {
        "pandas": table.to_pandas(),
        "polars": pl.read_delta(f"{output}/table").to_pandas(),
        "duckdb": duckdb.from_arrow(table.to_pyarrow_dataset()).df(),
    }
    with suppress(duckdb.IOException), duckdb.connect() as connection:  # where its extension is installed
        connection.execute("LOAD delta")
        frames["delta_scan"] = connection.sql(f"FROM delta_scan('{output}/table')").df()
    for name, frame in frames.items():
        assert isinstance(frame, pd.DataFrame)
        assert sorted(zip(frame["image_id"], frame["run_id"], strict=True)) == expected, name


def test_nights_that_died_before_the_commit_are_taken_in_by_the_next(output: str) -> None:
    for shards in (FIRST, SECOND):
        night(output, shards)
    (problem,) = CurrentTable(output).differences()
    assert "cannot be read" in problem
    assert len(CurrentTable(output).update()) == 2
    assert opened(output).version() == 1
    assert list(CurrentTable(output).differences()) == []


def test_what_another_night_published_late_takes_the_place_of_nothing_newer(output: str) -> None:
    night(output, FIRST)
    ledger = Ledger(output)
    earlier = ledger.begin(ledger.plan([shard("/lab/a.tar", "second"), *SECOND[1:]], IDENTITY), FACTS)
    later = ledger.begin(ledger.plan([shard("/lab/a.tar", "third")], IDENTITY), FACTS)
    for plan in (later, earlier):
        work(ledger, plan)
        ledger.publish(plan)
        CurrentTable(output).update()
        assert list(CurrentTable(output).differences()) == []
    assert opened(output).version() == 2


def test_a_table_that_somebody_changed_is_told_and_made_anew(output: str) -> None:
    for shards in (FIRST, SECOND):
        night(output, shards)
    table = CurrentTable(output)
    table.update()
    opened(output).delete("run_number = 2")
    (problem,) = table.differences()
    assert "has not the rows that hold (4 for 8)" in problem
    assert len(table.rebuild()) == 2
    assert list(table.differences()) == []
    log = f"{output}/table/_delta_log"
    for name in storage.list_names(log):
        storage.write_bytes(f"{log}/{name}", b"{")
    (problem,) = table.differences()
    assert "cannot be read" in problem
    with pytest.raises(JobError, match="the same command"):
        table.update()
    table.rebuild()
    assert list(table.differences()) == []


def test_columns_that_a_release_brought_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(tmp_path)
    night(output, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(nights.table, "PREDICTIONS", PREDICTIONS.remove(PREDICTIONS.get_field_index("focus")))
        CurrentTable(output).update()
    assert "focus" not in opened(output).to_pyarrow_table().column_names
    night(output, SECOND)
    CurrentTable(output).update()
    assert "focus" in opened(output).to_pyarrow_table().column_names
    assert list(CurrentTable(output).differences()) == []


def test_a_night_in_which_nothing_is_taken_is_a_commit_too(tmp_path: Path) -> None:
    output = str(tmp_path)
    night(output, FIRST)
    night(output, [shard(each.uri, "missing") for each in FIRST], {each.uri: "missing" for each in FIRST})
    CurrentTable(output).update()
    assert opened(output).version() == 1
    assert list(CurrentTable(output).differences()) == []
