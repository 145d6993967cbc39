"""What each option brings under each protocol, as a table: `python tests/options_table.py --data FOLDER --table CSV`.

Every row is a way to train, every column a protocol: five folds of images by chance and of blocks of file numbers, and
each sitting left out in turn. Nothing is chosen here: all options are tried as they come.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tyro

from bcd_ray.evaluation.left_out import of_groups
from bcd_ray.learning.config import FitOptions, Protocol
from bcd_ray.learning.dataset import groups_of, list_labelled, listed_layout
from bcd_ray.learning.embedding import Embedder, Embeddings
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.layout import lay_out
from bcd_ray.learning.splits import Fold, Layout, Rules, cross_validate
from bcd_ray.learning.unfreezing import Unfreezer
from bcd_ray.model.bundle import Model, pretrained
from bcd_ray.model.network import softmax

OPTIONS: dict[str, dict[str, Any]] = {
    "field": {},
    "field --weights efficientnet_lite0": {"weights": "efficientnet_lite0"},
    "field --stain": {"stain": True},
    "field --white": {"white": True},
    "field --unfreeze 3": {"unfreeze": 3},
    "cells": {"representation": "cells"},
    "cells --stain": {"representation": "cells", "stain": True},
    "both": {"representation": "both"},
    "both --stain": {"representation": "both", "stain": True},
}
PROTOCOLS: tuple[Protocol, ...] = ("random", "blocked", "grouped")


@dataclass(frozen=True)
class Table:
    """Cross-validate every option under every protocol."""

    data: str
    """Folder of labelled images."""
    table: str
    """CSV that says the sitting of each image, in the column `sitting`."""
    seeds: int = 3
    """Repetitions, each with folds and fits of its own; of --unfreeze one: 17 fits of a minute of a core."""
    rows: tuple[str, ...] = tuple(OPTIONS)
    """Of the table."""
    protocols: tuple[Protocol, ...] = PROTOCOLS
    """The columns."""


@dataclass(frozen=True)
class Images:
    """Views (v, n, d) of n images for the head, or as maps for `Unfreezer`, and what splits go by."""

    views: Embeddings
    layout: Layout
    model: Model
    unfrozen: int


def load(table: Table, options: FitOptions, unfrozen: int) -> Images:
    """From the cache, or embedded now."""
    images = list_labelled(table.data)
    whole = pretrained(options.weights, options.representation, options.white)
    with Embedder(images, whole.trunk(unfrozen) if unfrozen else whole, options.cache) as embedder:
        views, identified = embedder.embed(options.fitted_on).embeddings, embedder.identified
    usable, layout = lay_out(listed_layout(images, *groups_of(images, "", table.table, "sitting")), identified)
    return Images(views[:, usable], layout, whole, unfrozen)


def predict(images: Images, folds: Sequence[Fold], config: FitConfig) -> Any:
    """Probabilities (n, 4), NaN where no fold tests an image."""
    found = np.full((len(images.layout.labels), 4), np.nan)

    def predict_fold(fold: Fold) -> None:
        views, train = images.views, images.layout.of(fold.train)
        if images.unfrozen:
            unfreezer = Unfreezer(images.model, images.unfrozen, views, images.layout.labels, config)
            views = unfreezer.without(fold.train)
        head = fit(views[:, fold.train], train.labels, config, train.groups)
        found[fold.test] = softmax(head.logits(views[0, fold.test]))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if images.unfrozen else 1) as pool:
        list(pool.map(predict_fold, folds))
    return found


def words(shares: Sequence[float]) -> str:
    """Mean and deviation over seeds, in percent."""
    mean, deviation = 100 * np.mean(shares), 100 * np.std(shares)
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if len(shares) > 1 else "")


def row(table: Table, name: str) -> Iterator[str]:
    """The cells of a row."""
    given = dict(OPTIONS[name])
    unfrozen = given.pop("unfreeze", 0)
    options = FitOptions(**{"representation": "field", **given})
    images = load(table, options, unfrozen)
    layout, seeds = images.layout, range(1 if unfrozen else table.seeds)
    yield f"`{name}`"
    for protocol in table.protocols:
        rules, folds = Rules(protocol, options.block, options.embargo), 0 if protocol == "grouped" else 5
        of_seeds = [cross_validate(layout, rules, folds, options.test_fraction, seed) for seed in seeds]
        runs = [
            predict(images, of_seed, FitConfig.of(options, workers=0, seed=seed))
            for seed, of_seed in enumerate(of_seeds)
        ]
        if protocol != "grouped":
            yield words([float((run.argmax(axis=1) == layout.labels).mean()) for run in runs])
            continue
        whole = [of_groups(layout.labels, [run], [of_seed]) for run, of_seed in zip(runs, of_seeds, strict=True)]
        for figure in ("recall", "benign_or_malignant"):
            shares = [each[figure] for each in of_groups(layout.labels, runs, of_seeds)["groups"] if not each["cut"]]
            spread = f"{100 * min(shares):.0f} to {100 * max(shares):.0f}"
            yield f"{words([each['mean_over_groups'][figure] for each in whole])}; {spread}"
    yield str(len(seeds))


def main(table: Table) -> None:
    """Print the rows as they are found."""
    columns = [
        ["sitting left out: right class", "told apart"] if each == "grouped" else [f"`{each}`"]
        for each in table.protocols
    ]
    heading = ["option", *chain.from_iterable(columns), "seeds"]
    for line in (heading, ["---"] * len(heading), *(row(table, name) for name in table.rows)):
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Table))
