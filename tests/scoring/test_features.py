"""Embeddings kept beside the rows, and rows made of them: the same as from the images, and nobody reads these."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ledger.nights import FACTS, IDENTITY, Statuses, rows_of, shard

from bcd_ray import read, storage
from bcd_ray.errors import JobError
from bcd_ray.ledger.features import EMBEDDING, FEATURES_OF, column_of, embeddings_of, identity_of
from bcd_ray.ledger.grouping import split
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.seen import Seen
from bcd_ray.ledger.verification import clear_leftovers, verify
from bcd_ray.model.bundle import Bundle, Model, load_bundle, save_bundle
from bcd_ray.model.choice import Choice
from bcd_ray.model.triage import Triage
from bcd_ray.scoring.config import ForgetConfig, ScoreConfig
from bcd_ray.scoring.executing import Work, from_features
from bcd_ray.scoring.job import score
from bcd_ray.scoring.watch import Watch
from bcd_ray.scoring.withdrawal import forget
from bcd_ray.storage import StoredObject

SIZE = 8
TARS = [shard("/lab/a.tar"), shard("/lab/b.tar"), shard("/lab/c.tar")]
LOOSE = [shard(f"/lab/x/{number:03d}.jpg") for number in range(100)]


def model(number: int, backbone: int = 0) -> Bundle:
    """A model of a small backbone, with a head of its own."""
    drawn = np.random.default_rng(number)
    head = {"head.weight": drawn.normal(size=(4, SIZE)), "head.bias": drawn.normal(size=4)}
    tensors = {"backbone": np.full(3, backbone), **head}
    found = Model({name: value.astype(np.float32) for name, value in tensors.items()}, {"size": 224})
    return Bundle(found, Triage.without_limits(SIZE), {}, f"{number:064x}")


def embeddings(image_ids: list[str]) -> np.ndarray[Any, Any]:
    """Of images, each its own."""
    drawn = [np.random.default_rng(int(each[:8], 16)).random(SIZE, np.float32) for each in image_ids]
    return np.array(drawn, np.float32).reshape(-1, SIZE)


def begun(
    output: str, shards: list[StoredObject], bundle: Bundle, keep: bool = True, statuses: Statuses | None = None
) -> Plan | None:
    """A run that has all its units, as the job makes them, and is not published."""
    ledger = Ledger(output)
    ledger.recover()
    identity = IDENTITY | {"model_version": bundle.version}
    features = identity_of(identity, bundle.model)
    state = ledger.state()
    plan = ledger.plan(shards, identity, features)
    if not plan.units:
        return None
    plan = ledger.begin(plan, FACTS | {"features": features if keep else None})
    for unit in ledger.unfinished(plan):
        if unit.features:
            continue
        rows, seen = rows_of(unit, statuses), Seen()
        rows = rows.set_column(
            rows.schema.get_field_index("image_sha256"),
            "image_sha256",
            pa.array([hashlib.sha256(each.encode()).hexdigest() for each in rows["image_id"].to_pylist()]),
        )
        seen.add(rows["image_id"].to_pylist())
        scored = pc.equal(rows["status"], "scored").to_numpy()
        of_scored = embeddings(rows.filter(pa.array(scored))["image_id"].to_pylist())
        rows = rows.append_column(EMBEDDING, column_of(of_scored, scored))
        ledger.write_unit(unit, [rows], seen, {"engine": "openvino", "versions": {}}, keep=keep)
    config = ScoreConfig(model="model", input=("archive",), output=output)
    work = Work(plan, plan.units.kept, bundle, Choice("openvino", ""), ledger, config, state.withdrawn, Watch(), keep)
    assert all(not scored.error for scored in from_features(work))
    return plan


def night(output: str, shards: list[StoredObject], bundle: Bundle, **options: Any) -> dict[str, Any] | None:
    plan = begun(output, shards, bundle, **options)
    return plan and Ledger(output).publish(plan)


def sources(output: str, manifest: dict[str, Any] | None) -> dict[str, str | None]:
    """By shard the run whose embeddings a run made rows of, None of what it read."""
    assert manifest
    read_file = pq.read_table(Path(output, "manifests", f"{manifest['run_id']}.inputs.parquet"))
    pairs = zip(read_file["uri"].to_pylist(), read_file["features"].to_pylist(), strict=True)
    return {uri: None if run_id in (None, manifest["run_id"]) else run_id for uri, run_id in pairs}


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "output")


def test_embeddings_come_back_but_for_their_last_bits() -> None:
    scored = np.array([True, False, True, True])
    given = np.random.default_rng(0).random((3, 1280), np.float32) * 6
    given[0, :2] = 0, 6
    column = pa.chunked_array([column_of(given, scored)])
    assert column.is_valid().to_pylist() == scored.tolist()
    found = embeddings_of(column, 1280)
    assert np.allclose(found, given, rtol=2**-14, atol=0)
    assert found[0, :2].tolist() == [0, 6]
    assert embeddings_of(column.slice(1, 1), 1280).shape == (0, 1280)
    assert np.array_equal(embeddings_of(column.slice(2), 1280), found[1:])


def test_another_head_scores_what_is_kept_and_reads_what_is_new_or_changed(output: str) -> None:
    first = night(output, TARS, model(1))
    assert first
    assert first["features"]["rows"] == first["outputs"][0]["rows"] == 9
    assert verify(output) == []
    shards = [TARS[0], shard("/lab/b.tar", "new"), *TARS[2:], shard("/lab/d.tar"), *LOOSE]
    second = night(output, shards, model(2))
    assert second
    read_anew = dict.fromkeys([each.uri for each in shards], None)
    assert sources(output, second) == read_anew | dict.fromkeys(["/lab/a.tar", "/lab/c.tar"], first["run_id"])
    assert {each["engine"]: each["rows"] for each in second["made_by"]} == {"features": 6, "openvino": 106}
    assert verify(output) == []
    assert night(output, shards, model(2)) is None
    # The next takes them from where they were kept, whoever made the rows that hold.
    third = night(output, shards, model(3))
    assert third
    kept = {each.uri: second["run_id"] for each in shards}
    assert sources(output, third) == kept | dict.fromkeys(["/lab/a.tar", "/lab/c.tar"], first["run_id"])
    assert third["features"] is None
    rows = read.current(output)
    assert rows["shard_uri"].to_pylist() == sorted(rows["shard_uri"].to_pylist())
    scored = rows.filter(pc.equal(rows["status"], "scored"))
    logits = model(3).model.logits(embeddings(scored["image_id"].to_pylist()))
    classes = np.array(["benign", "early_pre_b", "pre_b", "pro_b"])[logits.argmax(axis=1)]
    assert scored["predicted_class"].to_pylist() == classes.tolist()
    assert set(rows["model_version"].to_pylist()) == {model(3).version}
    assert rows.filter(pc.equal(rows["shard_uri"], "/lab/b.tar"))["shard_etag"].to_pylist() == ["new"] * 3
    assert verify(output) == []
    assert clear_leftovers(output)
    assert verify(output) == []


@pytest.mark.parametrize("why", ["another backbone", "none kept", "gone", "not finite", "failed for the moment"])
def test_what_nothing_is_kept_of_is_read(output: str, why: str) -> None:
    status = {"not finite": "not_finite", "failed for the moment": "read_error"}.get(why)
    statuses = {"/lab/a.tar#2.jpg": status} if status else None
    night(output, TARS[:1], model(1), keep=why != "none kept", statuses=statuses)
    if why == "gone":
        next(Path(output, "features").iterdir()).unlink()
    second = night(output, TARS[:1], model(2, backbone=why == "another backbone"))
    assert sources(output, second) == {"/lab/a.tar": None}


def test_a_run_that_died_goes_on_and_publishes_its_embeddings(output: str) -> None:
    plan = begun(output, TARS, model(1))
    assert plan
    manifest = Ledger(output).publish(plan)
    files = {path: path.read_bytes() for path in Path(output).glob("*/*.parquet")}
    for folder in ("features", "manifests"):
        for path in Path(output, folder).rglob("*"):
            if path.is_file():
                path.unlink()
    assert Ledger(output).recover() == [plan.run_id]
    assert {path: path.read_bytes() for path in Path(output).glob("*/*.parquet")} == files
    # Its units are of the same names for whoever begins it again: a rescored one too.
    second = begun(output, TARS, model(2))
    assert second
    assert not Ledger(output).unfinished(second)
    assert begun(output, TARS, model(2)) == second
    assert sources(output, Ledger(output).publish(second)) == {each.uri: manifest["run_id"] for each in TARS}


def test_loose_images_in_a_row_keep_their_order_and_few_are_read_with_their_neighbours(output: str) -> None:
    images, features = LOOSE[:100], ["run"] * 40 + [""] + ["run"] * 10 + [""] + ["other"] * 48
    parts = list(split(images, features))
    assert [each for shards, _ in parts for each in shards] == images
    assert [(len(shards), set(runs)) for shards, runs in parts] == [(40, {"run"}), (12, set()), (48, {"other"})]
    assert list(split(TARS[:1], ["run"])) == [((TARS[0],), ("run",))]
    first = night(output, LOOSE[:60], model(1))
    second = night(output, LOOSE, model(1))
    assert first
    assert second
    third = night(output, LOOSE, model(2))
    assert list(sources(output, third).values()) == [first["run_id"]] * 60 + [second["run_id"]] * 40
    assert read.current(output)["image_uri"].to_pylist() == [each.uri for each in LOOSE]


def test_a_forgotten_image_is_in_no_row_that_is_made_of_embeddings_and_erased_with_them(output: str) -> None:
    night(output, TARS, model(1))
    forget(ForgetConfig(output=output, images=("/lab/b.tar#1.jpg",)))
    second = night(output, TARS, model(2))
    assert second
    assert second["statuses"] == {"corrupt_image": 3, "scored": 5, "withdrawn": 1}
    assert None not in sources(output, second).values()
    assert verify(output) == []
    assert len(read.current(output)) == 8
    forget(ForgetConfig(output=output, images=("/lab/b.tar#1.jpg",), erase=True))
    assert not list(Path(output, "features").iterdir())
    assert verify(output) == []
    assert set(sources(output, night(output, TARS, model(3))).values()) == {None}


def test_what_is_wrong_with_embeddings_is_told(output: str) -> None:
    night(output, TARS, model(1))
    (path,) = Path(output, "features").iterdir()
    good, table = path.read_bytes(), pq.read_table(path)
    table = table.replace_schema_metadata({FEATURES_OF: pq.read_metadata(path).metadata[FEATURES_OF]})
    path.write_bytes(good[:-9] + b"x" + good[-8:])
    (problem,) = verify(output)
    assert f"{path} is not the file that was published" in problem
    with pytest.raises(JobError, match=r"features/.* is damaged .*or move it away"):
        night(output, TARS, model(2))
    pq.write_table(table.take([1, 0, *range(2, 9)]), path)
    with pytest.raises(JobError, match="is not of the rows of its run"):
        night(output, TARS, model(2))
    manifest = next(Path(output, "manifests").glob("*.json"))
    told = json.loads(manifest.read_text())
    told["features"] |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(told))
    assert any("embeddings are not of the scored rows of its run" in problem for problem in verify(output)), verify(
        output
    )
    path.unlink()
    assert any("nothing found at" in problem and "are read again" in problem for problem in verify(output))


def test_embeddings_on_s3_are_found_and_verified(s3: str) -> None:
    output = f"{s3}/kept/output"
    assert night(output, TARS, model(1))
    second = night(output, TARS, model(2))
    assert second
    assert [each["engine"] for each in second["made_by"]] == ["features"]
    assert second["statuses"] == {"corrupt_image": 3, "scored": 6}
    assert verify(output) == []
    assert len(read.embeddings(output)) == 6


@pytest.fixture(scope="module")
def another_head(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The trained model with another head, temperature and limits."""
    loaded, drawn = load_bundle(str(bundle)), np.random.default_rng(0)
    weight, bias = (loaded.model.tensors[f"head.{name}"] for name in ("weight", "bias"))
    other = loaded.model.with_head(weight * (1 + drawn.normal(0, 0.3, weight.shape)).astype(np.float32), bias)
    triage = replace(loaded.triage, settings={**loaded.triage.settings, "temperature": 1.7, "distance": 30.0})
    uri = str(tmp_path_factory.mktemp("models") / "other")
    save_bundle(uri, other, triage, {"made_for": "a test"}, {})
    return uri


def test_rows_are_those_of_scoring_the_images(
    without_ray: None, bundle: Path, another_head: str, synthetic_archive: Path, tmp_path: Path
) -> None:
    config = ScoreConfig(model=str(bundle), input=(str(synthetic_archive),), output=str(tmp_path / "kept"))
    first = score(config).manifest
    assert first
    assert first["features"]["rows"] == first["statuses"]["scored"]
    rescored = score(replace(config, model=another_head, supersede=True)).manifest
    assert rescored
    assert [each["engine"] for each in rescored["made_by"]] == ["features"]
    score(replace(config, model=another_head, output=str(tmp_path / "anew"), keep_features=False))
    assert not storage.list_names(str(tmp_path / "anew" / "features"))
    found, expected = (read.current(str(tmp_path / each)).sort_by("image_id") for each in ("kept", "anew"))
    close = [name for name in found.schema.names if pa.types.is_floating(found.schema.field(name).type)]
    other = {"run_id", "run_number", "scored_at", *close}
    same = [name for name in found.schema.names if name not in other]
    assert found.select(same).equals(expected.select(same))
    for name in close:
        difference = np.abs(found[name].to_numpy() - expected[name].to_numpy())
        assert difference.max() <= 4e-4 * max(1, np.abs(expected[name].to_numpy()).max()), name
    assert verify(str(tmp_path / "kept")) == []
