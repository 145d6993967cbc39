"""What a cross-validation writes and prints: predictions and disputed labels as tables, figures, and the results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bcd_ray import storage
from bcd_ray.evaluation.left_out import Folds, Runs, left_out_lines
from bcd_ray.labels import CLASSES, DISPLAY_NAMES
from bcd_ray.learning.dataset import LabelledImage, read_pixels
from bcd_ray.learning.splits import Labels
from bcd_ray.metrics.spread import figure_words
from bcd_ray.reports.figures import Example, confusion_matrix_figure, disputed_labels, protocols_figure
from bcd_ray.reports.report import automatic_words
from bcd_ray.reports.results import for_csv
from bcd_ray.storage import parquet

_GALLERY = 12  # disputed labels that are drawn; the table has all


def predictions_table(
    images: Sequence[LabelledImage],
    digests: Sequence[str],
    labels: Labels,
    runs: Mapping[str, Runs],
    splits: Mapping[str, Folds],
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


def write_table(uri: str, name: str, table: pa.Table) -> None:
    """As Parquet, and as CSV for a spreadsheet."""
    for suffix, data in (("parquet", parquet.bytes_of(table)), ("csv", for_csv(table))):
        storage.write_bytes(storage.join(uri, f"{name}.{suffix}"), data)


def validation_figures(
    metrics: Mapping[str, Any], table: pa.Table, images: Mapping[str, LabelledImage]
) -> dict[str, bytes]:
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
        if of := result["triage"].get("never_seen"):
            lines.append(
                f"triage, groups that were never seen: {of['decided']:,} of {of['images']:,} images are not sent to "
                f"review, and {of['errors']:,} of these are wrong"
            )
        before, after = (result["triage"]["calibration"][when]["ece"] for when in ("before", "after"))
        lines.append(f"expected calibration error, {name}: {before:.3f}, after temperature scaling {after:.3f}")
    for protocols, gaps in metrics["gap"].items():
        for name in ("macro_f1", "accuracy"):
            between = f"{protocols.replace('_', ' ')}, {name.replace('_', ' ')}"
            lines.append(f"{between}: {figure_words(gaps[name])} points")
    lines += left_out_lines(metrics["protocols"].get("grouped", {}))
    lines.append(f"{metrics['disputed_labels']} given labels are disputed: see disputed_labels.csv")
    return "\n".join(lines)


def _cells(figures: Mapping[str, Any]) -> str:
    return "".join(f"{figure_words(figures[name]):>22}" for name in ("macro_f1", "accuracy", "balanced_accuracy"))
