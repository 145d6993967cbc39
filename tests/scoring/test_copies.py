"""Images of one content are computed once, and each has the row that it would have alone."""

import io
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from bcd_ray import storage
from bcd_ray.archives.images import Limits
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.model.bundle import Bundle, pretrained
from bcd_ray.model.triage import Triage
from bcd_ray.runtime import ActorPool
from bcd_ray.scoring import executing, worker
from bcd_ray.scoring.attempts import Entries
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.copies import Copies, SharedCopies
from bcd_ray.scoring.job import score
from bcd_ray.scoring.worker import ScoringActor, UnitScorer


def test_numbers_are_found_by_digest_while_they_are_among_the_last() -> None:
    copies, numbers = Copies(most=3), np.arange(20, dtype=np.float32).reshape(5, 4)
    digests = [f"{number:064x}" for number in range(5)]  # of one beginning
    digests += [f"{number:02x}" * 32 for number in range(5)]
    assert copies.find(digests[0]) is None
    copies.add(digests[5:], numbers)
    found = [copies.find(digest) for digest in digests[5:]]
    assert found[:2] == [None, None]
    assert np.array_equal(found[2:], numbers[2:])
    copies.add(digests[:1], numbers[:1])
    assert copies.find(digests[1]) is None
    assert copies.find(digests[7]) is None
    assert np.array_equal([copies.find(digests[0]), copies.find(digests[8])], numbers[[0, 3]])


def test_without_room_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    copies = Copies()
    copies.add(["0" * 64] * 2, np.zeros((2, 4), np.float32))
    assert copies.find("0" * 64) is None


@pytest.mark.parametrize("representation", ["field", "cells"])
def test_copies_are_computed_once_and_have_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, representation: Any
) -> None:
    files = [b"no image", b""]
    for seed in range(6):
        sink = io.BytesIO()
        Image.fromarray(draw_smear(seed % 4, seed)).save(sink, "PNG" if seed == 3 else "JPEG")
        files.append(sink.getvalue())
    files.append(files[-1][:-400])  # damaged: a reason that the numbers do not have
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, data in enumerate([*files, *files[::2], *files[::-1], *(6 * files)]):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    model = pretrained("keras", representation)
    bundle = Bundle(model, Triage.without_limits(model.embedding_size), {}, "0" * 64)
    shards, tables, counts = tuple(storage.list_objects(str(tmp_path / "a.tar"))), [], []
    for most in (0, 100):
        scorer = UnitScorer(bundle, "openvino", Ledger(str(tmp_path)), Limits(), 1, None, keep=True)
        monkeypatch.setattr(scorer, "_copies", Copies(most))
        infer, count = scorer._engine.infer, list[int]()
        monkeypatch.setattr(scorer._engine, "infer", lambda pixels: (count.append(len(pixels)), infer(pixels))[1])  # noqa: B023
        rows = [row for table in scorer.rows(Entries(shards, Limits())) for row in table.to_pylist()]
        tables.append([{**row, "scored_at": None} for row in rows])
        counts.append(sum(count))
    assert tables[0] == tables[1]
    assert counts[0] == len([row for row in tables[0] if row["status"] == "scored"])
    assert counts[1] < counts[0] // 2


def test_actors_tell_each_other_what_they_computed() -> None:
    calls, common, numbers = list[tuple[Any, ...]](), Copies(), np.arange(12_000, dtype=np.float32).reshape(6, 2000)

    def exchange(*copies: Any) -> Any:
        calls.append(copies)
        return common.exchange(*copies)

    one, other = SharedCopies(exchange), SharedCopies(exchange)
    digests = [f"{number:02x}" * 32 for number in range(6)]
    one.ask(digests[:5])
    one.add(digests[:5], numbers[:5])
    other.ask(digests)
    assert other.find(digests[0]) is None  # not told yet
    one.ask(digests[:5])
    other.add(digests[5:], numbers[5:])
    other.ask(digests)
    assert np.array_equal([other.find(digest) for digest in digests], numbers)
    assert calls[-1][0] == digests[:5]
    count = len(calls)
    other.ask(digests)
    assert len(calls) == count  # nothing to ask, nothing to tell


def test_two_actors_compute_copies_once_also_where_what_they_know_is_lost(
    ray_cluster: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, archive = 36, tmp_path / "archive"
    archive.mkdir()
    for number in range(images // 3):
        with tarfile.open(archive / f"a{number:02d}.tar", "w") as tar:
            for seed in range(3 * number, 3 * number + 3):
                sink = io.BytesIO()
                Image.fromarray(draw_smear(seed % 4, seed)).save(sink, "JPEG")
                member = tarfile.TarInfo(f"{seed}.jpg")
                member.size = len(sink.getvalue())
                tar.addfile(member, io.BytesIO(sink.getvalue()))
        shutil.copyfile(archive / f"a{number:02d}.tar", archive / f"b{number:02d}.tar")
    computed, killed = tmp_path / "computed", tmp_path / "killed"

    class Counting(ScoringActor):
        """Notes how many images it computed, and kills the process that knows of all, once."""

        def _compute(self, pixels: Any) -> Any:
            import ray

            with computed.open("a") as file:
                file.write(f"{len(pixels)}\n")
            with suppress(FileExistsError):
                killed.touch(exist_ok=False)
                ray.kill(self._starts, no_restart=False)
            return super()._compute(pixels)

    monkeypatch.setattr(executing, "ScoringActor", Counting)
    monkeypatch.setattr(executing, "actor_pool", lambda *_: ActorPool(least=2, most=2, threads=1, cpus=0.75))
    found = []
    for alone in (False, True):
        monkeypatch.setattr(executing, "ray_runs", lambda alone=alone: not alone)
        monkeypatch.setattr(worker, "Copies", lambda: Copies(most=0))  # of this process
        outcome = score(ScoreConfig(model=str(bundle), input=(str(archive),), output=str(tmp_path / f"scores-{alone}")))
        assert outcome.manifest is not None
        assert outcome.manifest["statuses"] == {"scored": 2 * images}
        rows = ds.dataset(outcome.manifest["outputs"][0]["uri"]).to_table()
        found.append(rows.drop_columns(["run_id", "scored_at"]).to_pylist())
    assert found[0] == found[1]
    assert killed.exists()
    assert images <= sum(map(int, computed.read_text().split())) <= 1.3 * images
