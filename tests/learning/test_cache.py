"""Each view of each content is embedded once: what is kept, what is not, and what damage costs."""

import errno
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest

from bcd_ray import storage
from bcd_ray.archives.images import Limits
from bcd_ray.archives.isolation import end_helpers
from bcd_ray.errors import JobError
from bcd_ray.learning import cache
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.dataset import list_labelled
from bcd_ray.learning.embedding import Embedded, Embedder, Identified
from bcd_ray.learning.job import train
from bcd_ray.model.bundle import pretrained

MODEL = pretrained("keras")


@dataclass(frozen=True)
class Found:
    identified: Identified
    embedded: Embedded


def embed(data: Path, kept: str, views: Sequence[int] = (0,)) -> Found:
    with Embedder(list_labelled(str(data)), MODEL, kept) as embedder:
        return Found(embedder.identified, embedder.embed(views))


def assert_same(one: Found, other: Found) -> None:
    """In the views that there are of the first."""
    views = len(one.embedded.embeddings)
    np.testing.assert_allclose(one.embedded.embeddings, other.embedded.embeddings[:views], atol=1e-5)
    assert one.embedded.embeddings.any(axis=2).all()
    np.testing.assert_array_equal(one.identified.hashes, other.identified.hashes)
    assert one.identified.hashes.all()
    np.testing.assert_array_equal(one.embedded.backgrounds, other.embedded.backgrounds[:views])
    assert one.embedded.backgrounds[0].min() > 128  # smears are drawn on a light ground
    np.testing.assert_array_equal(one.embedded.quality, other.embedded.quality[:views])
    assert not np.isnan(one.embedded.quality[0]).any()
    assert one.identified.digests == other.identified.digests
    assert one.identified.errors == other.identified.errors


def three_of_each_class(archive: Path, folder: Path) -> Path:
    for source in sorted(archive.glob("*/synthetic-000[1-3].jpg")):
        (folder / source.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / source.parent.name)
    return folder


@pytest.fixture
def smears(synthetic_archive: Path, tmp_path: Path) -> Path:
    """Three smears of each class."""
    return three_of_each_class(synthetic_archive, tmp_path / "smears")


@pytest.fixture(scope="module")
def fresh(ray_cluster: None, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Two views of these smears, computed without a cache."""
    return embed(three_of_each_class(synthetic_archive, tmp_path_factory.mktemp("fresh")), "", (0, 1))


@pytest.fixture(scope="module")
def first_cache(ray_cluster: None, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first run over these smears keeps; only to be read."""
    folder = tmp_path_factory.mktemp("first")
    embed(three_of_each_class(synthetic_archive, folder / "smears"), str(folder / "cache"))
    return folder / "cache"


@pytest.fixture
def kept(first_cache: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first_cache, tmp_path / "cache"))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where anything is computed."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed what the cache holds")

    monkeypatch.setattr(Embedder, "_compute", refuse)


@pytest.mark.parametrize("store", ["disk", "s3"])
def test_views_are_computed_once(
    fresh: Found, s3: str, smears: Path, tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    kept = str(tmp_path / "cache") if store == "disk" else storage.join(s3, uuid4().hex)
    assert_same(embed(smears, kept, (0, 1)), fresh)
    request.getfixturevalue("no_ray")
    assert_same(embed(smears, kept, (0, 1)), fresh)
    later = embed(smears, kept, (1,))
    np.testing.assert_allclose(later.embedded.embeddings, fresh.embedded.embeddings[1:], atol=1e-5)


def test_what_lacks_alone_is_computed(
    ray_cluster: None, smears: Path, kept: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (smears / "Pro/synthetic-0001.jpg").rename(smears / "Pro/renamed.jpg")  # the content counts, not the name
    (smears / "Pre/synthetic-0001.jpg").write_bytes((smears / "Pre/synthetic-0002.jpg").read_bytes() + b"\0")
    capfd.readouterr()
    assert_same(embed(smears, str(kept), (0, 3)), embed(smears, "", (0, 3)))
    assert "embedding  11 of 24 views are in the cache" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["images", "views"])
def test_a_damaged_object_is_computed_again(
    fresh: Found, smears: Path, kept: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    (file,) = kept.rglob(f"{kind}/*.parquet")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    (file.parent / "other.parquet").write_bytes(b"PAR1")
    capfd.readouterr()
    assert_same(embed(smears, str(kept)), fresh)
    said = capfd.readouterr().err
    assert f"{file} is damaged: what it held is computed again" in said
    assert ("are in the cache" in said) == (kind == "images")


def test_views_that_are_not_wanted_are_not_computed(
    fresh: Found, smears: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, whole = list_labelled(str(smears)), fresh.embedded
    shutil.copy(images[3].stored.uri, tmp_path / "copy.jpg")
    images.append(replace(images[3], name="copy.jpg", stored=replace(images[3].stored, uri=f"{tmp_path}/copy.jpg")))
    wanted = np.ones((2, len(images)), bool)
    wanted[1] = np.arange(len(images)) == 12  # the copy alone
    with Embedder(images, MODEL, str(tmp_path / "cache")) as embedder:
        found = embedder.embed([0, 1], wanted)
    np.testing.assert_allclose(found.embeddings[0, :12], whole.embeddings[0], atol=1e-5)
    np.testing.assert_allclose(found.embeddings[1, 12], whole.embeddings[1, 3], atol=1e-5)
    capfd.readouterr()
    embed(smears, str(tmp_path / "cache"), (0, 1))
    assert "embedding  13 of 24 views are in the cache" in capfd.readouterr().err


def test_a_cache_that_cannot_be_used_costs_time_alone(
    fresh: Found, smears: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert_same(embed(smears, str(tmp_path / "file/below")), fresh)
    assert "the cache cannot be written" in capfd.readouterr().err


def test_another_backbone_shares_nothing(tmp_path: Path) -> None:
    other = pretrained("keras")
    changed = {name: np.array(value) for name, value in other.tensors.items()}
    changed["features.0.0.weight"][0] += 1e-3
    keys = {cache._key(MODEL), cache._key(other), cache._key(type(other)(changed, other.preprocessing))}
    assert len(keys) == 2
    assert cache._key(MODEL.with_head(np.ones((4, 1280), np.float32), np.ones(4, np.float32))) in keys


def test_images_that_cannot_be_decoded_are_kept_too(
    ray_cluster: None, smears: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (smears / "Pre/text.jpg").write_text("no image")
    (smears / "Pro/gone.jpg").symlink_to(tmp_path / "elsewhere")
    first = embed(smears, str(tmp_path / "cache"))
    request.getfixturevalue("no_ray")
    again = embed(smears, str(tmp_path / "cache"))
    errors = first.identified.errors
    assert again.identified.errors == errors
    failed = {image.name: error for image, error in zip(list_labelled(str(smears)), errors, strict=True) if error}
    assert failed.keys() == {"Pre/text.jpg", "Pro/gone.jpg"}
    assert failed["Pre/text.jpg"].startswith("not_an_image")
    assert again.identified.digests.count("") == 1


def test_an_image_in_two_classes_is_in_neither(smears: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = min((smears / "Benign").iterdir())
    (smears / "Pre/copied.jpg").write_bytes(first.read_bytes())
    (smears / "Benign/again.jpg").write_bytes(first.read_bytes())
    images = list_labelled(str(smears))
    with Embedder(images, MODEL, "") as embedder:
        errors = embedder.identified.errors
    found = {image.name: error for image, error in zip(images, errors, strict=True) if error}
    assert found == dict.fromkeys(
        [f"Benign/{first.name}", "Benign/again.jpg", "Pre/copied.jpg"],
        "two_classes: the same image stands in benign and pre_b: keep it in one",
    )
    assert "3 images are left out: the same bytes stand in two classes" in capsys.readouterr().err


def test_images_that_all_fail_ask_nothing_of_the_cache(
    smears: Path, kept: Path, request: pytest.FixtureRequest
) -> None:
    for path in smears.glob("*/*.jpg"):
        path.write_text("no image")
    request.getfixturevalue("no_ray")
    found = embed(smears, str(kept))
    assert all(error and error.startswith("not_an_image") for error in found.identified.errors)
    assert not found.embedded.embeddings.any()


def test_an_image_that_changes_under_way_ends_the_job(ray_cluster: None, smears: Path) -> None:
    images = list_labelled(str(smears))
    changed = pytest.raises(JobError, match=r"Pre/synthetic-0001\.jpg changed while the job ran \(other bytes\)")
    with changed, Embedder(images, MODEL, "") as embedder:
        (smears / "Pre/synthetic-0001.jpg").write_bytes(b"other")
        embedder.embed([0])


def test_a_second_training_run_computes_nothing(
    bundle: Path, synthetic_archive: Path, tmp_path: Path, no_ray: None
) -> None:
    """Whatever the settings of the head and the seed of the split: other images may be in the training part."""
    options = {"data": str(synthetic_archive), "augmented_views": 0, "representation": "field"}
    train(TrainConfig(output=str(tmp_path / "first"), **options, learning_rate=0.01, epochs=2))
    train(TrainConfig(output=str(tmp_path / "second"), **options, seed=5))
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second"))
    assert first["split"] != second["split"]


def test_a_file_too_large_to_be_held_is_not_read(ray_cluster: None, smears: Path, tmp_path: Path) -> None:
    large = next(smears.rglob("*.jpg")).with_name("zz-large.jpg")
    with large.open("wb") as file:
        file.truncate(Limits().max_bytes + 1)
    errors = embed(smears, str(tmp_path / "cache")).identified.errors
    assert sum(error is None for error in errors) == 12
    assert sum(error is not None and error.startswith("too_large") for error in errors) == 1


def test_a_failure_of_the_machine_is_not_kept_as_one_of_the_image(
    ray_cluster: None, smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    def no_process(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    end_helpers()
    with monkeypatch.context() as patch:
        patch.setattr("bcd_ray.archives.formats.jpeg.plain_jpeg", no_memory)
        patch.setattr("bcd_ray.archives.isolation.helpers.start", no_process)
        with Embedder(list_labelled(str(smears)), MODEL, str(tmp_path / "cache")) as embedder:
            assert all(error and error.startswith("resource_error") for error in embedder.identified.errors)
    assert embed(smears, str(tmp_path / "cache")).identified.errors == [None] * 12


def rows_of(digest: str) -> pa.Table:
    """One made-up view of each of 100 images, the digests of which begin with this one."""
    numbers = {name: np.ones((100, count or 1280), kind) for name, (kind, count, _) in cache.NUMBERS.items()}
    return cache.to_rows(
        {"digest": [f"{digest}{number:063d}" for number in range(100)], "view": ["0"] * 100, **numbers}
    )


@pytest.mark.parametrize("store", ["disk", "s3"])
def test_of_a_large_cache_what_is_asked_for_is_read(
    s3: str, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path) if store == "disk" else storage.join(s3, uuid4().hex)
    kept = cache.EmbeddingCache(uri, MODEL)
    for digest in "abcd":
        kept.add(rows_of(digest))
        kept.flush()
    read, whole = list[str](), storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read.append(uri) or whole(uri))
    table = cache.ViewTable([f"b{number:063d}" for number in (7, 8)] + ["e" * 64], ["0"], 1280)
    table.lacking[:] = True
    kept.fill(table)
    assert table.lacking.tolist() == [[False, False, True]]
    assert table.numbers["embedding"][0, :2].all()
    assert len(read) == 1


def test_the_oldest_make_room_and_what_is_not_the_cache_s_stays(tmp_path: Path) -> None:
    other = tmp_path / "notes.parquet"
    other.write_bytes(bytes(1000))
    objects = list[Path]()
    for age, digest in enumerate("abcd"):
        kept = cache.EmbeddingCache(str(tmp_path), MODEL)
        kept.add(rows_of(digest))
        kept.flush()
        (new,) = set(tmp_path.glob("*/views/*")) - set(objects)
        os.utime(new, (age, age))
        objects.append(new)
    size = objects[0].stat().st_size
    cache.EmbeddingCache(str(tmp_path), MODEL, 2 * size + 100).flush()
    assert set(tmp_path.rglob("*.parquet")) == {other, *objects[2:]}
    cache.EmbeddingCache(str(tmp_path), MODEL, 0).flush()
    assert set(tmp_path.rglob("*.parquet")) == {other}
