"""How the model that tests share was trained, and when another one is the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcd_ray.learning.embedding import Embeddings
from bcd_ray.model.bundle import load_bundle

AS_BUNDLE = ("--augmented-views", "1", "--epochs", "5", "--representation", "field")


def metrics_of(model: Path) -> dict[str, Any]:
    """What a model's training measured."""
    metrics: dict[str, Any] = json.loads((model / "metrics.json").read_text())
    return metrics


def assert_same_model(model: Path, reference: Path, embeddings: Embeddings) -> None:
    """The same metrics, Brier scores to 0.005, losses to 1e-3 of their size, and the same class for every image.

    In the first steps, from zero, gradients of several inputs cancel but for the order of additions, and Adam divides
    by their size: losses differ by 2e-4.
    """
    found, expected = metrics_of(model), metrics_of(reference)
    history, expected_history = found.pop("history"), expected.pop("history")
    triage, expected_triage = found.pop("triage"), expected.pop("triage")
    assert found == expected
    assert triage.pop("least_certainty").keys() == expected_triage["least_certainty"].keys()
    for part in triage:  # the Brier score alone: an image near a limit or a bin's edge may change sides
        for when, calibration in triage[part]["calibration"].items():
            expected_brier = expected_triage[part]["calibration"][when]["brier"]
            assert calibration["brier"] == pytest.approx(expected_brier, abs=5e-3)
    assert len(history) == len(expected_history)
    for row, expected_row in zip(history, expected_history, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-3)
    heads = [load_bundle(str(path)).model.tensors for path in (model, reference)]
    logits, expected_logits = (embeddings @ head["head.weight"].T + head["head.bias"] for head in heads)
    np.testing.assert_array_equal(logits.argmax(1), expected_logits.argmax(1))
    np.testing.assert_allclose(logits, expected_logits, atol=1e-2)
