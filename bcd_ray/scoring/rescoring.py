"""Rows under another head, made of what earlier runs published: no image is read and no network runs."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray.ledger.features import embeddings_of
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.seen import Seen
from bcd_ray.ledger.units import Unit
from bcd_ray.model.bundle import Bundle
from bcd_ray.model.quality import MEASURES
from bcd_ray.scoring.blanking import blanked
from bcd_ray.scoring.decided import decided
from bcd_ray.scoring.kept import CARRIED, Kept


def rescore(
    unit: Unit, kept: Kept, bundle: Bundle, ledger: Ledger, withdrawn: Collection[str], made_by: Mapping[str, Any]
) -> int:
    """Write the rows of a unit whose embeddings earlier runs kept, and return how many.

    `withdrawn` are contents by digest, and images by id, of which rows are not to say anything.

    Raises:
        JobError: what a run kept is damaged.
        StorageError: rows cannot be written.
    """
    seen, of_withdrawn = Seen(), pa.array(withdrawn, pa.string())

    def rows() -> Iterator[pa.Table]:
        for published, embeddings in kept.chunks(unit):
            seen.add(published["image_id"].to_pylist())
            theirs = pc.or_(*(pc.is_in(published[name], of_withdrawn) for name in ("image_sha256", "image_id")))
            yield rescored(blanked(published, theirs), embeddings, bundle)
        seen.left_out = kept.left_out(unit)

    ledger.write_unit(unit, rows(), seen, made_by)
    return seen.images


def rescored(rows: pa.Table, embeddings: pa.ChunkedArray, bundle: Bundle) -> pa.Table:
    """Rows of the columns `CARRIED` as a model makes them, of all columns but the run's; what is not scored stays so.

    `embeddings` is `features.EMBEDDING` of the rows; it is no column of what comes out, as it stays where it is.
    """
    scored = pc.equal(rows["status"], "scored")
    looked = rows.filter(scored)
    if len(embeddings) - embeddings.null_count > len(looked):  # some of them are of what was blanked
        embeddings = embeddings.filter(scored)
    found = embeddings_of(embeddings, bundle.model.embedding_size)
    measures = np.stack([looked[name].to_numpy() for name in MEASURES], axis=1)
    cells = looked["cells"].fill_null(-1).to_numpy()
    damaged = pc.is_valid(looked["error"]).to_numpy()
    statuses = rows["status"].to_pylist()
    columns = decided(bundle, statuses, found, bundle.model.logits(found), measures, cells, damaged)
    return pa.table({**{name: rows[name] for name in CARRIED}, **columns})
