"""What holds, by many runs one after the other, and by what stands after them in one file: it is the same."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger.nights import FACTS, IDENTITY, missed, night, shard, work
from ledger.nights import blind as as_if_blind

from bcd_ray import storage
from bcd_ray.ledger import state as state_module
from bcd_ray.ledger.compacted import FOLDER
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.listed import Listed
from bcd_ray.ledger.manifests import identity_digest, read_manifests
from bcd_ray.ledger.standing import STANDING, Gaps
from bcd_ray.ledger.state import State
from bcd_ray.ledger.verification import verify
from bcd_ray.scoring.config import ForgetConfig
from bcd_ray.scoring.withdrawal import forget

NAMES = ["/lab/a/1.jpg", "/lab/a/2.jpg", "/lab/a-b.tar", "/lab/a.tar", "/lab/b/\udcff.jpg", "/lab/ü.jpg"]
PASSING = ("missing", "read_error")

a_shard = st.tuples(
    st.sampled_from(NAMES), st.sampled_from("xyz"), st.sampled_from(["scored", "corrupt_image", *PASSING])
)
a_night = st.tuples(st.just("night"), st.lists(a_shard, min_size=1, max_size=5), st.sampled_from("01"), st.booleans())
a_withdrawal = st.tuples(st.just("forget"), st.sampled_from(NAMES), st.booleans())


def play(output: str, step: tuple[Any, ...]) -> None:
    """A night, or a withdrawal of what is published."""
    if step[0] == "forget":
        _, name, moved = step
        if State(output).find([shard(name)])[0]:
            forget(ForgetConfig(output=output, images=(name,), moved=moved))
        return
    _, listed, identity, blind = step
    shards = {name: shard(name, etag) for name, etag, _ in listed}
    statuses = {name: status for name, _, status in listed if status != "scored"}
    # Blind as an early version was, which published failures of the moment over better rows.
    before = as_if_blind if blind else (lambda plan: plan)
    night(output, list(shards.values()), statuses, {"model_version": identity * 64}, before)


def expected(output: str) -> dict[str, dict[str, Any]]:
    """What stands, row by row and all in memory."""
    found: dict[str, dict[str, Any]] = {}
    for manifest, _ in read_manifests(output):
        inputs = pq.read_table(f"{output}/manifests/{manifest['run_id']}.inputs.parquet").to_pylist()
        for read in inputs:
            uri, failed = read["uri"], dict(read["not_scored"])
            gone = failed.pop("withdrawn", 0)
            now = {name: manifest[name] for name in ("run_id", "run_number")} | {"tried": manifest["run_number"]}
            now |= {"rows": read["rows"], "scored": read["rows"] - gone - sum(failed.values())}
            now |= {"passing_failure": read["passing_failure"], "not_scored": failed}
            before = found.get(uri)
            if manifest["withdrawn"] and before:
                if manifest["configuration"]["moved"] and gone == read["rows"]:
                    del found[uri]
                else:
                    found[uri] = before | now
                continue
            worse = before and now["passing_failure"]
            if worse and before["passing_failure"]:
                worse = now["scored"] < before["scored"]
            if read["holds"] and not worse:
                of_content = {"etag": read["etag"], "identity": identity_digest(manifest["identity"])}
                found[uri] = now | of_content | {"features": read["features"] or "", "failed": None}
            elif before:
                found[uri] = before | {"tried": manifest["run_number"], "failed": failed}
    return found


def told(state: State) -> dict[str, dict[str, Any]]:
    """The same by a state."""
    found = {}
    for row in pa.concat_tables([STANDING.empty_table(), *state.tables()]).to_pylist():
        gaps, failed = (text and Gaps.of(text).not_scored for text in (row.pop("gaps"), row["failed"]))
        uri = row.pop("uri")
        found[uri] = row | {"not_scored": gaps or {}, "failed": failed}
    assert list(found) == sorted(found)
    return found


@settings(max_examples=8, deadline=None, report_multiple_bugs=False)
@given(steps=st.lists(st.one_of(a_night, a_night, a_night, a_withdrawal), min_size=2, max_size=7), data=st.data())
def test_what_stands_after_runs_and_what_they_say_are_one(steps: list[Any], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "MOST_RUNS", 2)
        output = f"{folder}/output"
        for step in steps:
            play(output, step)
            if data.draw(st.booleans()):
                Ledger(output).state().keep()
        kept, wanted = State(output), expected(output)
        assert told(kept) == wanted
        shutil.rmtree(storage.join(output, *FOLDER), ignore_errors=True)
        patch.setattr(state_module, "MOST_RUNS", 100)
        assert told(State(output)) == wanted
        # Of some shards alone, whoever is asked.
        shards = [
            shard(name, etag) for name, etag in data.draw(st.dictionaries(st.sampled_from(NAMES), st.just("x"))).items()
        ]
        stands = [wanted.get(storage.printable(each.uri)) for each in shards]
        assert [found and found.run_id for found in kept.find(shards)] == [each and each["run_id"] for each in stands]
        assert missed(kept, shards) == State(output).missed(Listed.of(shards).tables(), identity_digest(IDENTITY))


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Four nights, of which what stands is in one file."""
    monkeypatch.setattr(state_module, "MOST_RUNS", 1)
    output = str(tmp_path / "output")
    for number in range(4):
        night(output, [shard(f"/lab/{number}.jpg"), shard("/lab/all.tar", str(number))])
        Ledger(output).state().keep()
    return output


def standing(output: str) -> list[Path]:
    return sorted(Path(output, *FOLDER).iterdir())


def test_what_stands_is_read_in_place_of_the_runs(output: str) -> None:
    assert [path.name.split("-")[0] for path in standing(output)] == ["00000004"]
    for path in Path(output, "manifests").glob("*.inputs.parquet"):
        path.rename(path.with_suffix(".away"))
    assert len(told(State(output))) == 5
    assert night(output, [shard(f"/lab/{number}.jpg") for number in range(4)]) is None


@pytest.mark.parametrize("damage", ["deleted", "cut off", "a bit", "of another name"])
def test_what_stands_and_is_gone_or_damaged_is_read_from_the_runs(output: str, damage: str) -> None:
    wanted = told(State(output))
    for path in standing(output):
        data = path.read_bytes()
        path.unlink()
        if damage == "cut off":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "a bit":
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        elif damage == "of another name":
            path.with_name("00000009-of-somebody.parquet").write_bytes(data)
    assert told(State(output)) == wanted == expected(output)
    assert all("/standing/" in problem and "delete it" in problem for problem in verify(output))
    Ledger(output).state().keep()
    assert len(standing(output)) == 1
    assert verify(output) == []


def test_what_stands_after_a_run_that_is_gone_is_not_believed(output: str) -> None:
    last = State(output).manifests[-1]["run_id"]
    for path in Path(output).glob(f"*/{last}*"):
        path.unlink()
    assert told(State(output)) == expected(output)
    assert "/lab/3.jpg" not in told(State(output))
    assert any(f"run {last}: is gone" in problem for problem in verify(output))


def test_a_run_that_was_planned_before_and_published_after_what_stands(output: str) -> None:
    ledger = Ledger(output)
    plans = [ledger.plan([shard("/lab/all.tar", etag)], IDENTITY) for etag in ("early", "late")]
    plans = [ledger.begin(plan, FACTS) for plan in plans]
    for plan in reversed(plans):
        work(ledger, plan)
        ledger.publish(plan)
        ledger.state().keep()
    (found,) = State(output).find([shard("/lab/all.tar")])
    assert found
    assert (found.etag, found.run_id) == ("late", plans[1].run_id)
    assert told(State(output)) == expected(output)


def test_what_stands_and_is_not_what_the_runs_say_is_told(output: str) -> None:
    path = standing(output)[-1]
    rows = pq.read_table(path)
    rows = rows.set_column(4, "identity", pa.array(["other"] * len(rows)))
    pq.write_table(rows, path)
    path.rename(path.with_name(f"00000004-{storage.sha256(str(path))}.parquet"))
    (problem,) = verify(output)
    assert "is not what the runs say: delete it" in problem
