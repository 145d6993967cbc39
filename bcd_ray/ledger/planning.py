"""What a run is to do, and why: the shards that are not published as they are now, dealt to units."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from bcd_ray import storage
from bcd_ray.ledger.dividing import divided
from bcd_ray.ledger.grouping import groups, split
from bcd_ray.ledger.plan import Plan, Unit
from bcd_ray.ledger.state import Standing, State, digest, identity_digest
from bcd_ray.storage import StoredObject

NEW, CONTENT, FAILED = "new", "other content", "failed for the moment before"
_SHOWN = 12  # characters of a value: digests are long


def make_plan(
    state: State,
    shards: Iterable[StoredObject],
    identity: dict[str, Any],
    changed: Collection[str] = (),
    features: dict[str, Any] | None = None,
) -> Plan:
    """The units of the shards, sorted by name, that are not published as they are now.

    Args:
        identity: everything besides the shards that changes the rows: model, limits, schema. JSON-ready.
        changed: names of shards whose content was found to be another one, though their tags are the same.
        features: what embeddings have to be of (`features.identity_of`); None where the network is to run in any case.
    """
    identified = identity_digest(identity)
    waiting, earlier, reasons = [], {}, Counter[str]()
    current_images = current_shards = rescored = 0
    for shard in shards:
        last = state.of(shard)
        if last and state.is_current(shard, identified) and shard.name not in changed:
            current_images, current_shards = current_images + last.held.rows, current_shards + 1
            continue
        waiting.append(shard)
        if last is None:
            reasons[NEW] += 1
            continue
        earlier[storage.printable(shard.name)] = last.held
        if last.held.passing_failure:
            reasons[FAILED] += 1
        elif shard.name in changed or not state.is_same(shard, last):
            reasons[CONTENT] += 1
        else:
            rescored += 1
            reasons[_difference(state.identities[last.identity], state.identities.get(identified, identity))] += 1
    wanted = features and digest(features)

    def keeper(shard: StoredObject) -> str:
        return state.keeper(shard, wanted) if wanted and shard.name not in changed else ""

    units = [
        _unit(part, runs, [state.of(shard) for shard in part], identified)
        for group in groups(waiting)
        for part, runs in split(group, [keeper(shard) for shard in group])
    ]
    superseded = sum(not one.passing_failure for one in earlier.values())
    counted = superseded, current_images, earlier, dict(reasons), current_shards, rescored
    plan = Plan("", 0, divided(units), identity, *counted)
    return plan.numbered(state.last_number + 1)


def _unit(
    part: tuple[StoredObject, ...], features: tuple[str, ...], before: list[Standing | None], identified: str
) -> Unit:
    # What was tried before is tried anew, so its unit is another one.
    tried = [one.tried if one else 0 for one in before]
    content = [identified, [(shard.name, shard.etag, run) for shard, run in zip(part, tried, strict=True)], features]
    return Unit(digest(content)[:32], part, features)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In what two identities differ, as in `max_pixels 1000 -> 2000`."""
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {_shown(before.get(name))} -> {_shown(now.get(name))}" for name in names)


def _shown(value: Any) -> str:
    return str(value)[:_SHOWN]
