"""What groups that were left out say of a day that training did not see, also with a few of its images labelled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bcd_ray.labels import CLASSES
from bcd_ray.learning.splits import Fold, Labels
from bcd_ray.metrics.spread import Floats

_FIGURES = ("recall", "benign_or_malignant")
Runs = Sequence[Floats]  # of each seed: probabilities (n, 4), NaN where an image was in no test part
Folds = Sequence[Sequence[Fold]]  # of each seed


def of_groups(labels: Labels, runs: Runs, folds: Folds) -> dict[str, Any]:
    """How well each group is told that was left out, and the mean over those that were left out whole.

    `recall` is the share of a group's images that are right, `benign_or_malignant` the share on the right side of that
    line; mean and deviation over seeds. `always_trained_on` counts the images of small groups.
    """
    groups = []
    for name in dict.fromkeys(fold.group for fold in folds[0]):
        own = [[fold for fold in of_seed if fold.group == name] for of_seed in folds]
        tests = [np.any([fold.test for fold in of_seed], axis=0) for of_seed in own]
        right = [run[test].argmax(axis=1) == labels[test] for run, test in zip(runs, tests, strict=True)]
        side = [(run[test].argmax(axis=1) > 0) == (labels[test] > 0) for run, test in zip(runs, tests, strict=True)]
        found: dict[str, Any] = {"group": name, "classes": [CLASSES[label] for label in np.unique(labels[tests[0]])]}
        found |= {"images": int(tests[0].sum()), "cut": any(fold.cut for fold in own[0])}
        for figure, of_seeds in zip(_FIGURES, (right, side), strict=True):
            shares = [float(each.mean()) for each in of_seeds]
            found |= {figure: float(np.mean(shares)), f"{figure}_std": float(np.std(shares))}
        groups.append(found)
    whole = [each for each in groups if not each["cut"]]
    means = {name: float(np.mean([each[name] for each in whole])) for name in _FIGURES} if whole else {}
    always = int((~np.any([fold.test for fold in folds[0]], axis=0)).sum())
    return {"groups": groups, "mean_over_groups": means, "always_trained_on": always}


def with_some_labelled(labels: Labels, without: Runs, runs: Runs, folds: Folds) -> dict[str, Any]:
    """`of_groups` where a few images of each group were trained on too.

    Each group, and the mean, has `recall_without` and `benign_or_malignant_without` besides: the same images by the
    heads that saw none of the group, `without`.
    """
    found, before = (of_groups(labels, each, folds) for each in (runs, without))
    pairs = [
        (found["mean_over_groups"], before["mean_over_groups"]),
        *zip(found["groups"], before["groups"], strict=True),
    ]
    for after, other in pairs:
        after |= {f"{figure}_without": other[figure] for figure in _FIGURES if other}
    return {"groups": found["groups"], "mean_over_groups": found["mean_over_groups"]}


def left_out_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """For a terminal: a line for each group that was left out, and the figures to go by."""
    for each in result.get("groups", []):
        line = f"left out {each['group']} ({', '.join(each['classes'])}, {each['images']} images): {_words(each)}"
        yield line + (": the only group of its class, cut in two by file numbers: not a new day" if each["cut"] else "")
    if means := result.get("mean_over_groups"):
        count = sum(not each["cut"] for each in result["groups"])
        yield f"a group that was never seen, mean of {count}: {_words(means)}"
    for labelled, found in result.get("few_shot", {}).items():
        means = found["mean_over_groups"]
        yield (
            f"with {labelled} of its images labelled and trained on, mean of {len(found['groups'])}, on the rest: "
            f"{_words(means)}; the same images without: {_words(means, '_without')}"
        )


def _words(figures: Mapping[str, Any], which: str = "") -> str:
    recall, side = (100 * figures[f"{figure}{which}"] for figure in _FIGURES)
    return f"recall {recall:.1f} %, benign or malignant {side:.1f} %"
