"""Embeddings kept beside the rows, so that another head scores an archive without reading it.

    OUTPUT/features/RUN_ID.parquet    a row for each of predictions/RUN_ID.parquet, in the same order

They do not depend on head, temperature or limits of a model, and are named by all that they do depend on. They are
numbers of 32 bits, which every reader knows, whose last 10 are zero: split by bytes and compressed 2.0 kB a row. Half
precision took 1.5, and of 2,668 images changed the review reasons of one and probabilities by up to 0.0006; so these
change no reason, and probabilities by up to 0.00006.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray.model.bundle import Model
from bcd_ray.model.triage import Mask

FEATURES_VERSION = 1
EMBEDDING = pa.field("embedding", pa.list_(pa.field("element", pa.float32())))
FEATURES = pa.schema([("image_id", pa.string()), ("image_sha256", pa.string()), EMBEDDING])
FEATURES_OF = b"bcd_ray.features"  # in the metadata of a file: `identity_of` as JSON
_ZEROED_BITS = 10  # of the 23 behind the point: what is left errs by 1 in 16,384
_OF_THE_HEAD = ("model_version", "triage_version")


def identity_of(identity: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What changes embeddings, and which images have one: a run's identity less what is of the head alone."""
    kept = {name: value for name, value in identity.items() if name not in _OF_THE_HEAD}
    backbone = hashlib.sha256()
    for name in sorted(name for name in model.tensors if not name.startswith("head.")):
        backbone.update(name.encode())
        backbone.update(np.ascontiguousarray(model.tensors[name]).tobytes())
    preprocessing = json.loads(json.dumps(model.preprocessing))
    return kept | {
        "features_version": FEATURES_VERSION,
        "backbone_sha256": backbone.hexdigest(),
        "preprocessing": preprocessing,
        "representation": model.representation,
    }


def features_of(rows: pa.Table) -> pa.Table:
    """Rows of `FEATURES` beside rows of a unit; where these have no embeddings, they are null."""
    if EMBEDDING.name not in rows.column_names:
        rows = rows.append_column(EMBEDDING, pa.nulls(len(rows), EMBEDDING.type))
    return rows.select(FEATURES.names)


def column_of(embeddings: npt.NDArray[np.float32], scored: Mask) -> pa.Array:
    """The column of n rows, of which those that `scored` (n,) says have embeddings (s, d), the others null."""
    sizes = np.where(scored, embeddings.shape[1], 0)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    values = pa.array(_rounded(embeddings).ravel())
    return pa.ListArray.from_arrays(offsets, values, EMBEDDING.type, mask=pa.array(~scored))


def embeddings_of(column: pa.ChunkedArray, size: int) -> npt.NDArray[np.float32]:
    """(s, size) of those rows of a column that have one."""
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    found: npt.NDArray[np.float32] = np.concatenate([np.empty(0, np.float32), *parts]).reshape(-1, size)
    return found


def _rounded(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """To the nearest number whose last bits are zero."""
    half, mask = np.uint32(1 << (_ZEROED_BITS - 1)), np.uint32(0xFFFFFFFF << _ZEROED_BITS & 0xFFFFFFFF)
    bits = np.ascontiguousarray(embeddings, np.float32).view(np.uint32)
    rounded: npt.NDArray[np.float32] = ((bits + half) & mask).view(np.float32)
    return rounded
