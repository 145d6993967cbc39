"""An image costs itself only, whatever it does to the process that decodes it: helpers die of stand-ins here."""

import io
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcd_ray.archives import images, isolation, parquets
from bcd_ray.archives.images import PASSING_STATUSES, Decoded, Limits, Rejected
from bcd_ray.archives.isolation import decode, decode_apart
from bcd_ray.errors import StorageError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.storage import StoredObject

QUICK = Limits(max_seconds=0.2)
_DECODER = """
import os, signal, time
from bcd_ray.archives import images, isolation
real = images.decode
def decode(data, limits):
    mark = data[-8:].rstrip(b"_")
    if mark == b"spin":
        while True: pass
    if mark == b"sleep":
        time.sleep(1000)
    if mark.startswith(b"SIG"):
        os.kill(os.getpid(), getattr(signal, mark.decode()))
    if mark == b"memory":
        bytearray(500 << 20)
    if mark == b"print":
        os.write(1, b"a library says something")
    return real(data, limits)
images.decode = decode
isolation.serve()
"""


def drawn(kind: str = "PNG", mark: bytes = b"") -> bytes:
    """A picture, with a mark that the stand-in of a decoder acts on; libraries read past it."""
    sink = io.BytesIO()
    Image.fromarray(draw_smear(0, seed=1)).save(sink, kind)
    return sink.getvalue() + mark.ljust(8, b"_")


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    isolation.end_helpers()
    monkeypatch.setattr(isolation, "COMMAND", [sys.executable, "-P", "-c", _DECODER])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG"])
def test_a_sound_image_is_the_same_decoded_apart(kind: str) -> None:
    found, expected = decode_apart(drawn(kind), Limits()), images.decode(drawn(kind), Limits())
    assert isinstance(found, Decoded)
    assert isinstance(expected, Decoded)
    assert np.array_equal(found.pixels, expected.pixels)
    assert (found.width, found.height) == (expected.width, expected.height)
    assert decode_apart(b"GIF89a", Limits()) == images.decode(b"GIF89a", Limits())


@pytest.mark.parametrize(
    ("mark", "status"),
    [
        (b"spin", "timed_out"),
        (b"sleep", "timed_out"),
        (b"SIGSEGV", "crashed"),
        (b"SIGABRT", "crashed"),
        (b"SIGKILL", "interrupted"),
    ],
)
def test_what_hangs_or_kills_costs_itself_only(mark: bytes, status: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(decode, drawn(mark=each), QUICK) for each in (b"", mark, b"")]
        before, found, after = (each.result() for each in work)
    assert isinstance(found, Rejected)
    assert found.status == status
    assert isinstance(before, Decoded)
    assert isinstance(after, Decoded)
    assert isinstance(decode(drawn(), QUICK), Decoded)


@pytest.mark.parametrize(("mark", "ignored"), [(b"spin", signal.SIGPROF), (b"sleep", signal.SIGALRM)])
def test_what_hangs_is_given_up_also_where_a_job_is_to_ignore_the_signal(mark: bytes, ignored: signal.Signals) -> None:
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        found = decode(drawn(mark=mark), QUICK)
    finally:
        signal.signal(ignored, before)
    assert isinstance(found, Rejected)
    assert found.status == "timed_out"


def test_an_image_that_needs_more_than_its_share_is_tried_alone_with_all() -> None:
    assert isinstance(decode(drawn(mark=b"memory"), Limits()), Decoded)
    found = decode(drawn(mark=b"memory"), Limits(max_memory=400 << 20))
    assert isinstance(found, Rejected)
    assert found.status == "out_of_memory"
    assert "--actor-memory" in found.error
    assert found.status not in PASSING_STATUSES  # the next night would be no better


def test_an_image_called_damaged_for_want_of_memory_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = list[int]()

    def tried(data: bytes, limits: Limits, memory: int) -> Rejected:
        shares.append(memory)
        return Rejected("corrupt_image", "decoder error -2", 10_000, 10_000)

    monkeypatch.setattr(isolation, "_try", tried)
    assert isinstance(decode(drawn(), Limits()), Rejected)
    assert shares == [isolation.SHARE_BYTES, Limits().max_memory]


def test_what_a_library_prints_is_no_answer() -> None:
    assert isinstance(decode(drawn(mark=b"print"), Limits()), Decoded)


def test_plain_jpegs_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "decode_apart", lambda *_: pytest.fail("went apart"))
    assert isinstance(decode(drawn("JPEG"), Limits()), Decoded)


@pytest.mark.parametrize("options", [{"progressive": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_a_jpeg_that_could_take_long_goes_apart(options: dict[str, object]) -> None:
    sink = io.BytesIO()
    Image.fromarray(draw_smear(0, seed=1)).save(sink, "JPEG", **options)
    assert images.decode_plain(sink.getvalue(), Limits()) is None
    assert isinstance(decode(sink.getvalue(), Limits()), Decoded)


def test_no_helper_outlives_its_parent(tmp_path: Path) -> None:
    assert isinstance(decode(drawn(), Limits()), Decoded)
    helper = next(iter(waiting.get() for waiting in isolation._idle._waiting.values() if not waiting.empty()))
    helper.questions.close()  # as the kernel does when a process ends
    assert helper.process.wait(10) == 0
    helper.end()


@pytest.mark.parametrize("command", [["/nowhere"], [sys.executable, "-c", "raise SystemExit(1)"]])
def test_where_no_process_can_be_made_the_machine_failed(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setattr(isolation, "COMMAND", command)
    found = decode(drawn(), Limits())
    assert isinstance(found, Rejected)
    assert found.status == "resource_error"
    monkeypatch.setattr(parquets, "COMMAND", command)
    parquets.end_readers()
    with pytest.raises(StorageError, match="no process can be made to read it"):
        list(parquets.read_parquet(StoredObject("/nowhere.parquet", 10, "etag"), Limits()))


def test_a_helper_needs_no_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr(sys, "path", [*sys.path, "relative"])
    try:
        assert isinstance(decode(drawn(), Limits()), Decoded)
    finally:
        tmp_path.mkdir()
