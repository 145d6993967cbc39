"""Is what stands, kept in one file, what the runs say that it is made of?"""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from bcd_ray import storage
from bcd_ray.ledger.compacted import FOLDER, is_whole, newest
from bcd_ray.ledger.manifests import Manifest
from bcd_ray.ledger.state import State
from bcd_ray.storage.sorting import part_of, side_by_side


def standing_problems(output: str, runs: Sequence[Manifest]) -> Iterator[str]:
    """What is wrong with it, a line each; what is of other runs than these is used by nobody."""
    for name in storage.list_names(storage.join(output, *FOLDER)):
        if not is_whole(output, name):
            yield f"{'/'.join(FOLDER)}/{name}: is damaged, and made anew where it lacks: delete it"
    if (kept := newest(output, runs)) is None:
        return
    anew = State(output, runs[: kept.runs], anew=True)
    for both in side_by_side([kept.file.parts(), map(part_of, anew.tables())]):
        if not _is_same(*both):
            yield f"{'/'.join(FOLDER)}: is not what the runs say: delete it, and it is made anew"
            return


def _is_same(kept: pa.Table, anew: pa.Table) -> bool:
    return len(kept) == len(anew) and bool(kept.combine_chunks().equals(anew.combine_chunks()))
