"""Images are identified in processes that end with the job, however it ends."""

import multiprocessing
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bcd_ray import identification, storage
from bcd_ray.dataset import list_labelled
from bcd_ray.errors import JobError

# Says the number of each process that decodes, and goes on until it is killed.
_FOR_EVER = """
import multiprocessing, sys
from bcd_ray.dataset import list_labelled
from bcd_ray import identification, storage

def read(uri, wait=storage.read_bytes):
    if children := multiprocessing.active_children():
        print(*[child.pid for child in children], flush=True)
    return wait(uri)

if __name__ == "__main__":
    storage.read_bytes, identification._IN_A_THREAD = read, 0
    images = list_labelled(sys.argv[1])
    while True:
        identification.identify(images, {})
"""


def test_a_killed_decoder_ends_the_job_with_a_remedy(synthetic_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = storage.read_bytes

    def read_and_kill(uri: str) -> bytes:
        for child in multiprocessing.active_children():
            child.kill()
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", read_and_kill)
    monkeypatch.setattr(identification, "_IN_A_THREAD", 0)
    with pytest.raises(JobError, match="look for full memory"):
        identification.identify(list_labelled(str(synthetic_archive)), {})


def test_decoders_end_with_a_job_that_is_killed(synthetic_archive: Path) -> None:
    command = [sys.executable, "-c", _FOR_EVER, str(synthetic_archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout
        decoders = [os.pidfd_open(int(word)) for word in job.stdout.readline().split()]
        job.kill()
    assert decoders
    for each in decoders:
        assert select.select([each], [], [], 30)[0], "a process outlives its job"
        os.close(each)


def test_processes_find_what_a_thread_finds(
    synthetic_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smears = shutil.copytree(synthetic_archive, tmp_path / "smears")
    (smears / "Benign" / "none.jpg").write_bytes(b"no image")
    images = list_labelled(str(smears))
    next(smears.glob("*/*.jpg")).unlink()
    expected = identification.identify(images, {})
    assert sum(map(bool, expected.errors)) == 2  # of the one that is gone, and of the one that is none
    known = dict(zip(expected.digests[::2], expected.facts[::2], strict=True))
    monkeypatch.setattr(identification, "_IN_A_THREAD", 0)
    for before in ({}, known):
        found = identification.identify(images, before)
        assert found.digests == expected.digests
        assert [each[0] for each in found.facts] == [each[0] for each in expected.facts]
        np.testing.assert_array_equal(found.backgrounds, expected.backgrounds)
        assert found.errors == expected.errors
