"""How well a model does on labelled images: metrics and figures, the same after training and for any folder."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray import storage
from bcd_ray.config import EvaluateConfig
from bcd_ray.dataset import LabelledImage, group_numbers, list_labelled, listed_layout, read_pixels, says_synthetic
from bcd_ray.embedding import Embedder, Embeddings
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.figures import GALLERY_LIMIT, Example, confusion_matrix_figure, gallery
from bcd_ray.labels import CLASSES, DISPLAY_NAMES
from bcd_ray.metrics import classification_metrics
from bcd_ray.model import Bundle, load_bundle
from bcd_ray.report import model_report
from bcd_ray.splits import Labels, clusters
from bcd_ray.spoiling import SPOILT
from bcd_ray.spread import spread_figures
from bcd_ray.thresholds import triage_figures
from bcd_ray.triage_plots import triage_plots

Probabilities = npt.NDArray[np.float64]
_OF_USE = 0.8  # accuracy under which a way of spoiling leaves images of no use


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a model on a folder of labelled images, write metrics.json and figures, and return the metrics."""
    bundle = load_bundle(config.model)
    images = list_labelled(config.data)
    listed = listed_layout(images, group_numbers(images, config.group_pattern, config.group_table))
    refuse_to_replace(config.output, "metrics.json")
    with Embedder(images, bundle.model, config.cache) as embedder:
        embedded, errors = embedder.embed([0, *(SPOILT if config.spoil else ())]), embedder.identified.errors
    usable = [index for index, error in enumerate(errors) if error is None]
    if not usable:
        raise JobError(f"none of the {len(images)} images in {config.data} could be read: {errors[0]}")
    embeddings, quality = embedded.embeddings[:, usable], embedded.quality[:, usable]
    logits = bundle.model.logits(embeddings[0])
    read, labels = [images[index] for index in usable], listed.labels[usable]
    synthetic = says_synthetic(config.data)
    drawn_whole = clusters(listed, config.block)[usable]
    decisions = bundle.triage.decide(embeddings[0], logits, quality[0])
    metrics, figures = assess(read, decisions.probabilities, drawn_whole, config.data, synthetic)
    on_data = triage_figures(decisions, logits, labels, drawn_whole)
    figures |= triage_plots(on_data, "evaluated", synthetic)
    metrics |= {"triage": {"evaluated": on_data}, "model_version": bundle.version}
    metrics["unreadable"] = unreadable(images, errors)
    if config.spoil:
        metrics["spoilt"] = spoilt_figures(labels, embeddings[1:], quality[1:], bundle)
    about = f"Model {bundle.version[:12]} on the {len(usable):,} readable images of {len(images):,} in {config.data}."
    data = ["Whether training saw these images, or others of the same patients, is not known here."]
    write_results(config.output, metrics, figures, model_report(metrics, figures, about, data, grouped=False))
    return metrics


def assess(
    images: Sequence[LabelledImage], probabilities: Probabilities, drawn_whole: Labels, title: str, synthetic: bool
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metrics, and figures by their file names, of predicted probabilities (n, 4) for n labelled images.

    `drawn_whole` (n,) numbers the blocks or groups that the intervals are drawn over (`splits.clusters`).
    """
    labels = np.array([image.label for image in images])
    metrics = classification_metrics(labels, probabilities.argmax(axis=1), CLASSES)
    metrics["with_intervals"] = spread_figures(labels, probabilities, drawn_whole)
    if synthetic:
        metrics["synthetic"] = True
    right, wrong = _examples(images, labels, probabilities)
    return metrics, {
        "confusion_matrix.png": confusion_matrix_figure(
            metrics["confusion_matrix"], DISPLAY_NAMES, f"Confusion matrix: {title}", synthetic=synthetic
        ),
        "gallery.png": gallery(right, wrong, DISPLAY_NAMES, synthetic=synthetic),
    }


def spoilt_figures(
    labels: Labels, embeddings: Embeddings, quality: npt.NDArray[np.float32], bundle: Bundle
) -> dict[str, dict[str, float | None]]:
    """Of n images spoilt in each of the ways of `SPOILT`: the accuracy, and the share that triage sends to an expert.

    `beyond_use` sums up the ways that leave an accuracy under 80 %: how many there are, and the share of their images
    that is sent, None where there are none. `embeddings` (ways, n, 1280) and `quality` (ways, n, 4) are those of the
    spoilt images.
    """
    figures, useless = dict[str, dict[str, float | None]](), []
    for name, of_way, measures in zip(SPOILT, embeddings, quality, strict=True):
        decisions = bundle.triage.decide(of_way, bundle.model.logits(of_way), measures)
        accuracy = float((decisions.probabilities.argmax(axis=1) == labels).mean())
        review = float(decisions.reasons.any(axis=1).mean())
        figures[name] = {"accuracy": accuracy, "review": review}
        if accuracy < _OF_USE:
            useless.append(review)
    figures["beyond_use"] = {"ways": len(useless), "review": float(np.mean(useless)) if useless else None}
    return figures


def unreadable(images: Sequence[LabelledImage], errors: Sequence[str | None]) -> dict[str, str]:
    """The images that could not be used, by name, with the reason."""
    return {image.name: error for image, error in zip(images, errors, strict=True) if error is not None}


def write_results(uri: str, metrics: dict[str, Any], figures: dict[str, bytes], report: bytes) -> None:
    """Write figures, report.html and, last, metrics.json below a folder."""
    for name, data in figures.items():
        storage.write_bytes(storage.join(uri, "figures", name), data)
    storage.write_bytes(storage.join(uri, "report.html"), report)
    storage.write_bytes(storage.join(uri, "metrics.json"), (json.dumps(metrics, indent=2) + "\n").encode())


def refuse_to_replace(output: str, name: str) -> None:
    """ConfigError if the output holds results already, or cannot be written."""
    if storage.exists(storage.join(output, name)):
        raise ConfigError(f"--output {output} holds results already: choose another folder, or delete it")
    storage.check_writable(output)


def _examples(
    images: Sequence[LabelledImage], labels: Labels, probabilities: Probabilities
) -> tuple[list[Example], list[Example]]:
    """For the gallery: of each class the surest and the least sure right prediction, and the surest wrong ones."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    by_confidence = np.argsort(-confidence, kind="stable")
    right = []
    for label in np.unique(labels):
        of_class = [index for index in by_confidence if correct[index] and labels[index] == label]
        right += [of_class[0], of_class[-1]] if len(of_class) > 1 else of_class
    wrong = [index for index in by_confidence if not correct[index]]

    def example(index: int) -> Example:
        return Example(read_pixels(images[index]), int(labels[index]), probabilities[index], images[index].name)

    # Beyond the limit the gallery only counts, so the pixels are not read again.
    return [example(index) for index in right], [example(index) for index in wrong[:GALLERY_LIMIT]]
