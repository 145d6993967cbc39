"""The images in a Parquet file, read by a helper: what is in a file decides how much memory pyarrow takes for it.

A page is read and decompressed whole, and a file that pyarrow wrote without options has pages of a thousand images. So
the kernel bounds the helper at `Limits.max_parquet`, and its processor time for each step at `Limits.max_seconds`.
"""

import atexit
import json
import os
import signal
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import chain, islice
from queue import SimpleQueue
from threading import Semaphore
from typing import IO, Any, BinaryIO

from bcd_ray import storage
from bcd_ray.archives import helpers
from bcd_ray.archives.helpers import FROM_OUTSIDE, Helper
from bcd_ray.archives.images import Limits, Rejected, too_large
from bcd_ray.archives.memory import UNITS_AT_A_TIME
from bcd_ray.archives.occurrences import Occurrences
from bcd_ray.archives.parts import Part, Piece
from bcd_ray.archives.streams import NAME_CHARS, UnreadableError, raise_if_of_the_disk
from bcd_ray.errors import ChangedError, NotFoundError, StorageError, UnsafeError
from bcd_ray.progress import say_through
from bcd_ray.storage import StoredObject
from bcd_ray.threads import map_ahead

COLUMNS = {"image_id": "string", "image": "binary"}  # what a Parquet shard must have
COMMAND = [sys.executable, "-P", "-c", "from bcd_ray.archives.parquets import serve; serve()"]
_MOST_ROWS, _BATCH_BYTES = 16, 4 << 20  # read at a time, of usual rows
_READERS, _READ_AHEAD_BYTES, _ROWS_A_STEP = 8, 1 << 16, 10_000  # of names alone: on S3 a GET for each row group
_ERRORS = {each.__name__: each for each in (UnreadableError, StorageError, NotFoundError, ChangedError, UnsafeError)}
_ELSEWHERE = "is the path of a file, which the shard does not hold: write it with the images embedded"

_places = Semaphore(UNITS_AT_A_TIME)
_idle = helpers.Idle()


def read_parquet(
    shard: StoredObject, limits: Limits, part: Part | None = None
) -> Iterator[tuple[str, bytes | Rejected]]:
    """Names and bytes of the images.

    Raises:
        UnreadableError: it is no Parquet file with the columns, it is damaged, or reading it takes too much.
        StorageError: the storage did not deliver it.
    """
    given = 0
    with _places:
        try:
            for each in _ask(_helper(limits), shard, limits, part):
                given += 1
                yield each
        except _KilledError:  # Ray does so a moment before it ends its worker: who lives on tries again
            yield from islice(_ask(_helper(limits), shard, limits, part), given, None)


def look_into_parquet(shard: StoredObject, limits: Limits) -> list[Piece]:
    """The row groups of a Parquet file.

    Raises:
        UnreadableError: names repeat in it, or as `read_parquet`.
        StorageError: the storage did not deliver it.
    """
    helper, told = _helper(limits), dict[str, Any]()
    try:
        _question(helper, shard, limits, look=True)
        told = _told(helper, limits)
    finally:
        if told:
            _idle.put(_started_with(limits), helper)
        else:
            helper.end()
    storage.count_retries(told["retries"])
    if "error" in told:
        raise _ERRORS[told["error"]](told["text"])
    return [Piece(number, size, "", rows) for number, (rows, size) in enumerate(told["groups"])]


@atexit.register
def end_readers() -> None:
    """End the helpers that wait."""
    _idle.end()


class _KilledError(StorageError):
    """The helper was ended from outside, which says nothing about the shard."""


def _question(helper: Helper, shard: StoredObject, limits: Limits, **others: Any) -> None:
    asked = {"shard": asdict(shard), "max_bytes": limits.max_bytes, "max_seconds": limits.max_seconds, **others}
    with suppress(BrokenPipeError):
        helper.questions.write(json.dumps(asked).encode() + b"\n")
        helper.questions.flush()


def _ask(
    helper: Helper, shard: StoredObject, limits: Limits, part: Part | None
) -> Iterator[tuple[str, bytes | Rejected]]:
    sound = False
    try:
        _question(helper, shard, limits, groups=part and (part.begin, part.end, part.images_before))
        while "name" in (told := _told(helper, limits)):
            if told["over"]:
                yield told["name"], too_large(told["size"], limits)
                continue
            if told["elsewhere"]:
                yield told["name"], Rejected("unsafe_member", _ELSEWHERE)
                continue
            data = helper.answers.read(told["size"])
            if len(data) < told["size"]:
                raise _death(helper, limits)
            yield told["name"], data
        sound = True
        storage.count_retries(told["retries"])
        if "error" in told:
            raise _ERRORS[told["error"]](told["text"])
    finally:
        if sound:
            _idle.put(_started_with(limits), helper)
        else:
            helper.end()


def _helper(limits: Limits) -> Helper:
    try:
        return _idle.take(_started_with(limits), lambda: helpers.start(COMMAND, str(limits.max_parquet)))
    except OSError as error:
        raise StorageError(f"no process can be made to read it ({error})") from error


def _told(helper: Helper, limits: Limits) -> dict[str, Any]:
    line = helper.answers.readline()
    if not line.endswith(b"\n"):
        raise _death(helper, limits)
    told: dict[str, Any] = json.loads(line)
    if "waiting" in told:
        storage.say_waiting(told["waiting"])
        return _told(helper, limits)
    return told


def _death(helper: Helper, limits: Limits) -> Exception:
    number = -helper.process.wait()
    if number in FROM_OUTSIDE:
        return _KilledError("the process that read it was killed from outside: look for full memory")
    if number == signal.SIGPROF:
        seconds = f"{limits.max_seconds:g} s of processor time"
        return UnreadableError(f"a step of reading it takes more than {seconds}: see --max-decode-seconds")
    return UnreadableError(f"reading it killed the process that did it ({number})")


def _started_with(limits: Limits) -> Hashable:
    """The memory of a helper, and its way to the store."""
    return limits.max_parquet, frozenset(each for each in os.environ.items() if each[0].startswith("AWS_"))


def serve() -> None:
    """What a helper does: read the shards that it is asked for on standard input. Its argument is its memory."""
    memory = int(sys.argv[1])
    answers = helpers.begin(memory)
    say_through(lambda text: _answer(answers, waiting=text))
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        told: dict[str, Any] = {}
        try:
            shard = StoredObject(**asked["shard"])
            if "groups" in asked:
                _answer_rows(answers, shard, asked)
            else:
                told = {"groups": _groups(shard, asked["max_seconds"])}
        except MemoryError:
            text = f"a row group of the Parquet file takes more than {memory:,} bytes to read"
            remedy = "write row groups of at most 64 images, as jobs/pack.py does, or raise --actor-memory"
            told = {"error": "UnreadableError", "text": f"{text}: {remedy}"}
        except (StorageError, UnreadableError) as error:
            told = {"error": type(error).__name__, "text": str(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        told["retries"] = storage.take_retries()
        _answer(answers, **told)


def _answer(answers: IO[bytes], **told: Any) -> None:
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()


def _answer_rows(answers: IO[bytes], shard: StoredObject, asked: Mapping[str, Any]) -> None:
    with storage.open_stream(shard) as stream:
        for name, image in _rows(stream, asked["max_seconds"], asked["groups"]):
            size = len(image or b"")
            over = size > asked["max_bytes"]
            told = {"name": name, "size": size, "over": over, "elsewhere": image is None}
            answers.write(json.dumps(told).encode() + b"\n")
            answers.write(b"" if over or image is None else image)


def _rows(
    stream: BinaryIO, max_seconds: float, part: tuple[int, int, int] | None
) -> Iterator[tuple[str, bytes | None]]:
    """Names, cut where they are far too long, and bytes, here of whatever size; None where there is a path alone.

    A part is the first row group, the one after the last, and the number of rows before.
    """
    with _translated():
        signal.setitimer(signal.ITIMER_PROF, max_seconds)
        file = _opened(stream)
        columns = _columns(file.schema_arrow)
        begin, end, row = part or (0, file.num_row_groups, 0)
        for batch in _batches(file, columns, range(begin, end)):
            flat = (batch["image_id"], batch["image"]) if len(columns) > 1 else _flat(batch["image"])
            for name, image in zip(*flat, strict=True):
                row += 1
                data = image.as_py()
                elsewhere = data is None and len(columns) == 1 and name.as_py()
                yield _name(name, row)[: NAME_CHARS + 1], None if elsewhere else data or b""
            signal.setitimer(signal.ITIMER_PROF, max_seconds)


def _groups(shard: StoredObject, max_seconds: float) -> list[tuple[int, int]]:
    """Rows and bytes of each row group; UnreadableError where a name comes twice."""
    files = SimpleQueue[Any]()
    with _translated(), ExitStack() as stack, Occurrences() as names, ThreadPoolExecutor(_READERS) as pool:
        signal.setitimer(signal.ITIMER_PROF, max_seconds)
        metadata: Any = None
        for _ in range(_READERS):
            stream = stack.enter_context(storage.open_stream(shard, _READ_AHEAD_BYTES))
            files.put(file := _opened(stream, metadata))
            metadata = file.metadata
        flat = len(_columns(file.schema_arrow)) > 1

        def names_of(number: int) -> Any:
            file = files.get()
            column = file.read_row_group(number, ["image_id" if flat else "image.path"], use_threads=False)[0]
            files.put(file)
            return column if flat else (each["path"] for each in column)

        all_names = chain.from_iterable(map_ahead(pool, names_of, range(metadata.num_row_groups), 2 * _READERS))
        for row, name in enumerate(all_names, 1):
            if len(text := _name(name, row)) > NAME_CHARS or names.add(text) > 1:
                raise UnreadableError("a name comes more than once")
            if row % _ROWS_A_STEP == 0:
                signal.setitimer(signal.ITIMER_PROF, max_seconds)
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        return [(each.num_rows, _compressed_bytes(each)) for each in groups]


def _compressed_bytes(group: Any) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _opened(stream: BinaryIO, metadata: Any = None) -> Any:
    import pyarrow.parquet as pq

    # With `pre_buffer` it would read all of a row group at once.
    return pq.ParquetFile(stream, metadata=metadata, buffer_size=1 << 16, pre_buffer=False)


def _name(name: Any, row: int) -> str:
    return name.as_py() or f"row-{row}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (MemoryError, StorageError, UnreadableError):
        raise
    except Exception as error:  # pyarrow raises many types on hostile files; each is this shard's fault
        raise_if_of_the_disk(error)
        raise UnreadableError(f"the Parquet file cannot be read ({' '.join(str(error).split())[:200]})") from error


def _batches(file: Any, columns: list[str], numbers: Iterable[int]) -> Iterator[Any]:
    for number in numbers:
        group = file.metadata.row_group(number)
        of_a_row = max(1, group.total_byte_size // max(1, group.num_rows))
        rows = max(1, min(_MOST_ROWS, _BATCH_BYTES // of_a_row))
        yield from file.iter_batches(batch_size=rows, row_groups=[number], columns=columns, use_threads=False)


def _columns(schema: Any) -> list[str]:
    """What is read; UnreadableError where the file has no such columns."""
    if _is_of_hugging_face(schema):
        return ["image"]
    for name, wanted in COLUMNS.items():
        index = schema.get_field_index(name)
        if index < 0 or not _holds(schema.field(index).type, wanted):
            found = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise UnreadableError(f"no column {name} ({wanted}) in it, but {found[:1000]}")
    return list(COLUMNS)


def _is_of_hugging_face(schema: Any) -> bool:
    """Whether a Parquet file is of the form of Hugging Face's `datasets`: `image` as a struct of bytes and path."""
    import pyarrow as pa

    index = schema.get_field_index("image")
    if index < 0 or not pa.types.is_struct(image := schema.field(index).type):
        return False
    parts = {part.name: part.type for part in image}
    return {"bytes", "path"} <= parts.keys() and _holds(parts["bytes"], "binary") and _holds(parts["path"], "string")


def _flat(image: Any) -> tuple[Any, Any]:
    """Paths and bytes of a column of such structs."""
    import pyarrow.compute as pc

    return pc.struct_field(image, "path"), pc.struct_field(image, "bytes")


def _holds(column_type: Any, wanted: str) -> bool:
    """Whether a column is of the wanted type in any of Arrow's layouts; a struct or list of it is not."""
    import pyarrow as pa

    plain = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    return str(plain) in (wanted, f"large_{wanted}", f"{wanted}_view")
