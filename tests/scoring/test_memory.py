"""An actor stays under its bound whatever is in an archive, and a shard of many images needs no more than one of few.

A process that may take no more memory scores a hostile archive, with an engine that takes no time; beside it, its
helpers have bounds of their own.
"""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bcd_ray.archives.memory import UNITS_AT_A_TIME, share_out, window
from bcd_ray.errors import ConfigError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.scoring.config import ScoreConfig

MB = 1 << 20
MOST_BYTES, MOST_PIXELS, MEMORY = 16 * MB, 30_000_000, 3072 * MB
_ACTOR = """
import json, resource, sys
import numpy as np
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.images import Limits
from bcd_ray.archives.memory import share_out
from bcd_ray.model.bundle import Bundle
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.triage import Triage
from bcd_ray.scoring import worker
from bcd_ray.ledger.ledger import Ledger

class Engine:
    chunk = 16
    def infer(self, pixels):
        return Outputs(np.ones((len(pixels), 8), np.float32), np.zeros((len(pixels), 4), np.float32))

def peak(who):
    return resource.getrusage(who).ru_maxrss << 10

def taken():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["VmData"].split()[0]) << 10

folder, output, most_bytes, most_pixels, memory, more = sys.argv[1:3] + [int(each) for each in sys.argv[3:]]
limits = Limits(most_bytes, most_pixels, 30.0, *share_out(memory, most_bytes, most_pixels))
worker.open_engine = lambda *_: Engine()
bundle = Bundle(None, Triage.without_limits(8), {}, "test")
ledger = Ledger(output)
scorer = worker.UnitScorer(bundle, "openvino", ledger, limits, 2, None)
plan = ledger.plan(list_archive(folder).shards, {})
plan = ledger.begin(plan, {"engine": {}, "versions": {}, "configuration": {}})
resource.setrlimit(resource.RLIMIT_DATA, (taken() + more, taken() + more))
before = peak(resource.RUSAGE_SELF)
for unit in plan.units:
    scorer.score(unit)
grown = peak(resource.RUSAGE_SELF) - before
ledger.publish(plan)
print(json.dumps({"actor": grown, "helper": peak(resource.RUSAGE_CHILDREN)}))
"""


def score(folder: Path, output: Path, more: int) -> tuple[dict[str, int], pa.Table]:
    """Score an archive in a process that may take so much more memory: by how much it grew, and the rows."""
    numbers = [str(each) for each in (MOST_BYTES, MOST_PIXELS, MEMORY, more)]
    command = [sys.executable, "-c", _ACTOR, str(folder), str(output), *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (rows,) = output.glob("predictions/*.parquet")
    return json.loads(done.stdout), pq.read_table(rows)


def jpeg(number: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(draw_smear(0, seed=number)).save(sink, "JPEG")
    return sink.getvalue()


def flat_png(side: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side), (220, 180, 200)).save(sink, "PNG")
    return sink.getvalue()


def write_parquet(path: Path, images: list[bytes], **options: Any) -> None:
    table = pa.table({"image_id": list(map(str, range(len(images)))), "image": pa.array(images, pa.binary())})
    pq.write_table(table, path, use_dictionary=False, **options)


def tar_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def hostile_archive(folder: Path) -> None:
    """Files that hold, or claim to hold, far more than the process may take."""
    for number in range(16):
        with (folder / f"loose-{number:02}.jpg").open("wb") as file:
            file.write(jpeg(number))
            file.truncate(15 * MB)  # zeros behind the picture; 240 MB in all
    (folder / "wide.png").write_bytes(flat_png(5000))
    (folder / "wider.png").write_bytes(flat_png(6000))
    large = jpeg().ljust(8 * MB, b"\0")
    # A row group of 160 MB, page by page; and pages of 400 MB, which cannot be read in parts.
    write_parquet(folder / "group.parquet", [large] * 20, compression="none", write_batch_size=1, data_page_size=1)
    write_parquet(folder / "page.parquet", [large] * 50, compression="zstd")
    with pa.OSFile(str(folder / "zeros.tar.zst"), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as sink:
        header = tarfile.TarInfo("zeros.bin")
        header.size = 280 * MB
        sink.write(header.tobuf())
        for _ in range(280):
            sink.write(bytes(MB))
        sink.write(tar_of({"lost.jpg": jpeg()}))
    with zipfile.ZipFile(folder / "zeros.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
        for number in range(24):
            packed.writestr(f"{number:02}.jpg", bytes(15 * MB))
    (folder / "small.tar").write_bytes(tar_of({f"{number}.jpg": jpeg(number) for number in range(3)}))


def test_a_hostile_archive_is_scored_within_the_bound(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    hostile_archive(archive)
    windows = 4 * window(MOST_BYTES)
    peaks, rows = score(archive, tmp_path / "output", more=windows + 200 * MB)  # threads and their stacks
    assert peaks["actor"] < windows
    assert peaks["helper"] < max(share_out(MEMORY, MOST_BYTES, MOST_PIXELS))
    names = [
        uri.removeprefix(f"{archive}/").rpartition("-")[0] or uri.rpartition("/")[2]
        for uri in rows["shard_uri"].to_pylist()
    ]
    statuses = Counter(zip(names, rows["status"].to_pylist(), strict=True))
    zeros = statuses.pop(("zeros.zip", "not_an_image"))
    assert 15 <= zeros < 24
    assert statuses == {
        ("loose", "scored"): 16,
        ("wide.png", "scored"): 1,
        ("wider.png", "too_many_pixels"): 1,
        ("group.parquet", "scored"): 20,
        ("page.parquet", "unreadable_shard"): 1,
        ("zeros.tar.zst", "unreadable_shard"): 1,
        ("zeros.zip", "unreadable_shard"): 1,
        ("small.tar", "scored"): 3,
    }
    errors = {row["shard_uri"].rpartition("/")[2]: row["error"] for row in rows.to_pylist() if row["error"]}
    assert "row groups of at most 64 images" in errors["page.parquet"]
    assert "100 times its own size" in errors["zeros.tar.zst"]


def test_a_shard_of_many_images_takes_no_more_memory_than_one_of_few(tmp_path: Path) -> None:
    text = b"this is no image"  # reading and writing rows is what grows, if anything does
    grown = []
    for count in (1_000, 30_000):
        (tmp_path / str(count)).mkdir()
        (tmp_path / f"{count}/a.tar").write_bytes(tar_of({f"{'long' * 20}{n:08}.jpg": text for n in range(count)}))
        peaks, rows = score(tmp_path / str(count), tmp_path / f"output-{count}", more=400 * MB)
        assert len(rows) == len(rows["image_id"].unique()) == count
        grown.append(peaks["actor"])
    assert grown[1] < grown[0] + 40 * MB


def test_the_parts_add_up_to_the_bound() -> None:
    for memory, most_bytes, most_pixels in ((4 << 30, 64 * MB, 100_000_000), (MEMORY, MOST_BYTES, MOST_PIXELS)):
        shares = share_out(memory, most_bytes, most_pixels)
        units = UNITS_AT_A_TIME * (4 * window(most_bytes) + shares.parquet)
        assert shares.decoding + units + (1 << 30) == memory


@pytest.mark.parametrize(
    "options",
    [{"actor_memory": 2 << 30}, {"max_image_bytes": 1 << 30}, {"max_pixels": 1_000_000_000}],
    ids=lambda options: next(iter(options)),
)
def test_limits_that_do_not_fit_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"--actor-memory must be at least \d+ ") as refused:
        ScoreConfig(model="m", input=("i",), output="o", **options)
    least = int(str(refused.value).split()[5])
    assert ScoreConfig(model="m", input=("i",), output="o", **{**options, "actor_memory": least}).limits.max_memory > 0
