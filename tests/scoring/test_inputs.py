"""Lists of what to score: texts, CSV and Parquet; what they promise has a row, there or not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcd_ray.errors import ConfigError, NoInputError
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.inputs import entries_of, list_shards


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
        ("l.txt", "\n \n", NoInputError, "names nothing"),
        ("l.txt", "/no/such/folder\n", NoInputError, "nothing found at /no/such/folder"),
        ("l.txt", "gs://lab/x\n", ConfigError, "only local paths and s3"),
    ],
)
def test_a_list_that_cannot_be_used_is_told(
    tmp_path: Path, name: str, content: str, error: type[Exception], words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=words):
        listed(tmp_path / name)


def test_a_list_that_is_not_there_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="--input-list: nothing found"):
        entries_of(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="give --input or --input-list"):
        ScoreConfig(model="m", output="o")
