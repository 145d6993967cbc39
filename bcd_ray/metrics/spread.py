"""Figures of merit with their spread; each is a function of image weights, so that a bootstrap is a reweighting.

The bootstrap draws whole blocks of file numbers, or groups, with replacement within each class: neighbouring images
are not independent, and a bootstrap over images would give intervals that are too narrow (cluster bootstrap: Davison
and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.labels import CLASSES

RESAMPLES = 1000
LEVEL = 0.95  # of the intervals
SPECIFICITY = 0.95  # at which the sensitivity to any malignant class is read off
_AT_ONCE = 50  # resamples in memory: 50 x 100,000 images are 40 MB an array
Floats = npt.NDArray[np.float64]
Figures = dict[str, Floats]


def figures_of_merit(labels: npt.NDArray[np.int64], probabilities: Floats, weights: Floats) -> Figures:
    """Figures of n images under b weightings.

    Malignant is every class but benign: `malignant_sensitivity` is the share of malignant images with any malignant
    class suggested, `malignant_specificity` the share of benign images with benign suggested.
    `sensitivity_at_specificity` moves the threshold on the summed malignant probability to where the specificity on
    these images is `SPECIFICITY`.

    Args:
        labels: (n,) true classes.
        probabilities: (n, classes).
        weights: (b, n), how often each image counts; 1 for the plain figure.

    Returns:
        By name (b,); `precision/CLASS`, `recall/CLASS`, `f1/CLASS` and `auroc/CLASS` for each class. A class without
        images is left out of the macro means, and its AUROC is NaN.
    """
    classes = range(len(CLASSES))
    predicted = probabilities.argmax(axis=1)
    cells = np.eye(len(CLASSES) ** 2)[labels * len(CLASSES) + predicted]
    matrix = (weights @ cells).reshape(-1, len(CLASSES), len(CLASSES))
    correct, support, suggested = np.einsum("bii->bi", matrix), matrix.sum(axis=2), matrix.sum(axis=1)
    auroc = np.stack([_auroc(labels == label, probabilities[:, label], weights) for label in classes], axis=1)
    shares = {
        "precision": _ratio(correct, suggested),
        "recall": _ratio(correct, support),
        "f1": _ratio(2 * correct, support + suggested),
        "auroc": auroc,
    }
    there = support > 0
    figures = {"accuracy": correct.sum(1) / matrix.sum((1, 2)), "balanced_accuracy": _mean(shares["recall"], there)}
    figures |= {f"macro_{name}": _mean(values, there) for name, values in shares.items()}
    found = matrix[:, 1:, 1:].sum((1, 2))
    figures["malignant_sensitivity"] = _ratio(found, support[:, 1:].sum(1))
    figures["malignant_specificity"] = shares["recall"][:, 0]
    malignant = 1 - probabilities[:, 0]
    figures["malignant_auroc"] = _auroc(labels > 0, malignant, weights)
    figures["sensitivity_at_specificity"] = _sensitivity_at(SPECIFICITY, labels > 0, malignant, weights)
    for name, values in shares.items():
        figures |= {f"{name}/{CLASSES[label]}": values[:, label] for label in classes}
    return figures


def point_figures(labels: npt.NDArray[np.int64], probabilities: Floats) -> dict[str, float]:
    """The figures of images that count once each; NaN, which JSON has no word for, is left out."""
    figures = figures_of_merit(labels, probabilities, np.ones((1, len(labels))))
    return {name: float(values[0]) for name, values in figures.items() if not np.isnan(values[0])}


def bootstrap(
    labels: npt.NDArray[np.int64], runs: Sequence[Floats], clusters: npt.NDArray[np.int64], seed: int = 0
) -> Figures:
    """`RESAMPLES` draws of each figure, by name; a draw is the mean over runs, such as fits of several seeds.

    Args:
        labels: (n,) true classes.
        runs: of each run, probabilities (n, classes) of the same images.
        clusters: (n,) number of the block or group that is drawn whole.
        seed: of the draws: figures of the same images and clusters are drawn in pairs, and can be subtracted.
    """
    drawn: dict[str, list[Floats]] = {}
    for weights in _draws(labels, clusters, np.random.default_rng(seed)):
        of_runs = [figures_of_merit(labels, probabilities, weights) for probabilities in runs]
        for name in of_runs[0]:
            drawn.setdefault(name, []).append(np.mean([figures[name] for figures in of_runs], axis=0))
    return {name: np.concatenate(values) for name, values in drawn.items()}


def interval(draws: Floats) -> list[float] | None:
    """The percentile interval of the draws that are defined.

    None where it has no width: of one block a class, or of no error at all, a bootstrap cannot tell how much another
    sample would differ.
    """
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return [float(low), float(high)] if high > low else None


def interval_words(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """An interval of shares in percent: "94.1 to 97.9", or that there is none."""
    return " to ".join(f"{100 * bound:.{digits}f}" for bound in bounds) if bounds else "no interval"


def figure_words(figure: Mapping[str, Any], digits: int = 1) -> str:
    """A share with its interval, in percent: "96.1 (94.1 to 97.9)"."""
    return f"{100 * figure['value']:.{digits}f} ({interval_words(figure['interval'], digits)})"


def with_intervals(point: dict[str, float], draws: Figures) -> dict[str, dict[str, Any]]:
    """Each figure as `value` and `interval`."""
    return {name: {"value": value, "interval": interval(draws[name])} for name, value in point.items()}


def spread_figures(
    labels: npt.NDArray[np.int64], probabilities: Floats, clusters: npt.NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """The figures of probabilities (n, classes), with intervals from a `bootstrap` over clusters (n,)."""
    return with_intervals(point_figures(labels, probabilities), bootstrap(labels, [probabilities], clusters))


def _draws(
    labels: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64], random: np.random.Generator
) -> Iterator[Floats]:
    """Image weights (at most _AT_ONCE, n) of resampled clusters, as many of each class as there are."""
    _, first, member = np.unique(clusters, return_index=True, return_inverse=True)
    class_of_cluster = labels[first]
    for start in range(0, RESAMPLES, _AT_ONCE):
        counts = np.zeros((min(_AT_ONCE, RESAMPLES - start), len(first)))
        for label in np.unique(class_of_cluster):
            own = np.flatnonzero(class_of_cluster == label)
            counts[:, own] = random.multinomial(len(own), np.full(len(own), 1 / len(own)), size=len(counts))
        yield counts[:, member]


def _ranked(
    positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats
) -> tuple[Floats, Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Weight of positives and of negatives below each rank (b, n + 1), and where each rank's ties start and end."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    zero = np.zeros((len(weights), 1))
    below = [np.hstack([zero, np.cumsum(weights[:, order] * kind[order], axis=1)]) for kind in (positive, ~positive)]
    starts, ends = np.searchsorted(ranked, ranked, "left"), np.searchsorted(ranked, ranked, "right")
    return below[0], below[1], starts.astype(np.int64), ends.astype(np.int64)


def _auroc(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(b,) chance that a positive scores above a negative, ties half (Hanley and McNeil, Radiology 143(1), 1982)."""
    found, passed, starts, ends = _ranked(positive, scores, weights)
    pairs = (np.diff(found, axis=1) * (passed[:, starts] + passed[:, ends]) / 2).sum(1)
    total = found[:, -1] * passed[:, -1]
    share: Floats = np.divide(pairs, total, out=np.full(len(total), np.nan), where=total > 0)
    return share


def _sensitivity_at(specificity: float, positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(b,) largest share of positives at or above a threshold that keeps this share of negatives below it."""
    found, passed, starts, _ = _ranked(positive, scores, weights)
    kept = passed[:, starts] >= specificity * passed[:, -1:] - 1e-9
    sensitivity = _ratio(found[:, -1:] - found[:, starts], np.broadcast_to(found[:, -1:], kept.shape))
    best: Floats = np.where(kept, sensitivity, 0.0).max(axis=1)
    return best


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return ratio


def _mean(values: Floats, there: npt.NDArray[np.bool_]) -> Floats:
    mean: Floats = np.where(there, values, 0.0).sum(1) / there.sum(1)
    return mean
