"""Parquet files to and from tables: small ones as bytes, those of any size by the chunk."""

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from bcd_ray import storage
from bcd_ray.errors import JobError, StorageError
from bcd_ray.storage.objects import StoredObject
from bcd_ray.storage.temporary import temporary_files_told

_GROUP_ROWS, _GROUP_BYTES = 8192, 8 << 20  # held until they are written: 3 MB of usual rows
_SPOOLED_BYTES = 8 << 20  # that need no file


def table_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table, or some columns of it, in the bytes of a Parquet file.

    `pyarrow.parquet.read_table` would read in threads of Arrow's. One that lets go of Python's bytes while the
    interpreter ends aborts the process, after all was done: exit code 134 in 3 of 40 runs that took half a second.
    """
    table: pa.Table = pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
    return table


def read(uri: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """`table_of` an object; JobError, with the remedy, where it is damaged or no Parquet file."""
    with damage_told(uri, remedy):
        return table_of(storage.read_bytes(uri), columns)


def chunks(listed: StoredObject, remedy: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The table of an object by its row groups; raises as `read`."""
    with damage_told(listed.uri, remedy), storage.open_stream(listed) as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns, use_threads=False)


def chunks_at(uri: str, remedy: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """`chunks` of the object of a URI; NotFoundError, at once, if there is none."""
    return chunks(next(storage.list_objects(uri)), remedy, columns)


@contextmanager
def damage_told(uri: str, remedy: str) -> Iterator[None]:
    """JobError, with the remedy, where what is read of an object is no Parquet."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{uri} is damaged ({' '.join(str(error).split())[:100]}): {remedy}") from error


def bytes_of(table: pa.Table, **options: Any) -> bytes:
    """A Parquet file of a table, with options of `pyarrow.parquet.write_table`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


class Appender:
    """A Parquet file that grows by tables, in bounded memory, and becomes an object whole; for a `with` block.

    Attributes:
        rows: written so far.
        size: in bytes, once it is finished.

    Raises:
        StorageError: no temporary file can be written.
    """

    def __init__(self, schema: pa.Schema, group_rows: int = _GROUP_ROWS, plain: Sequence[str] = ()) -> None:
        """`plain` are columns whose values seldom repeat: a dictionary of them costs, and saves nothing."""
        self._file: Any = tempfile.SpooledTemporaryFile(_SPOOLED_BYTES)  # noqa: SIM115 (closed in __exit__)
        self._schema, self._group_rows = schema, group_rows
        try:
            with temporary_files_told():
                self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", **_encoding(schema, plain))
        except StorageError:
            self._close()
            raise
        self._waiting, self._waiting_rows, self._waiting_bytes = list[pa.Table](), 0, 0
        self.rows = self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # where it was not created, nobody needs it
            self._writer.close()
        self._close()

    def append(self, table: pa.Table) -> None:
        """Add rows of the schema's columns, in any order of them."""
        self._waiting.append(table.select(self._schema.names).cast(self._schema))
        self._waiting_rows += len(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_rows >= self._group_rows or self._waiting_bytes >= _GROUP_BYTES:
            self._write()

    def finish(self, metadata: Mapping[bytes, str] | None = None) -> str:
        """End the file, with metadata, and return its sha256; then nothing can be added."""
        self._write()
        with temporary_files_told():
            self._writer.add_key_value_metadata(metadata or {})
            self._writer.close()
            self.size = self._file.tell()
            self._file.seek(0)
            return hashlib.file_digest(self._file, "sha256").hexdigest()

    @property
    def finished(self) -> BinaryIO:
        """The finished file, to be read while this lasts."""
        file: BinaryIO = self._file
        return file

    def create(self, uri: str) -> bool:
        """`storage.create` the finished file."""
        return storage.create_from_file(uri, self._file)

    def _close(self) -> None:
        with suppress(OSError):  # a full disk, of which more has been told
            self._file.close()

    def _write(self) -> None:
        if self._waiting:
            with temporary_files_told():
                self._writer.write_table(pa.concat_tables(self._waiting))
            self.rows += self._waiting_rows
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0


def _encoding(schema: pa.Schema, plain: Sequence[str]) -> dict[str, Any]:
    """Lists of floats are split by their bytes, of which the first are much alike; all else is as usual."""
    split, usual = list[str](), list[str]()
    for field in schema:
        if field.name in plain:
            continue
        nested = field.type.value_type if pa.types.is_list(field.type) else None
        path = field.name if nested is None else f"{field.name}.list.element"
        (split if nested and pa.types.is_floating(nested) else usual).append(path)
    return {"use_dictionary": usual, "use_byte_stream_split": split} if split or plain else {}
