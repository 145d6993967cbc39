"""Calibration figures against values worked out by hand, and the certainty that keeps a risk."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.metrics.calibration import (
    calibration_figures,
    fit_temperature,
    least_for_risk,
    risk_coverage,
    risk_interval,
)
from bcd_ray.model.network import softmax


def test_a_model_that_is_too_sure_is_found_out_and_mended() -> None:
    random = np.random.default_rng(0)
    true_logits = random.normal(0, 1.5, (4000, 4))
    labels = np.array([random.choice(4, p=row) for row in softmax(true_logits)])
    too_sure = 3 * true_logits
    temperature = fit_temperature(too_sure, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = (calibration_figures(softmax(each), labels) for each in (too_sure, too_sure / temperature))
    assert before["ece"] > 0.1
    assert after["ece"] < 0.03
    assert after["brier"] < before["brier"]


def test_figures_worked_out_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    figures = calibration_figures(probabilities, np.array([0, 1, 1, 0]))
    assert figures["ece"] == pytest.approx((2 * 0.4 + 1 * 0.4 + 1 * 0.0) / 4)
    assert figures["brier"] == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.16 + 0) / 4)
    assert [row["images"] for row in figures["reliability"]] == [1, 2, 1]


def test_the_least_certainty_for_a_risk_is_the_least_that_keeps_it() -> None:
    certainty = np.linspace(0.5, 1, 1000)
    correct = np.arange(1000) >= 100  # the 100 least sure are wrong: with 8 of them 9 of 909, with 9 of them 10 of 910
    # In one cluster, where every draw is the same, the bound on an image yet to come decides.
    assert least_for_risk(certainty, correct, np.zeros(1000, int), 0.01) == certainty[92]


def test_errors_that_come_together_raise_the_limit() -> None:
    certainty = np.tile(np.linspace(0.5, 1, 100), 20)
    correct = np.ones((20, 100), bool)
    correct[0, :20] = False  # one block of 20 has all the errors: 1 % of all
    blocks = np.repeat(np.arange(20), 100)
    together = least_for_risk(certainty, correct.ravel(), blocks, 0.011)
    apart = least_for_risk(certainty, correct.ravel(), np.arange(2000), 0.011)
    assert together is not None
    assert apart is not None
    assert together > apart


def least_in_one_cluster(certainty: Any, correct: Any, risk: float) -> float | None:
    return least_for_risk(certainty, correct, np.zeros(len(correct), int), risk)


def test_too_few_images_certify_nothing_and_reviewed_ones_do_not_count() -> None:
    assert least_in_one_cluster(np.full(98, 0.9), np.ones(98, bool), 0.01) is None
    assert least_in_one_cluster(np.full(99, 0.9), np.ones(99, bool), 0.01) == pytest.approx(0.9)
    certainty = np.r_[np.full(99, 0.9), np.full(50, -np.inf)]
    assert least_in_one_cluster(certainty, np.r_[np.ones(99, bool), np.zeros(50, bool)], 0.01) == pytest.approx(0.9)
    assert least_in_one_cluster(np.zeros(0), np.zeros(0, bool), 0.01) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 0.7, 0.9, 0.99]), st.booleans(), st.integers(0, 5)), min_size=1, max_size=300
    )
)
def test_the_bound_holds_whatever_comes_and_ties_are_kept_together(rows: list[tuple[float, bool, int]]) -> None:
    certainty, correct, clusters = (np.array(column) for column in zip(*rows, strict=True))
    least = least_for_risk(certainty, correct, clusters, 0.1)
    if least is not None:
        kept = certainty >= least
        assert ((~correct)[kept].sum() + 1) / (kept.sum() + 1) <= 0.1


def test_the_curve_ends_with_all_that_may_be_decided() -> None:
    curve = risk_coverage(np.array([0.9, -np.inf, 0.8, 0.7]), np.array([True, False, True, False]))
    assert curve == {"coverage": [0.25, 0.5, 0.75], "risk": [0.0, 0.0, pytest.approx(1 / 3)]}


def test_errors_that_come_together_widen_the_interval() -> None:
    correct = np.ones(1000, bool)
    correct[:20] = False
    decided = np.ones(1000, bool)
    together = risk_interval(decided, correct, np.arange(1000) // 50)["risk_interval"]
    apart = risk_interval(decided, correct, np.arange(1000))["risk_interval"]
    assert together[0] <= apart[0] < 0.02 < apart[1] < together[1]
    flawless = risk_interval(decided, np.ones(1000, bool), np.arange(1000) // 50)
    assert (flawless["risk"], flawless["risk_interval"]) == (0.0, None)
    nothing = risk_interval(~decided, correct, np.arange(1000))
    assert (nothing["coverage"], nothing["risk"], nothing["decided"]) == (0.0, None, 0)
