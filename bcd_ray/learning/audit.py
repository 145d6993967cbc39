"""How well what should not give the class away predicts it, measured as the model itself is."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.learning.embedding import Embedded
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS, neighbours_vote
from bcd_ray.learning.splits import Labels
from bcd_ray.metrics.spread import Floats
from bcd_ray.model.network import softmax

_COLOUR = "background_colour"
SHORTCUTS = (_COLOUR, *SHORTCUT_VIEWS)


def shortcut_features(embedded: Embedded) -> dict[str, npt.NDArray[np.float32]]:
    """By name, what each of the shortcuts says of n images: (n, 3) of the colour, (n, 1280) of a view.

    `embedded` has the images themselves as its first view, and `SHORTCUT_VIEWS` as the last.
    """
    of_views = embedded.embeddings[-len(SHORTCUT_VIEWS) :]
    return {_COLOUR: embedded.backgrounds[0].astype(np.float32), **dict(zip(SHORTCUT_VIEWS, of_views, strict=True))}


def shortcut_probabilities(
    name: str,
    features: npt.NDArray[np.float32],
    labels: Labels,
    train: npt.NDArray[Any],
    test: npt.NDArray[Any],
    config: FitConfig,
    views: int,
) -> Floats:
    """Probabilities (m, 4) of the test images by one of `SHORTCUTS`.

    Args:
        features: (n, d), see `shortcut_features`.
        labels: (n,).
        train: which of the n are trained on, as a mask or as indices.
        test: which of the n are tested, likewise.
        config: of the model's own head.
        views: of each image that the model's head was fitted on: this one goes through its single view as often.
    """
    if name == _COLOUR:
        return neighbours_vote(features[train], labels[train], features[test])
    as_many_steps = replace(config, epochs=config.epochs * views)
    return softmax(fit(features[None, train], labels[train], as_many_steps).logits(features[test]))
