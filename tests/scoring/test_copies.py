"""Images of one content are computed once, and each has the row that it would have alone."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcd_ray import storage
from bcd_ray.archives.images import Limits
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.model.bundle import Bundle, pretrained
from bcd_ray.model.triage import Triage
from bcd_ray.scoring.attempts import Entries
from bcd_ray.scoring.copies import Copies
from bcd_ray.scoring.worker import UnitScorer


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
