"""How well a model does on labelled images: metrics and figures, the same after training and for any folder."""

from typing import Any

import numpy as np
import numpy.typing as npt

from bcd_ray.errors import JobError
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.learning.assessment import assess, unreadable
from bcd_ray.learning.dataset import groups_of, list_folder, listed_layout, says_synthetic
from bcd_ray.learning.embedding import Embedder, Embeddings
from bcd_ray.learning.splits import Labels, clusters
from bcd_ray.learning.spoiling import SPOILT
from bcd_ray.learning.thresholds import triage_figures, with_sources
from bcd_ray.model.bundle import Bundle, load_bundle
from bcd_ray.reports.report import model_report
from bcd_ray.reports.results import refuse_to_replace, write_results
from bcd_ray.reports.triage_plots import triage_plots

_OF_USE = 0.8  # accuracy under which a way of spoiling leaves images of no use


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a model on a folder of labelled images, write metrics.json and figures, and return the metrics."""
    bundle = load_bundle(config.model)
    folder = list_folder(config.data, config.allow_missing_classes)
    images = folder.images
    listed = listed_layout(images, *groups_of(images, config.group_pattern, config.group_table, config.group_column))
    refuse_to_replace(config.output, "metrics.json")
    with Embedder(images, bundle.model, config.cache, config.max_cache_bytes) as embedder:
        embedded, errors = embedder.embed([0, *(SPOILT if config.spoil else ())]), embedder.identified.errors
    usable = [index for index, error in enumerate(errors) if error is None]
    if not usable:
        raise JobError(f"none of the {len(images)} images in {config.data} could be read: {errors[0]}")
    embeddings, quality = embedded.embeddings[:, usable], embedded.quality[:, usable]
    logits = bundle.model.logits(embeddings[0])
    read, labels = [images[index] for index in usable], listed.labels[usable]
    synthetic = says_synthetic(config.data)
    drawn_whole = clusters(listed, config.block)[usable]
    cells = None if embedded.cells is None else embedded.cells[:, usable]
    decisions = bundle.triage.decide(embeddings[0], logits, quality[0], None if cells is None else cells[0])
    decisions = with_sources(decisions, bundle.triage, listed.of(np.isin(np.arange(len(images)), usable)))
    metrics, figures = assess(read, decisions.probabilities, drawn_whole, config.data, synthetic)
    on_data = triage_figures(decisions, logits, labels, drawn_whole)
    figures |= triage_plots(on_data, "evaluated", synthetic)
    metrics["triage"] = {"least_certainty": bundle.triage.least_certainty, "evaluated": on_data}
    metrics["model_version"] = bundle.version
    metrics["left_out"] = folder.left_out
    metrics["unreadable"] = unreadable(images, errors)
    if config.spoil:
        of_spoilt = None if cells is None else cells[1:]
        metrics["spoilt"] = spoilt_figures(labels, embeddings[1:], quality[1:], bundle, of_spoilt)
    about = f"Model {bundle.version[:12]} on the {len(usable):,} readable images of {len(images):,} in {config.data}."
    data = ["Whether training saw these images, or others of the same patients, is not known here."]
    write_results(config.output, metrics, figures, model_report(metrics, figures, about, data, grouped=False))
    return metrics


def spoilt_figures(
    labels: Labels,
    embeddings: Embeddings,
    quality: npt.NDArray[np.float32],
    bundle: Bundle,
    cells: npt.NDArray[np.int32] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Of n images spoilt in each of the ways of `SPOILT`: the accuracy, and the share that triage sends to an expert.

    `wrong` is the share of errors among the others, None where there are none. The file's own compression is taken for
    that of the spoilt images, as if they had been saved without loss since: only their pixels tell.

    `beyond_use` sums up the ways that leave an accuracy under 80 %: how many there are, and the share of their images
    that is sent, None where there are none. `embeddings` (ways, n, d), `quality` (ways, n, 7) and `cells` (ways, n) are
    those of the spoilt images.
    """
    figures, useless = dict[str, dict[str, float | None]](), []
    for way, (name, of_way, measures) in enumerate(zip(SPOILT, embeddings, quality, strict=True)):
        found = None if cells is None else cells[way]
        decisions = bundle.triage.decide(of_way, bundle.model.logits(of_way), measures, found)
        correct = decisions.probabilities.argmax(axis=1) == labels
        sent = decisions.reasons.any(axis=1)
        accuracy, review = float(correct.mean()), float(sent.mean())
        wrong = None if sent.all() else float((~correct)[~sent].mean())
        figures[name] = {"accuracy": accuracy, "review": review, "wrong": wrong}
        if accuracy < _OF_USE:
            useless.append(review)
    figures["beyond_use"] = {"ways": len(useless), "review": float(np.mean(useless)) if useless else None}
    return figures
