"""Scoring through Ray, from folders and from S3: one row for every image, published once, whatever is wrong with it."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import IMAGES_PER_CLASS
from PIL import Image

from bcd_ray import storage
from bcd_ray.archives.images import Limits
from bcd_ray.archives.shards import Entry, kind_of, read_shard
from bcd_ray.errors import JobError
from bcd_ray.evaluation.config import EvaluateConfig, ExplainConfig
from bcd_ray.evaluation.explaining import explain
from bcd_ray.evaluation.job import evaluate
from bcd_ray.labels import CLASSES, class_of_path
from bcd_ray.learning.dataset import list_labelled
from bcd_ray.learning.embedding import Embedder
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.ledger import dividing, schema
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.model.bundle import load_bundle
from bcd_ray.model.network import softmax
from bcd_ray.model.quality import MEASURES
from bcd_ray.model.triage import REASONS
from bcd_ray.scoring import executing
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import Outcome, look, score

MAX_IMAGE_BYTES, MAX_PIXELS = 300_000, 1_000_000
Expected = Counter[tuple[str, str]]  # how often an image (its path below the archive) comes with a status


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def smear(number: int) -> Image.Image:
    return Image.fromarray(draw_smear(number % 4, seed=1000 + number))


def jpeg(number: int) -> bytes:
    return encoded(smear(number), "JPEG")


def kinds_of_image() -> dict[str, tuple[str, bytes]]:
    """Images in the forms and states an archive may hold, by file name, with the status each must get."""
    image = smear(0)
    wide = Image.new("1", (MAX_PIXELS // 1000 + 1, 1000))
    pages = [smear(number).resize((64, 64)) for number in (1, 2)]
    exif = Image.Exif()
    exif[0x0112] = 6  # camera held on its side
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    whole = jpeg(3)
    return {
        "plain.jpg": ("scored", jpeg(4)),
        "LOUD.JPEG": ("scored", jpeg(5)),
        "alpha.png": ("scored", encoded(image.convert("RGBA"), "PNG")),
        "grey.tif": ("scored", encoded(image.convert("L"), "TIFF")),
        "sixteen.png": ("scored", encoded(Image.fromarray(np.full((50, 60), 40_000, np.uint16)), "PNG")),
        "ink.jpg": ("scored", encoded(image.convert("CMYK"), "JPEG")),
        "plain.bmp": ("scored", encoded(image, "BMP")),
        "sideways.jpg": ("scored", encoded(image.resize((300, 100)), "JPEG", exif=exif)),
        "with space, ümlaut #1 50%.jpg": ("scored", jpeg(6)),
        "png inside.jpg": ("scored", encoded(image, "PNG")),
        "surplus.jpg": ("scored", whole[:-2] + bytes(range(1, 41)) + whole[-2:]),
        "empty.jpg": ("empty_file", b""),
        "text.jpg": ("not_an_image", b"see the other folder"),
        "half.jpg": ("corrupt_image", whole[: len(whole) // 2]),
        "header.png": ("corrupt_image", encoded(image, "PNG")[:20]),
        "large.png": ("too_large", encoded(noise, "PNG")),
        "wide.png": ("too_many_pixels", encoded(wide, "PNG")),
        "pages.tif": ("multiple_pictures", encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])),
        "float.tif": ("unsupported_mode", encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")),
    }


def tar_of(members: list[tuple[str, bytes]], links: tuple[str, ...] = ()) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return sink.getvalue()


def parquet_of(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=5)
    return sink.getvalue()


def mixed_archive() -> tuple[dict[str, bytes], Expected]:
    """Files of an archive by their paths, and what is to be found in them."""
    kinds = kinds_of_image()
    members = [(f"deep/{name}", data) for name, (_, data) in kinds.items()]
    inside = [(f"deep/{name}", status) for name, (status, _) in kinds.items()]
    odd = [("x.jpg", jpeg(7)), ("x.jpg", jpeg(8)), ("x.json", b"{}"), ("../up.jpg", jpeg(9)), ("/root.jpg", jpeg(9))]
    odd_inside = [("x.jpg", "scored"), ("x.jpg", "scored"), ("../up.jpg", "unsafe_member")]
    odd_inside += [("/root.jpg", "unsafe_member"), ("link.jpg", "unsafe_member")]
    cut = tar_of([("1.jpg", jpeg(10)), ("2.jpg", jpeg(11))])
    rows = {"image_id": pa.array(["a", "a", None, "empty"]), "image": [jpeg(12), jpeg(13), jpeg(14), None]}
    rows["label"] = ["pre_b", None, "pro_b", "benign"]
    files = {f"loose/{name}": data for name, (_, data) in kinds.items()}
    files |= {
        "tars/kinds.tar": tar_of(members),
        "tars/kinds.tar.gz": gzip.compress(tar_of(members)),
        "tars/odd.tgz": gzip.compress(tar_of(odd, links=("link.jpg",))),
        "tars/none.tar": tar_of([("readme.txt", b"no image")]),
        "tars/cut.tar": cut[: cut.index(jpeg(11)) + 1000],
        "tars/cut.tar.gz": gzip.compress(tar_of([("1.jpg", jpeg(15))]))[:4000],
        "tars/no.tar": b"this is no tar" * 100,
        "parquet/rows.parquet": parquet_of(rows),
        "parquet/other.parquet": parquet_of({"name": ["a"], "image": [b"x"]}),
        "parquet/no.parquet": b"PAR1 this is no Parquet",
        "parquet/empty.parquet": parquet_of({"image_id": pa.array([], pa.string()), "image": pa.array([], "binary")}),
        "notes.txt": b"neither shard nor image",
    }
    expected: Expected = Counter((f"loose/{name}", status) for name, (status, _) in kinds.items())
    for shard in ("tars/kinds.tar", "tars/kinds.tar.gz"):
        expected.update((f"{shard}#{name}", status) for name, status in inside)
    expected.update((f"tars/odd.tgz#{name}", status) for name, status in odd_inside)
    expected.update((f"parquet/rows.parquet#{name}", "scored") for name in ("a", "a", "row-3"))
    expected.update([("parquet/rows.parquet#empty", "empty_file"), ("tars/cut.tar#1.jpg", "scored")])
    unreadable = ("tars/cut.tar", "tars/cut.tar.gz", "tars/no.tar", "parquet/other.parquet", "parquet/no.parquet")
    expected.update((shard, "unreadable_shard") for shard in unreadable)
    expected.update((shard, "empty_shard") for shard in ("tars/none.tar", "parquet/empty.parquet"))
    return files, expected


@dataclass(frozen=True)
class Scored:
    """A finished run over the mixed archive and the synthetic one."""

    config: ScoreConfig
    outcome: Outcome
    rows: pa.Table
    archive: str
    expected: Expected

    @property
    def manifest(self) -> dict[str, Any]:
        assert self.outcome.manifest is not None
        return self.outcome.manifest


@pytest.fixture(scope="module", params=["local", "s3"])
def scored(
    request: pytest.FixtureRequest,
    ray_cluster: None,
    bundle: Path,
    synthetic_archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scored:
    """The mixed archive, scored from a folder into a folder, and from S3 into S3."""
    root = str(tmp_path_factory.mktemp("scored"))
    if request.param == "s3":
        root = storage.join(request.getfixturevalue("s3"), uuid4().hex)
    archive, files = storage.join(root, "archive"), mixed_archive()
    for name, data in files[0].items():
        storage.write_bytes(storage.join(archive, name), data)
    if request.param == "local":  # what is no file: an open of the pipe would wait, a read of the device never end
        os.mkfifo(f"{archive}/loose/pipe.jpg")
        os.mkfifo(f"{archive}/tars/pipe.tar")
        os.symlink("/dev/zero", f"{archive}/loose/device.jpg")
        os.symlink(synthetic_archive, f"{archive}/loose/elsewhere.jpg")
        os.symlink("plain.jpg", f"{archive}/loose/again.jpg")  # adds nothing
        unsafe = ("loose/pipe.jpg", "tars/pipe.tar", "loose/device.jpg", "loose/elsewhere.jpg")
        files[1].update((name, "unsafe_member") for name in unsafe)
    config = ScoreConfig(
        model=str(bundle),
        input=(
            archive,
            str(synthetic_archive),
            storage.join(archive, "tars"),
            storage.join(archive, "loose/plain.jpg"),
        ),
        output=storage.join(root, "output"),
        max_image_bytes=MAX_IMAGE_BYTES,
        max_pixels=MAX_PIXELS,
    )
    outcome = score(config)
    assert outcome.manifest is not None
    rows = pq.read_table(io.BytesIO(storage.read_bytes(outcome.manifest["outputs"][0]["uri"])))
    return Scored(config, outcome, rows, archive, files[1])


def state(output: str) -> list[storage.StoredObject]:
    """All that lies in an output folder, with sizes and tags."""
    return list(storage.list_objects(output))


def test_every_image_has_one_row_with_its_status(scored: Scored, synthetic_archive: Path) -> None:
    found: Expected = Counter()
    for uri, status in zip(scored.rows["image_uri"].to_pylist(), scored.rows["status"].to_pylist(), strict=True):
        if uri.startswith(scored.archive):
            found[uri[len(scored.archive) + 1 :], status] += 1
    assert found == scored.expected
    drawn = [row for row in scored.rows.to_pylist() if row["image_uri"].startswith(str(synthetic_archive))]
    assert [row["image_uri"] for row in drawn] == sorted(map(str, synthetic_archive.rglob("*.jpg")))
    assert {row["status"] for row in drawn} == {"scored"}
    assert len(scored.rows) == scored.expected.total() + 4 * IMAGES_PER_CLASS
    elsewhere = {
        *schema.PASSING_STATUSES,
        "crashed",
        "timed_out",
        "out_of_memory",
        "not_finite",
        "withdrawn",
    }  # these need a fault of the storage or the machine, or somebody who withdraws an image
    assert {status for _, status in scored.expected} == schema.STATUSES.keys() - elsewhere


def test_ids_are_unique_and_rows_in_the_order_of_shards_and_their_images(scored: Scored) -> None:
    ids = scored.rows["image_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    shards = scored.rows["shard_uri"].to_pylist()
    assert shards == sorted(shards)
    for name in ("tars/kinds.tar", "tars/odd.tgz", "parquet/rows.parquet"):
        listed = next(each for each in storage.list_objects(f"{scored.archive}/{name}"))
        entries = read_shard(listed, Limits(MAX_IMAGE_BYTES))
        rows = scored.rows.filter(pc.equal(scored.rows["shard_uri"], listed.uri))
        assert rows["image_id"].to_pylist() == [entry.image_id for entry in entries]


def test_columns_are_the_documented_ones(scored: Scored) -> None:
    assert scored.rows.schema.equals(schema.PREDICTIONS, check_metadata=True)
    assert scored.rows.schema.metadata[b"bcd_ray.schema_version"] == str(schema.SCHEMA_VERSION).encode()
    for column in schema.COLUMNS:
        metadata = scored.rows.schema.field(column.name).metadata
        assert metadata == {b"description": column.description.encode(), b"unit": column.unit.encode()}


def test_scored_rows_hold_probabilities_and_the_others_a_reason(scored: Scored) -> None:
    of_score = ["predicted_class", "confidence", *(f"p_{name}" for name in CLASSES), "p_malignant", "ood_score"]
    of_score += MEASURES
    always = ["image_id", "image_uri", "shard_uri", "shard_etag", "status", "model_version", "run_id", "run_number"]
    bundle = load_bundle(scored.config.model)
    for row in scored.rows.to_pylist():
        assert all(row[name] is not None for name in [*always, "scored_at"])
        assert row["model_version"] == bundle.version
        if row["status"] != "scored":
            assert all(row[name] is None for name in of_score)
            assert (row["review"], row["review_reasons"]) == (True, ["not_scored"])
            assert row["error"]
            assert "\n" not in row["error"]
            continue
        assert (row["error"] is not None) == ("damaged" in row["review_reasons"]) == ("surplus" in row["image_uri"])
        assert all(row[name] is not None for name in of_score)
        assert set(row["review_reasons"]) <= REASONS.keys() - {"not_scored"}
        assert row["review"] == bool(row["review_reasons"])
        assert ("out_of_distribution" in row["review_reasons"]) == (row["ood_score"] > 1)
        probabilities = [row[f"p_{name}"] for name in CLASSES]
        assert min(probabilities) >= 0
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert row["p_malignant"] == pytest.approx(sum(probabilities[1:]), abs=1e-6)
        assert row["confidence"] == max(probabilities)
        assert 0 <= row["certainty"] <= row["confidence"]
        assert (row["certainty"] == 0) == ("conflicting_evidence" in row["review_reasons"])
        assert row["predicted_class"] == CLASSES[int(np.argmax(probabilities))]


def test_sizes_and_digests_are_those_of_the_original(scored: Scored) -> None:
    kinds = kinds_of_image()
    sizes: dict[str, tuple[int | None, int | None]] = {
        "plain.jpg": (224, 224),
        "sideways.jpg": (100, 300),
        "sixteen.png": (60, 50),
        "wide.png": (1001, 1000),
    }
    sizes |= {"empty.jpg": (None, None), "large.png": (None, None), "half.jpg": (224, 224)}
    by_uri = {row["image_uri"][len(scored.archive) + 1 :]: row for row in scored.rows.to_pylist()}
    for name, (status, data) in kinds.items():
        for place in ("loose/", "tars/kinds.tar#deep/", "tars/kinds.tar.gz#deep/"):
            row = by_uri[place + name]
            digest = None if status == "too_large" else hashlib.sha256(data).hexdigest()
            assert row["image_sha256"] == digest, name
            assert (row["width"], row["height"]) == sizes.get(name, (row["width"], row["height"])), name


def test_the_same_image_gets_the_same_probabilities_wherever_it_lies(scored: Scored) -> None:
    names = [f"p_{name}" for name in CLASSES]
    seen: dict[str, list[float]] = {}
    for row in scored.rows.filter(pc.equal(scored.rows["status"], "scored")).to_pylist():
        probabilities = [row[name] for name in names]
        assert seen.setdefault(row["image_sha256"], probabilities) == pytest.approx(probabilities, abs=1e-5)


def test_the_manifest_counts_what_the_parquet_holds(scored: Scored) -> None:
    manifest, rows = scored.manifest, scored.rows
    assert manifest.keys() == schema.MANIFEST.keys()
    published = storage.read_bytes(storage.join(scored.config.output, "manifests", f"{manifest['run_id']}.json"))
    assert json.loads(published) == json.loads(json.dumps(manifest))
    assert manifest["statuses"] == Counter(rows["status"].to_pylist())
    reasons = Counter(name for names in rows["review_reasons"].to_pylist() for name in names)
    assert manifest["review"] == {"rows": pc.sum(rows["review"]).as_py(), **reasons}
    assert reasons["not_scored"] == len(rows) - manifest["statuses"]["scored"]
    assert manifest["predicted_classes"] == Counter(rows["predicted_class"].drop_null().to_pylist())
    assert set(rows["run_id"].to_pylist()) == {manifest["run_id"]}
    assert set(rows["run_number"].to_pylist()) == {manifest["run_number"]} == {1}
    assert manifest["identity"]["model_version"] == load_bundle(scored.config.model).version
    for described in (*manifest["outputs"], manifest["inputs"]):
        data = storage.read_bytes(described["uri"])
        assert described["bytes"] == len(data)
        assert described["sha256"] == hashlib.sha256(data).hexdigest()
        assert described["rows"] == pq.read_metadata(io.BytesIO(data)).num_rows
    assert len(rows) == manifest["outputs"][0]["rows"]


def test_the_manifest_names_every_shard_with_its_rows(scored: Scored) -> None:
    inputs = pq.read_table(io.BytesIO(storage.read_bytes(scored.manifest["inputs"]["uri"]))).to_pylist()
    listed = {shard.uri: shard for uri in scored.config.input for shard in storage.list_objects(uri)}
    shards = {uri: shard for uri, shard in listed.items() if kind_of(uri)}
    assert [shard["uri"] for shard in inputs] == sorted(shards)
    assert len(inputs) == scored.outcome.shards
    counted = Counter(scored.rows["shard_uri"].to_pylist())
    for shard in inputs:
        assert (shard["size"], shard["etag"]) == (shards[shard["uri"]].size, shards[shard["uri"]].etag)
        assert shard["rows"] == counted[shard["uri"]] > 0
        assert not shard["passing_failure"]


def test_rows_sent_to_review_get_heat_maps(scored: Scored, tmp_path: Path) -> None:
    config = ExplainConfig(model=scored.config.model, scores=scored.config.output, output=str(tmp_path), limit=5)
    found = explain(config)
    rows = {row["image_id"]: row for row in scored.rows.to_pylist()}
    assert len(found["images"]) == 5
    assert not found["left_out"]
    for image in found["images"]:
        row = rows[image["image_id"]]
        assert (row["review"], row["status"], row["image_uri"]) == (True, "scored", image["image_uri"])
        assert image["review_reasons"] == row["review_reasons"]
        assert image["predicted_class"] == row["predicted_class"]
        assert (tmp_path / image["file"]).read_bytes().startswith(b"\x89PNG")


def test_pyarrow_reads_the_predictions_where_they_are(scored: Scored) -> None:
    folder = storage.join(scored.config.output, "predictions")
    if storage.is_s3(folder):
        endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
        from pyarrow.fs import S3FileSystem

        store = S3FileSystem(endpoint_override=endpoint.netloc, scheme=endpoint.scheme, region="us-east-1")
        found = ds.dataset(folder.removeprefix("s3://"), filesystem=store)
    else:
        found = ds.dataset(folder)
    assert found.to_table().equals(scored.rows)
    malignant = found.to_table(columns=["image_uri"], filter=ds.field("p_malignant") > 0.5)
    assert len(malignant) == sum((value or 0) > 0.5 for value in scored.rows["p_malignant"].to_pylist())


def test_the_same_command_again_changes_nothing(scored: Scored, capfd: pytest.CaptureFixture[str]) -> None:
    before = state(scored.config.output)
    assert score(scored.config) == replace(scored.outcome, manifest=None)
    assert state(scored.config.output) == before
    assert "run " not in capfd.readouterr().err


@pytest.fixture(scope="module")
def embedded_classes(ray_cluster: None, bundle: Path, synthetic_archive: Path) -> dict[str, list[float]]:
    """Probabilities of the synthetic archive by URI, on the way that training and evaluation take."""
    loaded, images = load_bundle(str(bundle)), list_labelled(str(synthetic_archive))
    model = loaded.model
    with Embedder(images, model, cache="") as embedder:
        found = embedder.embed([0])
    logits = found.embeddings[0] @ model.tensors["head.weight"].T + model.tensors["head.bias"]
    calibrated = softmax(logits / loaded.triage.settings["temperature"])
    return dict(zip((image.stored.uri for image in images), calibrated.tolist(), strict=True))


def test_scores_are_what_training_computes(scored: Scored, embedded_classes: dict[str, list[float]]) -> None:
    rows = {row["image_uri"]: row for row in scored.rows.to_pylist()}
    for uri, probabilities in embedded_classes.items():
        assert [rows[uri][f"p_{name}"] for name in CLASSES] == pytest.approx(probabilities, abs=1e-5)
        assert rows[uri]["predicted_class"] == CLASSES[int(np.argmax(probabilities))]


@pytest.fixture(scope="module")
def evaluated(
    ray_cluster: None, bundle: Path, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    output = str(tmp_path_factory.mktemp("evaluated") / "output")
    return evaluate(EvaluateConfig(model=str(bundle), data=str(synthetic_archive), output=output))


def test_evaluation_counts_the_classes_that_scoring_suggests(
    scored: Scored, evaluated: dict[str, Any], synthetic_archive: Path
) -> None:
    matrix = [[0] * len(CLASSES) for _ in CLASSES]
    for row in scored.rows.to_pylist():
        true = class_of_path(row["image_uri"].removeprefix(f"{synthetic_archive}/"))
        if row["image_uri"].startswith(str(synthetic_archive)) and true:
            matrix[CLASSES.index(true)][CLASSES.index(row["predicted_class"])] += 1
    assert matrix == evaluated["confusion_matrix"]
    assert evaluated["model_version"] == scored.rows["model_version"][0].as_py()
    assert evaluated["accuracy"] > 0.5  # it has seen most of them; by chance it would be 0.25


@pytest.fixture
def nightly(ray_cluster: None, bundle: Path, tmp_path: Path) -> ScoreConfig:
    """A small archive to which a night adds a shard."""
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "monday.tar").write_bytes(tar_of([("1.jpg", jpeg(20)), ("2.jpg", jpeg(21)), ("3.jpg", b"")]))
    return ScoreConfig(model=str(bundle), input=(str(archive),), output=str(tmp_path / "output"))


def without_times(manifest: dict[str, Any] | None) -> dict[str, Any]:
    assert manifest is not None
    return {name: value for name, value in manifest.items() if name not in ("started_at", "published_at")}


def image_ids(shard: Path) -> Iterator[str]:
    def id_of(entry: Entry) -> str:
        return entry.image_id

    (listed,) = storage.list_objects(str(shard))
    return map(id_of, read_shard(listed, Limits()))


def test_nights_of_one_archive(without_ray: None, nightly: ScoreConfig, capfd: pytest.CaptureFixture[str]) -> None:
    archive, output = Path(nightly.input[0]), Path(nightly.output)
    first = score(nightly).manifest
    assert first is not None
    (file_of_first,) = (output / "predictions").iterdir()
    bytes_of_first = file_of_first.read_bytes()
    units = state(str(output / "_work/units"))
    capfd.readouterr()

    # Died after the last unit, before anything was published: the rows come from the units, without Ray.
    for published in [*(output / "predictions").iterdir(), *(output / "manifests").rglob("*")]:
        if published.is_file():
            published.unlink()
    again = score(nightly).manifest
    assert without_times(again) == without_times(first)
    assert file_of_first.read_bytes() == bytes_of_first
    assert state(str(output / "_work/units")) == units
    said = capfd.readouterr().err
    assert "1 of 1 units done before" in said
    assert "scoring" not in said

    # The next night.
    published_before = state(str(output / "predictions")) + state(str(output / "manifests"))
    with tarfile.open(archive / "tuesday.tar", "w") as tar:
        tar.add(archive / "monday.tar", "nested.tar")  # no image
        member = tarfile.TarInfo("1.jpg")
        member.size = len(jpeg(22))
        tar.addfile(member, io.BytesIO(jpeg(22)))
    second = score(nightly)
    assert second.shards == 2
    assert second.manifest is not None
    assert second.manifest["statuses"] == {"scored": 1}
    assert second.manifest["run_number"] == 2
    assert "0 of 1 units done before" in capfd.readouterr().err
    now = state(str(output / "predictions")) + state(str(output / "manifests"))
    assert set(published_before) < set(now)
    assert len(list((output / "predictions").iterdir())) == 2
    again = score(nightly)
    assert (again.manifest, again.shards, again.missed.not_scored) == (None, 2, {"empty_file": 1})

    # What an analyst reads.
    wanted = [*image_ids(archive / "monday.tar"), *image_ids(archive / "tuesday.tar")]
    table = ds.dataset(output / "predictions").to_table()
    assert sorted(table["image_id"].to_pylist()) == sorted(wanted)
    frame = pd.read_parquet(output / "predictions")
    assert sorted(frame["image_id"]) == sorted(wanted)
    assert frame["predicted_class"].notna().sum() == 3
    query = f"SELECT status, count(*) FROM '{output}/predictions/*.parquet' GROUP BY status"
    found = duckdb.connect().execute(query).fetchall()
    assert dict(found) == {"scored": 3, "empty_file": 1}


def test_many_small_shards_share_tasks_and_each_has_its_rows(nightly: ScoreConfig) -> None:
    archive, shards = Path(nightly.input[0]), 45
    for path in archive.iterdir():
        path.unlink()
    for number in range(shards):
        (archive / f"{number:02d}.tar").write_bytes(tar_of([("1.jpg", b"" if number == 20 else jpeg(number))]))
    units = Ledger(nightly.output).plan(list(storage.list_objects(str(archive))), {}).units
    assert executing.count_tasks(units, actors=1) < len(units) == shards
    assert executing.count_tasks(units, actors=100) == shards
    assert 1 < executing.count_tasks(units, actors=1, on_gpu=True) < executing.count_tasks(units, actors=1)
    manifest = score(nightly).manifest
    assert manifest is not None
    assert manifest["statuses"] == {"scored": shards - 1, "empty_file": 1}
    found = ds.dataset(Path(nightly.output) / "predictions").to_table()["image_uri"].to_pylist()
    assert found == [f"{archive}/{number:02d}.tar#1.jpg" for number in range(shards)]


def test_a_large_shard_is_scored_in_parts_and_published_as_one(
    nightly: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(nightly.input[0])
    for path in archive.iterdir():
        path.unlink()
    images = [b"" if number == 20 else jpeg(number) for number in range(40)]
    columns = {"image_id": [str(number) for number in range(40)], "image": images}
    pq.write_table(pa.table(columns), archive / "a.parquet", row_group_size=4)
    (archive / "b.tar").write_bytes(tar_of([(f"{number}.jpg", data) for number, data in enumerate(images)]))
    found = []
    for large in (1 << 30, 1 << 12):
        monkeypatch.setattr(dividing, "LARGE_BYTES", large)
        monkeypatch.setattr(dividing, "PART_BYTES", large)
        monkeypatch.setattr(executing, "ray_runs", lambda large=large: large == 1 << 12)  # whole in this process
        config = replace(nightly, output=f"{nightly.output}-{large}")
        assert look(config).shards == 2
        assert (len(look(config).units) > 8) == (large == 1 << 12)
        manifest = score(config).manifest
        assert manifest is not None
        rows = ds.dataset(manifest["outputs"][0]["uri"]).to_table()
        found.append(rows.drop_columns(["run_id", "scored_at"]).to_pylist())
    assert found[0] == found[1]
    assert len(found[0]) == 80


def test_what_storage_did_not_deliver_is_tried_again(without_ray: None, nightly: ScoreConfig) -> None:
    archive = Path(nightly.input[0])
    (archive / "gone.jpg").symlink_to(archive / "elsewhere")
    (archive / "loop.jpg").symlink_to(archive / "loop.jpg")
    first = score(nightly).manifest
    assert first is not None
    assert first["statuses"] == {"empty_file": 1, "missing": 2, "scored": 2}
    for number, name in enumerate(("gone.jpg", "loop.jpg")):
        (archive / name).unlink()
        (archive / name).write_bytes(jpeg(30 + number))
    second = score(nightly).manifest
    assert second is not None
    assert second["statuses"] == {"scored": 2}
    rows = ds.dataset(Path(nightly.output, "predictions")).to_table()
    last = rows.filter(pc.equal(rows["run_number"], 2))
    assert last["image_uri"].to_pylist() == [str(archive / name) for name in ("gone.jpg", "loop.jpg")]
    earlier = rows.filter(pc.equal(rows["status"], "missing"))
    assert sorted(earlier["image_id"].to_pylist()) == sorted(last["image_id"].to_pylist())
    assert score(nightly).manifest is None


def test_heat_maps_are_of_the_last_run_of_a_shard(without_ray: None, nightly: ScoreConfig, tmp_path: Path) -> None:
    def noise(seed: int) -> bytes:
        return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8)), "JPEG")

    def explained(number: int) -> tuple[list[str], dict[str, str]]:
        output = str(tmp_path / f"maps-{number}")
        found = explain(ExplainConfig(model=nightly.model, scores=nightly.output, output=output))
        return [image["image_uri"] for image in found["images"]], found["left_out"]

    shard, other = (Path(nightly.input[0]) / name for name in ("monday.tar", "tuesday.tar"))
    shard.write_bytes(tar_of([("1.jpg", noise(1)), ("2.jpg", noise(2))]))
    score(nightly)
    assert explained(1) == ([f"{shard}#1.jpg", f"{shard}#2.jpg"], {})
    shard.write_bytes(tar_of([("1.jpg", noise(3))]))
    other.write_bytes(tar_of([("1.jpg", noise(4))]))
    score(nightly)
    assert explained(2) == ([f"{shard}#1.jpg", f"{other}#1.jpg"], {})
    shard.write_bytes(tar_of([("1.jpg", noise(5))]))
    assert explained(3) == ([f"{other}#1.jpg"], {f"{shard}#1.jpg": "changed since it was scored"})
    (Path(nightly.output) / "predictions/summary.csv").write_text("class,count\n")  # an analyst's
    shard.write_bytes(tar_of([("2.jpg", noise(5))]))
    assert explained(4) == ([f"{other}#1.jpg"], {f"{shard}#1.jpg": "gone since it was scored"})


def test_an_actor_without_the_mount_ends_the_job_in_one_line(
    nightly: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node finds out before its first unit comes back through Ray Data."""
    monkeypatch.setattr("bcd_ray.scoring.executing.folders_of", lambda units: [str(tmp_path / "mount")])
    with pytest.raises(JobError, match=r"node \S+: .*/mount: No such file or directory here: mount it there") as raised:
        score(replace(nightly, small_run_bytes=0))
    assert "\n" not in str(raised.value)
    assert storage.list_names(f"{nightly.output}/predictions") == []
    monkeypatch.undo()
    assert score(nightly).manifest is not None
