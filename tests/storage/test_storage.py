"""Storage: the same promises for local folders and for a real S3 store."""

import errno
import io
import os
import random
import re
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from conftest import READER
from hypothesis import given
from hypothesis import strategies as st

from bcd_ray import hearing, storage, uris
from bcd_ray.archives import parquets
from bcd_ray.archives.images import Limits
from bcd_ray.archives.parquets import read_parquet
from bcd_ray.errors import ChangedError, ConfigError, NotFoundError, StorageError, UnsafeError
from bcd_ray.hearing import be_heard
from bcd_ray.runtime import ray_session
from bcd_ray.storage import local, patience, s3_walk
from bcd_ray.storage import s3 as s3_side

WRITERS = 16


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of its own for a test."""
    if request.param == "local":
        return str(tmp_path / "data")
    return storage.join(request.getfixturevalue("s3"), uuid4().hex)


@pytest.fixture
def s3_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For tests that change AWS_*: the client, kept for a whole process, is made anew before and after."""
    s3_side.client.cache_clear()
    yield monkeypatch
    s3_side.client.cache_clear()


def fill(folder: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(folder, name), name.encode())


def listed(uri: str) -> storage.StoredObject:
    (found,) = storage.list_objects(uri)
    return found


def test_lists_everything_below_sorted_by_uri(folder: str) -> None:
    names = ["a/x.jpg", "a-b.jpg", "a.jpg", "A.jpg", "a/deep/er/y.tar", "b c/ü é.jpg", "50%/#1.jpg"]
    fill(folder, *names)
    found = list(storage.list_objects(folder))
    assert [each.uri for each in found] == sorted(storage.join(folder, name) for name in names)
    for each in found:
        assert storage.read_bytes(each.uri) == each.uri[len(folder) + 1 :].encode()
        assert each.size == len(storage.read_bytes(each.uri))
    assert storage.list_names(folder) == sorted(names)


def test_leaves_names_with_a_dot_in_front_out(folder: str) -> None:
    fill(folder, "seen.jpg", "with.dots.in/it.jpg", ".hidden.jpg", ".folder/x.jpg", "a/.b/c/x.jpg", "a/.x.jpg")
    assert storage.list_names(folder) == ["seen.jpg", "with.dots.in/it.jpg"]


def test_a_uri_of_one_object_lists_that_object(folder: str) -> None:
    fill(folder, "a/b.jpg", "a/b.jpg.bak")
    uri = storage.join(folder, "a/b.jpg")
    assert [each.uri for each in storage.list_objects(uri)] == [uri]


def test_a_folder_is_no_mere_prefix(folder: str) -> None:
    fill(folder, "a/b/1.jpg", "a/bc/2.jpg", "a/b.jpg", "a/b-c/3.jpg")
    assert storage.list_names(storage.join(folder, "a/b")) == ["1.jpg"]


def test_folder_markers_of_s3_consoles_are_no_objects(s3: str, s3_client: Any) -> None:
    prefix = uuid4().hex
    s3_client.put_object(Bucket="archive", Key=f"{prefix}/", Body=b"")
    s3_client.put_object(Bucket="archive", Key=f"{prefix}/empty/", Body=b"")
    with pytest.raises(NotFoundError):
        list(storage.list_objects(f"{s3}/{prefix}"))
    s3_client.put_object(Bucket="archive", Key=f"{prefix}/x.jpg", Body=b"x")
    assert storage.list_names(f"{s3}/{prefix}") == ["x.jpg"]


def test_lists_more_than_one_page_of_s3(s3: str) -> None:
    folder = storage.join(s3, uuid4().hex)
    names = [f"{number:04d}.jpg" for number in range(1050)]  # a page holds 1,000
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name: fill(folder, name), names))
    assert storage.list_names(folder) == names


def test_a_file_in_the_place_of_a_folder_holds_no_names(tmp_path: Path) -> None:
    (tmp_path / "units").touch()
    assert storage.list_names(str(tmp_path / "units")) == []


def test_what_is_not_there_is_said_to_be_missing(folder: str) -> None:
    fill(folder, "x.jpg")
    for absent in (storage.join(folder, "none"), storage.join(folder, "x.jpg/below"), storage.join(folder, "x.jp")):
        with pytest.raises(NotFoundError, match=r"nothing found at .*check"):
            list(storage.list_objects(absent))
        with pytest.raises(NotFoundError, match=r"nothing found at .*check"):
            storage.read_bytes(absent)
        assert storage.list_names(absent) == []
        assert not storage.exists(absent)
    assert storage.exists(storage.join(folder, "x.jpg"))
    assert not storage.exists(folder)  # a folder is no object


def test_delete(folder: str) -> None:
    fill(folder, "x.jpg", "y.jpg")
    storage.delete(storage.join(folder, "x.jpg"))
    assert storage.list_names(folder) == ["y.jpg"]


def test_the_tag_changes_with_the_content(folder: str) -> None:
    uri = storage.join(folder, "x.jpg")
    storage.write_bytes(uri, b"first")
    before = listed(uri)
    assert listed(uri) == before
    storage.write_bytes(uri, b"other")
    assert listed(uri).size == before.size
    assert listed(uri).etag != before.etag


def test_a_reader_never_sees_part_of_a_write(folder: str) -> None:
    uri, contents = storage.join(folder, "deep/x.bin"), [bytes([digit]) * 300_000 for digit in range(2)]
    storage.write_bytes(uri, contents[0])

    def alternate() -> None:
        for turn in range(40):
            storage.write_bytes(uri, contents[turn % 2])

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(alternate)
        while not writing.done():
            assert storage.read_bytes(uri) in contents
        writing.result()
    assert storage.read_bytes(uri) == contents[1]
    assert_holds_only(folder, "deep/x.bin")


def assert_holds_only(folder: str, *names: str) -> None:
    """Nothing else lies in the folder, hidden names and unfinished uploads included."""
    if storage.is_s3(folder):
        bucket, prefix = folder.removeprefix("s3://").split("/")
        objects = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        found = [each["Key"].removeprefix(f"{prefix}/") for each in objects]
        assert not boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads")
    else:
        found = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir()]
    assert sorted(found) == sorted(names)


@pytest.fixture(params=["create", "create_from_file"])
def create(request: pytest.FixtureRequest) -> Callable[[str, bytes], bool]:
    """Both ways to write an object that must not exist."""
    if request.param == "create":
        return storage.create

    return lambda uri, data: storage.create_from_file(uri, io.BytesIO(data))


def test_create_keeps_what_is_there(folder: str, create: Callable[[str, bytes], bool]) -> None:
    uri = storage.join(folder, "deep/x.json")
    assert create(uri, b"first")
    before = listed(uri)
    assert not create(uri, b"second")
    assert listed(uri) == before
    assert storage.read_bytes(uri) == b"first"
    assert_holds_only(folder, "deep/x.json")


def test_of_many_creators_one_wins(folder: str, create: Callable[[str, bytes], bool]) -> None:
    contents = [f"writer {number}".encode() * 1000 for number in range(WRITERS)]
    for turn in range(5):
        uri = storage.join(folder, f"{turn}.json")
        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(lambda content, uri=uri: create(uri, content), contents))
        assert sum(won) == 1
        assert storage.read_bytes(uri) == contents[won.index(True)]
    assert_holds_only(folder, *(f"{turn}.json" for turn in range(5)))


def test_create_from_a_file_larger_than_a_part(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_side, "_PART_BYTES", 5 << 20)  # the least S3 takes; the real size would be slow here
    large, small = io.BytesIO(random.Random(0).randbytes((11 << 20) + 1)), io.BytesIO(b"small")
    uri = storage.join(folder, "x.parquet")
    assert storage.create_from_file(uri, large)
    before = listed(uri)
    assert storage.read_bytes(uri) == large.getvalue()
    assert not storage.create_from_file(uri, large)
    assert not storage.create_from_file(uri, small)
    monkeypatch.setattr(s3_side, "exists", lambda uri: False)  # as for a writer that looked before another was done
    assert not storage.create_from_file(uri, large)
    assert listed(uri) == before
    assert_holds_only(folder, "x.parquet")


def test_a_failed_upload_in_parts_is_a_storage_error_that_leaves_nothing(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_side, "_PART_BYTES", 5 << 20)
    large = io.BytesIO(bytes(6 << 20))
    with pytest.raises(NotFoundError, match="check bucket and key"):
        storage.create_from_file("s3://no-such-bucket/x.parquet", large)
    monkeypatch.setattr(s3_side, "_PART_BYTES", 1 << 20)  # S3 refuses smaller parts than 5 MiB at the end
    folder = storage.join(s3, uuid4().hex)
    with pytest.raises(StorageError):
        storage.create_from_file(storage.join(folder, "x.parquet"), large)
    assert_holds_only(folder)


def test_an_object_is_fetched_whole_into_a_file(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_side, "_FETCHED_BYTES", 1000)
    uri, data = storage.join(folder, "x"), bytes(range(256)) * 10
    storage.write_bytes(uri, data)
    with storage.fetch(uri) as file:
        assert (file.read(), file.seek(300), file.read(2)) == (data, 300, data[300:302])
    with pytest.raises(NotFoundError):
        storage.fetch(f"{uri}-not")


def test_open_stream_seeks_and_reads_anywhere(folder: str) -> None:
    data = random.Random(1).randbytes((9 << 20) + 7)  # more than is read ahead
    uri = storage.join(folder, "x.tar")
    storage.write_bytes(uri, data)
    with storage.open_stream(listed(uri)) as stream:
        assert stream.seekable()
        assert stream.read(10) == data[:10]
        assert stream.tell() == 10
        assert stream.seek(-5, io.SEEK_END) == len(data) - 5
        assert stream.read() == data[-5:]
        assert stream.read(1) == b""
        stream.seek(8 << 20)
        stream.seek(3, io.SEEK_CUR)
        assert stream.read(100) == data[(8 << 20) + 3 :][:100]
        stream.seek(0)
        assert stream.read(len(data) + 1) == data
        stream.seek(len(data) + 10)
        assert stream.read(1) == b""


def test_reading_a_whole_object_takes_one_request(s3: str) -> None:
    uri, data = storage.join(s3, uuid4().hex), random.Random(2).randbytes(9 << 20)
    storage.write_bytes(uri, data)
    requests: list[object] = []
    events = s3_side.client().meta.events
    events.register("before-send.s3.GetObject", lambda **sent: requests.append(sent), unique_id="count")
    with storage.open_stream(listed(uri)) as stream:
        assert stream.read() == data
    events.unregister("before-send.s3.GetObject", unique_id="count")
    assert len(requests) == 1


def test_open_stream_of_an_empty_object(folder: str) -> None:
    uri = storage.join(folder, "x.tar")
    storage.write_bytes(uri, b"")
    with storage.open_stream(listed(uri)) as stream:
        assert stream.read() == b""


def test_an_object_replaced_since_it_was_listed_is_not_read(folder: str) -> None:
    uri = storage.join(folder, "x.tar")
    storage.write_bytes(uri, b"first")
    before = listed(uri)
    storage.write_bytes(uri, b"other")

    def read() -> bytes:
        with storage.open_stream(before) as stream:
            return stream.read()

    with pytest.raises(ChangedError, match="run the same command again"):
        read()


def test_an_object_replaced_while_it_is_read_gives_no_mixture(folder: str) -> None:
    uri, old, new = storage.join(folder, "x.tar"), b"o" * (20 << 20), b"n" * (20 << 20)
    storage.write_bytes(uri, old)
    with storage.open_stream(listed(uri)) as stream:
        begin = stream.read(100)
        storage.write_bytes(uri, new)
        try:
            rest = stream.read()
        except ChangedError:
            assert storage.is_s3(uri)
        else:  # an open local file stays the one it was
            assert begin + rest == old


def test_an_object_gone_since_it_was_listed(folder: str) -> None:
    uri = storage.join(folder, "x.tar")
    storage.write_bytes(uri, b"first")
    before = listed(uri)
    storage.delete(uri)

    def read() -> bytes:
        with storage.open_stream(before) as stream:
            return stream.read()

    with pytest.raises(NotFoundError):
        read()


OPERATIONS: dict[str, Callable[[str, Path], object]] = {
    "list": lambda uri, path: list(storage.list_objects(uri)),
    "read": lambda uri, path: storage.read_bytes(uri),
    "open": lambda uri, path: _read_stream(uri),
    "exists": lambda uri, path: storage.exists(uri),
    "write": lambda uri, path: storage.write_bytes(uri, b"x"),
    "create": lambda uri, path: storage.create(uri, b"x"),
    "create from file": lambda uri, path: storage.create_from_file(uri, io.BytesIO(b"x")),
    "delete": lambda uri, path: storage.delete(uri),
}


def _read_stream(uri: str) -> bytes:
    with storage.open_stream(storage.StoredObject(uri, 1, "0123")) as stream:
        return stream.read()


@pytest.fixture
def any_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(
    s3: str, s3_environment: pytest.MonkeyPatch, any_file: Path, operation: str, name: str
) -> None:
    s3_environment.setenv(name, "wrong")
    with pytest.raises(StorageError, match=r"the store refuses .*check credentials"):
        OPERATIONS[operation](storage.join(s3, "x"), any_file)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unreachable_endpoint(
    s3_environment: pytest.MonkeyPatch,
    any_file: Path,
    operation: str,
    free_ports: Callable[[int], list[int]],
) -> None:
    (port,) = free_ports(1)
    s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3_environment.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        OPERATIONS[operation]("s3://archive/x", any_file)


def test_no_credentials(s3_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_environment.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        s3_environment.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="credentials"):
        storage.read_bytes("s3://archive/x")


def test_no_such_bucket(s3: str, any_file: Path) -> None:
    for name in ("list", "read", "open", "write", "create", "create from file"):
        with pytest.raises(NotFoundError, match="nothing found at s3://no-such-bucket/x"):
            OPERATIONS[name]("s3://no-such-bucket/x", any_file)


def test_a_folder_that_may_not_be_listed_is_left_out_with_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open/x.jpg").write_bytes(b"x")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    user = os.geteuid()
    if user == 0:  # may list anything: become another user, for whom the way here is open
        for folder in takewhile(lambda folder: not folder.stat().st_mode & 0o001, (tmp_path, *tmp_path.parents)):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        assert listed(str(tmp_path)).uri == str(tmp_path / "open/x.jpg")
    finally:
        os.seteuid(user)
        closed.chmod(0o755)
    assert "closed" in capfd.readouterr().err


def test_a_dangling_link_is_listed_so_that_a_row_can_say_so(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").symlink_to(tmp_path / "gone.jpg")
    dangling = listed(str(tmp_path))
    assert dangling.uri == str(tmp_path / "x.jpg")
    with pytest.raises(NotFoundError):
        storage.read_bytes(dangling.uri)


@pytest.mark.parametrize("name", ["x.jpg", "a"], ids=["file", "folder"])
def test_a_link_that_leads_out_is_listed_and_never_read(tmp_path: Path, name: str) -> None:
    fill(str(tmp_path / "elsewhere"), "x.jpg", "a/x.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere" / name)
    found = listed(str(tmp_path / "data"))
    assert found.uri == str(tmp_path / "data/link")
    with pytest.raises(UnsafeError, match="leads out"), storage.open_stream(found):
        pass


def test_a_link_to_what_is_listed_adds_nothing_and_one_to_a_hidden_place_is_followed(tmp_path: Path) -> None:
    fill(str(tmp_path / "data"), "2031/x.jpg", ".store/1.jpg", ".store/more/2.jpg")
    for link, target in (("latest", "2031"), ("y.jpg", "2031/x.jpg"), ("z.jpg", ".store/1.jpg"), ("m", ".store/more")):
        (tmp_path / "data" / link).symlink_to(target)
    (tmp_path / "data/.store/more/again").symlink_to(".")
    (tmp_path / "night").symlink_to("data")
    for name in ("data", "night"):
        assert storage.list_names(str(tmp_path / name)) == ["2031/x.jpg", "m/2.jpg", "z.jpg"]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_file_is_listed_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    found = listed(str(tmp_path))
    with pytest.raises(UnsafeError, match="not a file"), storage.open_stream(found):
        pass
    with pytest.raises(StorageError):
        storage.read_bytes(str(path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b//", "s3://bucket/a/b"),
        ("/data/a/", "/data/a"),
        ("/data/../a", "/a"),
        ("file:///data/a", "/data/a"),
        ("a", f"{Path.cwd()}/a"),
        ("//data/a", "/data/a"),
        ("./s3:/a", f"{Path.cwd()}/s3:/a"),
        ("2026-11-30T02:15", f"{Path.cwd()}/2026-11-30T02:15"),
    ],
)
def test_normalize(given: str, expected: str) -> None:
    assert storage.normalize(given) == expected
    assert storage.normalize(expected) == expected
    assert storage.is_s3(given) == given.startswith("s3:")


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("s3://", "write s3://BUCKET/PREFIX"),
        ("s3:///key", "write s3://BUCKET/PREFIX"),
        ("gs://bucket/key", "only local paths and s3://"),
        ("https://host/x.tar", "only local paths and s3://"),
        ("", "name a folder"),
        ("file://", "name a folder"),
        ("file://lab/x", "only local paths"),
        ("s3:/lab/x", "write s3://BUCKET/PREFIX"),
        ("s3:lab", "write s3://BUCKET/PREFIX"),
        ("S3:/lab/x", "write s3://BUCKET/PREFIX"),
        ("s3://lab/\udce4", "no UTF-8"),
        ("/\0l\0a\0b", "write lists in UTF-8"),
    ],
)
def test_normalize_refuses_with_the_remedy(given: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        storage.normalize(given)


def test_join() -> None:
    assert storage.join("s3://bucket", "a", "b.json") == "s3://bucket/a/b.json"
    assert storage.join("s3://bucket/a/", "b.json") == "s3://bucket/a/b.json"


def test_printable_makes_any_file_name_text() -> None:
    name = os.fsdecode(b"/data/\xff\xc3\xa9.jpg")  # Latin-1 and UTF-8 in one name
    assert storage.printable(name) == "/data/\\udcffé.jpg"
    assert storage.printable("/data/é.jpg") == "/data/é.jpg"


def test_a_file_name_that_is_no_text_is_listed_and_read(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    assert storage.read_bytes(listed(str(tmp_path)).uri) == b"x"


def test_checking_that_a_place_is_writable_leaves_nothing_there(folder: str) -> None:
    storage.check_writable(folder)
    assert_holds_only(folder)


def test_a_place_that_cannot_be_written(s3: str, s3_environment: pytest.MonkeyPatch, any_file: Path) -> None:
    for output in (f"{any_file}/below", str(any_file), "s3://no-such-bucket", "s3://no-such-bucket/a"):
        with pytest.raises(ConfigError, match=f"cannot write to the output: .*{output}") as refused:
            storage.check_writable(output)
        assert "\n" not in str(refused.value)
    s3_environment.setenv("AWS_ACCESS_KEY_ID", READER[0])
    s3_environment.setenv("AWS_SECRET_ACCESS_KEY", READER[1])
    s3_side.client.cache_clear()
    assert not storage.exists(storage.join(s3, "none"))
    with pytest.raises(ConfigError, match=r"cannot write to the output: .*credentials and policy"):
        storage.check_writable(s3)


def test_a_link_back_lists_nothing_twice(tmp_path: Path) -> None:
    fill(str(tmp_path), "a/x.jpg")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [Path(each.uri).name for each in storage.list_objects(str(tmp_path))] == ["x.jpg"]


def test_a_folder_goes_by_its_own_name_whatever_links_lead_there(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.jpg").touch()
    for name in ("a", "z", "0"):
        (tmp_path / name).symlink_to("b")
    assert storage.list_names(str(tmp_path)) == ["b/x.jpg"]
    assert uris.real(str(tmp_path / "a")) == str(tmp_path / "b")
    assert uris.real(str(tmp_path / "a" / "new" / "folder")) == str(tmp_path / "b" / "new" / "folder")
    (tmp_path / "y.jpg").symlink_to("b/x.jpg")
    assert uris.real(str(tmp_path / "y.jpg")) == str(tmp_path / "y.jpg")  # its name says what it is


def test_a_folder_of_s3_is_listed_without_its_neighbours(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = storage.join(s3, uuid4().hex)
    for name in ("archive/a.jpg", "archive-old/b.jpg", "archive.tar"):
        storage.write_bytes(storage.join(home, name), b"x")
    asked, list_page = list[str](), s3_side.list_page

    def noted(uri: str, **options: Any) -> dict[str, Any]:
        asked.append(uri)
        return list_page(uri, **options)

    monkeypatch.setattr(s3_side, "list_page", noted)
    assert storage.list_names(storage.join(home, "archive")) == ["a.jpg"]
    assert asked == [storage.join(home, "archive/")]
    (found,) = storage.list_objects(storage.join(home, "archive.tar"))
    assert (found.uri, found.size) == (storage.join(home, "archive.tar"), 1)
    with storage.open_stream(found) as stream:
        assert stream.read() == b"x"


def test_folders_of_s3_are_listed_beside_each_other(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = storage.join(s3, uuid4().hex)
    names = {f"{day}/{number:02d}.jpg" for day in ("1", "2", "2-b") for number in range(12)}  # in few folders
    names |= {f"1/scanner/{number}.jpg" for number in range(9)} | {"1.jpg", "1/scanner.jpg", "3/a.jpg"}
    names |= {f"2-b/{number}/a.jpg" for number in range(9)}  # and in many
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(storage.join(home, name), b"x"), names))
    asked, list_page = list[str](), s3_side.list_page

    def small(uri: str, **options: Any) -> dict[str, Any]:
        asked.append(uri[len(home) :])
        return list_page(uri, MaxKeys=5, **options)

    monkeypatch.setattr(s3_side, "list_page", small)
    serial = [item["Key"] for item in s3_side.list_keys(f"{home}/")]
    assert {f"{home}/{name}" for name in names} == {f"{s3}/{key}" for key in serial}
    asked.clear()
    beside = [item["Key"] for item in s3_walk.walk_keys(f"{home}/")]
    assert sorted(beside) == sorted(serial)
    assert {"/", "/1/", "/2/", "/2-b/", "/3/"} == set(asked)
    assert [each.uri for each in storage.list_objects(home)] == sorted(f"{home}/{name}" for name in names)


@given(st.lists(st.sampled_from(["\\", "u", "udcff", "\udcff", "\udc80", "a", "ud", "é"]), max_size=8))
def test_printable_text_says_which_name_it_is_of(parts: list[str]) -> None:
    name = "".join(parts)
    assert uris.from_printable(storage.printable(name)) == name
    storage.printable(name).encode()


def refuse_links(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # as exFAT and many mounts do


def test_files_are_created_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    output = str(tmp_path)
    storage.check_creates(output)
    assert storage.create(f"{output}/a", b"first")
    assert not storage.create(f"{output}/a", b"second")
    assert storage.read_bytes(f"{output}/a") == b"first"
    assert_holds_only(output, "a")


def test_a_place_where_nothing_can_be_created_safely_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    monkeypatch.setattr(local.ctypes, "CDLL", lambda *_, **__: None)  # nor renameat2
    with pytest.raises(ConfigError, match=r"hard links or renameat2.*Operation not permitted"):
        storage.check_creates(str(tmp_path))
    assert_holds_only(str(tmp_path))


@pytest.mark.parametrize("answer", [True, StorageError("the store answers NotImplemented")])
def test_a_store_without_conditional_writes_is_refused(
    s3: str, monkeypatch: pytest.MonkeyPatch, answer: bool | StorageError
) -> None:
    def create(uri: str, data: bytes) -> bool:
        s3_side.put(uri, data)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    storage.check_creates(s3)
    monkeypatch.setattr(s3_side, "create", create)
    with pytest.raises(ConfigError, match=r"conditional writes \(If-None-Match\)"):
        storage.check_creates(s3)


def test_folders_that_may_not_be_listed_are_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(str(tmp_path), "a/x.jpg", "b/y.jpg", "lost+found/z.jpg")
    scandir, closed = os.scandir, {str(tmp_path / "b"), str(tmp_path / "lost+found")}

    def refusing(path: str) -> Any:
        if os.fspath(path) in closed:  # the tests may run as root, who may list all
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    unlisted = storage.Unlisted()
    assert [each.uri for each in storage.list_objects(str(tmp_path), unlisted)] == [f"{tmp_path}/a/x.jpg"]
    assert unlisted == storage.Unlisted({f"{tmp_path}/lost+found"}, {f"{tmp_path}/b"})
    said = f"{tmp_path}/b is left out with all that is in it (Permission denied): let this user read it, or move it\n"
    assert capsys.readouterr().err == said
    closed.add(str(tmp_path))
    with pytest.raises(StorageError, match="Permission denied"):
        list(storage.list_objects(str(tmp_path)))


@pytest.fixture
def nowhere(s3_environment: pytest.MonkeyPatch, free_ports: Callable[[int], list[int]]) -> str:
    """An endpoint that nobody listens at, asked twice."""
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    s3_environment.setenv("AWS_ENDPOINT_URL", endpoint)
    s3_environment.setenv("AWS_MAX_ATTEMPTS", "2")
    storage.take_retries()
    return endpoint


def test_a_store_that_is_waited_for_is_named_in_a_line(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "_SAID_AFTER_S", -1)
    monkeypatch.setattr(patience, "_said", [-patience._SAID_EVERY_S])
    for _ in range(2):
        with pytest.raises(StorageError, match=r", 2 times; check AWS_ENDPOINT_URL"):
            storage.exists("s3://archive/x")
    how = r"\(EndpointConnectionError, attempt 1 of 2, \d+ s\): gives up within 100 s"
    assert re.fullmatch(rf"waiting for the store at {nowhere} {how}\n", capsys.readouterr().err)
    assert storage.take_retries() == 2


def test_a_store_that_workers_wait_for_is_named_in_one_line(
    ray_cluster: None, nowhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    def wait() -> None:
        be_heard()
        os.environ.update(AWS_ENDPOINT_URL=nowhere, AWS_MAX_ATTEMPTS="2")
        s3_side.client.cache_clear()  # of a task before this one
        patience._SAID_AFTER_S, patience._said[:] = -1, [-patience._SAID_EVERY_S]
        with suppress(StorageError):
            storage.exists("s3://archive/x")

    monkeypatch.setattr(hearing, "_LOOK_EVERY_S", 0.1)
    with ray_session():
        ray.get([ray.remote(max_calls=1)(wait).remote() for _ in range(3)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"node {socket.gethostname()}: waiting for the store at {nowhere} (Endpoint")


def test_a_store_that_takes_its_time_to_fail_is_given_up(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_MOST_S", -1)
    with pytest.raises(StorageError, match=r", 1 times; check AWS_ENDPOINT_URL"):
        storage.exists("s3://archive/x")


@pytest.mark.usefixtures("nowhere")
def test_requests_that_a_helper_tried_again_are_counted_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hasty = "from bcd_ray.storage import patience; patience._SAID_AFTER_S = -1"
    monkeypatch.setattr(parquets, "COMMAND", [*parquets.COMMAND[:-1], f"{hasty}; {parquets.COMMAND[-1]}"])
    parquets.end_readers()  # those of other tests know nothing of it
    monkeypatch.setattr(patience, "_said", [-patience._SAID_EVERY_S])
    with pytest.raises(StorageError, match=r", 2 times"):
        list(read_parquet(storage.StoredObject("s3://archive/x.parquet", 10, "etag"), Limits()))
    assert storage.take_retries() == 1
    assert capsys.readouterr().err.startswith("waiting for the store at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("AWS_ENDPOINT_URL", "minio:9000", r"AWS_ENDPOINT_URL=minio:9000: write it with its scheme"),
        ("AWS_ENDPOINT_URL", "http://minio:port", r"AWS_ENDPOINT_URL=http://minio:port"),
        ("AWS_ENDPOINT_URL", "http://minio:99999", r"AWS_ENDPOINT_URL=http://minio:99999"),
        ("AWS_ENDPOINT_URL", "http://minio:9000/?x", r"AWS_ENDPOINT_URL=http://minio:9000/\?x"),
        ("AWS_CA_BUNDLE", "/nowhere", r"^AWS_CA_BUNDLE=/nowhere: no such file: correct or unset it$"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere", r"^AWS_WEB_IDENTITY_TOKEN_FILE=/nowhere: no such file"),
        ("AWS_MAX_ATTEMPTS", "x", r"AWS_MAX_ATTEMPTS=x: give a number"),
        ("AWS_MAX_ATTEMPTS", "0", r"AWS_MAX_ATTEMPTS=0: give a number"),
        ("AWS_PROFILE", "none", r"profile \(none\).*correct AWS_PROFILE$"),
        ("AWS_REGION", "no where", r"correct AWS_REGION$"),
        ("AWS_ACCESS_KEY_ID", "", r"^AWS_ACCESS_KEY_ID is not set, and the other of"),
        ("AWS_SECRET_ACCESS_KEY", "of a file\n", r"^AWS_SECRET_ACCESS_KEY holds white space, such as a line's end"),
        ("AWS_METADATA_SERVICE_TIMEOUT", "soon", r"correct AWS_METADATA_SERVICE_TIMEOUT$"),
    ],
)
def test_an_odd_setting_of_s3_is_named(
    s3: str, s3_environment: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    s3_environment.setenv(name, value)
    with pytest.raises(ConfigError, match=remedy) as refused:
        storage.exists(storage.join(s3, "a"))
    assert "\n" not in str(refused.value)


def test_empty_settings_of_s3_are_none(s3: str, s3_environment: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_MAX_ATTEMPTS", "AWS_SESSION_TOKEN"):
        s3_environment.setenv(name, "")
    assert not storage.exists(storage.join(s3, "none"))


def test_the_home_folder_is_where_home_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lab")
    assert storage.normalize("~/x") == "/home/lab/x"
    assert storage.normalize("~") == "/home/lab"
    for path in ("~/x", "~nobody-of-this-name/x"):
        monkeypatch.setenv("HOME", "")
        with pytest.raises(ConfigError, match="no such home folder: set HOME"):
            storage.normalize(path)
