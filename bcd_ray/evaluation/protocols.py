"""The folds of a cross-validation: of each protocol that was asked for, for each seed."""

from collections.abc import Mapping
from itertools import chain

from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.evaluation.left_out import Folds
from bcd_ray.learning.splits import Fold, Layout, Rules, cross_validate, few_shot, require_classes
from bcd_ray.learning.thresholds import inner_folds


def folds_by_protocol(layout: Layout, config: EvaluateConfig) -> dict[str, list[list[Fold]]]:
    """By name, for each seed the folds of a protocol; the two ends of `forward` are results of their own.

    Raises:
        ConfigError, JobError: a class is too small for the folds, or for those inside that triage is fitted by.
    """
    splits: dict[str, list[list[Fold]]] = {}
    for protocol in config.split:
        rules = Rules(protocol, config.block, config.embargo)
        of_seeds = [
            cross_validate(layout, rules, count_of_folds(protocol, config), config.test_fraction, seed)
            for seed in range(config.seeds)
        ]
        for fold in chain(*of_seeds):
            require_classes(layout, fold, rules, folds=True)
        for fold in of_seeds[0]:
            inner_folds(layout.of(fold.train), rules, 0)
        if protocol == "forward":
            splits |= {f"forward/{end}": [[folds[i]] for folds in of_seeds] for i, end in enumerate(("first", "last"))}
        else:
            splits[protocol] = of_seeds
    return splits


def few_shot_folds(layout: Layout, splits: Mapping[str, Folds], config: EvaluateConfig) -> dict[int, Folds]:
    """By number of labelled images, for each seed the folds of `grouped` whose groups are left out whole, with them.

    Raises:
        ConfigError: a group has too few images.
    """
    return {
        count: [
            [few_shot(layout, fold, count, seed) for fold in folds if not fold.cut]
            for seed, folds in enumerate(splits["grouped"])
        ]
        for count in config.few_shot
    }


def count_of_folds(protocol: str, config: EvaluateConfig) -> int:
    """0 where each group is left out in turn."""
    return config.folds or (0 if protocol == "grouped" else 5)


def rules_of(name: str, config: EvaluateConfig) -> Rules:
    """Of a name of `folds_by_protocol`."""
    return Rules("forward" if name.startswith("forward") else name, config.block, config.embargo)  # type: ignore[arg-type]
