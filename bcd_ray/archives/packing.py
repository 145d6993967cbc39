"""Packing loose images into tar (WebDataset naming) or Parquet shards, one Ray Data task a shard."""

import io
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from bcd_ray import storage
from bcd_ray.archives.config import PackConfig
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.magic import image_suffix
from bcd_ray.archives.shards import kind_of
from bcd_ray.archives.suffixes import left_out_words
from bcd_ray.errors import ConfigError, NotFoundError, StorageError
from bcd_ray.labels import CLASSES, class_of_path, classes_of_path
from bcd_ray.progress import Progress, say
from bcd_ray.runtime import ray_session, say_if_taken
from bcd_ray.storage import StoredObject
from bcd_ray.storage.temporary import temporary_files_told
from bcd_ray.threads import in_chunks

_MOST_BYTES = 1 << 30  # of an image, which is held in memory
_GROUP_IMAGES, _GROUP_BYTES = 64, 64 << 20  # of a row group


@dataclass(frozen=True)
class Packed:
    """What packing did: shards and images written, and why the others are not in them."""

    shards: int
    images: int
    failures: list[str]
    left_out: Counter[str]  # files that are no images, by suffix


@dataclass(frozen=True, slots=True)
class _Source:
    name: str  # path below the input: the image's id in a Parquet shard
    key: str  # the same as a WebDataset key
    stored: StoredObject
    label: str | None


_Content = tuple[_Source, bytes]


def pack(config: PackConfig) -> Packed:
    """Pack the loose images below the input; the same input gives the same bytes."""
    sources, left_out = _list_sources(config.input)
    if storage.list_names(config.output):
        raise ConfigError(f"--output {config.output} is not empty: choose a new folder")
    storage.check_writable(config.output)
    size = config.images_per_shard
    groups = [
        {
            "uri": storage.join(config.output, f"shard-{start // size:06d}.{config.format}"),
            "sources": sources[start : start + size],
        }
        for start in range(0, len(sources), size)
    ]
    with ray_session():
        import ray

        say_if_taken(CPU=1)
        results = ray.data.from_items(groups, override_num_blocks=len(groups)).map(_write_shard)
        progress, failures = Progress("packing", len(sources)), []
        for row in results.iter_rows():
            progress.add(row["images"])
            failures += row["failures"]
        progress.finish()
    return Packed(len(groups), len(sources) - len(failures), failures, left_out)


def _list_sources(uri: str) -> tuple[list[_Source], Counter[str]]:
    try:
        listing = list_archive(uri, ("image",))
    except NotFoundError as error:
        raise ConfigError(f"--input: {error}") from error
    names = [listed.uri[len(uri) + 1 :] for listed in listing.shards]
    if not names or names == [""]:
        raise ConfigError(f"--input {uri} is no folder of JPEG, PNG, TIFF or BMP files")
    if listing.left_out:
        say(f"{listing.left_out.total():,} files that are no images are left out: {left_out_words(listing.left_out)}")
    if doubtful := [name for name in names if len(classes_of_path(name)) > 1]:
        classes = " and ".join(classes_of_path(doubtful[0]))
        say(f"{len(doubtful):,} images get no label: their folders name two classes, as {doubtful[0]} does ({classes})")
    keys = _unique_keys(names)
    return [
        _Source(name, key, stored, class_of_path(name))
        for name, key, stored in zip(names, keys, listing.shards, strict=True)
    ], listing.left_out


def _unique_keys(names: Sequence[str]) -> Iterator[str]:
    """WebDataset keys: the path up to the first dot of the file's name, so dots inside the stem are replaced."""
    seen: Counter[str] = Counter()
    for name in names:
        folder, slash, file = name.rpartition("/")
        key = folder + slash + (file.rpartition(".")[0] if kind_of(file) else file).replace(".", "_")
        seen[key] += 1
        while seen[key] > 1:
            key = f"{key}-{seen[key]}"
            seen[key] += 1
        yield key


def _write_shard(group: dict[str, Any]) -> dict[str, Any]:
    """Write a shard by way of a file, with one image or one row group in memory."""
    failures = list[str]()
    with temporary_files_told(), tempfile.TemporaryFile() as file:
        write = _write_tar if group["uri"].endswith(".tar") else _write_parquet
        write(file, _contents(group["sources"], failures))
        storage.write_from_file(group["uri"], file)
    return {"images": len(group["sources"]) - len(failures), "failures": failures}


def _contents(sources: Sequence[_Source], failures: list[str]) -> Iterator[_Content]:
    for source in sources:
        stored = source.stored
        if stored.size > _MOST_BYTES:
            failures.append(f"{stored.uri}: {stored.size:,} bytes, more than the {_MOST_BYTES:,} of an image")
            continue
        try:
            storage.refuse_unsafe(stored)
            yield source, storage.read_bytes(stored.uri)
        except StorageError as error:
            failures.append(str(error))


def _suffix(name: str, data: bytes) -> str:
    """What a member is called after its key: readers of WebDataset go by it."""
    if kind_of(name) == "image":
        return name.rpartition(".")[2].lower()
    return image_suffix(data) or "bin"  # without the name of one, it was listed for its first bytes


def _write_tar(file: IO[bytes], contents: Iterable[_Content]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for source, data in contents:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all that it saw
            members = {_suffix(source.name, data): data}
            if source.label is not None:
                members["cls"] = str(CLASSES.index(source.label)).encode()
            for suffix, content in members.items():
                # Owner and time stay 0: equal input gives equal bytes.
                member = tarfile.TarInfo(f"{source.key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _write_parquet(file: IO[bytes], contents: Iterable[_Content]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary()), ("label", pa.string())])
    # Encoded images do not compress, and small row groups let a reader hold few of them at a time.
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for some in in_chunks(contents, _GROUP_IMAGES, lambda each: len(each[1]), _GROUP_BYTES):
            columns = {
                "image_id": [storage.printable(source.name) for source, _ in some],
                "image": [data for _, data in some],
                "label": [source.label for source, _ in some],
            }
            writer.write_table(pa.table(columns, schema))
