"""What the rows of a run are like, taken together: figures that wander off when scanner, stain or patients change."""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.storage import parquet

_MEASURES = ("certainty", "ood_score", "focus", "brightness", "clipped", "contrast")


def drift(output: str, manifest: Mapping[str, Any]) -> dict[str, float]:
    """Means of the measures over the scored rows of a run, and the share of its sources that are unfamiliar."""
    sums, count = dict.fromkeys(_MEASURES, 0.0), 0
    uri = storage.join(output, "predictions", f"{manifest['run_id']}.parquet")
    for rows in parquet.chunks_at(uri, "restore it from a copy", _MEASURES):
        count += len(rows) - rows["certainty"].null_count
        for name in _MEASURES:
            sums[name] += pc.sum(rows[name]).as_py() or 0.0
    found = {name: round(total / count, 4) for name, total in sums.items()} if count else {}
    sources = manifest["sources"]
    if sources and sources["judged"]:
        found["unfamiliar_sources"] = round(sources["unfamiliar"] / sources["judged"], 4)
    return found
