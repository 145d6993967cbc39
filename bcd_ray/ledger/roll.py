"""The roll of published runs: of each an empty object, so that also the last, which none comes after, cannot go unseen.

OUTPUT/manifests/published/NUMBER-RUN_ID-SHA256   of the manifest, written right after it
"""

import re
from typing import NamedTuple

from bcd_ray import storage
from bcd_ray.ledger.manifests import Manifest

FIRST_MANIFEST_VERSION = 5  # of the runs that are entered
_FOLDER = ("manifests", "published")
_NAME = re.compile(r"(\d{8,})-([0-9a-f]{16})-([0-9a-f]{64})")


class Entry(NamedTuple):
    """A run that was published, and the digest of its manifest."""

    number: int
    run_id: str
    sha256: str


def enter(output: str, manifest: Manifest) -> None:
    """Write down that a run is published; nothing happens where it is known."""
    number, run_id = manifest.content["run_number"], manifest.content["run_id"]
    storage.create(storage.join(output, *_FOLDER, f"{number:08d}-{run_id}-{manifest.sha256}"), b"")


def entries(output: str) -> list[Entry]:
    """The runs that were ever published, in order; those of versions that kept no roll are not among them."""
    found = (_NAME.fullmatch(name) for name in storage.list_names(storage.join(output, *_FOLDER)))
    return sorted(Entry(int(each[1]), each[2], each[3]) for each in found if each)
