"""Which given labels the cross-validated heads dispute, for a person to look at: nothing is relabelled by itself."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray import storage
from bcd_ray.labels import CLASSES
from bcd_ray.learning.splits import Labels
from bcd_ray.metrics.spread import Floats


def disputed(labels: Labels, probabilities: Floats) -> npt.NDArray[np.bool_]:
    """(n,) where confident learning counts an image off the diagonal of its confident joint.

    An image is confidently of a class if its probability of it is at least the mean over the images given that
    label; of several the most probable. (C. Northcutt, L. Jiang and I. Chuang, "Confident Learning: Estimating
    Uncertainty in Dataset Labels", Journal of Artificial Intelligence Research 70, 2021, equation 1.)

    Args:
        labels: (n,) given classes.
        probabilities: (n, 4) of heads that did not see the image.
    """
    given = [labels == label for label in range(len(CLASSES))]
    thresholds = [probabilities[mask, label].mean() if mask.any() else np.inf for label, mask in enumerate(given)]
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    found: npt.NDArray[np.bool_] = (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)
    return found


def check_labels(names: Sequence[str], labels: Labels, runs: Mapping[str, Sequence[Floats]]) -> pa.Table:
    """The disputed images, most disputed first.

    Args:
        names: (n,) of the images.
        labels: (n,) given classes.
        runs: by protocol, of each seed the probabilities (n, 4); protocols that do not test every image are left out.

    Returns:
        `image`, `given_class`, `suggested_class`, `disputed_by` (protocols), and `p_CLASS`, mean over protocols and
        seeds; first what most protocols dispute, then the lowest probability of the given class.
    """
    means = {name: np.mean(of_seeds, axis=0) for name, of_seeds in runs.items() if not np.isnan(of_seeds[0]).any()}
    by = {name: disputed(labels, probabilities) for name, probabilities in means.items()}
    votes = np.sum(list(by.values()), axis=0) if by else np.zeros(len(labels))
    mean = np.mean(list(means.values()), axis=0) if means else np.zeros((len(labels), len(CLASSES)))
    rows = np.flatnonzero(votes)
    rows = rows[np.lexsort((mean[rows, labels[rows]], -votes[rows]))]
    other = mean.copy()
    other[np.arange(len(labels)), labels] = -1  # the mean of protocols may side with the label: name the rival
    columns = {
        "image": [storage.printable(names[row]) for row in rows.tolist()],
        "given_class": [CLASSES[labels[row]] for row in rows],
        "suggested_class": [CLASSES[other[row].argmax()] for row in rows],
        "disputed_by": [", ".join(name for name, mask in by.items() if mask[row]) for row in rows],
    }
    columns |= {f"p_{name}": mean[rows, label] for label, name in enumerate(CLASSES)}
    types = [(name, pa.string() if name in list(columns)[:4] else pa.float64()) for name in columns]
    return pa.table(columns, schema=pa.schema(types))
