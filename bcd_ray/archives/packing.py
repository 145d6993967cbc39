"""Packing loose images into tar (WebDataset naming) or Parquet shards, one Ray Data task a shard."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from bcd_ray.storage import StoredObject, parquet


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
    contents, failures = [], []
    for source in group["sources"]:
        try:
            storage.refuse_unsafe(source.stored)
            contents.append((source, storage.read_bytes(source.stored.uri)))
        except StorageError as error:
            failures.append(str(error))
    write = _tar if group["uri"].endswith(".tar") else _parquet
    storage.write_bytes(group["uri"], write(contents))
    return {"images": len(contents), "failures": failures}


def _suffix(name: str, data: bytes) -> str:
    """What a member is called after its key: readers of WebDataset go by it."""
    if kind_of(name) == "image":
        return name.rpartition(".")[2].lower()
    return image_suffix(data) or "bin"  # without the name of one, it was listed for its first bytes


def _tar(contents: list[tuple[_Source, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for source, data in contents:
            members = {_suffix(source.name, data): data}
            if source.label is not None:
                members["cls"] = str(CLASSES.index(source.label)).encode()
            for suffix, content in members.items():
                # Owner and time stay 0: equal input gives equal bytes.
                member = tarfile.TarInfo(f"{source.key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def _parquet(contents: list[tuple[_Source, bytes]]) -> bytes:
    import pyarrow as pa

    table = pa.table(
        {
            "image_id": pa.array([storage.printable(source.name) for source, _ in contents], pa.string()),
            "image": pa.array([data for _, data in contents], pa.binary()),
            "label": pa.array([source.label for source, _ in contents], pa.string()),
        }
    )
    # Encoded images do not compress, and small row groups let a reader hold few of them at a time.
    return parquet.bytes_of(table, row_group_size=64, compression="none")
