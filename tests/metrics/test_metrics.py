"""The figures of merit, against counts made by hand and properties that hold for any predictions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.metrics.classification import IntArray, classification_metrics, confusion_matrix, format_metrics

NAMES = ["benign", "early_pre_b", "pre_b", "pro_b"]
TRUE = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
PREDICTED = np.array([0, 0, 1, 1, 1, 2, 2, 1, 3, 3])

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def split(images: list[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    true, predicted = np.array(images).T
    return true, predicted


def test_rows_of_the_confusion_matrix_are_true_and_columns_predicted() -> None:
    assert confusion_matrix(TRUE, PREDICTED, 4).tolist() == [
        [2, 1, 0, 0],
        [0, 2, 0, 0],
        [0, 1, 2, 1],
        [0, 0, 0, 1],
    ]


def test_labels_in_a_small_integer_type_do_not_overflow() -> None:
    labels = np.arange(20, dtype=np.uint8)  # 19 * 20 + 19 is past 255
    assert confusion_matrix(labels, labels, 20).tolist() == np.eye(20).tolist()


def test_worked_example() -> None:
    metrics = classification_metrics(TRUE, PREDICTED, NAMES)
    assert metrics["images"] == 10
    assert metrics["accuracy"] == pytest.approx(7 / 10)
    assert metrics["per_class"]["benign"] == pytest.approx(
        {"precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "support": 3}
    )
    assert metrics["per_class"]["early_pre_b"] == pytest.approx(
        {"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "support": 2}
    )
    assert metrics["macro"] == pytest.approx(
        {
            "precision": (1 + 1 / 2 + 1 + 1 / 2) / 4,
            "recall": (2 / 3 + 1 + 1 / 2 + 1) / 4,
            "f1": (4 / 5 + 2 / 3 + 2 / 3 + 2 / 3) / 4,
        }
    )


def test_class_never_predicted_has_precision_zero() -> None:
    metrics = classification_metrics(np.array([0, 1]), np.array([0, 0]), ["a", "b"])
    assert metrics["per_class"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert metrics["macro"]["precision"] == pytest.approx((1 / 2 + 0) / 2)


def test_class_without_images_is_left_out_of_the_macro_mean_only() -> None:
    metrics = classification_metrics(np.array([0, 0, 1]), np.array([0, 2, 1]), ["a", "b", "c"])
    assert metrics["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert metrics["per_class"]["a"]["recall"] == pytest.approx(1 / 2)
    assert metrics["macro"]["recall"] == pytest.approx((1 / 2 + 1) / 2)


@given(pairs)
def test_every_share_agrees_with_counting_image_by_image(images: list[tuple[int, int]]) -> None:
    metrics = classification_metrics(*split(images), NAMES)
    assert metrics["accuracy"] == pytest.approx(sum(t == p for t, p in images) / len(images))
    for index, name in enumerate(NAMES):
        found = sum(t == p == index for t, p in images)
        missed = sum(t == index != p for t, p in images)
        mistaken = sum(p == index != t for t, p in images)
        precision = found / (found + mistaken) if found + mistaken else 0.0
        recall = found / (found + missed) if found + missed else 0.0
        f1 = 2 * precision * recall / (precision + recall) if found else 0.0
        assert metrics["per_class"][name] == pytest.approx(
            {"precision": precision, "recall": recall, "f1": f1, "support": found + missed}
        )


@given(pairs)
def test_totals_follow_from_the_parts(images: list[tuple[int, int]]) -> None:
    metrics = classification_metrics(*split(images), NAMES)
    matrix = np.array(metrics["confusion_matrix"])
    assert matrix.sum() == metrics["images"] == len(images)
    assert metrics["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
    present = [row for row in metrics["per_class"].values() if row["support"]]
    for share in ("precision", "recall", "f1"):
        assert metrics["macro"][share] == pytest.approx(np.mean([row[share] for row in present]))
        assert all(0 <= row[share] <= 1 for row in [metrics["macro"], *metrics["per_class"].values()])


@given(pairs, st.permutations(range(4)))
def test_the_order_of_the_classes_changes_no_figure(images: list[tuple[int, int]], order: list[int]) -> None:
    true, predicted = split(images)
    before = classification_metrics(true, predicted, NAMES)
    new_index = np.argsort(order)
    after = classification_metrics(new_index[true], new_index[predicted], [NAMES[i] for i in order])
    assert after["per_class"] == before["per_class"]
    assert after["accuracy"] == before["accuracy"]
    assert after["macro"] == pytest.approx(before["macro"])


@given(pairs)
def test_metrics_survive_json(images: list[tuple[int, int]]) -> None:
    metrics = classification_metrics(*split(images), NAMES)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
    ("true", "predicted", "remedy"),
    [
        (np.array([], dtype=int), np.array([], dtype=int), "check that the evaluated part"),
        (np.array([0, 1]), np.array([0]), "one entry per image"),
        (np.array([[0, 1]]), np.array([[0, 1]]), "one-dimensional"),
        (np.array([0, 4]), np.array([0, 1]), "between 0 and 3"),
        (np.array([0, 1]), np.array([0, -1]), "between 0 and 3"),
        (np.array([0, 1]), np.array([0.2, 0.8]), "argmax"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(true: IntArray, predicted: IntArray, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        classification_metrics(true, predicted, NAMES)


def test_terminal_table_has_an_overall_line_and_a_row_per_class() -> None:
    overall, heading, *rows = format_metrics(classification_metrics(TRUE, PREDICTED, NAMES)).splitlines()
    assert overall.startswith("10 images: accuracy 70.0%, macro precision 75.0%, recall 79.2%, F1 70.0%")
    assert heading.split() == ["class", "precision", "recall", "F1", "support"]
    assert [row.split() for row in rows] == [
        ["benign", "100.0%", "66.7%", "80.0%", "3"],
        ["early_pre_b", "50.0%", "100.0%", "66.7%", "2"],
        ["pre_b", "100.0%", "50.0%", "66.7%", "4"],
        ["pro_b", "50.0%", "100.0%", "66.7%", "1"],
    ]
    assert len({len(line) for line in [heading, *rows]}) == 1


@pytest.mark.parametrize(
    ("interval", "line"),
    [
        ([0.5, 0.9], "in %, with 95 % intervals over blocks or groups: accuracy 70.0 (50.0 to 90.0)"),
        (None, "in %, without intervals (one block a class, or no error): accuracy 70.0"),
    ],
)
def test_intervals_have_a_line_in_the_terminal(interval: list[float] | None, line: str) -> None:
    with_intervals = {"accuracy": {"value": 0.7, "interval": interval}}
    metrics = {**classification_metrics(TRUE, PREDICTED, NAMES), "with_intervals": with_intervals}
    assert format_metrics(metrics).splitlines()[1] == line
