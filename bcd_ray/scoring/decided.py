"""The columns of a row that follow from an embedding, the head over it and the limits of triage."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray.labels import CLASSES
from bcd_ray.ledger import schema
from bcd_ray.model.bundle import Bundle
from bcd_ray.model.triage import Counts, Floats, Mask


def decided(
    bundle: Bundle,
    statuses: Sequence[str],
    embeddings: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    measures: Floats,
    cells: Counts,
    damaged: Mask,
) -> dict[str, pa.Array]:
    """What a model decides on n rows, by column.

    Args:
        statuses: of the n rows. Of those s that are scored are, in order, the others:
        embeddings: (s, d), and `logits` (s, 4) of them.
        measures: (s, 7) in the order of `quality.MEASURES`.
        cells: (s,) white cells that were found, -1 where the model does not look at them.
        damaged: (s,) whether the decoder found damage.
    """
    scored, count = np.array([status == "scored" for status in statuses], bool), len(statuses)
    probabilities = np.full((count, len(CLASSES)), np.nan)
    ood_score, certainty = np.full((2, count), np.nan)
    reasons = [[] if status == schema.WITHDRAWN else ["not_scored"] for status in statuses]
    if scored.any():
        decisions = bundle.triage.decide(embeddings, logits, measures, cells)
        probabilities[scored], ood_score[scored] = decisions.probabilities, decisions.ood_score
        certainty[scored] = decisions.certainty
        names = decisions.reason_names()
        for index, given, odd in zip(np.flatnonzero(scored).tolist(), names, damaged.tolist(), strict=True):
            reasons[index] = [*given, "damaged"] if odd else given
    best = probabilities.argmax(axis=1).tolist()
    predicted = [CLASSES[index] if ok else None for index, ok in zip(best, scored.tolist(), strict=True)]

    def measured(values: Any) -> pa.Array:
        return pa.array(values, pa.float32(), mask=~scored)

    columns = {"predicted_class": pa.array(predicted, pa.string()), "confidence": measured(probabilities.max(axis=1))}
    columns |= {f"p_{name}": measured(probabilities[:, index]) for index, name in enumerate(CLASSES)}
    columns["p_malignant"] = measured(probabilities[:, 1:].sum(axis=1))
    columns["review"] = pa.array([bool(given) for given in reasons], pa.bool_())
    columns["review_reasons"] = pa.array(reasons, schema.PREDICTIONS.field("review_reasons").type)
    columns |= {"ood_score": measured(ood_score), "certainty": measured(certainty)}
    columns["model_version"] = pa.repeat(pa.scalar(bundle.version), count)
    columns["scored_at"] = pa.repeat(pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")), count)
    return columns
