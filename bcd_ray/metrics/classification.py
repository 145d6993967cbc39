"""How good the predictions are: the confusion matrix and the figures that follow from it.

Every figure is computed from the confusion matrix alone, so the report and the figures cannot disagree.
Precision, recall, F1 and the macro mean are the usual ones: Sokolova and Lapalme, "A systematic analysis of
performance measures for classification tasks", Information Processing & Management 45(4), 2009. (Their macro
F1 is made of macro precision and recall; here it is the mean of the F1 of each class.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcd_ray.metrics.spread import figure_words

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]
_SHOWN = ("accuracy", "macro_f1", "malignant_sensitivity", "malignant_specificity")  # with their intervals


def confusion_matrix(true: IntArray, predicted: IntArray, classes: int) -> IntArray:
    """Count images by true class (rows) and predicted class (columns).

    Args:
        true: (n,) class index of each image, from 0 to classes - 1.
        predicted: (n,) predicted class index of the same images, in the same order.
        classes: number of classes.

    Returns:
        (classes, classes) int64 counts that sum to n.

    Raises:
        ValueError: the input is empty, the two differ in length, or a value is not a class index.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(
            f"true has shape {true.shape} and predicted {predicted.shape}: "
            "pass two one-dimensional arrays with one entry per image, in the same order"
        )
    if true.size == 0:
        raise ValueError("there are no images to evaluate: check that the evaluated part of the data is not empty")
    for name, values in (("true", true), ("predicted", predicted)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} holds {values.dtype}: pass class indices (argmax of the probabilities)")
        if values.min() < 0 or values.max() >= classes:
            raise ValueError(
                f"{name} holds class indices from {values.min()} to {values.max()}: "
                f"with {classes} classes they must lie between 0 and {classes - 1}"
            )
    # int64 before the product: labels often come as uint8, which would wrap at 256.
    cells = true.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def classification_metrics(true: IntArray, predicted: IntArray, class_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 score as a dictionary that `json.dumps` takes as it is.

    A class that is never predicted has precision 0, and a class without images (support 0) has recall 0,
    never NaN. A class without images is left out of the macro means, since there is nothing to find; images
    wrongly predicted as that class still count against the recall of their true class.

    Args:
        true: (n,) class index of each image.
        predicted: (n,) predicted class index of the same images, in the same order.
        class_names: name of each class, in index order.

    Returns:
        `images` (n), `accuracy`, `macro` (`precision`, `recall`, `f1`), `per_class` (by name: `precision`,
        `recall`, `f1`, `support`), `confusion_matrix` (rows true, columns predicted) and `classes`, the names
        in index order. All shares are fractions from 0 to 1.

    Raises:
        ValueError: as for `confusion_matrix`.
    """
    matrix = confusion_matrix(true, predicted, len(class_names))
    correct, support, predictions = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    shares = {
        "precision": _ratio(correct, predictions),
        "recall": _ratio(correct, support),
        "f1": _ratio(2 * correct, support + predictions),
    }
    return {
        "images": int(matrix.sum()),
        "accuracy": float(correct.sum() / matrix.sum()),
        "macro": {name: float(values[support > 0].mean()) for name, values in shares.items()},
        "per_class": {
            class_name: {name: float(values[i]) for name, values in shares.items()} | {"support": int(support[i])}
            for i, class_name in enumerate(class_names)
        },
        "confusion_matrix": matrix.tolist(),
        "classes": list(class_names),
    }


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Lay out the result of `classification_metrics` for a terminal, shares in percent.

    One line for all images, one for figures with intervals where these were drawn, then a heading and one row per
    class; no line break at the end.
    """
    macro = metrics["macro"]
    width = max(len(name) for name in ["class", *metrics["classes"]])
    overall = f"{metrics['images']} images: accuracy {metrics['accuracy']:.1%}"
    means = f"macro precision {macro['precision']:.1%}, recall {macro['recall']:.1%}, F1 {macro['f1']:.1%}"
    lines = [f"{overall}, {means}"]
    if found := metrics.get("with_intervals"):
        figures = {name.replace("_", " "): found[name] for name in _SHOWN if name in found}
        if any(figure["interval"] for figure in figures.values()):
            heading = "in %, with 95 % intervals over blocks or groups"
            shown = [f"{name} {figure_words(figure)}" for name, figure in figures.items()]
        else:
            heading = "in %, without intervals (one block a class, or no error)"
            shown = [f"{name} {100 * figure['value']:.1f}" for name, figure in figures.items()]
        lines.append(f"{heading}: {', '.join(shown)}")
    lines += [f"{'class':<{width}}  precision  recall      F1  support"]
    for name in metrics["classes"]:
        row = metrics["per_class"][name]
        shares = f"{row['precision']:>9.1%}  {row['recall']:>6.1%}  {row['f1']:>6.1%}"
        lines.append(f"{name:<{width}}  {shares}  {row['support']:>7}")
    return "\n".join(lines)


def _ratio(part: IntArray, whole: IntArray) -> FloatArray:
    """Divide counts, giving 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
