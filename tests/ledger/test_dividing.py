"""A large shard is several units, and what is published of it is as if it were one."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledger.nights import FACTS, IDENTITY
from scoring.test_features import model

from bcd_ray import read, storage
from bcd_ray.archives.images import Limits, Rejected
from bcd_ray.archives.shards import digest
from bcd_ray.errors import JobError
from bcd_ray.ledger import dividing, schema, unchanged
from bcd_ray.ledger.features import EMBEDDING, column_of
from bcd_ray.ledger.held import hold_against
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.listed import Listed
from bcd_ray.ledger.manifests import identity_digest
from bcd_ray.ledger.plan import Handed, Plan, plan_of
from bcd_ray.ledger.units import Unit
from bcd_ray.ledger.verification import verify
from bcd_ray.model.choice import Choice
from bcd_ray.scoring.attempts import FIRST, Entries, Start
from bcd_ray.scoring.config import ForgetConfig, ScoreConfig
from bcd_ray.scoring.executing import Work, from_features
from bcd_ray.scoring.watch import Watch
from bcd_ray.scoring.withdrawal import forget
from bcd_ray.storage import StoredObject

HOPELESS = Start(hopeless=True)
GROUPS, ROWS = 12, 5
OF_A_PART = 10  # images, as `divide` has it


def parquet(damaged: bool = False) -> bytes:
    names = [f"{number}.jpg" for number in range(GROUPS * ROWS)]
    sink = io.BytesIO()
    images = [name.encode() * 100 for name in names]
    options: dict[str, Any] = {"row_group_size": ROWS, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"image_id": names, "image": images}), sink, **options)
    data = bytearray(sink.getvalue())
    if damaged:
        column = pq.read_metadata(sink).row_group(7).column(1)
        data[column.data_page_offset : column.data_page_offset + 60] = b"\xff" * 60
    return bytes(data)


@pytest.fixture
def shards(tmp_path: Path) -> list[StoredObject]:
    (tmp_path / "archive").mkdir()
    for name, data in {"a.parquet": parquet(), "b.parquet": parquet(damaged=True), "c.jpg": b"x"}.items():
        (tmp_path / "archive" / name).write_bytes(data)
    return list(storage.list_objects(str(tmp_path / "archive")))


def divide(monkeypatch: pytest.MonkeyPatch, least: int = 5000) -> None:
    monkeypatch.setattr(dividing, "LARGE_BYTES", 2 * least)
    monkeypatch.setattr(dividing, "PART_BYTES", least)


def write(ledger: Ledger, unit: Unit, start: Start = FIRST, keep: bool = True) -> None:
    """Read a unit as an actor does, and write made-up rows of what is in it."""
    entries, rows = Entries(unit.shards, Limits(), start, part=unit.part), []
    for entry in entries:
        status = entry.content.status if isinstance(entry.content, Rejected) else "scored"
        row: dict[str, Any] = dict.fromkeys(schema.PREDICTIONS.names)
        row |= {name: getattr(entry, name) for name in ("image_id", "image_uri", "shard_uri", "shard_etag")}
        row |= {"status": status, "review": False, "review_reasons": [], "model_version": "0" * 64}
        row["image_sha256"] = None if isinstance(entry.content, Rejected) else digest(entry.content)
        row["error"] = entry.content.error if isinstance(entry.content, Rejected) else None
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=schema.PREDICTIONS)
    if keep:
        scored = np.array([row["status"] == "scored" for row in rows])
        table = table.append_column(EMBEDDING, column_of(np.ones((scored.sum(), 8), np.float32), scored))
    ledger.write_unit(unit, [table], entries.seen, {"engine": "openvino", "versions": {}}, keep)


def published(output: str, run_id: str) -> list[Any]:
    names = [name for name in schema.PREDICTIONS.names if name not in ("run_id", "run_number")]
    rows = pq.read_table(f"{output}/predictions/{run_id}.parquet", columns=names)
    inputs = pq.read_table(f"{output}/manifests/{run_id}.inputs.parquet")
    kept = pq.read_table(f"{output}/features/{run_id}.parquet")
    return [rows, inputs.drop_columns(["features"]), inputs["features"].is_null(), kept]


def begun(output: str, shards: list[StoredObject], identity: dict[str, Any] = IDENTITY) -> tuple[Ledger, Plan]:
    ledger = Ledger(output)
    return ledger, ledger.begin(ledger.plan(shards, identity), FACTS)


def night(output: str, shards: list[StoredObject], failing: range = range(0), **options: Any) -> dict[str, Any]:
    """A run; of its units those in `failing`, by their place, cannot be read."""
    ledger, plan = begun(output, shards)
    left = {unit.unit_id for unit in ledger.unfinished(plan)}
    for place, unit in enumerate(plan.units):
        if unit.unit_id in left:
            write(ledger, unit, HOPELESS if place in failing else FIRST)
    manifest = ledger.publish(plan, **options)
    assert verify(output) == []
    return manifest


def test_what_is_published_is_as_if_no_shard_was_divided(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, divided = str(tmp_path / "whole"), str(tmp_path / "divided")
    of_whole = night(whole, shards)
    divide(monkeypatch)
    of_divided = night(divided, shards)
    assert published(divided, of_divided["run_id"]) == published(whole, of_whole["run_id"])
    assert of_divided["statuses"] == {"scored": GROUPS * ROWS + 7 * ROWS + 1, "unreadable_shard": 1}
    for name in ("statuses", "left_out", "incomplete_shards", "made_by", "reasons", "undelivered"):
        assert of_divided[name] == of_whole[name]
    assert not Ledger(divided).plan(shards, IDENTITY).units
    assert Ledger(divided).plan(shards, {**IDENTITY, "other": 1}).shards == 3


def test_a_plan_is_written_with_its_parts(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    plan = Ledger(str(tmp_path / "output")).plan(shards, IDENTITY)
    assert (len(plan.units), plan.shards) == (13, 3)
    uri = str(tmp_path / "plan.parquet")
    plan.write(uri, {})
    assert list(plan_of(uri).units) == list(plan.units)
    handed = Handed(uri, {})
    assert [handed.unit(place) for place in plan.units.places(plan.units)] == list(plan.units)


def test_the_next_attempt_does_the_parts_that_are_missing(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    ledger, plan = begun(str(tmp_path / "output"), shards)
    units = list(plan.units)
    for unit in units[2:5]:
        write(ledger, unit)
    ledger, again = begun(str(tmp_path / "output"), shards)
    assert again == plan
    assert list(ledger.unfinished(again)) == [*units[:2], *units[5:]]


def test_a_part_that_fails_for_the_moment_fails_its_shard(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    output = str(tmp_path / "output")
    manifest = night(output, shards[:1], failing=range(2, 3))
    assert manifest["statuses"] == {"scored": 2 * OF_A_PART, "interrupted": 1}
    # The next run tries the shard again, and nothing replaces it that is worse.
    assert night(output, shards[:1], failing=range(4, 5))["statuses"] == {
        "scored": 4 * OF_A_PART,
        "interrupted": 1,
    }
    assert night(output, shards[:1], failing=range(1))["kept_shards"] == 1
    assert night(output, shards[:1])["statuses"] == {"scored": GROUPS * ROWS}


def test_a_divided_shard_that_was_touched_is_equal_to_its_rows(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    output = str(tmp_path / "output")
    night(output, shards)
    for shard in shards:
        os.utime(shard.uri)
    touched = list(storage.list_objects(str(tmp_path / "archive")))
    state, identified = Ledger(output).state(), identity_digest(IDENTITY)
    waiting = hold_against(state, Listed.of(touched), identified).waiting
    assert len(waiting) == 3
    assert len(unchanged.compare(state, waiting, identified, Limits()).equal) == 3


def test_of_a_shard_that_is_not_published_all_parts_are_done_again(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    ledger, plan = begun(str(tmp_path / "output"), shards)
    for place, unit in enumerate(plan.units):
        write(ledger, unit, HOPELESS if place == 3 else FIRST)
    with pytest.raises(JobError, match="nothing is published"):
        ledger.publish(plan, max_undelivered=0)
    assert list(ledger.unfinished(plan)) == [unit for unit in plan.units if unit.shards == (shards[0],)]


def test_embeddings_are_kept_where_all_parts_have_them(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    output = str(tmp_path / "output")
    ledger, plan = begun(output, shards)
    for place, unit in enumerate(plan.units):
        write(ledger, unit, keep=place > 0)
    manifest = ledger.publish(plan)
    assert verify(output) == []
    inputs = pq.read_table(f"{output}/manifests/{manifest['run_id']}.inputs.parquet")
    assert inputs["features"].to_pylist() == [None, plan.run_id, plan.run_id]


def test_a_run_that_died_before_its_manifest_is_published_as_planned(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    output = str(tmp_path / "output")
    manifest = night(output, shards)
    before = published(output, manifest["run_id"])
    Path(output, "manifests", f"{manifest['run_id']}.json").unlink()
    divide(monkeypatch, 1 << 30)
    assert Ledger(output).recover() == [manifest["run_id"]]
    assert published(output, manifest["run_id"]) == before
    assert verify(output) == []


def test_images_of_a_divided_shard_are_withdrawn_and_erased(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    output = str(tmp_path / "output")
    night(output, shards[:1])
    rows = read.current(output, ["image_id", "image_uri"]).to_pylist()
    gone = rows[7], rows[OF_A_PART]  # of two parts
    forget(ForgetConfig(output=output, images=tuple(row["image_uri"] for row in gone), erase=True))
    assert verify(output) == []
    assert read.current(output, ["image_id", "image_uri"]).to_pylist() == [row for row in rows if row not in gone]
    assert not Ledger(output).plan(shards[:1], IDENTITY).units
    assert not list(Path(output, "_work").glob("units/*"))


def test_a_shard_that_was_scored_in_parts_is_rescored_whole(
    tmp_path: Path, shards: list[StoredObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    divide(monkeypatch)
    output = str(tmp_path / "output")
    first = night(output, shards[:1])
    before = read.current(output, ["image_id", "image_uri"])
    ledger = Ledger(output)
    plan = ledger.begin(ledger.plan(shards[:1], {**IDENTITY, "other": 1}, FACTS["features"]), FACTS)
    assert [(unit.part, unit.features) for unit in plan.units] == [(None, (first["run_id"],))]
    config = ScoreConfig(model="model", input=("archive",), output=output)
    work = Work(plan, plan.units, model(1), Choice("openvino", ""), ledger, config, set(), Watch(), True)
    assert [scored.rows for scored in from_features(work)] == [GROUPS * ROWS]
    ledger.publish(plan)
    assert verify(output) == []
    assert read.current(output, ["image_id", "image_uri"]) == before
    assert set(read.current(output, ["run_id"])["run_id"].to_pylist()) == {plan.run_id}
