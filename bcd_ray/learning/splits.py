"""Protocols: which images are trained on, which are tested on, and which are left out so that the two are apart.

Pure functions of labels, the order of file numbers, and groups. All protocols keep a training image away from the test
where it has a duplicate or near duplicate there:

- `random`: images by chance, stratified, near duplicates whole. The paper's; every day stands on both sides.
- `blocked`: whole runs of the file numbers of a class; an embargo leaves out the numbers just before and after
  (as for time series: M. Lopez de Prado, "Advances in Financial Machine Learning", 2018, chapter 7). Numbers
  that follow the time of capture keep days apart; an alphabetical order of older names, say, keeps nothing apart.
- `forward`: one end of the file numbers of each class, with the same embargo and the same condition.
- `grouped`: whole groups, such as patients, slides or sittings at the microscope. No other split is one of these. The
  group of a class that has no other is cut in two by file numbers, with the embargo; see `lone`.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bcd_ray.errors import ConfigError
from bcd_ray.labels import CLASSES
from bcd_ray.learning.config import Protocol

Labels: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

_ENOUGH = 60  # images of a group that is left out: a share of them is known to 13 points, of 24 to 20


@dataclass(frozen=True)
class Layout:
    """What the splits of n images go by, each (n,).

    Attributes:
        labels: class of each image.
        order: position of each image in the file numbers of its class.
        ties: number of the image's group of near duplicates (`near_duplicates.near_duplicate_groups`).
        groups: number of the patient, slide or sitting, or None where nobody says.
        group_names: by number, not one an image.
    """

    labels: Labels
    order: Labels
    ties: Labels
    groups: Labels | None = None
    group_names: tuple[str, ...] = ()

    def of(self, mask: Mask) -> "Layout":
        """The same for some of the images."""
        groups = None if self.groups is None else self.groups[mask]
        return Layout(self.labels[mask], self.order[mask], self.ties[mask], groups, self.group_names)


@dataclass(frozen=True)
class Rules:
    """A protocol, and how long, in images, its blocks and its embargo are."""

    protocol: Protocol
    block: int
    embargo: int

    def text(self) -> str:
        """What the protocol is, in a sentence for reports."""
        apart = f"an embargo of {self.embargo} images between training and test"
        return {
            "random": "random split of images, not of patients, as in the paper: the same day, and the same smear, "
            "stand on both sides",
            "blocked": f"split of runs of at most {self.block} file numbers, not of patients or days; {apart}",
            "forward": f"one end of each class's file numbers is the test, not a split of patients or days; {apart}",
            "grouped": "split of whole groups, the patients, slides or sittings of --group-pattern or --group-table",
        }[self.protocol] + "; no near duplicate of a test image is trained on"


@dataclass(frozen=True)
class Fold:
    """One split of n images, (n,) each; an image in neither part is left out.

    `group` names the one that `leave_one_group_out` tests, and `cut` says that half of it is trained on.
    """

    train: Mask
    test: Mask
    group: str = ""
    cut: bool = False

    def within(self, mask: Mask) -> "Fold":
        """The fold of `Layout.of(mask)` in terms of all images."""
        train, test = np.zeros(len(mask), bool), np.zeros(len(mask), bool)
        train[mask], test[mask] = self.train, self.test
        return replace(self, train=train, test=test)


def hold_out(layout: Layout, rules: Rules, fraction: float, seed: int) -> Fold:
    """One split with about this share of each class in the test; `forward` takes the first share, whatever the seed."""
    if rules.protocol == "forward":
        return _fold(layout, _end(layout, fraction, first=True), rules)
    units = _units(layout, rules)
    random = np.random.default_rng(seed)
    test = np.zeros(len(layout.labels), bool)
    labels, sizes = _label_and_size(layout, units)
    for label in np.unique(layout.labels):
        wanted = round(fraction * int((layout.labels == label).sum()))
        for unit in random.permutation(np.flatnonzero(labels == label)):
            if sizes[unit] < 2 * wanted:  # nearer to the share with it than without
                test[units == unit] = True
                wanted -= int(sizes[unit])
    return _fold(layout, test, rules)


def cross_validate(layout: Layout, rules: Rules, folds: int, fraction: float, seed: int) -> list[Fold]:
    """Folds whose test parts cover every image once; of `forward` two, with the first and the last share as the test.

    0 folds of `grouped` are those of `leave_one_group_out`. The blocks of a class are dealt to the folds in turn: two
    neighbours are not tested together, so that a test block has training images beyond the embargo on both sides. What
    lies farther from all training is what `forward` tests.

    Raises:
        ConfigError: a class has fewer blocks or groups than there are folds.
    """
    if rules.protocol == "forward":
        return [_fold(layout, _end(layout, fraction, first), rules) for first in (True, False)]
    if not folds:
        return leave_one_group_out(layout, rules)
    units = _units(layout, rules)
    labels, sizes = _label_and_size(layout, units)
    random = np.random.default_rng(seed)
    fold_of_unit = np.zeros(len(sizes), np.int64)
    total = np.zeros(folds)
    for label in np.unique(labels):
        of_class = random.permutation(np.flatnonzero(labels == label))
        if len(of_class) < folds:
            kind = {"blocked": "block", "grouped": "group"}.get(rules.protocol, "image")
            raise ConfigError(
                f"--folds {folds}: {CLASSES[label]} has only {len(of_class)} {kind}{'s' * (len(of_class) != 1)} of the "
                f"{rules.protocol} protocol: lower --folds{' or --block' * (kind == 'block')}"
                f"{', or leave out each group in turn with --folds 0' * (kind == 'group')}"
            )
        if rules.protocol == "blocked":  # units are numbered in the order of file numbers
            fold_of_unit[np.sort(of_class)] = (random.integers(folds) + np.arange(len(of_class))) % folds
            continue
        here = np.zeros(folds)
        for unit in of_class[np.argsort(-sizes[of_class], kind="stable")]:
            least = np.flatnonzero(here == here.min())
            fold = least[np.argmin(total[least])]
            fold_of_unit[unit] = fold
            here[fold] += sizes[unit]
            total[fold] += sizes[unit]
    return [_fold(layout, fold_of_unit[units] == fold, rules) for fold in range(folds)]


def leave_one_group_out(layout: Layout, rules: Rules) -> list[Fold]:
    """A fold for every group, as its test part, and two for one that is cut; few images are always trained on.

    A share of few images says little: groups under 60, if they are under half of the mean group of their class too.
    """
    assert layout.groups is not None, "require_groups sees to it"
    units, cut = _units(layout, Rules("grouped", rules.block, rules.embargo)), lone(layout)
    labels, sizes = _label_and_size(layout, units)
    mean = np.bincount(labels, sizes) / np.maximum(np.bincount(labels), 1)
    folds = []
    for unit in np.flatnonzero((sizes >= _ENOUGH) | (sizes >= mean[labels] / 2)):
        test = units == unit
        number = int(layout.groups[test][0])
        name = layout.group_names[number] if layout.group_names else str(number)
        fold = _fold(layout, test, Rules("grouped", rules.block, rules.embargo))
        folds.append(replace(fold, group=name, cut=bool(cut[test].any())))
    return folds


def few_shot(layout: Layout, fold: Fold, count: int, seed: int) -> Fold:
    """The fold of a group that is left out, with `count` of its images, drawn by chance, trained on; the rest tested.

    A near duplicate of a drawn image is in neither part.

    Raises:
        ConfigError: the rest would be smaller than what is drawn.
    """
    own = np.flatnonzero(fold.test)
    if len(own) < 2 * count:
        raise ConfigError(f"--few-shot {count}: {fold.group} has only {len(own)} images: lower it")
    drawn = np.zeros(len(fold.test), bool)
    drawn[np.random.default_rng([seed, int(own[0])]).choice(own, count, replace=False)] = True
    return replace(fold, train=fold.train | drawn, test=fold.test & ~np.isin(layout.ties, layout.ties[drawn]))


def lone(layout: Layout) -> Mask:
    """(n,) whether an image is of a class whose images are all of one group, which holds no other."""
    if layout.groups is None:
        return np.zeros(len(layout.labels), bool)
    found = np.zeros(len(layout.labels), bool)
    for label in np.unique(layout.labels):
        own = layout.labels == label
        found |= own & bool((own == (layout.groups == layout.groups[own][0])).all())
    return found


def require_classes(layout: Layout, fold: Fold, rules: Rules, test: str = "test", folds: bool = False) -> None:
    """ConfigError if a class of the layout has no image in one of the parts of a fold.

    `test` is what the second part is called; `folds` says that the fold is one of `cross_validate`. One group that is
    left out need not hold every class.
    """
    shares = not folds or rules.protocol == "forward"  # whether --test-fraction has a say
    more = "add groups" if rules.protocol == "grouped" else "add images"
    apart = ["lower --embargo"] * (rules.protocol in ("blocked", "forward"))
    smaller = ["lower --block"] * (rules.protocol == "blocked")
    for part, members, remedies in (
        ("training", fold.train, ["lower --test-fraction"] * shares + apart),
        (test, fold.test, ["raise --test-fraction"] * shares + smaller),
    ):
        if part == test and fold.group:
            continue
        if lacking := set(layout.labels) - set(layout.labels[members]):
            names = ", ".join(CLASSES[label] for label in sorted(lacking))
            remedy = ", or ".join([more, *remedies])
            raise ConfigError(f"--split {rules.protocol} leaves no image of {names} for the {part} part: {remedy}")


def blocks(layout: Layout, length: int) -> Labels:
    """(n,) number of the run of at most `length` images, in the file numbers of a class, that an image is of."""
    numbers, start = np.zeros(len(layout.labels), np.int64), 0
    for label in np.unique(layout.labels):
        members = np.flatnonzero(layout.labels == label)
        rank = np.argsort(np.argsort(layout.order[members]))
        count = -(-len(members) // length)
        numbers[members] = start + rank * count // len(members)
        start += count
    return numbers


def clusters(layout: Layout, length: int) -> Labels:
    """(n,) what a bootstrap draws whole: groups where there are any, else blocks."""
    return blocks(layout, length) if layout.groups is None else layout.groups


def _units(layout: Layout, rules: Rules) -> Labels:
    """(n,) number, from 0, of what stays whole."""
    if rules.protocol == "blocked":
        return blocks(layout, rules.block)
    if rules.protocol == "random":
        units = layout.ties
    elif layout.groups is not None:
        units = 3 * layout.groups  # a group, or of one that is cut the first half, and the second
        for label in np.unique(layout.labels[lone(layout)]):
            members = np.flatnonzero(layout.labels == label)
            units[members] += 1 + 2 * np.argsort(np.argsort(layout.order[members])) // len(members)
    else:
        raise ConfigError("--split grouped needs --group-pattern or --group-table: the images say no groups themselves")
    return np.unique(units, return_inverse=True)[1].astype(np.int64)


def _label_and_size(layout: Layout, units: Labels) -> tuple[Labels, Labels]:
    """Of each unit, the class of its first image and how many images it has."""
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    return layout.labels[first], sizes.astype(np.int64)


def _end(layout: Layout, fraction: float, first: bool) -> Mask:
    """The first or last share of each class's file numbers."""
    test = np.zeros(len(layout.labels), bool)
    for label in np.unique(layout.labels):
        members = np.flatnonzero(layout.labels == label)
        members = members[np.argsort(layout.order[members])]
        count = round(fraction * len(members))
        test[members[:count] if first else members[len(members) - count :]] = True
    return test


def _fold(layout: Layout, test: Mask, rules: Rules) -> Fold:
    """The training part that may go with a test part."""
    train = ~test & ~np.isin(layout.ties, layout.ties[test])
    if rules.protocol != "random":
        numbered = test & lone(layout) if rules.protocol == "grouped" else test
        for label in np.unique(layout.labels[numbered]):
            of_class = layout.labels == label
            tested = np.sort(layout.order[of_class & test])
            place = np.searchsorted(tested, layout.order)
            after = tested[np.minimum(place, len(tested) - 1)] - layout.order
            before = layout.order - tested[np.maximum(place - 1, 0)]
            near = np.minimum(np.abs(after), np.abs(before)) <= rules.embargo
            train &= ~(of_class & near)
    return Fold(train, test)
