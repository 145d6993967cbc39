"""What a run is to do, and why: the shards that are not published as they are now, dealt to units."""

from collections import Counter
from itertools import islice
from typing import Any

from bcd_ray import storage
from bcd_ray.ledger.dividing import divided
from bcd_ray.ledger.grouping import groups, split
from bcd_ray.ledger.held import Held, Waiting
from bcd_ray.ledger.manifests import digest, identity_digest
from bcd_ray.ledger.plan import Plan, Unit
from bcd_ray.ledger.standing import Standing
from bcd_ray.ledger.state import State
from bcd_ray.storage import StoredObject

NEW, CONTENT, FAILED = "new", "other content", "failed for the moment before"
_SHOWN = 12  # characters of a value: digests are long


def make_plan(state: State, held: Held, identity: dict[str, Any], features: dict[str, Any] | None = None) -> Plan:
    """The units of the shards that wait: that are not published as they are now.

    Args:
        held: what is published of all shards of the run.
        identity: everything besides the shards that changes the rows: model, limits, schema. JSON-ready.
        features: what embeddings have to be of (`features.identity_of`); None where the network is to run in any case.
    """
    identified, wanted = identity_digest(identity), features and digest(features)
    reasons, rescored = Counter[str](), 0
    for _, last, is_same in held.waiting:
        if last is None:
            reasons[NEW] += 1
        elif last.held.passing_failure:
            reasons[FAILED] += 1
        elif not is_same:
            reasons[CONTENT] += 1
        else:
            rescored += 1
            reasons[_difference(state.identities[last.identity], state.identities.get(identified, identity))] += 1

    def keeper(each: Waiting) -> str:
        return state.keeper(each.last, wanted) if wanted and each.last and each.is_same else ""

    # Groups and their parts keep the order of the shards.
    keepers, before = map(keeper, held.waiting), (each.last for each in held.waiting)
    units = [
        _unit(part, runs, list(islice(before, len(part))), identified)
        for group in groups(each.shard for each in held.waiting)
        for part, runs in split(group, list(islice(keepers, len(group))))
    ]
    earlier = {storage.printable(shard.name): last.held for shard, last, _ in held.waiting if last}
    superseded = sum(not one.passing_failure for one in earlier.values())
    counted = superseded, held.current_images, earlier, dict(reasons), held.current_shards, rescored
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
