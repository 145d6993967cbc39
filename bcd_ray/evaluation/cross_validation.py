"""Cross-validation, top to bottom: list, embed, split, fit, measure with spread, audit, check labels, write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.evaluation.label_check import check_labels
from bcd_ray.evaluation.left_out import Folds, Runs, of_groups, with_some_labelled
from bcd_ray.evaluation.outputs import predictions_table, validation_figures, write_table
from bcd_ray.evaluation.protocols import count_of_folds, few_shot_folds, folds_by_protocol, rules_of
from bcd_ray.labels import CLASSES
from bcd_ray.learning.assessment import unreadable
from bcd_ray.learning.audit import SHORTCUTS, shortcut_features, shortcut_probabilities
from bcd_ray.learning.dataset import groups_of, list_folder, listed_layout, says_synthetic
from bcd_ray.learning.embedding import Embedder, Embeddings
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.layout import duplicates, lay_out
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS
from bcd_ray.learning.splits import Fold, Labels, Layout, Rules, clusters
from bcd_ray.learning.thresholds import fit_triage, triage_figures, with_sources
from bcd_ray.metrics.classification import confusion_matrix
from bcd_ray.metrics.spread import Figures, Floats, bootstrap, point_figures, with_intervals
from bcd_ray.model.bundle import pretrained
from bcd_ray.model.network import softmax
from bcd_ray.model.triage import Counts, Decisions
from bcd_ray.progress import Progress
from bcd_ray.reports.report import validation_report
from bcd_ray.reports.results import refuse_to_replace, write_results
from bcd_ray.runtime import library_versions

_GAP = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "malignant_sensitivity", "malignant_specificity")
Logits = npt.NDArray[np.float32]


def validate(config: EvaluateConfig) -> dict[str, Any]:
    """Cross-validate the settings under every protocol, write the results, and return what metrics.json holds."""
    folder = list_folder(config.data, config.allow_missing_classes)
    images = folder.images
    listed = listed_layout(images, *groups_of(images, config.group_pattern, config.group_table, config.group_column))
    refuse_to_replace(config.output, "metrics.json")
    synthetic = says_synthetic(config.data)
    # What cannot be split ends here, before an image is read.
    few_shot_folds(listed, folds_by_protocol(listed, config), config)
    model = pretrained(config.weights, config.representation, config.white)
    with Embedder(images, model, config.cache, config.max_cache_bytes) as embedder:
        identified = embedder.identified
        usable, layout = lay_out(listed, identified)
        splits = folds_by_protocol(layout, config)
        embedded = embedder.embed([*config.fitted_on, *SHORTCUT_VIEWS])
    read = [images[index] for index in usable]
    digests = [identified.digests[index] for index in usable]
    augmented = embedded.embeddings[: config.augmented_views + 1, usable]
    reduced = {shortcut: of_all[usable] for shortcut, of_all in shortcut_features(embedded).items()}
    drawn_whole, quality = clusters(layout, config.block), embedded.quality[0, usable]
    cells = None if embedded.cells is None else embedded.cells[0, usable]

    few = few_shot_folds(layout, splits, config)
    heads = (config.seeds + len(SHORTCUTS)) * sum(len(folds[0]) for folds in splits.values())
    progress = Progress("fitting", heads + sum(len(fold) for folds in few.values() for fold in folds), "heads")
    runs, draws, results = dict[str, Runs](), dict[str, Figures](), dict[str, Any]()
    for name, folds in splits.items():
        logits = [
            _out_of_fold(augmented, layout, folds[s], FitConfig.of(config, workers=0, seed=s), progress)
            for s in range(config.seeds)
        ]
        runs[name] = [softmax(of_seed) for of_seed in logits]
        results[name], draws[name] = _measure(layout, runs[name], folds, drawn_whole)
        rules = rules_of(name, config)
        results[name]["protocol"] = rules.text()
        if not count_of_folds(name, config):
            results[name] |= of_groups(layout.labels, runs[name], folds)
            results[name]["few_shot"] = _few_shot(augmented, layout, runs[name], few, config, progress)
        # A group that is cut is half trained on: what its other half shows is no new day.
        whole = [fold for fold in folds[0] if not fold.cut] or folds[0]
        of_first = whole, logits[0], rules, FitConfig.of(config, workers=0, seed=0)
        results[name]["triage"] = _triage(augmented, quality, cells, layout, *of_first, drawn_whole)
        results[name]["shortcuts"] = {}
        for shortcut, of_shortcut in reduced.items():
            found = _shortcut(shortcut, of_shortcut, layout, folds[0], config, progress)
            results[name]["shortcuts"][shortcut] = _measure(layout, [found], folds[:1], drawn_whole)[0]["pooled"]
    progress.finish()

    table = check_labels([image.name for image in read], layout.labels, runs)
    metrics = {
        "kind": "cross_validation",
        "synthetic": synthetic,
        "settings": asdict(config),
        "images": len(images),
        "usable": len(usable),
        "left_out": folder.left_out,
        **duplicates(layout, digests),
        "protocols": results,
        "gap": _gap(results, draws),
        "disputed_labels": len(table),
        "unreadable": unreadable(images, identified.errors),
        "versions": library_versions(),
    }
    write_table(config.output, "predictions", predictions_table(read, digests, layout.labels, runs, splits))
    write_table(config.output, "disputed_labels", table)
    figures = validation_figures(metrics, table, {storage.printable(image.name): image for image in read})
    write_results(config.output, metrics, figures, validation_report(metrics, figures))
    return metrics


def _few_shot(
    views: Embeddings,
    layout: Layout,
    without: Runs,
    few: Mapping[int, Folds],
    config: EvaluateConfig,
    progress: Progress,
) -> dict[str, Any]:
    """By number of labelled images, what they bring."""
    found = {}
    for count, folds in few.items():
        logits = [
            _out_of_fold(views, layout, of_seed, FitConfig.of(config, workers=0, seed=seed), progress)
            for seed, of_seed in enumerate(folds)
        ]
        runs = [softmax(of_seed) for of_seed in logits]
        found[str(count)] = with_some_labelled(layout.labels, without, runs, folds)
    return found


def _out_of_fold(
    views: Embeddings, layout: Layout, folds: Sequence[Fold], config: FitConfig, progress: Progress
) -> Logits:
    """Logits (n, 4) of each image by the head of the fold that tests it, NaN where none does."""
    logits = np.full((len(layout.labels), len(CLASSES)), np.nan, np.float32)
    for fold in folds:
        train = layout.of(fold.train)
        head = fit(views[:, fold.train], train.labels, config, train.groups)
        logits[fold.test] = head.logits(views[0, fold.test])
        progress.add(1)
    return logits


def _triage(
    views: Embeddings,
    quality: npt.NDArray[np.float32],
    cells: Counts | None,
    layout: Layout,
    folds: Sequence[Fold],
    logits: Logits,
    rules: Rules,
    config: FitConfig,
    drawn_whole: Labels,
) -> dict[str, Any]:
    """`triage_figures` of all tested images, each decided on with limits from the training part of its fold alone.

    Where groups are left out, `never_seen` says of each, and of all together, how many images there are, how many are
    decided without review, and how many of these are wrong; a group that is cut is none.
    """
    decisions, never_seen = [], dict[str, dict[str, int]]()
    for fold in folds:
        found = [None if cells is None else cells[part] for part in (fold.train, fold.test)]
        of_train = views[:, fold.train], quality[fold.train], layout.of(fold.train), rules, config, found[0]
        triage, _ = fit_triage(*of_train)
        decided = triage.decide(views[0, fold.test], logits[fold.test], quality[fold.test], found[1])
        decisions.append(with_sources(decided, triage, layout.of(fold.test)))
        if fold.group and not fold.cut:
            kept = np.asarray(~decisions[-1].reasons.any(axis=1))
            errors = kept & (logits[fold.test].argmax(axis=1) != layout.labels[fold.test])
            never_seen[fold.group] = {"images": len(kept), "decided": int(kept.sum()), "errors": int(errors.sum())}
    tested = np.concatenate([np.flatnonzero(fold.test) for fold in folds])
    together = Decisions(*(np.concatenate(parts) for parts in zip(*decisions, strict=True)))
    figures = triage_figures(together, logits[tested], layout.labels[tested], drawn_whole[tested])
    if never_seen:
        total = {name: sum(each[name] for each in never_seen.values()) for name in ("images", "decided", "errors")}
        figures["never_seen"] = {"groups": never_seen, **total}
    return figures


def _shortcut(
    name: str,
    features: npt.NDArray[np.float32],
    layout: Layout,
    folds: Sequence[Fold],
    config: EvaluateConfig,
    progress: Progress,
) -> Floats:
    """Probabilities (n, 4) by a shortcut's features (n, d), for one seed, NaN where no fold tests an image."""
    probabilities = np.full((len(layout.labels), len(CLASSES)), np.nan)
    for fold in folds:
        probabilities[fold.test] = shortcut_probabilities(
            name,
            features,
            layout.labels,
            fold.train,
            fold.test,
            FitConfig.of(config, workers=0, seed=0),
            config.augmented_views + 1,
        )
        progress.add(1)
    return probabilities


def _measure(
    layout: Layout, runs: Runs, folds: Sequence[Sequence[Fold]], drawn_whole: Labels
) -> tuple[dict[str, Any], Figures]:
    """The figures of one protocol with their spread over folds and seeds and their intervals, and the draws."""
    tested = ~np.isnan(runs[0][:, 0])
    labels, probabilities = layout.labels[tested], [run[tested] for run in runs]
    of_folds = [
        {
            "seed": seed,
            "fold": number,
            "group": fold.group,
            **{part: int(getattr(fold, part).sum()) for part in ("train", "test")},
        }
        | {"left_out": int((~fold.train & ~fold.test).sum())}
        | point_figures(layout.labels[fold.test], run[fold.test])
        for seed, run in enumerate(runs)
        for number, fold in enumerate(folds[seed])
    ]
    of_seeds = [point_figures(labels, each) for each in probabilities]
    draws = bootstrap(labels, probabilities, drawn_whole[tested])
    matrices = [confusion_matrix(labels, each.argmax(axis=1), len(CLASSES)) for each in probabilities]
    strata = layout.labels[tested][np.unique(drawn_whole[tested], return_index=True)[1]]
    return {
        "images": int(tested.sum()),
        "pooled": with_intervals(_mean_by_name(of_seeds), draws),
        "over_folds": _spread_by_name(of_folds),
        "over_seeds": _spread_by_name(of_seeds),
        "folds": of_folds,
        "confusion_matrix_sum_over_seeds": np.sum(matrices, axis=0).tolist(),
        "clusters_drawn": dict(zip(CLASSES, np.bincount(strata, minlength=len(CLASSES)).tolist(), strict=True)),
    }, draws


def _mean_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _spread_by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the figures that every row has; one row has no deviation."""
    names = [name for name in rows[0] if isinstance(rows[0][name], float) and all(name in row for row in rows)]
    values = {name: [row[name] for row in rows] for name in names}
    return {
        name: {"mean": float(np.mean(each)), "std": float(np.std(each, ddof=1)) if len(rows) > 1 else 0.0}
        for name, each in values.items()
    }


def _gap(results: Mapping[str, Any], draws: Mapping[str, Figures]) -> dict[str, Any]:
    """By how much a random split of images flatters: random minus another, drawn in pairs over the same blocks.

    Not in pairs where `grouped` leaves small groups untested.
    """
    gaps = {}
    for other in ("grouped", "blocked"):
        if {"random", other} <= results.keys():
            values = {name: [results[each]["pooled"][name]["value"] for each in ("random", other)] for name in _GAP}
            differences = {name: draws["random"][name] - draws[other][name] for name in _GAP}
            point = {name: one - two for name, (one, two) in values.items()}
            gaps[f"random_minus_{other}"] = with_intervals(point, differences)
    return gaps
