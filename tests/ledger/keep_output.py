"""Keeps an output of the present versions, which later ones are to verify: `python tests/ledger/keep_output.py`."""

import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # as under pytest

from ledger.nights import night, shard  # noqa: E402

from bcd_ray.ledger import schema  # noqa: E402


def main() -> None:
    """Write the two nights that every kept output has."""
    name = f"manifest-{schema.MANIFEST_VERSION}-columns-{schema.SCHEMA_VERSION}"
    kept = TESTS / "scoring" / "outputs" / name
    shards = [shard(uri) for uri in ("/lab/a.jpg", "/lab/c.tar", "/lab/d.jpg")]
    with tempfile.TemporaryDirectory() as output:
        for known in (shards[:2], shards):
            night(output, known)
        shutil.rmtree(kept, ignore_errors=True)
        for part in ("features", "manifests", "predictions"):
            shutil.copytree(Path(output, part), kept / part)
    print(f"{kept} written")


if __name__ == "__main__":
    main()
