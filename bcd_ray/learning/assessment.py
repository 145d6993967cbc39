"""Metrics and figures of predictions on labelled images: the same after training and for any folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.archives.suffixes import unexpected
from bcd_ray.labels import CLASSES, DISPLAY_NAMES
from bcd_ray.learning.dataset import LabelledImage, read_pixels
from bcd_ray.learning.splits import Labels
from bcd_ray.metrics.classification import classification_metrics
from bcd_ray.metrics.spread import spread_figures
from bcd_ray.reports.figures import GALLERY_LIMIT, Example, confusion_matrix_figure, gallery

Probabilities = npt.NDArray[np.float64]


def assess(
    images: Sequence[LabelledImage], probabilities: Probabilities, drawn_whole: Labels, title: str, synthetic: bool
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metrics, and figures by their file names, of predicted probabilities (n, 4) for n labelled images.

    `drawn_whole` (n,) numbers the blocks or groups that the intervals are drawn over (`splits.clusters`).
    """
    labels = np.array([image.label for image in images])
    metrics = classification_metrics(labels, probabilities.argmax(axis=1), CLASSES)
    metrics["with_intervals"] = spread_figures(labels, probabilities, drawn_whole)
    if synthetic:
        metrics["synthetic"] = True
    right, wrong = _examples(images, labels, probabilities)
    return metrics, {
        "confusion_matrix.png": confusion_matrix_figure(
            metrics["confusion_matrix"], DISPLAY_NAMES, f"Confusion matrix: {title}", synthetic=synthetic
        ),
        "gallery.png": gallery(right, wrong, DISPLAY_NAMES, synthetic=synthetic),
    }


def unreadable(images: Sequence[LabelledImage], errors: Sequence[str | None]) -> dict[str, str]:
    """The images that could not be used, by name, with the reason."""
    return {image.name: error for image, error in zip(images, errors, strict=True) if error is not None}


def count_left_out(metrics: Mapping[str, Any]) -> int:
    """How many files and images that nobody expects to be left out are, by the metrics of a job."""
    left_out = metrics["left_out"]
    of_no_class: int = sum(left_out["images_of_no_class"].values())
    return unexpected(left_out["files"]) + of_no_class + len(metrics["unreadable"])


def _examples(
    images: Sequence[LabelledImage], labels: Labels, probabilities: Probabilities
) -> tuple[list[Example], list[Example]]:
    """For the gallery: of each class the surest and the least sure right prediction, and the surest wrong ones."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    by_confidence = np.argsort(-confidence, kind="stable")
    right = []
    for label in np.unique(labels):
        of_class = [index for index in by_confidence if correct[index] and labels[index] == label]
        right += [of_class[0], of_class[-1]] if len(of_class) > 1 else of_class
    wrong = [index for index in by_confidence if not correct[index]]

    def example(index: int) -> Example:
        return Example(read_pixels(images[index]), int(labels[index]), probabilities[index], images[index].name)

    # Beyond the limit the gallery only counts, so the pixels are not read again.
    return [example(index) for index in right], [example(index) for index in wrong[:GALLERY_LIMIT]]
