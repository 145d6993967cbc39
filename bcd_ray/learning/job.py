"""Training, top to bottom: list, identify, split, embed, fit head and triage, measure, write."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bcd_ray.labels import CLASSES
from bcd_ray.learning import quantization
from bcd_ray.learning.assessment import assess, unreadable
from bcd_ray.learning.audit import shortcut_features, shortcut_probabilities
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.dataset import LabelledImage, groups_of, list_folder, listed_layout, says_synthetic
from bcd_ray.learning.embedding import Embedder, Identified
from bcd_ray.learning.head import FitConfig, Parts, fit_head
from bcd_ray.learning.layout import duplicates, lay_out
from bcd_ray.learning.shortcuts import SHORTCUT_VIEWS
from bcd_ray.learning.splits import Fold, Labels, Layout, Rules, clusters, hold_out, require_classes
from bcd_ray.learning.thresholds import fit_triage, inner_folds, triage_figures, with_sources
from bcd_ray.learning.unfreezing import Unfreezer
from bcd_ray.metrics.spread import spread_figures
from bcd_ray.model.bundle import pretrained, save_bundle
from bcd_ray.progress import say
from bcd_ray.reports.figures import training_curves
from bcd_ray.reports.model_card import model_card
from bcd_ray.reports.report import training_report
from bcd_ray.reports.results import refuse_to_replace, write_results
from bcd_ray.reports.triage_plots import triage_plots
from bcd_ray.runtime import library_versions

_VALIDATION_FRACTION = 0.2  # of the training images


@dataclass(frozen=True)
class Split:
    """Indices of the images of each part; groups of duplicates stand whole in one of them."""

    train: Labels
    held_out: Labels
    train_layout: Layout
    held_out_layout: Layout
    drawn_whole: Labels  # of the held out images, what a bootstrap draws whole
    counts: dict[str, Any]


def train(config: TrainConfig) -> dict[str, Any]:
    """Fit a model, write its bundle, and return its metrics."""
    folder = list_folder(config.data, config.allow_missing_classes)
    images = folder.images
    refuse_to_replace(config.output, "model.sha256")
    if config.int8:
        quantization.check_installed()
    synthetic = says_synthetic(config.data)
    whole = pretrained(config.weights, config.representation, config.white)
    model = whole.trunk(config.unfreeze) if config.unfreeze else whole
    listed = listed_layout(images, *groups_of(images, config.group_pattern, config.group_table, config.group_column))
    labels = listed.labels
    hold_out_part(listed, config)  # what cannot be split ends here, before an image is read
    with Embedder(images, model, config.cache, config.max_cache_bytes) as embedder:
        identified = embedder.identified
        split = split_images(listed, identified, config)
        say(split.counts["summary"])
        fitted_on, reduced = config.fitted_on, SHORTCUT_VIEWS if config.audit else {}
        wanted = np.ones((len(fitted_on) + len(reduced), len(images)), bool)
        wanted[1 : len(fitted_on)] = np.isin(np.arange(len(images)), split.train)
        embedded = embedder.embed([*fitted_on, *reduced], wanted)
        fit_config = FitConfig.of(config, config.workers, config.seed)
        if config.unfreeze:
            maps = embedded.embeddings[: len(fitted_on), split.train]
            unfreezer = Unfreezer(whole, config.unfreeze, maps, labels[split.train], fit_config, config.cache)
            model = unfreezer.fit()
            embedded = replace(embedded, embeddings=unfreezer.embed(model, embedded.embeddings))
        train_images = [images[index] for index in split.train]
        views = embedded.embeddings[: len(fitted_on), split.train]
        held_out, quality = embedded.embeddings[0, split.held_out], embedded.quality[0]
        cells = None if embedded.cells is None else embedded.cells[0]
        known = labels[split.train], held_out, labels[split.held_out], split.train_layout.groups
        head = fit_head(Parts(views, *known), fit_config)
    rules = Rules(config.split, config.block, config.embargo)
    found = [None if cells is None else cells[part] for part in (split.train, split.held_out)]
    without = unfreezer.without if config.unfreeze else None
    of_train = views, quality[split.train], split.train_layout, rules, fit_config, found[0]
    triage, on_training = fit_triage(*of_train, without)
    held_out_images = [images[index] for index in split.held_out]
    logits = head.logits(held_out)
    decisions = triage.decide(held_out, logits, quality[split.held_out], found[1])
    decisions = with_sources(decisions, triage, split.held_out_layout)
    on_held_out = triage_figures(decisions, logits, labels[split.held_out], split.drawn_whole)
    title = f"{config.holdout} part, {len(held_out_images)} images"
    metrics, figures = assess(held_out_images, decisions.probabilities, split.drawn_whole, title, synthetic)
    figures |= triage_plots(on_held_out, config.holdout, synthetic)
    history = [{name.replace("held_out", config.holdout): value for name, value in row.items()} for row in head.history]
    figures["training_curves.png"] = training_curves(history, config.holdout, synthetic=synthetic)
    metrics |= {
        "part": config.holdout,
        "protocol": rules.text(),
        "history": history,
        "counts": split.counts,
        "left_out": folder.left_out,
        "split": {"train": [i.name for i in train_images], config.holdout: [i.name for i in held_out_images]},
        "triage": {
            "least_certainty": triage.least_certainty,
            "cross_validated": on_training,
            config.holdout: on_held_out,
        },
        "unreadable": unreadable(images, identified.errors),
    }
    if config.audit:
        parts = labels, split.train, split.held_out, fit_config, len(views)
        metrics["shortcuts"] = {
            name: spread_figures(labels[split.held_out], shortcut_probabilities(name, each, *parts), split.drawn_whole)
            for name, each in shortcut_features(embedded).items()
        }
    info = {
        "training": asdict(config),
        "data_fingerprint": _fingerprint(images, identified.digests),
        "synthetic": synthetic,
        "source_limit": triage.settings["source"],
        "metrics": {name: metrics[name] for name in ("part", "images", "accuracy", "macro", "protocol")},
        "versions": library_versions(),
    }
    fitted, int8 = model.with_head(head.weight, head.bias), None
    if config.int8:
        say("quantising to int8")
        int8 = quantization.quantize(fitted, train_images, head.logits(views[0]))
        info["int8"] = metrics["int8"] = quantization.compare(int8, fitted, held_out_images, logits)
    write_results(config.output, metrics, figures, training_report(info, metrics, figures))
    card = model_card(info, metrics)
    save_bundle(config.output, fitted, triage, info, {"MODEL_CARD.md": card}, int8)
    return metrics


def split_images(listed: Layout, identified: Identified, config: TrainConfig) -> Split:
    """The training part and the part to evaluate on, of the images that could be read."""
    usable, layout = lay_out(listed, identified)
    fold = hold_out_part(layout, config)
    counts = {
        "images": len(listed.labels),
        "usable": len(usable),
        **duplicates(layout, [identified.digests[index] for index in usable]),
        "train": _per_class(layout.labels[fold.train]),
        config.holdout: _per_class(layout.labels[fold.test]),
        "left_out": len(usable) - int((fold.train | fold.test).sum()),
    }
    summary = (
        f"{fold.train.sum()} training and {fold.test.sum()} {config.holdout} images, {counts['left_out']} in neither "
        f"part; {counts['byte_identical_copies']} byte-identical copies and {counts['images_with_near_duplicate']} "
        "images with a near duplicate are kept apart from the other side"
    )
    drawn_whole = clusters(layout, config.block)[fold.test]
    parts = usable[fold.train], usable[fold.test], layout.of(fold.train), layout.of(fold.test), drawn_whole
    return Split(*parts, counts | {"summary": summary})


def hold_out_part(layout: Layout, config: TrainConfig) -> Fold:
    """The images to train on and those to evaluate on.

    Raises:
        ConfigError: one of the two parts would lack a class.
        JobError: the training part has too few images for the folds inside it, which give triage its limits.
    """
    rules = Rules(config.split, config.block, config.embargo)
    fold = hold_out(layout, rules, config.test_fraction, config.seed)
    if config.holdout == "validation":
        fold = hold_out(layout.of(fold.train), rules, _VALIDATION_FRACTION, config.seed).within(fold.train)
    require_classes(layout, fold, rules, config.holdout)
    inner_folds(layout.of(fold.train), rules, config.seed)
    return fold


def _per_class(labels: Labels) -> dict[str, int]:
    return dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True))


def _fingerprint(images: Sequence[LabelledImage], digests: Sequence[str]) -> str:
    """sha256 over the names and digests of all images, in order of name."""
    lines = (f"{digest}  {image.name}\n" for image, digest in zip(images, digests, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()  # file names as they are
