"""What every protocol keeps, for any labels, order, near duplicates and groups."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bcd_ray.errors import ConfigError, JobError
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.evaluation.cross_validation import validate
from bcd_ray.learning.config import Protocol, TrainConfig
from bcd_ray.learning.job import train
from bcd_ray.learning.splits import Fold, Layout, Rules, blocks, clusters, cross_validate, few_shot, hold_out, lone
from bcd_ray.learning.thresholds import inner_folds

PROTOCOLS: tuple[Protocol, ...] = ("random", "blocked", "forward", "grouped")


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Up to 120 images in any order of the list; ties and groups may cross classes."""
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=8, max_size=120)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    order = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        order[labels == label] = random.permutation(int((labels == label).sum()))
    first = random.integers(0, len(labels), len(labels))
    tied = random.random(len(labels)) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    ties = np.where(tied, first, np.arange(len(labels)))
    ties[ties[ties] != ties] = np.flatnonzero(ties[ties] != ties)  # a group is named by a member of it
    return Layout(labels, order, ties, random.integers(0, draw(st.integers(2, 40)), len(labels)))


rules = st.builds(Rules, st.sampled_from(PROTOCOLS), st.integers(1, 30), st.integers(0, 10))
untimed = settings(deadline=None)
fractions, seeds = st.floats(0.05, 0.9), st.integers(0, 2**32)


def assert_apart(layout: Layout, rule: Rules, fold: Fold) -> None:
    """No image in both parts, no near duplicate across, the embargo kept, groups whole; no other image is left out."""
    assert not (fold.train & fold.test).any()
    assert not set(layout.ties[fold.train]) & set(layout.ties[fold.test])
    numbered = np.full(len(layout.labels), rule.protocol in ("blocked", "forward"))
    if rule.protocol == "grouped":
        assert layout.groups is not None
        numbered = lone(layout)  # cut in two
        assert not set(layout.groups[fold.train & ~numbered]) & set(layout.groups[fold.test])
    tested = [(layout.labels[i], layout.order[i]) for i in np.flatnonzero(fold.test & numbered)]
    embargo = rule.embargo
    for image in np.flatnonzero(~fold.test):
        places = [abs(order - layout.order[image]) for label, order in tested if label == layout.labels[image]]
        near = bool(embargo) and min(places, default=embargo + 1) <= embargo
        tied = layout.ties[image] in layout.ties[fold.test]
        assert fold.train[image] == (not near and not tied)


@untimed
@given(layouts(), rules, fractions, seeds)
def test_a_held_out_part_is_apart(layout: Layout, rule: Rules, fraction: float, seed: int) -> None:
    fold = hold_out(layout, rule, fraction, seed)
    assert fold.train.shape == fold.test.shape == layout.labels.shape
    assert_apart(layout, rule, fold)
    np.testing.assert_array_equal(hold_out(layout, rule, fraction, seed).test, fold.test)


@untimed
@given(layouts(), rules, st.integers(2, 4), seeds)
def test_folds_are_apart_and_test_every_image_once(layout: Layout, rule: Rules, folds: int, seed: int) -> None:
    try:
        found = cross_validate(layout, rule, folds, 0.3, seed)
    except ConfigError:
        assume(False)  # a class has too few units
    for fold in found:
        assert_apart(layout, rule, fold)
    if rule.protocol != "forward":
        assert len(found) == folds
        assert (np.sum([fold.test for fold in found], axis=0) == 1).all()


@untimed
@given(layouts(), rules, fractions, seeds)
def test_a_split_within_a_part_stays_in_it(layout: Layout, rule: Rules, fraction: float, seed: int) -> None:
    outer = hold_out(layout, rule, 0.4, seed)
    assume(outer.train.any())
    inner = hold_out(layout.of(outer.train), rule, fraction, seed).within(outer.train)
    assert not ((inner.train | inner.test) & ~outer.train).any()
    assert not (inner.train & inner.test).any()


@untimed
@given(layouts(), st.integers(1, 50))
def test_blocks_are_runs_of_file_numbers_of_one_class(layout: Layout, length: int) -> None:
    numbers = blocks(layout, length)
    for number in np.unique(numbers):
        members = numbers == number
        (label,) = set(layout.labels[members])
        order = np.sort(layout.order[members])
        assert order.tolist() == list(range(order[0], order[0] + len(order)))
        assert len(order) <= length
        of_class = numbers[layout.labels == label]
        sizes = Counter(of_class.tolist()).values()
        assert max(sizes) - min(sizes) <= 1


LABELS = np.repeat(np.arange(4), [100, 200, 150, 50])
PLAIN = Layout(LABELS, np.concatenate([np.arange(n) for n in (100, 200, 150, 50)]), np.arange(500))


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_each_class_gives_its_share(fraction: float) -> None:
    for protocol in ("random", "forward"):
        test = hold_out(PLAIN, Rules(protocol, 10, 5), fraction, seed=0).test  # type: ignore[arg-type]
        wanted = [round(fraction * size) for size in (100, 200, 150, 50)]
        assert [int(test[label == LABELS].sum()) for label in range(4)] == wanted
    test = hold_out(PLAIN, Rules("blocked", 10, 5), fraction, seed=0).test
    assert all(abs(test[label == LABELS].mean() - fraction) <= 10 / (label == LABELS).sum() for label in range(4))


def test_forward_tests_the_ends_of_the_file_numbers() -> None:
    rule = Rules("forward", 10, 5)
    first, last = cross_validate(PLAIN, rule, folds=5, fraction=0.3, seed=0)
    for label, size in enumerate((100, 200, 150, 50)):
        of_class = label == LABELS
        third = round(0.3 * size)
        assert PLAIN.order[of_class & first.test].max() == third - 1
        assert PLAIN.order[of_class & first.train].min() == third + 5
        assert PLAIN.order[of_class & last.test].min() == size - third
    np.testing.assert_array_equal(hold_out(PLAIN, rule, 0.3, seed=9).test, first.test)


def test_folds_are_stratified() -> None:
    for rule in (Rules("random", 10, 0), Rules("blocked", 10, 5)):
        for fold in cross_validate(PLAIN, rule, folds=5, fraction=0.3, seed=1):
            assert np.bincount(LABELS[fold.test]).tolist() == [20, 40, 30, 10]


def test_blocks_are_dealt_to_the_folds_in_turn() -> None:
    rule = Rules("blocked", 10, 2)
    for seed in range(3):
        folds = cross_validate(PLAIN, rule, folds=4, fraction=0.3, seed=seed)
        fold_of_image = np.argmax([fold.test for fold in folds], axis=0)
        numbers = blocks(PLAIN, rule.block)
        for label in range(4):
            of_block = [fold_of_image[numbers == number][0] for number in np.unique(numbers[label == LABELS])]
            assert of_block == [(of_block[0] + number) % 4 for number in range(len(of_block))]


def test_the_seed_and_it_alone_decides() -> None:
    rule = Rules("random", 10, 5)
    first = hold_out(PLAIN, rule, 0.3, seed=0).test
    np.random.seed(5)  # the global state must not matter
    np.testing.assert_array_equal(hold_out(PLAIN, rule, 0.3, seed=0).test, first)
    assert (hold_out(PLAIN, rule, 0.3, seed=1).test != first).any()


def test_groups_that_nobody_gave_are_not_made_up() -> None:
    with pytest.raises(ConfigError, match="needs --group-pattern or --group-table"):
        hold_out(PLAIN, Rules("grouped", 10, 5), 0.3, seed=0)


def test_too_few_blocks_for_the_folds_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--folds 5: benign has only 1 block of the blocked.*lower --folds or --block"
    ):
        cross_validate(PLAIN, Rules("blocked", 100, 5), folds=5, fraction=0.3, seed=0)
    groups = np.arange(500) % 3
    with pytest.raises(ConfigError, match=r"only 3 groups .*: lower --folds, or leave out each .* with --folds 0$"):
        cross_validate(Layout(LABELS, PLAIN.order, PLAIN.ties, groups), Rules("grouped", 100, 5), 5, 0.3, 0)


def test_each_group_is_left_out_in_turn() -> None:
    """Of sittings: two of each class but the last, which has one and is cut; a third of few images is trained on."""
    sizes = {
        "a": (0, 60),
        "b": (0, 40),
        "c": (1, 100),
        "d": (1, 88),
        "e": (1, 12),
        "f": (2, 90),
        "g": (2, 60),
        "h": (3, 50),
    }
    groups = np.repeat(np.arange(8), [size for _, size in sizes.values()])
    layout = Layout(LABELS, PLAIN.order, PLAIN.ties, groups, tuple(sizes))
    folds = cross_validate(layout, Rules("grouped", 10, 5), folds=0, fraction=0.3, seed=0)
    assert [(fold.group, fold.cut) for fold in folds] == [
        *((name, False) for name in "abcdfg"),
        *[("h", True)] * 2,
    ]
    for fold in folds[:6]:
        assert (fold.test == (groups == list(sizes).index(fold.group))).all()
        assert (fold.train == ~fold.test).all()
    first, last = folds[6:]
    assert PLAIN.order[first.test].tolist() == list(range(25))
    assert PLAIN.order[first.train & (groups == 7)].tolist() == list(range(30, 50))  # but for the embargo
    assert PLAIN.order[last.test].tolist() == list(range(25, 50))


@untimed
@given(layouts(), st.integers(1, 5), seeds)
def test_a_few_of_a_group_are_trained_on_and_the_rest_is_tested(layout: Layout, count: int, seed: int) -> None:
    for fold in cross_validate(layout, Rules("grouped", 10, 3), 0, 0.3, 0):
        try:
            found = few_shot(layout, fold, count, seed)
        except ConfigError:
            assert fold.test.sum() < 2 * count
            continue
        drawn = found.train & ~fold.train
        assert drawn.sum() == count
        assert fold.test[drawn].all()
        assert not set(layout.ties[found.train]) & set(layout.ties[found.test])
        np.testing.assert_array_equal(found.test, fold.test & ~np.isin(layout.ties, layout.ties[drawn]))


def test_limits_of_triage_never_come_from_images_by_chance() -> None:
    rule = Rules("random", 100, 40)
    for fold in inner_folds(PLAIN, rule, 0):
        numbers = blocks(PLAIN, 10)  # a fifth of the smallest class
        assert not set(numbers[fold.train]) & set(numbers[fold.test])


COMMON = {"augmented_views": 0, "cache": "", "allow_missing_classes": True}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, r"--folds 5: benign has only 1 block of the blocked protocol: lower --folds or --block"),
        ({"folds": 13, "split": ("random",)}, r"--folds 13: benign has only 12 images .*: lower --folds$"),
        (
            {"folds": 3, "block": 2},
            r"--split blocked leaves no image of benign, pre_b for the training part: add images, or lower --embargo$",
        ),
        (
            {"split": ("forward",)},
            r"--split forward .* training part: add images, or lower --test-fraction, or lower --embargo$",
        ),
        ({"split": ("forward",), "test_fraction": 0.01}, r"leaves no image .* test part: .* raise --test-fraction"),
    ],
)
def test_what_cannot_be_cross_validated_is_told_before_an_image_is_read(
    unreadable: Path, options: dict[str, Any], problem: str
) -> None:
    config = EvaluateConfig(str(unreadable), str(unreadable / "out"), cross_validate=True, **COMMON, **options)
    with pytest.raises(ConfigError, match=problem):
        validate(config)


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        (
            {"split": "blocked"},
            ConfigError,
            r"for the test part: add images, or raise --test-fraction, or lower --block$",
        ),
        (
            {"split": "forward"},
            ConfigError,
            r"for the training part: add images, or lower --test-fraction, or lower --embargo$",
        ),
        ({"test_fraction": 0.01}, ConfigError, r"for the test part: add images, or raise --test-fraction$"),
        ({"holdout": "validation", "test_fraction": 0.8}, ConfigError, r"for the validation part: add images"),
        ({"split": "grouped", "group_pattern": "jpg"}, ConfigError, r"for the test part: add groups, or raise"),
        ({"test_fraction": 0.9}, JobError, r"a class has too few training images, .* triage: add images"),
    ],
)
def test_what_cannot_be_trained_on_is_told_before_an_image_is_read(
    unreadable: Path, options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        train(TrainConfig(str(unreadable), str(unreadable / "out"), **COMMON, **options))


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """Two classes of 12 empty files each: who reads them first says that there are too few readable images."""
    for name in ("Benign", "Pre"):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.jpg").touch()
    return tmp_path


def test_the_bootstrap_draws_groups_where_they_are_known() -> None:
    groups = np.arange(500) // 7
    np.testing.assert_array_equal(clusters(Layout(LABELS, PLAIN.order, PLAIN.ties, groups), 10), groups)
    np.testing.assert_array_equal(clusters(PLAIN, 10), blocks(PLAIN, 10))
