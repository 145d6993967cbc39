"""Where the limits of triage come from: predictions for training images by heads that had not seen them.

The training part is cut into folds of blocks of file numbers, whatever the split: images by chance would stand beside
their own day, and promise too much. Each fold's images are predicted by a head, and held against a distance model,
fitted on the others (cross-conformal prediction: Vovk, Annals of Mathematics and Artificial Intelligence 74, 2015). The
limits then go with a head fitted on all of them, a slightly better one: no exact guarantee, and none for images of a
day that was not trained on. Such a day shows in the mean certainty of its images, not in one: see `source_limit`.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.errors import ConfigError, JobError
from bcd_ray.labels import CLASSES
from bcd_ray.learning.embedding import Embeddings
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.splits import Fold, Layout, Mask, Rules, blocks, cross_validate
from bcd_ray.metrics.calibration import (
    Floats,
    Labels,
    calibration_figures,
    fit_temperature,
    least_for_risk,
    risk_coverage,
    risk_interval,
)
from bcd_ray.model.network import softmax
from bcd_ray.model.quality import limits
from bcd_ray.model.triage import REASONS, Counts, Decisions, DistanceModel, Triage, decide, fit_distance
from bcd_ray.threads import keep_blas_to_its_thread

RISK = 0.01  # errors among the predictions that are not sent to review
# Errors among those of each suggested class: a malignant image called benign is the worst there is.
CLASS_RISKS = {name: 0.005 if name == "benign" else 0.02 for name in CLASSES}
OOD_RATE = 0.01  # share of training images, each held out, beyond the limit of the distance
QUALITY_RATE = 0.002  # share of training images beyond the values that each limit of a quality measure comes from
OF_A_SOURCE = (
    30  # images by whose mean certainty a source is judged: of 10 the limit would let more unknown days through
)
_BATCHES, _TAKEN_FOR_NEW = 200, 0.05  # drawn of each known group, and the share of them that is taken for a new one
Unseen = Callable[[Mask], Embeddings]  # of a mask (n,): views (v, n, d) by a network that saw these images alone
_FOLDS = (5, 4, 3, 2)  # the first that the smallest class has blocks for


def fit_triage(
    views: Embeddings,
    quality: Floats,
    layout: Layout,
    rules: Rules,
    config: FitConfig,
    cells: Counts | None = None,
    without: Unseen | None = None,
) -> tuple[Triage, dict[str, Any]]:
    """Fit triage on the training part alone.

    Args:
        views: (v, n, d), the training images in v views, the first of them the images themselves.
        quality: (n, 4), see `quality.measure`.
        layout: of the n images.
        rules: of the split; see `inner_folds`.
        config: of the bundle's head.
        cells: (n,) white cells found, where the model looks at them.
        without: where the backbone was trained too, the same views by one that was trained on some of the images alone.

    Returns:
        What the bundle holds, and `triage_figures` of the images, each held out.
    """
    logits, distances, model = predict_held_out(views, layout, rules, config, without)
    labels, drawn_whole = layout.labels, blocks(layout, rules.block)
    settings = choose_limits(logits, distances, quality, labels, drawn_whole, cells) | {"precision": model.precision}
    decisions = decide(settings, distances, logits, quality, cells)
    settings["source"] = source_limit(decisions.certainty, layout)
    figures = triage_figures(decisions, logits, labels, drawn_whole)
    return Triage(model, settings), figures


def predict_held_out(
    views: Embeddings, layout: Layout, rules: Rules, config: FitConfig, without: Unseen | None = None
) -> tuple[npt.NDArray[np.float32], Floats, DistanceModel]:
    """Of n training images, logits (n, 4) by a head, and distances (n, 4), that did not see the image in question.

    The third is the distance model of all n.
    """
    labels, folds = layout.labels, inner_folds(layout, rules, config.seed)
    logits, distances = np.zeros((len(labels), len(CLASSES)), np.float32), np.zeros((len(labels), len(CLASSES)))

    def model_of(seen: Embeddings, part: Labels | slice) -> DistanceModel:
        return fit_distance(seen[0, part, : config.compared], labels[part], len(CLASSES))

    of_folds = [without(fold.train) if without else views for fold in folds]

    # Side by side, each in a thread: two threads of BLAS take half as long again for one after the other.
    with keep_blas_to_its_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        models = pool.map(model_of, [*of_folds, views], [*(fold.train for fold in folds), slice(None)])
        for fold, seen in zip(folds, of_folds, strict=True):
            head = fit(seen[:, fold.train], labels[fold.train], config, layout.of(fold.train).groups)
            logits[fold.test] = head.logits(seen[0, fold.test])
        for fold, seen in zip(folds, of_folds, strict=True):
            distances[fold.test] = next(models).distances(seen[0, fold.test])
        return logits, distances, next(models)


def choose_limits(
    logits: npt.NDArray[np.float32],
    distances: Floats,
    quality: Floats,
    labels: Labels,
    drawn_whole: Labels,
    cells: Counts | None = None,
) -> dict[str, Any]:
    """`Triage.settings`, but for the distance model's, from what was held out of n images; arguments (n, 4) or (n,)."""
    settings: dict[str, Any] = {
        "temperature": fit_temperature(logits, labels),
        "certainty": 0.0,
        "distance": float(np.quantile(distances.min(axis=1), 1 - OOD_RATE)),
        "quality": limits(quality, QUALITY_RATE),
    }
    others = decide(settings, distances, logits, quality, cells)
    certainty = np.where(others.reasons.any(axis=1), -np.inf, others.certainty)
    settings["certainty"] = class_limits(certainty, logits.argmax(axis=1), labels, drawn_whole)
    risks = {"risk": RISK, "class_risks": CLASS_RISKS}
    return settings | risks | {"ood_rate": OOD_RATE, "quality_rate": QUALITY_RATE, "images": len(labels)}


def class_limits(certainty: Floats, suggested: Labels, labels: Labels, drawn_whole: Labels) -> list[float | None]:
    """Of each suggested class the least certainty that needs no review; None where all its suggestions do.

    First each class is cut to its own risk, as far as errors were seen, then all together to `RISK`: a class whose
    suggestions are often wrong costs the others nothing. Of n images, certainty (n,) is -inf where one is sent anyway.
    """
    correct, own = suggested == labels, list[float | None]()
    for number, risk in enumerate(CLASS_RISKS.values()):
        of_class = np.where(suggested == number, certainty, -np.inf)
        own.append(least_for_risk(of_class, correct, drawn_whole, risk, ahead=0))
    least = np.array([np.inf if each is None else each for each in own])
    kept = np.where(certainty >= least[suggested], certainty, -np.inf)
    together = least_for_risk(kept, correct, drawn_whole, RISK)
    return [None if each is None or together is None else max(each, together) for each in own]


def triage_figures(decisions: Decisions, logits: Floats, labels: Labels, drawn_whole: Labels) -> dict[str, Any]:
    """How triage does on n labelled images, JSON-ready.

    `drawn_whole` (n,) numbers the blocks or groups that the intervals are drawn over (`splits.clusters`).

    Returns:
        `calibration`: `before` and `after` the temperature, see `calibration_figures`; `automatic`: see
        `risk_interval`; `suggested`: of each suggested class how many are `decided`, and `errors` among them;
        `reasons`: images by reason; `risk_coverage`: see `risk_coverage`.
    """
    suggested = logits.argmax(axis=1)
    correct = suggested == labels
    decided = np.asarray(~decisions.reasons.any(axis=1))
    others = decisions.reasons[:, 1:].any(axis=1)
    return {
        "calibration": {
            "before": calibration_figures(softmax(logits), labels),
            "after": calibration_figures(decisions.probabilities, labels),
        },
        "automatic": risk_interval(decided, correct, drawn_whole),
        "suggested": {
            name: {"decided": int(of_class.sum()), "errors": int((of_class & ~correct).sum())}
            for name, of_class in ((name, decided & (suggested == label)) for label, name in enumerate(CLASSES))
        },
        "reasons": dict(zip(REASONS, decisions.reasons.sum(axis=0).tolist(), strict=False)),
        "risk_coverage": risk_coverage(np.where(others, -np.inf, decisions.certainty), correct),
    }


def source_limit(certainty: Floats, layout: Layout) -> dict[str, Any] | None:
    """Under which mean certainty the images of a source are of no day that was trained on; None of too few images.

    Of each group of training images, each held out, or of each class where no groups are known, 5 % of batches have a
    mean under some value. The limit is the least of these, so that no known day is taken for a new one more often. With
    one of seven sittings left out, the three that the model is wrong on for 19 to 95 % of the images are under it.

    Args:
        certainty: (n,) of images that were held out.
        layout: of these.
    """
    random, limits_found = np.random.default_rng(0), list[float]()
    sources = layout.labels if layout.groups is None else layout.groups
    for source in np.unique(sources):
        own = certainty[sources == source]
        if len(own) >= OF_A_SOURCE:
            batches = [random.choice(own, OF_A_SOURCE, replace=False).mean() for _ in range(_BATCHES)]
            limits_found.append(float(np.quantile(batches, _TAKEN_FOR_NEW)))
    return {"certainty": min(limits_found), "images": OF_A_SOURCE} if limits_found else None


def with_sources(decisions: Decisions, triage: Triage, layout: Layout) -> Decisions:
    """The same decisions, and the reason `unfamiliar_source` by groups, as if each were a folder that is scored."""
    if layout.groups is None:
        return decisions
    unfamiliar = triage.unfamiliar(decisions.certainty, layout.groups)
    return decisions._replace(reasons=np.column_stack([decisions.reasons, unfamiliar]))


def inner_folds(layout: Layout, rules: Rules, seed: int) -> Sequence[Fold]:
    """Folds of blocks of a training part, whatever the split.

    Blocks and embargo are half as long as the split's: the training part has gaps already, and whole ones would leave
    the heads so few images that they say little about the head fitted on all.
    """
    smallest = int(np.bincount(layout.labels)[np.unique(layout.labels)].min())
    block = max(1, min(rules.block // 2, smallest // _FOLDS[0]))
    rules = Rules("blocked", block, min(rules.embargo // 2, block // 2))
    for count in _FOLDS:
        try:
            return cross_validate(layout, rules, count, 0.0, seed)
        except ConfigError:
            continue
    raise JobError("a class has too few training images, or blocks of them, to set the limits of triage: add images")
