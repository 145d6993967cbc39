"""Working state that nobody needs any more is deleted: no unit is taken up again long after it was made."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from bcd_ray import storage
from bcd_ray.errors import NotFoundError, StorageError
from bcd_ray.ledger.plan import facts_of, unit_ids
from bcd_ray.progress import say

KEPT = timedelta(days=14)  # of a run that was not published, after it was begun
_DELETERS = 16


def expire(output: str, current: str, now: datetime | None = None) -> int:
    """Delete the plans of other runs than the current that are published or old, and the units that no plan names.

    Returns how many objects were deleted. A store that does not let them go is said, and nothing else.
    """
    work = storage.join(output, "_work")
    try:
        # First the units: those that come meanwhile are of plans that are listed afterwards.
        units = storage.list_names(storage.join(work, "units"))
        plans = storage.list_names(storage.join(work, "plans"))
        manifests = set(storage.list_names(storage.join(output, "manifests")))
        needed, gone = set[str](), []
        for name in plans:
            run_id = name.removesuffix(".parquet")
            published = run_id != current and f"{run_id}.json" in manifests
            named = None if published else _units_of(storage.join(work, "plans", name), run_id == current, now)
            if named is None:
                gone.append(f"plans/{name}")
            else:
                needed |= named
        gone += [f"units/{name}" for name in units if name not in needed]
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(storage.delete, (storage.join(work, name) for name in gone)))
    except StorageError as error:
        say(f"old working state stays in the output: {error}")
        return 0
    return len(gone)


def _units_of(uri: str, is_current: bool, now: datetime | None) -> set[str] | None:
    """Names of the units of a plan; None where it is too old to be gone on with, or somebody deleted it meanwhile."""
    try:
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(facts_of(uri)["started_at"])
        if age > KEPT and not is_current:
            return None
        return {f"{unit_id}.parquet" for unit_id in unit_ids(uri)}
    except NotFoundError:
        return None
