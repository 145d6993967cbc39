"""What a run is to do, and why: the shards that are not published as they are now, dealt to units."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice, tee
from typing import Any

from bcd_ray.ledger.dividing import divided
from bcd_ray.ledger.grouping import groups, split
from bcd_ray.ledger.held import Held, Waiting
from bcd_ray.ledger.manifests import digest, identity_digest
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.standing import Standing
from bcd_ray.ledger.state import State
from bcd_ray.ledger.units import Unit, Units
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
    reasons, counts = Counter[str](), Counter[str]()

    @cache
    def difference(published: str) -> str:
        return _difference(state.identities[published], state.identities.get(identified, identity))

    def counted() -> Iterator[Waiting]:
        for each in held.waiting:
            why = _why(each)
            counts["superseded"] += each.last is not None and not each.last.held.passing_failure
            if not why and each.last:
                counts["rescored"] += 1
                why = difference(each.last.identity)
            reasons[why] += 1
            yield each

    def keeper(each: Waiting) -> str:
        return state.keeper(each.last, wanted) if wanted and each.last and each.is_same else ""

    def units() -> Iterator[Unit]:
        # Groups and their parts keep the order of the shards, and hold so many of them in memory.
        waiting, of_keepers, of_before = tee(counted(), 3)
        keepers, before = map(keeper, of_keepers), (each.last for each in of_before)
        for group in groups(each.shard for each in waiting):
            for part, runs in split(group, list(islice(keepers, len(group)))):
                yield _unit(part, runs, list(islice(before, len(part))), identified)

    found = Units.of(divided(units(), held.waiting.size), held.waiting.roots)
    numbers = counts["superseded"], held.current_images, dict(reasons), held.current_shards, counts["rescored"]
    return Plan("", 0, found, identity, *numbers).numbered(state.last_number + 1)


def _why(each: Waiting) -> str:
    """Why a shard waits; empty where its rows are of the same content, but of another model or other settings."""
    if each.last is None:
        return NEW
    if each.last.held.passing_failure:
        return FAILED
    return "" if each.is_same else CONTENT


def _unit(
    part: tuple[StoredObject, ...], features: tuple[str, ...], before: list[Standing | None], identified: str
) -> Unit:
    # What was tried before is tried anew, so its unit is another one.
    tried = [one.tried if one else 0 for one in before]
    content = [identified, [(shard.name, shard.etag, run) for shard, run in zip(part, tried, strict=True)], features]
    return Unit(digest(content)[:32], part, features, earlier=tuple(one.held if one else None for one in before))


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In what two identities differ, as in `max_pixels 1000 -> 2000`."""
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {_shown(before.get(name))} -> {_shown(now.get(name))}" for name in names)


def _shown(value: Any) -> str:
    return str(value)[:_SHOWN]
