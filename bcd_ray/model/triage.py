"""Which predictions an expert must look at, and why: calibrated probabilities, distance, image quality, agreement.

Everything comes from the bundle: a temperature and limits in `model.json`, the distance model in `model.safetensors`.
They are fitted in `learning.thresholds`; here is what every scored image goes through, in numpy alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bcd_ray.labels import CLASSES
from bcd_ray.model.network import softmax
from bcd_ray.model.quality import MEASURES, outside

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int32]

TRIAGE_VERSION = 1  # raise it when the same bundle and numbers would give other decisions
DIRECTIONS = 128  # of the embeddings that the distance knows one by one; 64 separate photographs from smears as well
REASONS = {
    "low_confidence": "The certainty is under the limit: the model hesitates, or another class is about as near",
    "out_of_distribution": "The embedding is further from every class than training images are: another kind of image",
    "poor_quality": "Focus, light, contrast, noise, colour or compression is well outside what training images have",
    "conflicting_evidence": "The class with the nearest training images is not the suggested one",
    "no_cells": "No white cell was found, of which the model makes its prediction",
    "unfamiliar_source": "The images of its source, or of all small ones together, are less certain than those of any "
    "day that was trained on: another day, scanner or stain",
    "small_source": "All small sources of a run together have too few images to tell whether their day was trained on",
    "damaged": "The decoder found damage, or something odd, and made a picture all the same: see `error`",
    "not_scored": "There is no prediction: see `status` and `error`",
}
_OF_SCORED = ("low_confidence", "out_of_distribution", "poor_quality", "conflicting_evidence", "no_cells")


@dataclass(frozen=True)
class DistanceModel:
    """Class means and one covariance, of embeddings of length 1, for a Mahalanobis distance.

    Of an embedding's d numbers the first k are compared: where a model looks at cells and at the field, those of cells,
    since a field says first of all which day it was taken. With one of seven sittings left out that leaves 27 % of the
    images unreviewed and 3.3 % of these wrong; by all numbers it was 16 %, and 7.6 %.

    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018; the covariance is
    that of a probabilistic PCA (Tipping and Bishop, 1999): some directions each with a variance of its own and the same
    small variance for all others, which is where photographs of other things lie.
    """

    means: npt.NDArray[np.float32]  # (4, k)
    factor: npt.NDArray[np.float32]  # (directions, k): what the distance forgives along each direction
    precision: float  # one over the variance of all other directions

    def distances(self, embeddings: Floats) -> Floats:
        """(n, 4) from embeddings (n, d) to each class."""
        # In float64: in float32 another processor, adding in another order, moves a distance by a thousandth.
        means, factor = self.means.astype(np.float64), self.factor.astype(np.float64)
        scaled = _of_length_one(embeddings[:, : means.shape[1]])
        square = (scaled**2).sum(axis=1)[:, None] - 2 * scaled @ means.T + (means**2).sum(axis=1)
        along = scaled @ factor.T, means @ factor.T
        forgiven = (along[0] ** 2).sum(axis=1)[:, None] - 2 * along[0] @ along[1].T + (along[1] ** 2).sum(axis=1)
        distances: Floats = np.sqrt(np.maximum(self.precision * square - forgiven, 0))
        return distances


def fit_distance(embeddings: Floats, labels: Labels, classes: int) -> DistanceModel:
    """The distance model of embeddings (n, k); a class without images is far from everything."""
    within = _of_length_one(embeddings)
    means = np.full((classes, within.shape[1]), 1e3)
    for label in np.unique(labels):
        own = labels == label
        means[label] = within[own].mean(axis=0)
        within[own] -= means[label]  # in place: of 100,000 images a copy is 1 GB
    # Of fewer images than dimensions, their own products hold the same variances: of 50 images in 3 ms, not 340.
    few = len(within) < within.shape[1]
    variances, directions = np.linalg.eigh((within @ within.T if few else within.T @ within) / len(within))
    kept = max(1, min(DIRECTIONS, len(labels) // 4))  # of few images the last directions would be noise
    rest = max(float(variances[:-kept].sum() / (within.shape[1] - kept)), 1e-9)
    largest, directions = np.maximum(variances[-kept:], rest), directions[:, -kept:]
    if few:
        directions = within.T @ directions / np.sqrt(len(within) * largest)
    forgiven = np.sqrt(1 / rest - 1 / largest)[:, None] * directions.T
    # In C order, as a bundle is read: in another order the sums come in another, and scores differ by a thousandth.
    return DistanceModel(means.astype(np.float32), forgiven.astype(np.float32, order="C"), 1 / rest)


class Decisions(NamedTuple):
    """What triage says of n scored images."""

    probabilities: npt.NDArray[np.float64]  # (n, 4), calibrated
    certainty: Floats  # (n,) see `certainty`
    ood_score: Floats  # (n,) distance from the nearest class over the limit: above 1 is out of distribution
    reasons: Mask  # (n, 5) in the order of `REASONS`

    def reason_names(self) -> list[list[str]]:
        """Of each image the names of its reasons, none where no review is needed."""
        return [[name for name, given in zip(_OF_SCORED, row, strict=True) if given] for row in self.reasons]


@dataclass(frozen=True)
class Triage:
    """How a bundle's predictions are calibrated and which of them are sent to review.

    `settings` is `triage` of model.json: `temperature`, `certainty` (see `least_certainty`), `distance`,
    `quality` (limits by measure), `source` (the mean `certainty` of at least so many `images` under which a source is
    unfamiliar; None, or no entry, where nobody knows), and with which rates, risk and images they were chosen.
    """

    model: DistanceModel
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[np.float32]], settings: Mapping[str, Any]) -> "Triage":
        """From a bundle's tensors and its `triage` settings."""
        model = DistanceModel(tensors["triage.means"], tensors["triage.factor"], settings["precision"])
        return cls(model, settings)

    @classmethod
    def without_limits(cls, size: int) -> "Triage":
        """One that sends nothing to review but conflicts, for measurements with an untrained model."""
        settings = {"temperature": 1.0, "certainty": 0.0, "distance": np.inf, "precision": 1.0}
        quality = dict.fromkeys(MEASURES, (None, None))
        means = np.zeros((len(CLASSES), size), np.float32)
        return cls(DistanceModel(means, means[:0], 1.0), settings | {"quality": quality})

    def unfamiliar(self, certainty: Floats, sources: Labels) -> Mask:
        """(n,) whether the source of an image, by number (n,), is of no day that was trained on.

        Of sources with few images nobody can tell: they are not. `certainty` (n,) is that of `Decisions`.
        """
        found = np.zeros(len(sources), bool)
        if limit := self.settings.get("source"):
            _, member, sizes = np.unique(sources, return_inverse=True, return_counts=True)
            means = np.bincount(member, certainty) / sizes
            found = ((means < limit["certainty"]) & (sizes >= limit["images"]))[member]
        return found

    @property
    def least_certainty(self) -> dict[str, float | None]:
        """By suggested class, None where all of it goes to review."""
        limits = least_certainty(self.settings).tolist()
        return {name: limit if np.isfinite(limit) else None for name, limit in zip(CLASSES, limits, strict=True)}

    @property
    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """What goes into a bundle's model.safetensors."""
        return {"triage.means": self.model.means, "triage.factor": self.model.factor}

    def decide(self, embeddings: Floats, logits: Floats, measures: Floats, cells: Counts | None = None) -> Decisions:
        """Decide on n images of embeddings (n, d), logits (n, 4) and quality measures (n, 4).

        `cells` (n,) counts the white cells that were found, where the model looks at them.
        """
        distances = self.model.distances(embeddings)
        return decide(self.settings, distances, logits, measures, cells)


def decide(
    settings: Mapping[str, Any], distances: Floats, logits: Floats, measures: Floats, cells: Counts | None = None
) -> Decisions:
    """The rules, on distances (n, 4) to the classes, logits (n, 4), quality measures (n, 4) and cells (n,).

    Each comparison asks for what needs no review: what is not a number never passes one.
    """
    probabilities = softmax(logits / settings["temperature"])
    sure, least = certainty(probabilities, distances), least_certainty(settings)[probabilities.argmax(axis=1)]
    score = distances.min(axis=1) / settings["distance"]
    broken = ~(np.isfinite(logits).all(axis=1) & np.isfinite(distances).all(axis=1))
    reasons = np.stack(
        [
            ~(sure >= least) | broken,
            ~(score <= 1) | broken,
            outside(measures, settings["quality"]),
            distances.argmin(axis=1) != probabilities.argmax(axis=1),
            np.zeros(len(score), bool) if cells is None else cells == 0,
        ],
        axis=1,
    )
    return Decisions(probabilities, sure, score, reasons)


def least_certainty(settings: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """(4,) of each suggested class the certainty under which it goes to review; infinite where all of it does.

    `certainty` of a bundle's settings is one number a class, None for a class that always goes to review; in bundles of
    earlier releases one for all. What is missing is infinite, and no certainty reaches one that is not a number.
    """
    given = settings.get("certainty")
    each = given if isinstance(given, list | tuple) else [given] * len(CLASSES)
    limits = [np.inf if limit is None else limit for limit in each] + [np.inf] * len(CLASSES)
    return np.array(limits[: len(CLASSES)], np.float64)


def certainty(probabilities: Floats, distances: Floats) -> Floats:
    """(n,) how much speaks for the suggestion, 0 to 1: its probability, times how clearly it is the nearest class.

    That is 1 - a / b, of the distances a to the suggested class and b to the nearest other, and 0 where b is less. The
    two err on different images: among the surest 85 % of real images, tested in blocks, 0.72 % are wrong; by the
    probability alone it is 0.91 %. From probabilities (n, 4) and distances (n, 4).
    """
    rows, suggested = np.arange(len(distances)), probabilities.argmax(axis=1)
    others = distances.copy()
    others[rows, suggested] = np.inf
    clear = 1 - distances[rows, suggested] / np.maximum(others.min(axis=1), 1e-12)
    found: Floats = probabilities.max(axis=1) * np.maximum(clear, 0)
    return found


def _of_length_one(embeddings: Floats) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float64] = embeddings / np.maximum(length, 1e-12).astype(np.float64)
    return scaled
