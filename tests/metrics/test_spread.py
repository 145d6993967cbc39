"""Figures of merit under weights, held against plain counting, and what the bootstrap draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcd_ray.labels import CLASSES
from bcd_ray.learning.splits import Labels
from bcd_ray.metrics.classification import classification_metrics
from bcd_ray.metrics.spread import (
    RESAMPLES,
    SPECIFICITY,
    Floats,
    bootstrap,
    figures_of_merit,
    interval,
    point_figures,
    with_intervals,
)

untimed = settings(deadline=None)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Labels, Floats]:
    """Labels, and probabilities on a coarse grid, so that there are ties."""
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=2, max_size=40)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = random.integers(1, 4, (len(labels), 4)).astype(np.float64)
    return labels, raw / raw.sum(axis=1, keepdims=True)


@untimed
@given(predictions())
def test_plain_figures_agree_with_the_confusion_matrix(images: tuple[Labels, Floats]) -> None:
    labels, probabilities = images
    found = point_figures(labels, probabilities)
    wanted = classification_metrics(labels, probabilities.argmax(axis=1), CLASSES)
    assert found["accuracy"] == pytest.approx(wanted["accuracy"])
    assert found["balanced_accuracy"] == found["macro_recall"]
    for share in ("precision", "recall", "f1"):
        assert found[f"macro_{share}"] == pytest.approx(wanted["macro"][share])
        for name in CLASSES:
            assert found[f"{share}/{name}"] == pytest.approx(wanted["per_class"][name][share])


@untimed
@given(predictions())
def test_auroc_counts_pairs(images: tuple[Labels, Floats]) -> None:
    labels, probabilities = images
    found = point_figures(labels, probabilities)
    for label, name in enumerate(CLASSES):
        inside, outside = probabilities[labels == label, label], probabilities[labels != label, label]
        if not len(inside) or not len(outside):
            assert f"auroc/{name}" not in found
            continue
        above = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
        assert found[f"auroc/{name}"] == pytest.approx(above)


@untimed
@given(predictions())
def test_malignant_figures_count_benign_against_the_rest(images: tuple[Labels, Floats]) -> None:
    labels, probabilities = images
    found = point_figures(labels, probabilities)
    malignant, suggested = labels > 0, probabilities.argmax(axis=1) > 0
    if malignant.any():
        assert found["malignant_sensitivity"] == pytest.approx(suggested[malignant].mean())
    if not malignant.all():
        assert found["malignant_specificity"] == pytest.approx(1 - suggested[~malignant].mean())
    if malignant.any() and not malignant.all():
        scores = 1 - probabilities[:, 0]
        allowed = [t for t in [*scores, np.inf] if (scores[~malignant] < t).mean() >= SPECIFICITY]
        best = max((scores[malignant] >= threshold).mean() for threshold in allowed)
        assert found["sensitivity_at_specificity"] == pytest.approx(best)


@untimed
@given(predictions(), st.data())
def test_a_weight_counts_as_so_many_copies(images: tuple[Labels, Floats], data: st.DataObject) -> None:
    labels, probabilities = images
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    if not counts.any():
        counts[0] = 1
    weighted = figures_of_merit(labels, probabilities, counts[None].astype(np.float64))
    copied = figures_of_merit(labels.repeat(counts), probabilities.repeat(counts, axis=0), np.ones((1, counts.sum())))
    for name, values in weighted.items():
        np.testing.assert_allclose(values, copied[name], err_msg=name)


def noisy(size: int, clusters: int) -> tuple[Labels, Floats, Labels]:
    """Four classes; all images of a cluster are right or wrong together."""
    random = np.random.default_rng(0)
    labels, member = np.repeat(np.arange(4), size), np.arange(4 * size) // (size // clusters)
    right = random.random(4 * clusters) < 0.8
    predicted = np.where(right[member], labels, (labels + 1) % 4)
    return labels, np.eye(4)[predicted] * 0.9 + 0.025, member


def test_intervals_hold_the_figure_and_widen_with_clusters() -> None:
    labels, probabilities, member = noisy(400, 20)
    by_image = bootstrap(labels, [probabilities], np.arange(len(labels)))
    by_cluster = bootstrap(labels, [probabilities], member)
    assert {len(values) for values in by_cluster.values()} == {RESAMPLES}
    widths = []
    for draws in (by_image, by_cluster):
        found = with_intervals(point_figures(labels, probabilities), draws)["accuracy"]
        low, high = found["interval"] or [0, 0]
        assert low < found["value"] < high
        widths.append(high - low)
    # 80 clusters of 20 images that stand or fall together: wider by the square root of 20.
    assert widths[1] == pytest.approx(20**0.5 * widths[0], rel=0.2)


def test_draws_repeat_and_pair() -> None:
    labels, probabilities, member = noisy(100, 10)
    first, again = (bootstrap(labels, [probabilities], member)["accuracy"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    worse = np.roll(probabilities, 1, axis=1)
    two = bootstrap(labels, [probabilities, worse], member)["accuracy"]
    np.testing.assert_allclose(two, (first + bootstrap(labels, [worse], member)["accuracy"]) / 2)


def test_every_class_keeps_its_number_of_clusters() -> None:
    """A class of one cluster is in every draw, so that no figure is ever undefined."""
    labels = np.repeat(np.arange(4), [40, 40, 40, 4])
    member = np.r_[np.arange(120) // 10, [12] * 4]
    draws = bootstrap(labels, [np.eye(4)[labels]], member)
    assert all(not np.isnan(values).any() for values in draws.values())
    assert interval(draws["macro_f1"]) is None  # of no error nobody can tell how many another sample would have
