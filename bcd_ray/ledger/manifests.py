"""What runs published, as their manifests say it: each names those that came before it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from bcd_ray import storage
from bcd_ray.errors import JobError
from bcd_ray.ledger.schema import WITHDRAWN

_READERS = 16  # of manifests, at a time
RUN_ID = re.compile("[0-9a-f]{16}")
# What came into identities later, as it was before: an upgrade alone scores nothing anew.
FIRST_VERSIONS = {"network_version": 1}


class Manifest(NamedTuple):
    """What a run published, and the digest of the file that says so."""

    content: dict[str, Any]
    sha256: str


def read_manifests(output: str) -> list[Manifest]:
    """The manifests of all published runs, in order of their numbers; what is not named as one is passed over."""
    folder = storage.join(output, "manifests")
    names = [name for name in storage.list_names(folder) if is_of_a_run(name, ".json")]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(manifest_of, (storage.join(folder, name) for name in names)))
    return sorted(found, key=lambda manifest: in_order(manifest.content))


def in_order(manifest: Mapping[str, Any]) -> tuple[int, str]:
    """What manifests are sorted by: of two of one number the later id holds, as for every reader."""
    return manifest["run_number"], manifest["run_id"]


def ends_of_chain(manifests: Sequence[Manifest]) -> list[dict[str, str]]:
    """Run id and digest of each manifest that none names as the one before it: one, or of runs at the same time some.

    A manifest names those that were the ends when it was written, so that none of them can change or go unseen.
    """
    named = {each["run_id"] for manifest in manifests for each in manifest.content.get("previous", [])}
    ends = [manifest for manifest in manifests if manifest.content["run_id"] not in named]
    return [{"run_id": manifest.content["run_id"], "sha256": manifest.sha256} for manifest in ends]


def is_of_a_run(name: str, suffix: str) -> bool:
    """Whether a name is RUN_ID and a suffix: whatever else lies in a published folder is somebody else's."""
    return name.endswith(suffix) and bool(RUN_ID.fullmatch(name.removesuffix(suffix)))


def manifest_of(uri: str) -> Manifest:
    """A manifest; JobError where it is damaged."""
    data = storage.read_bytes(uri)
    try:
        manifest = dict[str, Any](json.loads(data))
        manifest["run_number"], manifest["run_id"], manifest["identity"]
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(f"{uri} is damaged or no manifest: restore it from a copy, or move away what is none") from error
    return Manifest(manifest, hashlib.sha256(data).hexdigest())


def digest(value: Any) -> str:
    """A name for a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def identity_digest(identity: dict[str, Any]) -> str:
    """A name for what changes the rows besides the shards."""
    return digest({**FIRST_VERSIONS, **identity})


def unscored(statuses: dict[str, int]) -> int:
    """How many images of a manifest's `statuses` could not be scored."""
    return sum(count for status, count in statuses.items() if status not in ("scored", WITHDRAWN))
