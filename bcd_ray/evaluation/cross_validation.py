"""Cross-validation, top to bottom: list, embed, split, fit, measure with spread, audit, check labels, write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray import storage
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.evaluation.label_check import check_labels
from bcd_ray.labels import CLASSES, DISPLAY_NAMES
from bcd_ray.learning.assessment import unreadable
from bcd_ray.learning.audit import SHORTCUTS, shortcut_features, shortcut_probabilities
from bcd_ray.learning.dataset import (
    LabelledImage,
    groups_of,
    list_folder,
    listed_layout,
    read_pixels,
    says_synthetic,
)
from bcd_ray.learning.embedding import Embedder, Embeddings
from bcd_ray.learning.head import FitConfig, fit
from bcd_ray.learning.layout import duplicates, lay_out
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS
from bcd_ray.learning.splits import Fold, Labels, Layout, Rules, clusters, cross_validate, require_classes
from bcd_ray.learning.thresholds import fit_triage, inner_folds, triage_figures, with_sources
from bcd_ray.metrics.classification import confusion_matrix
from bcd_ray.metrics.spread import Figures, Floats, bootstrap, figure_words, point_figures, with_intervals
from bcd_ray.model.bundle import pretrained
from bcd_ray.model.network import softmax
from bcd_ray.model.triage import Counts, Decisions
from bcd_ray.progress import Progress
from bcd_ray.reports.figures import Example, confusion_matrix_figure, disputed_labels, protocols_figure
from bcd_ray.reports.report import automatic_words, validation_report
from bcd_ray.reports.results import for_csv, refuse_to_replace, write_results
from bcd_ray.runtime import library_versions
from bcd_ray.storage import parquet

_GALLERY = 12  # disputed labels that are drawn; the table has all
_GAP = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "malignant_sensitivity", "malignant_specificity")
_OF_GROUPS = ("recall", "benign_or_malignant")
Logits = npt.NDArray[np.float32]
Runs = Sequence[Floats]  # of each seed: probabilities (n, 4), NaN where an image was in no test part


def validate(config: EvaluateConfig) -> dict[str, Any]:
    """Cross-validate the settings under every protocol, write the results, and return what metrics.json holds."""
    folder = list_folder(config.data, config.allow_missing_classes)
    images = folder.images
    listed = listed_layout(images, *groups_of(images, config.group_pattern, config.group_table, config.group_column))
    refuse_to_replace(config.output, "metrics.json")
    synthetic = says_synthetic(config.data)
    _splits(listed, config)  # what cannot be split ends here, before an image is read
    with Embedder(images, pretrained(config.weights, config.representation), config.cache) as embedder:
        identified = embedder.identified
        usable, layout = lay_out(listed, identified)
        splits = _splits(layout, config)
        embedded = embedder.embed([*range(config.augmented_views + 1), *SHORTCUT_VIEWS])
    read = [images[index] for index in usable]
    digests = [identified.digests[index] for index in usable]
    augmented = embedded.embeddings[: config.augmented_views + 1, usable]
    reduced = {shortcut: of_all[usable] for shortcut, of_all in shortcut_features(embedded).items()}
    drawn_whole, quality = clusters(layout, config.block), embedded.quality[0, usable]
    cells = None if embedded.cells is None else embedded.cells[0, usable]

    progress = Progress("fitting", (config.seeds + len(SHORTCUTS)) * sum(len(f[0]) for f in splits.values()), "heads")
    runs, draws, results = dict[str, Runs](), dict[str, Figures](), dict[str, Any]()
    for name, folds in splits.items():
        logits = [
            _out_of_fold(augmented, layout, folds[s], _fit_config(config, s), progress) for s in range(config.seeds)
        ]
        runs[name] = [softmax(of_seed) for of_seed in logits]
        results[name], draws[name] = _measure(layout, runs[name], folds, drawn_whole)
        rules = _rules(name, config)
        results[name]["protocol"] = rules.text()
        if not _folds(name, config):
            results[name] |= _of_groups(layout.labels, runs[name], folds[0])
        of_first = folds[0], logits[0], rules, _fit_config(config, 0)
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
    _write_table(config.output, "predictions", _predictions(read, digests, layout.labels, runs, splits))
    _write_table(config.output, "disputed_labels", table)
    figures = _figures(metrics, table, {storage.printable(image.name): image for image in read})
    write_results(config.output, metrics, figures, validation_report(metrics, figures))
    return metrics


def _splits(layout: Layout, config: EvaluateConfig) -> dict[str, list[list[Fold]]]:
    """By name, for each seed the folds of a protocol; the two ends of `forward` are results of their own.

    Raises:
        ConfigError, JobError: a class is too small for the folds, or for those inside that triage is fitted by.
    """
    splits: dict[str, list[list[Fold]]] = {}
    for protocol in config.split:
        rules = Rules(protocol, config.block, config.embargo)
        of_seeds = [
            cross_validate(layout, rules, _folds(protocol, config), config.test_fraction, seed)
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


def _folds(protocol: str, config: EvaluateConfig) -> int:
    return config.folds or (0 if protocol == "grouped" else 5)


def _rules(name: str, config: EvaluateConfig) -> Rules:
    return Rules("forward" if name.startswith("forward") else name, config.block, config.embargo)  # type: ignore[arg-type]


def _fit_config(config: EvaluateConfig, seed: int) -> FitConfig:
    return FitConfig(
        config.epochs,
        config.learning_rate,
        config.label_smoothing,
        config.batch_size,
        workers=0,
        seed=seed,
        balanced=config.representation != "field",
    )


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
    """`triage_figures` of all tested images, each decided on with limits from the training part of its fold alone."""
    decisions = []
    for fold in folds:
        found = [None if cells is None else cells[part] for part in (fold.train, fold.test)]
        of_train = views[:, fold.train], quality[fold.train], layout.of(fold.train), rules, config, found[0]
        triage, _ = fit_triage(*of_train)
        decided = triage.decide(views[0, fold.test], logits[fold.test], quality[fold.test], found[1])
        decisions.append(with_sources(decided, triage, layout.of(fold.test)))
    tested = np.concatenate([np.flatnonzero(fold.test) for fold in folds])
    together = Decisions(*(np.concatenate(parts) for parts in zip(*decisions, strict=True)))
    return triage_figures(together, logits[tested], layout.labels[tested], drawn_whole[tested])


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
            name, features, layout.labels, fold.train, fold.test, _fit_config(config, 0), config.augmented_views + 1
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


def _of_groups(labels: Labels, runs: Runs, folds: Sequence[Fold]) -> dict[str, Any]:
    """How well each group is told that was left out, and the mean over those that were left out whole.

    `recall` is the share of a group's images that are right, `benign_or_malignant` the share on the right side of that
    line; mean and deviation over seeds. `always_trained_on` counts the images of small groups.
    """
    groups = []
    for name in dict.fromkeys(fold.group for fold in folds):
        own = [fold for fold in folds if fold.group == name]
        test = np.any([fold.test for fold in own], axis=0)
        right = [run[test].argmax(axis=1) == labels[test] for run in runs]
        side = [(run[test].argmax(axis=1) > 0) == (labels[test] > 0) for run in runs]
        found: dict[str, Any] = {"group": name, "classes": [CLASSES[label] for label in np.unique(labels[test])]}
        found |= {"images": int(test.sum()), "cut": any(fold.cut for fold in own)}
        for figure, of_seeds in (("recall", right), ("benign_or_malignant", side)):
            shares = [float(each.mean()) for each in of_seeds]
            found |= {figure: float(np.mean(shares)), f"{figure}_std": float(np.std(shares))}
        groups.append(found)
    whole = [each for each in groups if not each["cut"]]
    means = {name: float(np.mean([each[name] for each in whole])) for name in _OF_GROUPS} if whole else {}
    always = int((~np.any([fold.test for fold in folds], axis=0)).sum())
    return {"groups": groups, "mean_over_groups": means, "always_trained_on": always}


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


def _predictions(
    images: Sequence[LabelledImage],
    digests: Sequence[str],
    labels: Labels,
    runs: Mapping[str, Runs],
    splits: Mapping[str, Sequence[Sequence[Fold]]],
) -> pa.Table:
    """A row for every protocol, seed and image in a test part."""
    tables = []
    for name, of_seeds in runs.items():
        for seed, probabilities in enumerate(of_seeds):
            for number, fold in enumerate(splits[name][seed]):
                rows = np.flatnonzero(fold.test)
                columns = {
                    "protocol": [name] * len(rows),
                    "seed": [seed] * len(rows),
                    "fold": [number] * len(rows),
                    "image": [storage.printable(images[row].name) for row in rows.tolist()],
                    "image_sha256": [digests[row] for row in rows.tolist()],
                    "given_class": [CLASSES[label] for label in labels[rows]],
                    "predicted_class": [CLASSES[label] for label in probabilities[rows].argmax(axis=1)],
                }
                columns |= {f"p_{each}": probabilities[rows, label] for label, each in enumerate(CLASSES)}
                tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _write_table(uri: str, name: str, table: pa.Table) -> None:
    """As Parquet, and as CSV for a spreadsheet."""
    for suffix, data in (("parquet", parquet.bytes_of(table)), ("csv", for_csv(table))):
        storage.write_bytes(storage.join(uri, f"{name}.{suffix}"), data)


def _figures(metrics: Mapping[str, Any], table: pa.Table, images: Mapping[str, LabelledImage]) -> dict[str, bytes]:
    synthetic, results = metrics["synthetic"], metrics["protocols"]
    figures = {
        f"confusion_matrix_{name.replace('/', '_')}.png": confusion_matrix_figure(
            result["confusion_matrix_sum_over_seeds"],
            DISPLAY_NAMES,
            f"Confusion matrix: {name}, sum over {metrics['settings']['seeds']} seeds",
            synthetic=synthetic,
        )
        for name, result in results.items()
    }
    figures["protocols.png"] = protocols_figure(results, synthetic=synthetic)
    examples = [
        Example(
            read_pixels(images[row["image"]]),
            CLASSES.index(row["given_class"]),
            np.array([row[f"p_{name}"] for name in CLASSES]),
            row["image"],
        )
        for row in table.slice(0, _GALLERY).to_pylist()
    ]
    figures["disputed_labels.png"] = disputed_labels(examples, len(table), DISPLAY_NAMES, synthetic=synthetic)
    return figures


def format_validation(metrics: Mapping[str, Any]) -> str:
    """The results for a terminal: for each protocol the model and the shortcuts, shares in percent, 95 % intervals."""
    heading = f"{'':<24}{'macro F1':>22}{'accuracy':>22}{'balanced accuracy':>22}   macro F1 of folds"
    lines = [heading]
    for name, result in metrics["protocols"].items():
        folds = result["over_folds"]["macro_f1"]
        spread = f"{100 * folds['mean']:.1f} ± {100 * folds['std']:.1f} (n = {len(result['folds'])})"
        lines.append(f"{name:<24}{_cells(result['pooled'])}   {spread}")
        lines += [f"  {each.replace('_', ' '):<22}{_cells(found)}" for each, found in result["shortcuts"].items()]
    for name, result in metrics["protocols"].items():
        pooled = result["pooled"]
        parts = [f"sensitivity {figure_words(pooled['malignant_sensitivity'])}"]
        parts += [
            f"specificity {figure_words(pooled['malignant_specificity'])}",
            f"AUROC {figure_words(pooled['malignant_auroc'])}",
        ]
        lines.append(f"malignant, {name}: {', '.join(parts)}")
    for name, result in metrics["protocols"].items():
        lines.append(f"triage, {name}: {automatic_words(result['triage']['automatic'])}")
        before, after = (result["triage"]["calibration"][when]["ece"] for when in ("before", "after"))
        lines.append(f"expected calibration error, {name}: {before:.3f}, after temperature scaling {after:.3f}")
    for protocols, gaps in metrics["gap"].items():
        for name in ("macro_f1", "accuracy"):
            between = f"{protocols.replace('_', ' ')}, {name.replace('_', ' ')}"
            lines.append(f"{between}: {figure_words(gaps[name])} points")
    lines += _group_lines(metrics["protocols"].get("grouped", {}))
    lines.append(f"{metrics['disputed_labels']} given labels are disputed: see disputed_labels.csv")
    return "\n".join(lines)


def _group_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for each group that was left out, and the figure to go by."""
    lines = [
        f"left out {each['group']} ({', '.join(each['classes'])}, {each['images']} images): recall "
        f"{100 * each['recall']:.1f} %, benign or malignant {100 * each['benign_or_malignant']:.1f} %"
        + (": the only group of its class, cut in two by file numbers: not a new day" if each["cut"] else "")
        for each in result.get("groups", [])
    ]
    if means := result.get("mean_over_groups"):
        lines.append(
            f"a group that was never seen, mean of {sum(not each['cut'] for each in result['groups'])}: recall "
            f"{100 * means['recall']:.1f} %, benign or malignant {100 * means['benign_or_malignant']:.1f} %"
        )
    return lines


def _cells(figures: Mapping[str, Any]) -> str:
    return "".join(f"{figure_words(figures[name]):>22}" for name in ("macro_f1", "accuracy", "balanced_accuracy"))
