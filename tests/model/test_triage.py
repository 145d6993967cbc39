"""Triage: what is sent to review and why, from embeddings whose truth is known, and from photographs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bcd_ray.errors import ConfigError
from bcd_ray.learning.embedding import Embeddings
from bcd_ray.learning.head import FitConfig
from bcd_ray.learning.splits import Layout, Rules
from bcd_ray.learning.thresholds import CLASS_RISKS, RISK, class_limits, fit_triage
from bcd_ray.model.bundle import compared_size, load_bundle, pretrained, save_bundle
from bcd_ray.model.quality import MEASURES
from bcd_ray.model.triage import DIRECTIONS, Triage, certainty, decide, fit_distance, least_certainty

COUNT = 400
CONFIG = FitConfig(epochs=2, learning_rate=0.003, label_smoothing=0.0, batch_size=32, workers=0, seed=0)


def made_up(count: int, seed: int, spread: float = 0.3) -> tuple[Embeddings, npt.NDArray[np.int64]]:
    """Embeddings (count, 1280) of four classes in 20 directions, and their classes, one after the other."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), count // 4)
    centres = np.random.default_rng(99).normal(size=(4, 20))
    inner = centres[labels] + spread * random.normal(size=(count, 20))
    directions = np.random.default_rng(98).normal(size=(20, 1280)) / 20
    return np.abs(inner @ directions + 1 + 0.01 * random.normal(size=(count, 1280))).astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted() -> tuple[Triage, dict[str, Any]]:
    embeddings, labels = made_up(COUNT, seed=0)
    layout = Layout(labels, np.tile(np.arange(COUNT // 4), 4), np.arange(COUNT))
    quality = np.random.default_rng(1).uniform(1, 2, (COUNT, len(MEASURES))).astype(np.float32)
    return fit_triage(embeddings[None], quality, layout, Rules("blocked", 40, 10), CONFIG)


def test_images_are_compared_by_what_a_model_says_of_cells() -> None:
    """Of `both` the numbers behind are of the whole field, which says first of all which day it was taken."""
    embeddings, labels = made_up(COUNT, seed=0)
    layout = Layout(labels, np.tile(np.arange(COUNT // 4), 4), np.arange(COUNT))
    quality, config = np.ones((COUNT, len(MEASURES)), np.float32), replace(CONFIG, compared=compared_size("both"))
    triage, _ = fit_triage(embeddings[None], quality, layout, Rules("blocked", 40, 10), config)
    another_day = embeddings.copy()
    another_day[:, compared_size("both") :] = np.random.default_rng(7).uniform(0, 2, (COUNT, 1280 - 552))
    np.testing.assert_array_equal(triage.model.distances(another_day), triage.model.distances(embeddings))
    assert (triage.model.distances(embeddings).argmin(axis=1) == labels).mean() > 0.95


def logits_for(labels: npt.NDArray[np.int64], strength: float) -> npt.NDArray[np.float32]:
    return (strength * np.eye(4)[labels]).astype(np.float32)


def test_each_reason_is_given_for_what_it_is_meant_for(fitted: tuple[Triage, dict[str, Any]]) -> None:
    triage, _ = fitted
    embeddings, labels = made_up(40, seed=5)
    good = np.full((40, len(MEASURES)), 1.5)
    fine = triage.decide(embeddings, logits_for(labels, 40), good)
    assert fine.reasons.any(axis=1).mean() < 0.1
    assert (fine.ood_score < 1.2).all()
    unsure = triage.decide(embeddings, logits_for(labels, 0.1), good)
    assert all("low_confidence" in names for names in unsure.reason_names())
    strange = np.random.default_rng(6).uniform(0, 2, embeddings.shape).astype(np.float32)
    far = triage.decide(strange, logits_for(labels, 40), good)
    assert all("out_of_distribution" in names for names in far.reason_names())
    poor = triage.decide(embeddings, logits_for(labels, 40), good + 5)
    assert all("poor_quality" in names for names in poor.reason_names())
    other = triage.decide(embeddings, logits_for((labels + 1) % 4, 40), good)
    assert all("conflicting_evidence" in names for names in other.reason_names())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["one embedding", "embeddings", "one logit", "logits", "one measure", "measures"])
def test_what_is_not_finite_goes_to_review(fitted: tuple[Triage, dict[str, Any]], place: str, value: float) -> None:
    triage, _ = fitted
    embeddings, labels = made_up(40, seed=5)
    logits, measures = logits_for(labels, 40), np.full((40, len(MEASURES)), 1.5)
    given = {"embedding": embeddings, "logit": logits, "measure": measures}[place.removeprefix("one ").rstrip("s")]
    given[:, 1 if place.startswith("one") else slice(None)] = value
    with np.errstate(invalid="ignore"):
        found = triage.decide(embeddings, logits, measures)
    assert found.reasons.any(axis=1).all()
    assert all(found.reason_names())


@pytest.mark.parametrize("name", ["temperature", "certainty", "distance", "quality"])
def test_a_limit_that_is_no_number_lets_nothing_pass(fitted: tuple[Triage, dict[str, Any]], name: str) -> None:
    triage, _ = fitted
    embeddings, labels = made_up(40, seed=5)
    broken = dict.fromkeys(MEASURES, (np.nan, np.nan)) if name == "quality" else np.nan
    found = Triage(triage.model, {**triage.settings, name: broken}).decide(
        embeddings, logits_for(labels, 40), np.full((40, len(MEASURES)), 1.5)
    )
    assert found.reasons.any(axis=1).all()


def test_certainty_is_probability_times_how_clearly_the_class_is_the_nearest() -> None:
    probabilities = np.array([[0.8, 0.2, 0, 0], [0.8, 0.2, 0, 0], [0.4, 0.6, 0, 0]])
    distances = np.array([[1.0, 4, 9, 9], [4, 1, 9, 9], [3, 2, 9, 9]])
    np.testing.assert_allclose(certainty(probabilities, distances), [0.8 * 0.75, 0, 0.6 / 3])
    np.testing.assert_array_equal(distances[0], [1, 4, 9, 9])  # it is left as it was


def test_probabilities_are_calibrated_and_keep_the_predicted_class(fitted: tuple[Triage, dict[str, Any]]) -> None:
    triage, _ = fitted
    embeddings, _ = made_up(8, seed=5)
    logits = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
    found = triage.decide(embeddings, logits, np.full((8, len(MEASURES)), 1.5)).probabilities
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found.argmax(axis=1), logits.argmax(axis=1))
    ratio = np.log(found[:, 0] / found[:, 1])
    np.testing.assert_allclose(ratio * triage.settings["temperature"], logits[:, 0] - logits[:, 1], atol=1e-5)


def test_the_limits_keep_the_risk_on_the_images_they_were_chosen_on(fitted: tuple[Triage, dict[str, Any]]) -> None:
    triage, figures = fitted
    assert figures["automatic"]["risk"] <= RISK
    assert figures["automatic"]["coverage"] > 0.7
    assert figures["automatic"]["decided"] > 99
    assert figures["reasons"]["out_of_distribution"] == pytest.approx(0.01 * COUNT, abs=1)
    json.dumps([triage.settings, figures])


def test_few_images_send_everything_to_review() -> None:
    embeddings, labels = made_up(16, seed=0)
    layout = Layout(labels, np.tile(np.arange(4), 4), np.arange(16))
    triage, figures = fit_triage(
        embeddings[None], np.ones((16, len(MEASURES))), layout, Rules("random", 100, 40), CONFIG
    )
    assert set(triage.least_certainty.values()) == {None}
    assert figures["automatic"]["decided"] == 0
    found = triage.decide(embeddings, logits_for(labels, 40), np.ones((16, len(MEASURES))))
    assert found.reasons[:, 0].all()


@pytest.mark.parametrize("images", [40, 200, 1400])
def test_the_distance_is_that_of_the_whole_covariance(images: int) -> None:
    """Against the inverse of the covariance, the same small variance in all directions but the largest."""
    embeddings, labels = made_up(images, seed=2)
    model = fit_distance(embeddings, labels, 4)
    assert np.linalg.eigvalsh(model.precision * np.eye(1280) - model.factor.astype(float).T @ model.factor).min() > 0
    scaled = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).astype(float)
    means = np.stack([scaled[labels == label].mean(axis=0) for label in range(4)])
    within = scaled - means[labels]
    variances, directions = np.linalg.eigh(within.T @ within / images)
    kept = min(DIRECTIONS, images // 4)
    variances[:-kept] = variances[:-kept].mean()
    precision = directions / variances @ directions.T
    apart = scaled[:5, None] - means
    expected = np.sqrt(np.einsum("nci,ij,ncj->nc", apart, precision, apart))
    np.testing.assert_allclose(model.distances(embeddings[:5]), expected, rtol=1e-3)


def test_a_bundle_keeps_its_triage(tmp_path: Path, fitted: tuple[Triage, dict[str, Any]]) -> None:
    triage, _ = fitted
    save_bundle(str(tmp_path), pretrained("keras"), triage, {}, {})
    found = load_bundle(str(tmp_path))
    embeddings, labels = made_up(12, seed=7)
    given = embeddings, logits_for(labels, 3), np.full((12, len(MEASURES)), 1.5)
    for before, after in zip(triage.decide(*given), found.triage.decide(*given), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not [name for name in found.model.tensors if name.startswith("triage")]


def test_a_bundle_from_before_triage_is_refused_with_the_remedy(tmp_path: Path) -> None:
    import hashlib

    save_bundle(str(tmp_path), pretrained("keras"), Triage.without_limits(1280), {}, {})
    facts = json.loads((tmp_path / "model.json").read_text()) | {"format": 1}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    names = ("model.safetensors", "model.json")
    digests = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (tmp_path / "model.sha256").write_text("".join(digests))
    with pytest.raises(ConfigError, match="train anew"):
        load_bundle(str(tmp_path))


def test_each_suggested_class_has_a_limit_of_its_own_and_benign_the_strictest() -> None:
    """Of 2,000 suggestions of each class 1 %, the least sure, are wrong: too many for benign, not for pre-B."""
    suggested, place = np.repeat(np.arange(4), 2000), np.tile(np.arange(2000), 4)
    certainty = place / 2000 + 0.01
    wrong = np.isin(suggested, (0, 2)) & (place < 20)
    labels = np.where(wrong, 3 - suggested, suggested)
    limits = class_limits(certainty, suggested, labels, 20 * suggested + place % 20)
    assert CLASS_RISKS["benign"] == min(CLASS_RISKS.values())
    assert limits[0] == pytest.approx(0.015, abs=0.006)
    assert limits[1:] == [0.01] * 3


def test_a_class_that_is_mostly_wrong_costs_the_others_nothing() -> None:
    suggested, place = np.repeat(np.arange(4), 500), np.tile(np.arange(500), 4)
    labels = np.where(suggested == 2, 1, suggested)
    limits = class_limits((place + 1) / 500, suggested, labels, 20 * suggested + place % 20)
    assert limits == [0.002, 0.002, None, 0.002]
    never = class_limits((place + 1) / 500, np.where(suggested == 0, 1, suggested), labels, 20 * suggested + place % 20)
    assert never[0] is None  # nothing is known of a class that was never suggested


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"certainty": [0.1, None, 0.3, float("nan")]}, [0.1, np.inf, 0.3, np.nan]),
        ({"certainty": 0.2}, [0.2] * 4),  # of an earlier release
        ({"certainty": None}, [np.inf] * 4),
        ({"certainty": [0.1]}, [0.1, np.inf, np.inf, np.inf]),
        ({}, [np.inf] * 4),
    ],
)
def test_what_is_missing_of_the_limits_sends_to_review(settings: dict[str, Any], limits: list[float]) -> None:
    np.testing.assert_array_equal(least_certainty(settings), limits)
    others = {"temperature": 1.0, "distance": 9.0, "quality": {}}
    distances, logits = np.where(np.eye(4) == 1, 1.0, 8.0), 40 * np.eye(4)
    decisions = decide(others | settings, distances, logits, np.ones((4, len(MEASURES))))
    sent = [bool(names) for names in decisions.reason_names()]
    assert sent == [not limit <= 0.9 for limit in limits]
