"""Which patient, slide or sitting an image is of, where a pattern or a table says so."""

import io
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.errors import ConfigError, NotFoundError
from bcd_ray.progress import say


def group_numbers(
    names: Sequence[str], pattern: str, table: str, column: str = "group"
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """(n,) number of each image's patient, slide or sitting, None where nobody says; and the groups' ids by number.

    Ids that differ in case or white space alone are one: `P07`, `p07` and `P07 `.

    Args:
        names: paths of the images below the data folder.
        pattern: regular expression searched in an image's name; its first group, or else all it matches, is the id.
        table: CSV or Parquet file with the column `image`, names below the data folder.
        column: of the table, the one that says the group.

    Raises:
        ConfigError: the table cannot be used, gives an image two groups, or an image gets none.
    """
    if not pattern and not table:
        return None, ()
    if pattern:
        matches = [re.search(pattern, name) for name in names]
        groups = [_same(match[1 if match.re.groups else 0]) if match else "" for match in matches]
    else:
        known = _read_groups(table, column)
        groups = [known.get(name, "") for name in names]
        if further := len(known.keys() - set(names)):
            say(
                f"--group-table {table}: {further:,} of its {len(known):,} images are not among those of --data, such "
                f"as {min(known.keys() - set(names))}: check the paths if that is too many"
            )
    lacking = [name for name, group in zip(names, groups, strict=True) if not group]
    if lacking:
        said = f"--group-pattern {pattern!r}" if pattern else f"--group-table {table}"
        raise ConfigError(
            f"{said} gives no group for {len(lacking)} images of {len(names)}, such as {lacking[0]}: every image needs "
            "one"
        )
    ids, numbers = np.unique(np.array(groups, str), return_inverse=True)
    return numbers.astype(np.int64), tuple(ids.tolist())


def merged(groups: npt.NDArray[np.int64], digests: Sequence[str]) -> npt.NDArray[np.int64]:
    """(n,) groups, those that hold the same image taken for one, and told: a patient under two ids, or a mistake."""
    first_of, whole = dict[str, int](), {group: group for group in groups.tolist()}

    def root(group: int) -> int:
        while whole[group] != group:
            group = whole[group]
        return group

    shared = set[int]()
    for group, digest in zip(groups.tolist(), digests, strict=True):
        one, other = root(first_of.setdefault(digest, group)), root(group)
        if one != other:
            whole[max(one, other)] = min(one, other)
            shared |= {first_of[digest], group}
    if shared:
        say(f"{len(shared):,} groups hold an image of another group, byte for byte: they are taken for one patient")
    return np.array([root(group) for group in groups.tolist()], np.int64)


def _same(group: str | None) -> str:
    """One spelling of an id."""
    return " ".join(unicodedata.normalize("NFKC", group or "").split()).casefold()


def _read_groups(table: str, column: str) -> dict[str, str]:
    import pyarrow as pa
    from pyarrow import csv

    from bcd_ray.storage import parquet

    try:
        data = storage.read_bytes(table)
        # As text: a patient 007 is not the patient 7. Without threads: see `parquet.table_of`.
        texts = csv.ConvertOptions(column_types={"image": pa.string(), column: pa.string()})
        options = {"convert_options": texts, "read_options": csv.ReadOptions(use_threads=False)}
        rows = parquet.table_of(data) if table.endswith(".parquet") else csv.read_csv(io.BytesIO(data), **options)
        names, groups = (rows[each].cast(pa.string()).to_pylist() for each in ("image", column))
    except (pa.ArrowException, KeyError, NotFoundError) as error:
        raise ConfigError(
            f"--group-table {table} cannot be used ({' '.join(str(error).split())[:200]}): give a CSV or Parquet file "
            f"with the columns image and {column} (see --group-column)"
        ) from error
    found: dict[str, str] = {}
    twice = 0
    for name, group in zip(names, groups, strict=True):
        name, group = (name or "").strip(), None if group and group.strip().lower() == "nan" else group  # of pandas
        if name in found:
            twice += 1
            if found[name] != _same(group):
                raise ConfigError(
                    f"--group-table {table} gives {name} two groups, {found[name]!r} and {_same(group)!r}: leave one"
                )
        found[name] = _same(group)
    if twice:
        say(f"--group-table {table}: {twice:,} rows name an image again, with the same group")
    return found
