"""Triage with settings chosen by those who cannot see the test: `python tests/nested_triage.py --data FOLDER`.

Three settings of triage stand in the code: what `certainty` is made of, the share of draws in which a limit must keep
its risk, and the margin of the quality limits. Here each test part of a cross-validation meets the settings that its
own training part would have chosen out of 18: those with the fewest images sent to review among those that kept the
risk in a cross-validation inside the training part.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import tyro

from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.learning.dataset import list_labelled, listed_layout
from bcd_ray.learning.embedding import Embedder
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.layout import lay_out
from bcd_ray.learning.splits import Fold, Layout, Rules, clusters, cross_validate
from bcd_ray.learning.thresholds import RISK, choose_limits, inner_folds, predict_held_out
from bcd_ray.metrics import calibration
from bcd_ray.metrics.calibration import Mask, risk_interval
from bcd_ray.model import quality, triage
from bcd_ray.model.bundle import pretrained
from bcd_ray.reports.report import automatic_words

CERTAINTIES = {
    "probability": lambda probabilities, _: probabilities.max(axis=1),
    "probability times nearness": triage.certainty,
}
CANDIDATES = list(product(CERTAINTIES, (0.8, 0.9, 0.95), (0.0, 0.25, 0.5)))
IN_USE = ("probability times nearness", calibration._SURE, quality._MARGIN)
Result = tuple[Mask, Mask]  # of tested images: whether they are not sent to review, and whether the prediction is right


@dataclass(frozen=True)
class Nested:
    """Cross-validate triage, and the choice of its settings with it."""

    data: str
    """Folder of labelled images."""
    seeds: int = 3
    """Repetitions, each with folds and fits of its own."""
    block: int = 100
    """Images in a block of file numbers."""
    embargo: int = 40
    """Images left out on each side of a test block."""


@dataclass(frozen=True)
class Images:
    """What is known of the images: views (v, n, 1280), quality measures (n, 7), and what splits go by."""

    views: Any
    quality: Any
    layout: Layout


@lru_cache
def load(data: str) -> Images:
    """From the cache, or embedded now."""
    config = EvaluateConfig(data=data, output="none", cross_validate=True, representation="field")
    images = list_labelled(data)
    with Embedder(images, pretrained(config.weights, config.representation), config.cache) as embedder:
        embedded, identified = embedder.embed(range(config.augmented_views + 1)), embedder.identified
    usable, layout = lay_out(listed_layout(images, None), identified)
    return Images(embedded.embeddings[:, usable], embedded.quality[0, usable], layout)


def try_on(images: Images, fold: Fold, rules: Rules, config: FitConfig) -> list[Result]:
    """Of each candidate, what it does on the test part with limits from the training part."""
    layout, views = images.layout.of(fold.train), images.views[:, fold.train]
    test, truth = images.views[0, fold.test], images.layout.labels[fold.test]
    logits = fit(views, layout.labels, config).logits(test)
    *held_out, model = predict_held_out(views, layout, rules, config)
    distances, drawn_whole = model.distances(test), clusters(layout, rules.block)
    results = []
    for name, share, margin in CANDIDATES:
        with (
            patch.object(triage, "certainty", CERTAINTIES[name]),
            patch.object(calibration, "_SURE", share),
            patch.object(quality, "_MARGIN", margin),
        ):
            settings = choose_limits(*held_out, images.quality[fold.train], layout.labels, drawn_whole)
            decided = ~triage.decide(settings, distances, logits, images.quality[fold.test]).reasons.any(axis=1)
        results.append((np.asarray(decided), logits.argmax(axis=1) == truth))
    return results


def of_part(nested: Nested, task: tuple[int, int]) -> tuple[int, list[Result]]:
    """Of one seed and fold: the number of the candidate that its training part chooses, and all results on its test."""
    seed, number = task
    images, rules, config = load(nested.data), Rules("blocked", nested.block, nested.embargo), fit_config(seed)
    fold = folds_of(nested, images, seed)[number]
    part = Images(images.views[:, fold.train], images.quality[fold.train], images.layout.of(fold.train))
    inside = [try_on(part, inner, rules, config) for inner in inner_folds(part.layout, rules, seed)]
    together = [tuple(map(np.concatenate, zip(*results, strict=True))) for results in zip(*inside, strict=True)]
    return choose(together), try_on(images, fold, rules, config)


def choose(results: Sequence[Any]) -> int:
    """The candidate with the most decided images among those within the risk, or, without one, that with the least."""
    risks = [(~correct)[decided].mean() if decided.any() else 0.0 for decided, correct in results]
    allowed = max(RISK, min(risks))
    return max(range(len(results)), key=lambda number: results[number][0].sum() * (risks[number] <= allowed))


def fit_config(seed: int) -> FitConfig:
    """That of a cross-validation with the options as they come."""
    config = EvaluateConfig(data="none", output="none", cross_validate=True, representation="field")
    return FitConfig.of(config, workers=0, seed=seed)


def folds_of(nested: Nested, images: Images, seed: int) -> list[Fold]:
    """The folds of one seed."""
    return cross_validate(images.layout, Rules("blocked", nested.block, nested.embargo), 5, 0.0, seed)


def lines(nested: Nested) -> Iterator[str]:
    """What was found, of each seed for itself and in the mean."""
    images = load(nested.data)
    drawn_whole, chosen, means = clusters(images.layout, nested.block), Counter[int](), []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tasks = [(seed, number) for seed in range(nested.seeds) for number in range(5)]
        found = list(pool.map(partial(of_part, nested), tasks))
    for seed in range(nested.seeds):
        of_seed, folds = found[5 * seed : 5 * seed + 5], folds_of(nested, images, seed)
        tested = np.concatenate([np.flatnonzero(fold.test) for fold in folds])
        for name, numbers in (
            ("chosen inside", [number for number, _ in of_seed]),
            ("in use", [CANDIDATES.index(IN_USE)] * 5),
        ):
            results = [each[number] for number, (_, each) in zip(numbers, of_seed, strict=True)]
            decided, correct = (np.concatenate(parts) for parts in zip(*results, strict=True))
            figures = risk_interval(decided, correct, drawn_whole[tested])
            yield f"seed {seed}, settings {name}: {automatic_words(figures)}"
            means.append((name, figures["coverage"], figures["risk"]))
        chosen.update(number for number, _ in of_seed)
    for name in ("chosen inside", "in use"):
        coverage, risk = np.mean([figures for which, *figures in means if which == name], axis=0)
        yield f"mean, settings {name}: {coverage:.1%} not sent to review, {risk:.2%} of them wrong"
    for number, times in chosen.most_common():
        yield f"chosen {times} times: {CANDIDATES[number]}"


def main(nested: Nested) -> None:
    """Print the lines as they are found."""
    for line in lines(nested):
        print(line)


if __name__ == "__main__":
    main(tyro.cli(Nested))
