"""Lists of what to score: texts, CSV and Parquet; what they promise has a row, there or not."""

from contextlib import nullcontext
from itertools import permutations, product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcd_ray.archives.suffixes import HIDDEN
from bcd_ray.errors import ConfigError, NoInputError
from bcd_ray.ledger.listed import Listed, refuse_other_names
from bcd_ray.ledger.roots import named
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.inputs import entries_of, list_shards
from bcd_ray.storage import StoredObject


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in ("a.jpg", "b, c.jpg", "d.jpg"):
        (folder / name).write_bytes(b"jpeg")
    return folder


def listed(path: Path, *inputs: Path) -> dict[str, str]:
    """Etags of the shards by name, for a list and inputs."""
    config = ScoreConfig(model="m", output="/o", input=tuple(map(str, inputs)), input_list=str(path))
    return {Path(shard.uri).name: shard.etag for shard in list_shards(config)[0]}


@pytest.mark.parametrize("form", ["txt", "csv", "parquet"])
def test_a_list_names_files_folders_and_what_is_gone(tmp_path: Path, archive: Path, form: str) -> None:
    names, path = (
        [f"{archive}/a.jpg", f"{archive}/b, c.jpg", f"{archive}/gone.tar", f"{archive}/a.jpg"],
        tmp_path / f"l.{form}",
    )
    if form == "parquet":
        pq.write_table(pa.table({"id": [1, 2, 3, 4], "uri": names}), path)
    elif form == "csv":
        path.write_text("\ufeffid,uri\n" + "".join(f'1,"{name}"\n' for name in names))
    else:
        path.write_text("".join(f"{name}\r\n\n" for name in names))
    found = listed(path)
    assert found.keys() == {"a.jpg", "b, c.jpg", "gone.tar"}
    assert [name for name, etag in found.items() if etag == "missing"] == ["gone.tar"]
    assert listed(path, archive).keys() == {*found, "d.jpg"}


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("l.csv", "path\n/a\n", ConfigError, "needs a column `uri`"),
        ("l.parquet", "no table", ConfigError, "needs a column `uri`"),
        ("l.parquet", pa.table({"uri": [["/a"]]}), ConfigError, "needs a column `uri`"),
        ("l.txt", "\n \n", NoInputError, "names nothing"),
        ("l.txt", "/no/such/folder\n", NoInputError, "nothing found at /no/such/folder"),
        ("l.txt", "gs://lab/x\n", ConfigError, "only local paths and s3"),
    ],
)
def test_a_list_that_cannot_be_used_is_told(
    tmp_path: Path, name: str, content: str | pa.Table, error: type[Exception], words: str
) -> None:
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        pq.write_table(content, tmp_path / name)
    with pytest.raises(error, match=words):
        listed(tmp_path / name)


def test_a_name_that_no_file_can_have_is_one_that_is_gone(tmp_path: Path, archive: Path) -> None:
    (archive / "loop.jpg").symlink_to("loop.jpg")
    long = f"{'x' * 300}.jpg"
    (tmp_path / "l.txt").write_text(f"{archive}/{long}\n{archive}/loop.jpg\n{archive}/a.jpg\n")
    assert [name for name, etag in listed(tmp_path / "l.txt").items() if etag == "missing"] == ["loop.jpg", long]


def test_a_list_that_is_not_there_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="--input-list: nothing found"):
        entries_of(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="give --input or --input-list"):
        ScoreConfig(model="m", output="o")


def test_what_is_left_out_of_folders_that_overlap_is_counted_once(tmp_path: Path, archive: Path) -> None:
    (archive / ".trash").mkdir()
    for name in ("notes.doc", "day/a.jpg", "day/more.doc", ".trash/b.jpg", ".trash/old.doc"):
        (archive / name).parent.mkdir(exist_ok=True)
        (archive / name).write_bytes(b"jpeg")
    (tmp_path / "l.txt").write_text(f"{archive}/day\n{archive}/day\n")
    inputs = (str(archive), f"{archive}/day", f"{archive}/.trash")  # what is hidden is not listed with the first
    config = ScoreConfig(model="m", output="/o", input=inputs, input_list=str(tmp_path / "l.txt"))
    found, left_out = list_shards(config)
    assert [shard.uri[len(str(archive)) + 1 :] for shard in found] == [
        ".trash/b.jpg",
        *("a.jpg", "b, c.jpg", "d.jpg", "day/a.jpg"),
    ]
    assert left_out == {".doc": 3, HIDDEN: 1}


def test_images_published_under_other_names_are_refused_whatever_the_roots() -> None:
    """Held against `named`, shard by shard."""
    places = ["/lab", "/lab/a", "/lab/a/b", "/else"]
    uris = [f"{place}/{name}" for place in places for name in ("x.jpg", "\udcff.jpg", "a-b/y.jpg")]
    chosen = [each for count in range(3) for each in permutations(places, count)]
    some = [dict(zip(("one", "two"), each, strict=False)) for each in chosen]
    for now, before in product(some, some):
        for uri in uris:
            listed = Listed(now)
            listed.add([StoredObject(uri, 1, "tag")])
            (shard,) = listed
            assert shard == named(StoredObject(uri, 1, "tag"), now)
            earlier = named(StoredObject(uri, 1, "tag"), before)
            is_other = earlier.name not in (uri, shard.name)
            with pytest.raises(ConfigError, match="give --root") if is_other else nullcontext():
                refuse_other_names(listed, lambda prefix: None, before)
