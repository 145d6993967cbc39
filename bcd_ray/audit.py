"""How well what should not give the class away predicts it, measured as the model itself is."""

from dataclasses import replace
from typing import Any

import numpy.typing as npt

from bcd_ray.embedding import Embeddings
from bcd_ray.engine import softmax
from bcd_ray.head import FitConfig, Parts, fit
from bcd_ray.shortcuts import neighbours_vote
from bcd_ray.splits import Labels
from bcd_ray.spread import Floats


def shortcut_probabilities(
    name: str,
    embeddings: Embeddings,
    labels: Labels,
    train: npt.NDArray[Any],
    test: npt.NDArray[Any],
    config: FitConfig,
    views: int,
) -> Floats:
    """Probabilities (m, 4) of the test images by one of `shortcuts.SHORTCUTS`.

    Args:
        embeddings: (n, 1280), of that view of all images.
        labels: (n,).
        train: which of the n are trained on, as a mask or as indices.
        test: which of the n are tested, likewise.
        config: of the model's own head.
        views: of each image that the model's head was fitted on: this one goes through its single view as often.
    """
    if name == "background_colour":
        return neighbours_vote(embeddings[train], labels[train], embeddings[test])
    as_many_steps = replace(config, epochs=config.epochs * views)
    head = fit(Parts(embeddings[None, train], labels[train], embeddings[test], labels[test]), as_many_steps)
    return softmax(head.logits(embeddings[test]))
