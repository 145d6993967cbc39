"""Whether a probability means what it says, and how to choose a confidence that keeps the errors at a stated risk.

Plain functions of arrays, numpy alone: scoring, training and the report use the same.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.metrics.spread import interval
from bcd_ray.model.network import softmax

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BINS = 15  # of equal width, the usual number (Guo et al. 2017)
_TEMPERATURES = np.geomspace(0.2, 10, 400)
_DRAWS = 1000
_SURE = 0.9  # share of the draws in which a limit must keep its risk
_POINTS = 2000  # limits that are tried, at most


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature that gives (n, classes) logits the least negative log likelihood, between 0.2 and 10.

    One number for all classes, so no prediction changes: Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017.
    """
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(logits / each)[rows, labels] + 1e-12).mean() for each in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def calibration_figures(probabilities: Floats, labels: Labels) -> dict[str, Any]:
    """Expected calibration error, Brier score and the bins of the reliability diagram, JSON-ready.

    Returns:
        `ece`: mean over images of |confidence - accuracy| of their bin (Guo et al. 2017), 0 to 1. `brier`: mean over
        images of the squared distance to the true class, summed over classes, 0 to 2 (Brier 1950). `reliability`: of
        each of the `BINS` bins that holds images: `images`, `confidence`, `accuracy`.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    reliability = [
        {
            "images": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(correct[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]
    gaps = [row["images"] * abs(row["confidence"] - row["accuracy"]) for row in reliability]
    truth = np.eye(probabilities.shape[1])[labels]
    return {
        "ece": float(sum(gaps) / len(labels)),
        "brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        "reliability": reliability,
    }


def risk_coverage(confidence: Floats, correct: Mask) -> dict[str, list[float]]:
    """The errors among the surest share of the images, for every share (El-Yaniv and Wiener, JMLR 11, 2010).

    Args:
        confidence: (n,), -inf where an image is sent to review whatever its confidence.
        correct: (n,).

    Returns:
        `coverage` and `risk` at up to 200 points, shares from 0 to 1 of all n and of those decided.
    """
    order = np.argsort(-confidence, kind="stable")
    order = order[np.isfinite(confidence[order])]
    decided = np.arange(1, len(order) + 1)
    risk = np.cumsum(~correct[order]) / decided
    points = np.unique(np.linspace(0, len(order) - 1, min(200, len(order))).astype(np.int64))
    return {"coverage": (decided[points] / len(correct)).tolist(), "risk": risk[points].tolist()}


def least_for_risk(certainty: Floats, correct: Mask, clusters: Labels, risk: float, ahead: int = 1) -> float | None:
    """The least certainty at and above which the share of errors is at most `risk`; None if there is none.

    Two bounds must hold. One error is added to those counted, as conformal risk control does for an image yet to come
    (Angelopoulos et al., "Conformal Risk Control", ICLR 2024): with a risk of 1 % fewer than 99 images can never be
    enough. With 0 `ahead` none is added. And since neighbours err together, the share must be that low in 90 % of the
    draws of whole clusters with replacement (block bootstrap: Kuensch, Annals of Statistics 17, 1989).

    Args:
        certainty: (n,) of images that had no part in the fit, -inf where an image is sent to review anyway.
        correct: (n,) whether the prediction is right.
        clusters: (n,) numbers of the blocks or groups that are drawn whole.
    """
    order = np.argsort(-certainty, kind="stable")
    order = order[np.isfinite(certainty[order])]
    if not len(order):
        return None
    descending, wrong = certainty[order], ~correct[order]
    bound = (np.cumsum(wrong) + ahead) / (np.arange(len(order)) + 1 + ahead)
    last_of_value = np.flatnonzero(np.append(descending[1:] < descending[:-1], True))
    points = last_of_value[np.unique(np.linspace(0, len(last_of_value) - 1, _POINTS).astype(np.int64))]
    _, numbers = np.unique(clusters, return_inverse=True)
    risks = []
    for drawn in _draws(numbers.max() + 1):
        times = np.bincount(drawn, minlength=numbers.max() + 1)[numbers[order]]
        risks.append((np.cumsum(times * wrong) / np.maximum(np.cumsum(times), 1))[points])
    bounds = np.maximum(bound[points], np.quantile(risks, _SURE, axis=0))
    kept = points[bounds <= risk]
    return float(descending[kept[-1]]) if len(kept) else None


def risk_interval(decided: Mask, correct: Mask, clusters: Labels) -> dict[str, Any]:
    """Share decided without review, errors among them, and `spread.interval` of both, each cluster drawn whole.

    Neighbours in the file numbers err together, so single images drawn with replacement would promise too much.
    """
    _, numbers = np.unique(clusters, return_inverse=True)
    counts = [np.bincount(numbers, weights=mask) for mask in (np.ones(len(numbers)), decided, decided & ~correct)]
    images, kept, wrong = (each[_draws(len(each))].sum(axis=1) for each in counts)
    coverage, risk = kept / images, np.divide(wrong, kept, out=np.zeros(len(kept)), where=kept > 0)
    total = int(decided.sum())
    return {
        "coverage": total / len(decided),
        "coverage_interval": interval(coverage),
        "risk": int((decided & ~correct).sum()) / total if total else None,
        "risk_interval": interval(risk) if total else None,
        "decided": total,
        "errors": int((decided & ~correct).sum()),
    }


def _draws(clusters: int) -> Labels:
    return np.random.default_rng(0).integers(0, clusters, (_DRAWS, clusters))
