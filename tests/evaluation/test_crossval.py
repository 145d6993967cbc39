"""Cross-validation end to end on drawn smears, the label check on planted mistakes, and the command line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import IMAGES_PER_CLASS

from bcd_ray import storage
from bcd_ray.errors import ConfigError
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.evaluation.cross_validation import validate
from bcd_ray.evaluation.label_check import check_labels, disputed
from bcd_ray.evaluation.outputs import format_validation
from bcd_ray.labels import CLASSES
from bcd_ray.learning.audit import SHORTCUTS
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS, Reducer, neighbours_vote
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.metrics.spread import point_figures
from bcd_ray.reports.report import NOT_FOR_DIAGNOSIS, SYNTHETIC

IMAGES = 4 * IMAGES_PER_CLASS
PROTOCOLS = ("random", "blocked", "forward", "grouped")
_BY_DIGIT = {"split": ("grouped",), "group_pattern": r"\d\.jpg"}
NAMES = ["random", "blocked", "forward/first", "forward/last", "grouped"]


@pytest.fixture(scope="module")
def validated(
    ray_cluster: None, synthetic_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("validated") / "out"
    config = EvaluateConfig(
        data=str(synthetic_archive),
        output=str(output),
        cross_validate=True,
        split=PROTOCOLS,  # type: ignore[arg-type]
        folds=3,
        seeds=2,
        representation="field",
        augmented_views=0,
        block=3,
        embargo=1,
        group_pattern=r"\d\.jpg",  # the last digit, as if it named a slide
    )
    return validate(config), output


def test_what_is_written(validated: tuple[dict[str, Any], Path]) -> None:
    metrics, output = validated
    assert json.loads((output / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["synthetic"]
    assert list(metrics["protocols"]) == NAMES
    tables = {f"{name}.{suffix}" for name in ("predictions", "disputed_labels") for suffix in ("csv", "parquet")}
    matrices = {f"figures/confusion_matrix_{name.replace('/', '_')}.png" for name in NAMES}
    rest = {"metrics.json", "report.html", "figures/protocols.png", "figures/disputed_labels.png"}
    assert set(storage.list_names(str(output))) == tables | matrices | rest


def test_the_report_says_what_was_measured_on_a_page_that_loads_nothing(validated: tuple[dict[str, Any], Path]) -> None:
    metrics, output = validated
    page = (output / "report.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]{0,10})', page)) == {"data:image"}
    assert NOT_FOR_DIAGNOSIS in page
    assert SYNTHETIC in page
    for name, result in metrics["protocols"].items():
        value, (low, high) = result["pooled"]["macro_f1"]["value"], result["pooled"]["macro_f1"]["interval"]
        assert f"<td>{name}</td><td>{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})</td>" in page


def test_every_image_is_predicted_once_a_seed_and_the_figures_follow(validated: tuple[dict[str, Any], Path]) -> None:
    metrics, output = validated
    rows = pq.read_table(output / "predictions.parquet").to_pandas()
    for name, result in metrics["protocols"].items():
        of_seeds = []
        for seed in range(2):
            own = rows[(rows.protocol == name) & (rows.seed == seed)]
            assert own.image.is_unique
            assert len(own) == result["images"] == (IMAGES if "forward" not in name else 20)
            probabilities = own[[f"p_{each}" for each in CLASSES]].to_numpy()
            np.testing.assert_allclose(probabilities.sum(axis=1), 1)
            labels = np.array([CLASSES.index(each) for each in own.given_class])
            of_seeds.append(point_figures(labels, probabilities))
        for figure, found in result["pooled"].items():
            assert found["value"] == pytest.approx(np.mean([each[figure] for each in of_seeds]))
            low, high = found["interval"] or (0, 1)  # none where all draws are alike
            assert 0 <= low < high <= 1
        assert len(result["folds"]) == 2 * (1 if "forward" in name else 3)
        assert set(result["shortcuts"]) == set(SHORTCUTS)
        assert sum(map(sum, result["confusion_matrix_sum_over_seeds"])) == 2 * result["images"]
        triage = result["triage"]
        assert sum(each["images"] for each in triage["calibration"]["after"]["reliability"]) == result["images"]
        # No fold has 99 images for its limits: then nothing goes without review.
        assert triage["automatic"] | {"coverage": 0, "errors": 0, "risk": None} == triage["automatic"]
    assert "patients" not in metrics["protocols"]["grouped"]["protocol"].split(",")[0].replace("the patients", "")


def test_the_gap_between_random_and_blocked_is_stated(validated: tuple[dict[str, Any], Path]) -> None:
    metrics, _ = validated
    values = [metrics["protocols"][name]["pooled"]["macro_f1"]["value"] for name in ("random", "blocked")]
    assert metrics["gap"]["random_minus_blocked"]["macro_f1"]["value"] == pytest.approx(values[0] - values[1])
    text = format_validation(metrics)
    assert "random minus blocked, macro f1:" in text
    for name in NAMES:
        assert f"\n{name}  " in text
        assert f"\ntriage, {name}: 0.0 % of the images" in text


def test_each_slide_is_left_out(
    validated: tuple[dict[str, Any], Path], synthetic_archive: Path, ray_cluster: None, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        data=str(synthetic_archive),
        output=str(tmp_path / "out"),
        cross_validate=True,
        split=("random", "grouped"),
        folds=0,
        few_shot=(2,),
        representation="field",
        seeds=2,
        augmented_views=0,
        block=3,
        embargo=1,
        group_pattern=r"\d\.jpg",
    )
    metrics = validate(config)
    found = metrics["protocols"]["grouped"]
    assert [each["group"] for each in found["groups"]] == [f"{digit}.jpg" for digit in range(10)]
    shares = [each["recall"] for each in found["groups"]]
    assert found["mean_over_groups"]["recall"] == pytest.approx(np.mean(shares))
    assert found["always_trained_on"] == 0
    assert {each["group"] for each in found["folds"]} == {f"{digit}.jpg" for digit in range(10)}
    text = format_validation(metrics)
    assert "a group that was never seen, mean of 10: recall" in text
    assert "random minus grouped, accuracy:" in text
    never_seen = found["triage"]["never_seen"]
    assert never_seen["groups"].keys() == {each["group"] for each in found["groups"]}
    assert never_seen["images"] == sum(each["images"] for each in found["groups"])
    assert f"triage, groups that were never seen: 0 of {never_seen['images']} images are not sent to review" in text
    few = found["few_shot"]["2"]
    assert [each["group"] for each in few["groups"]] == [each["group"] for each in found["groups"]]
    assert all(
        0 < few_of["images"] <= of["images"] - 2 for few_of, of in zip(few["groups"], found["groups"], strict=True)
    )
    assert few["mean_over_groups"]["recall"] == pytest.approx(np.mean([each["recall"] for each in few["groups"]]))
    assert "with 2 of its images labelled and trained on, mean of 10, on the rest: recall" in text
    assert "On a group that was never seen" in (tmp_path / "out" / "report.html").read_text()


def test_planted_mistakes_are_disputed() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 50)
    probabilities = np.eye(4)[truth] * 0.85 + random.dirichlet(np.ones(4), 200) * 0.15
    given = truth.copy()
    wrong = [3, 60, 170]
    probabilities[wrong] = np.eye(4)[truth[wrong]] * 0.96 + 0.01
    given[wrong] = (truth[wrong] + 1) % 4
    assert np.flatnonzero(disputed(given, probabilities)).tolist() == wrong
    unsure = probabilities.copy()
    unsure[60] = 0.25  # of no class in particular: nothing to suggest
    runs = {"random": [probabilities], "blocked": [unsure], "forward": [np.full((200, 4), np.nan)]}
    table = check_labels([f"{number}.jpg" for number in range(200)], given, runs).to_pylist()
    assert [row["image"] for row in table[-1:]] == ["60.jpg"]
    assert {row["image"]: row["disputed_by"] for row in table} == {
        "3.jpg": "random, blocked",
        "170.jpg": "random, blocked",
        "60.jpg": "random",
    }
    assert {(row["given_class"], row["suggested_class"]) for row in table} == {
        (CLASSES[given[image]], CLASSES[truth[image]]) for image in wrong
    }


def test_nothing_disputed_is_an_empty_table_of_the_same_columns() -> None:
    labels = np.arange(4)
    table = check_labels(list("abcd"), labels, {"random": [np.eye(4)[labels]]})
    assert len(table) == 0
    assert table.schema == check_labels(list("abcd"), labels, {"random": [np.eye(4)[labels[::-1]]]}).schema


def test_neighbours_vote_the_same_in_any_order() -> None:
    random = np.random.default_rng(0)
    colours, labels = random.integers(200, 205, (400, 3)).astype(np.float32), random.integers(0, 4, 400)
    shares = neighbours_vote(colours[:300], labels[:300], colours[300:])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    order = random.permutation(300)
    np.testing.assert_allclose(neighbours_vote(colours[order], labels[order], colours[300:]), shares)
    own = neighbours_vote(colours[:8], np.arange(8) % 4, colours[:1])
    np.testing.assert_allclose(own, 1 / 4)  # of fewer than 15 all have a vote


@pytest.mark.parametrize("class_index", range(4))
def test_shortcuts_show_no_cell(class_index: int) -> None:
    smear = draw_smear(class_index, seed=3)
    reducer = Reducer(smear)
    background, corners, blanked = reducer.background, *(view(reducer) for view in SHORTCUT_VIEWS.values())
    for view in (corners, blanked):
        assert view.shape == smear.shape
        assert view.dtype == np.uint8
    assert smear[..., 1].min() < 120  # a nucleus takes up most green
    assert blanked[..., 1].min() > 0.9 * background[1]
    other = smear.copy()
    other[60:164, 60:164] = 0  # the middle is not looked at
    np.testing.assert_array_equal(Reducer(other).corners(), corners)
    np.testing.assert_allclose(Reducer(other).background, background, atol=2)  # of 255


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, "give either --model, to measure a model, or --cross-validate"),
        ({"model": "m", "cross_validate": True}, "give either --model"),
        ({"cross_validate": True, "spoil": True}, "--spoil goes with --model"),
        ({"model": "m", "folds": 3}, "--folds goes with --cross-validate"),
        ({"model": "m", "epochs": 9}, "--epochs goes with --cross-validate"),
        ({"cross_validate": True, "split": ("grouped",)}, "--split grouped needs --group-pattern or --group-table"),
        ({"cross_validate": True, "split": ()}, "--split names no protocol"),
        ({"cross_validate": True, "folds": 1}, "--folds must be at least 2, or 0"),
        ({"cross_validate": True, "few_shot": (5,)}, "--few-shot goes with --split grouped --folds 0"),
        ({"cross_validate": True, "few_shot": (0,), "folds": 0, **_BY_DIGIT}, "--few-shot must be at least 1"),
        ({"cross_validate": True, "group_pattern": "("}, "is no regular expression"),
        ({"cross_validate": True, "group_pattern": "a", "group_table": "b"}, "exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        EvaluateConfig(data="d", output="o", **options)
