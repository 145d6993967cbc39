"""Training, top to bottom: list, embed, split, embed augmented views, fit the head, measure, write the bundle."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bcd_ray import quantization
from bcd_ray.config import TrainConfig
from bcd_ray.dataset import LabelledImage, Labels, hold_out, list_labelled, says_synthetic
from bcd_ray.embedding import Embedded, embed
from bcd_ray.engine import softmax
from bcd_ray.errors import JobError
from bcd_ray.evaluation import assess, refuse_to_replace, unreadable, write_results
from bcd_ray.figures import training_curves
from bcd_ray.head import FitConfig, fit_head
from bcd_ray.labels import CLASSES
from bcd_ray.model import pretrained, save_bundle
from bcd_ray.perceptual import near_duplicate_groups
from bcd_ray.report import model_card
from bcd_ray.runtime import library_versions, ray_session, say

_VALIDATION_FRACTION = 0.2  # of the training images


@dataclass(frozen=True)
class Split:
    """Indices of the images of each part; groups of duplicates stand whole in one of them."""

    train: Labels
    held_out: Labels
    counts: dict[str, Any]


def train(config: TrainConfig) -> dict[str, Any]:
    """Fit a model, write its bundle, and return its metrics."""
    images = list_labelled(config.data)
    refuse_to_replace(config.output, "model.sha256")
    if config.int8:
        quantization.check_installed()
    synthetic = says_synthetic(config.data)
    model = pretrained(config.weights)
    labels = np.array([image.label for image in images])
    with ray_session():
        plain = embed(images, model, views=[0], seed=config.seed, verb="embedding")
        split = split_images(labels, plain, config)
        say(split.counts["summary"])
        train_images = [images[index] for index in split.train]
        views = plain.embeddings[:, split.train]
        if config.augmented_views:
            numbers = range(1, config.augmented_views + 1)
            augmented = embed(train_images, model, views=numbers, seed=config.seed, verb="augmenting")
            _check_unchanged(train_images, augmented, [plain.digests[index] for index in split.train])
            views = np.concatenate([views, augmented.embeddings])
        fit_config = FitConfig(config.epochs, config.learning_rate, config.batch_size, config.workers, config.seed)
        held_out = plain.embeddings[0, split.held_out]
        head = fit_head(views, labels[split.train], held_out, labels[split.held_out], fit_config)
    held_out_images = [images[index] for index in split.held_out]
    title = f"{config.holdout} part, {len(held_out_images)} images"
    metrics, figures = assess(held_out_images, softmax(head.logits(held_out)), title, synthetic)
    history = [{name.replace("held_out", config.holdout): value for name, value in row.items()} for row in head.history]
    figures["training_curves.png"] = training_curves(history, config.holdout, synthetic=synthetic)
    metrics |= {
        "part": config.holdout,
        "protocol": "random split of images, not of patients; duplicates and near duplicates on one side",
        "history": history,
        "counts": split.counts,
        "split": {"train": [i.name for i in train_images], config.holdout: [i.name for i in held_out_images]},
        "unreadable": unreadable(images, plain.errors),
    }
    info = {
        "training": asdict(config),
        "data_fingerprint": _fingerprint(images, plain.digests),
        "synthetic": synthetic,
        "metrics": {name: metrics[name] for name in ("part", "images", "accuracy", "macro", "protocol")},
        "versions": library_versions(),
    }
    fitted, int8 = model.with_head(head.weight, head.bias), None
    if config.int8:
        say("quantising to int8")
        int8 = quantization.quantize(fitted, train_images, head.logits(plain.embeddings[0, split.train]))
        info["int8"] = metrics["int8"] = quantization.compare(int8, held_out_images, head.logits(held_out))
    write_results(config.output, metrics, figures)
    save_bundle(config.output, fitted, info, {"MODEL_CARD.md": model_card(info, metrics)}, int8)
    return metrics


def split_images(labels: Labels, embedded: Embedded, config: TrainConfig) -> Split:
    """The training part and the part to evaluate on, of the images that could be read."""
    usable = np.array([index for index, error in enumerate(embedded.errors) if error is None], np.int64)
    counts = np.bincount(labels[usable], minlength=len(CLASSES))
    if (counts[np.unique(labels)] < 2).any():
        raise JobError(
            f"too few readable images to split: {dict(zip(CLASSES, counts.tolist(), strict=True))}; "
            f"the first that failed says: {next(filter(None, embedded.errors), 'none failed')}"
        )
    digests = [embedded.digests[index] for index in usable]
    groups = near_duplicate_groups(digests, embedded.hashes[usable])
    aside = hold_out(labels[usable], groups, config.test_fraction, config.seed)
    train, held_out = usable[~aside], usable[aside]
    if config.holdout == "validation":
        aside = hold_out(labels[train], groups[~aside], _VALIDATION_FRACTION, config.seed)
        train, held_out = train[~aside], train[aside]
    for part, members in (("training", train), (config.holdout, held_out)):
        if lacking := set(labels[usable]) - set(labels[members]):
            names = ", ".join(CLASSES[label] for label in sorted(lacking))
            raise JobError(f"no image of {names} is left for the {part} part: add images or change --test-fraction")
    group_sizes = np.bincount(groups)
    identical, near = len(usable) - len(set(digests)), int(group_sizes[group_sizes > 1].sum())
    summary = (
        f"{len(train)} training and {len(held_out)} {config.holdout} images; kept on one side: "
        f"{identical} byte-identical copies, {near} images with a near duplicate"
    )
    return Split(
        train,
        held_out,
        {
            "images": len(labels),
            "usable": len(usable),
            "byte_identical_copies": identical,
            "images_with_near_duplicate": near,
            "train": _per_class(labels[train]),
            config.holdout: _per_class(labels[held_out]),
            "summary": summary,
        },
    )


def _per_class(labels: Labels) -> dict[str, int]:
    return dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True))


def _check_unchanged(images: Sequence[LabelledImage], embedded: Embedded, digests: Sequence[str]) -> None:
    """JobError if an image is not what it was at the first reading: no training row is dropped in silence."""
    for image, error, now, before in zip(images, embedded.errors, embedded.digests, digests, strict=True):
        if error or now != before:
            raise JobError(f"{image.name} changed while the job ran ({error or 'other bytes'}): train again")


def _fingerprint(images: Sequence[LabelledImage], digests: Sequence[str]) -> str:
    """sha256 over the names and digests of all images, in order of name."""
    lines = (f"{digest}  {image.name}\n" for image, digest in zip(images, digests, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()  # file names as they are
