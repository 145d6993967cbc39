"""The HTML reports of a training run, an evaluation and a cross-validation."""

from collections.abc import Mapping, Sequence
from typing import Any

from bcd_ray.labels import CLASSES, DISPLAY_NAMES
from bcd_ray.metrics.spread import figure_words, interval_words
from bcd_ray.model.triage import REASONS
from bcd_ray.reports.page import Card, Page, Section
from bcd_ray.runtime import library_versions

SYNTHETIC = "Trained and measured on synthetic, drawn images: the figures say nothing about real smears."
NOT_FOR_DIAGNOSIS = "For research. Not for diagnosis: every prediction is a suggestion for an expert to check."
# The figure to look at first is that of the protocol whose test is furthest from its training.
_HARDEST_FIRST = ("grouped", "blocked", "forward/first", "forward/last", "random")
_AUDIT_HEADING = "What gives the class away without the cells"
LIMITS_CHOSEN = (
    "The limits were chosen on training images, each predicted by a head that had not seen it, for the risk that "
    "stands in model.json."
)
NOTHING_OF_A_NEW_DAY = (
    "Images of one day at the microscope, and of one patient, can stand on both sides of the split: nothing is known "
    "here about a new day, a new scanner or a new patient. File numbers need not follow the time of capture. Groups "
    "would tell: --group-table with jobs/evaluate.py --cross-validate --split grouped --folds 0."
)
_SHOWN = ("macro_f1", "accuracy", "balanced_accuracy", "malignant_sensitivity", "malignant_specificity")
_FIGURES_OF_CLASS = ("precision", "recall", "f1", "auroc")


def validation_report(metrics: Mapping[str, Any], figures: Mapping[str, bytes]) -> bytes:
    """report.html of a cross-validation, from its metrics and its figures by file name."""
    results = metrics["protocols"]
    first = next(name for name in _HARDEST_FIRST if name in results)
    pooled, settings = results[first]["pooled"], metrics["settings"]
    cards = [_card(name, pooled[name]) for name in _SHOWN]
    sections = [
        *_group_sections(results.get("grouped", {})),
        Section(
            "How much of it is the split",
            figures["protocols.png"],
            _gap_words(metrics),
            ["Protocol", *map(_words, _SHOWN), "Macro F1 of the folds"],
            [_protocol_row(name, result) for name, result in results.items()],
        ),
        Section(
            _AUDIT_HEADING,
            words=[
                "Balanced accuracy (chance is 25 %) of the same backbone's embeddings of what should not tell the "
                "classes apart. The closer it comes to the model's own, the less the model's figure says about cells."
            ],
            columns=["Protocol", "Model", *(_words(name) for name in results[first]["shortcuts"])],
            rows=[_shortcut_row(name, result) for name, result in results.items()],
        ),
        Section(
            "What an expert would have to look at",
            words=[
                "Limits for a risk of 1 %, set on the training part of each fold (first seed) and tried on its test "
                "part: how many images go without review, how many of them are wrong, and whether the confidence can "
                "be believed before and after temperature scaling (expected calibration error)."
            ],
            columns=["Protocol", "Not sent to review, %", "Wrong among them, %", "ECE before", "ECE after"],
            rows=[_triage_row(name, result["triage"]) for name, result in results.items()],
        ),
        Section(
            f"Which classes are mistaken for which ({first})",
            figures[f"confusion_matrix_{first.replace('/', '_')}.png"],
            columns=["", *map(_words, _FIGURES_OF_CLASS)],
            rows=[[label, *_class_cells(pooled, name)] for name, label in zip(CLASSES, DISPLAY_NAMES, strict=True)],
        ),
        Section(
            "Labels for an expert to look at",
            figures["disputed_labels.png"],
            [
                f"{metrics['disputed_labels']} given labels are disputed by heads that did not see the image. All "
                "of them stand in disputed_labels.csv. Nothing is relabelled by itself."
            ],
        ),
        Section("Data and settings", words=_data_words(metrics)),
        Section("Limits", words=limits(grouped="grouped" in results)),
    ]
    about = (
        f"What a model trained with these settings can be expected to do: {settings['folds']} folds, "
        f"{settings['seeds']} seeds, {settings['epochs']} epochs. The figures on top are those of the protocol "
        f"“{first}”, each with its 95 % interval."
    )
    return Page(
        "Cross-validation of the blood smear classifier",
        about,
        cards,
        sections,
        _warnings(metrics["synthetic"]),
        _footer(metrics["versions"]),
    ).html()


def training_report(info: Mapping[str, Any], metrics: Mapping[str, Any], figures: Mapping[str, bytes]) -> bytes:
    """report.html of a bundle, from its `model.json` facts, its metrics and its figures by file name."""
    training, counts = info["training"], metrics["counts"]
    about = (
        f"One model, seed {training['seed']}, {training['epochs']} epochs, measured on its {metrics['part']} part of "
        f"{metrics['images']:,} images. Each figure has its 95 % interval, drawn over "
        f"{'groups' if training['split'] == 'grouped' else 'blocks of file numbers'}; where there is no error, or "
        "one block a class, no interval can be told."
    )
    data = [
        f"{counts['usable']:,} of {counts['images']:,} images in {training['data']} are used: {counts['summary']}.",
        f"Protocol: {metrics['protocol']}.",
        network_words(training),
    ]
    return model_report(metrics, figures, about, data, training["split"] == "grouped")


def model_report(
    metrics: Mapping[str, Any], figures: Mapping[str, bytes], about: str, data: Sequence[str], grouped: bool
) -> bytes:
    """report.html of a model on labelled images.

    Args:
        metrics: what `learning.assessment.assess` found.
        figures: by file name.
        about: which model and which images.
        data: paragraphs on data and protocol.
        grouped: whether training and test are of different groups, such as patients.
    """
    found = metrics["with_intervals"]
    sections = [
        Section(
            "Which classes are mistaken for which",
            figures["confusion_matrix.png"],
            columns=["", *map(_words, _FIGURES_OF_CLASS)],
            rows=[[label, *_class_cells(found, name)] for name, label in zip(CLASSES, DISPLAY_NAMES, strict=True)],
        ),
        Section("Right and wrong predictions", figures["gallery.png"]),
        *_triage_sections(metrics["triage"], metrics.get("part", "evaluated"), figures),
    ]
    if "shortcuts" in metrics:
        sections.append(Section(_AUDIT_HEADING, words=[audit_words(metrics)]))
    if "spoilt" in metrics:
        sections.append(_spoilt_section(metrics["spoilt"]))
    if "training_curves.png" in figures:
        sections.append(Section("How the training went", figures["training_curves.png"]))
    sections += [Section("Data", words=data), Section("Limits", words=limits(grouped))]
    return Page(
        "Blood smear classifier",
        about,
        [_card(name, found[name]) for name in _SHOWN if name in found]
        + [_automatic_card(metrics["triage"][metrics.get("part", "evaluated")]["automatic"])],
        sections,
        _warnings(metrics.get("synthetic", False)),
        _footer(library_versions()),
    ).html()


def _card(name: str, figure: Mapping[str, Any]) -> Card:
    words = interval_words(figure["interval"])
    return Card(_words(name), _percent(figure), f"{words} %" if figure["interval"] else words)


def _automatic_card(automatic: Mapping[str, Any]) -> Card:
    errors = f"{automatic['errors']} of these {automatic['decided']:,} are wrong"
    return Card("Not sent to review", f"{100 * automatic['coverage']:.1f} %", errors)


def _triage_sections(triage: Mapping[str, Any], part: str, figures: Mapping[str, bytes]) -> list[Section]:
    found = triage[part]
    before, after = found["calibration"]["before"], found["calibration"]["after"]
    believed = (
        f"Expected calibration error {before['ece']:.3f} before and {after['ece']:.3f} after temperature scaling, "
        f"Brier score {before['brier']:.3f} and {after['brier']:.3f}; fitted on training images that "
        "the head in question had not seen. Every probability in the output is the scaled one."
    )
    kept = [f"{automatic_words(found['automatic'])} {LIMITS_CHOSEN}"]
    return [
        Section(
            "What an expert must look at",
            figures["risk_coverage.png"],
            kept,
            ["Suggested class", "Least certainty without review", "Not sent to review", "Wrong among them"],
            [
                [name, limit, str(found["suggested"][name]["decided"]), str(found["suggested"][name]["errors"])]
                for name, limit in least_certainties(triage).items()
            ],
        ),
        Section(
            "Why images are sent to review",
            columns=["Reason", "Images", ""],
            rows=[[_words(name), f"{count:,}", REASONS[name]] for name, count in found["reasons"].items()],
        ),
        Section("Whether the confidence can be believed", figures["reliability.png"], [believed]),
    ]


def least_certainties(triage: Mapping[str, Any]) -> dict[str, str]:
    """By suggested class, in words."""
    return {
        name: "always sent to review" if limit is None else f"{limit:.4f}"
        for name, limit in triage["least_certainty"].items()
    }


def audit_words(metrics: Mapping[str, Any]) -> str:
    """What the shortcuts give away, beside the model, as a sentence."""
    if "shortcuts" not in metrics:
        return (
            "Not measured for this model: jobs/train.py does without --no-audit, and jobs/evaluate.py --cross-validate."
        )
    model = figure_words(metrics["with_intervals"]["balanced_accuracy"])
    others = ", ".join(
        f"{name.replace('_', ' ')} {figure_words(found['balanced_accuracy'])}"
        for name, found in metrics["shortcuts"].items()
    )
    return (
        f"Balanced accuracy on the same images, in % (chance is 25): the model {model}; "
        f"what should not tell the classes apart: {others}."
    )


def _spoilt_section(spoilt: Mapping[str, Any]) -> Section:
    ways = {name: found for name, found in spoilt.items() if name != "beyond_use"}
    useless = spoilt["beyond_use"]
    words = (
        "The same images, spoilt on purpose: blurred by so many pixels, with so many times the light, saved as a JPEG "
        "of such a quality, with noise of so many levels, or grey."
    )
    if useless["ways"]:
        words += (
            f" {useless['ways']} ways leave an accuracy under 80 %: of their images {100 * useless['review']:.1f} % "
            "are sent to review."
        )
    rows = [
        [_words(name).replace(" ", ": ", 1), *(_share(found[key]) for key in ("accuracy", "review", "wrong"))]
        for name, found in ways.items()
    ]
    columns = ["", "Accuracy", "Sent to review", "Wrong among the others"]
    return Section("Whether spoilt images are noticed", words=[words], columns=columns, rows=rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def network_words(settings: Mapping[str, Any]) -> str:
    """What computes the embeddings, in a sentence."""
    name = "EfficientNet-Lite0" if settings["weights"] == "efficientnet_lite0" else "MobileNetV2"
    weights = f"{name} with frozen ImageNet weights ({settings['weights']})"
    if unfrozen := settings.get("unfreeze"):
        weights += f", but for the last {unfrozen} blocks, which were trained further"
    whole = f"{weights}, global average pooling, softmax head."
    cells = (
        "The largest white cells of a field, in grey and with its background at one white, through EfficientNet-Lite0 "
        "with frozen ImageNet weights: the means of four stages, averaged over the cells"
    )
    field = "; beside them the same of the whole field through MobileNetV2"
    of_cells = {"cells": cells, "both": cells + field}
    return f"{of_cells[settings['representation']]}. Softmax head." if settings["representation"] in of_cells else whole


def automatic_words(automatic: Mapping[str, Any]) -> str:
    """How many images are not sent to review, and how many of them are wrong, with 95 % intervals, as one sentence."""
    words = (
        f"{100 * automatic['coverage']:.1f} % of the images ({interval_words(automatic['coverage_interval'])}) are not "
        f"sent to review, and {automatic['errors']} of these {automatic['decided']:,} are wrong"
    )
    if automatic["risk"] is None:
        return f"{words}."
    return f"{words}: {100 * automatic['risk']:.2f} % ({interval_words(automatic['risk_interval'], 2)})."


def limits(grouped: bool) -> list[str]:
    """What the reader must know before trusting a figure."""
    apart = (
        "The groups are as the user gave them; the figures of `grouped` are as good as these. All other splits measure "
        "how well the model knows days that it was trained on."
        if grouped
        else NOTHING_OF_A_NEW_DAY
    )
    return [
        apart,
        "One hospital, one stain and one microscope per data set; the colour of the background alone can give the "
        "class away. Images of other stains, cells or magnifications are outside what the model knows.",
    ]


def _warnings(synthetic: bool) -> list[str]:
    return [NOT_FOR_DIAGNOSIS, *([SYNTHETIC] if synthetic else [])]


def _footer(versions: Mapping[str, str]) -> str:
    return "Made by " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _protocol_row(name: str, result: Mapping[str, Any]) -> list[str]:
    folds = result["over_folds"]["macro_f1"]
    spread = f"{100 * folds['mean']:.1f} ± {100 * folds['std']:.1f} (n = {len(result['folds'])})"
    return [name, *(figure_words(result["pooled"][figure]) for figure in _SHOWN), spread]


def _shortcut_row(name: str, result: Mapping[str, Any]) -> list[str]:
    return [
        name,
        *(figure_words(found["balanced_accuracy"]) for found in (result["pooled"], *result["shortcuts"].values())),
    ]


def _triage_row(name: str, found: Mapping[str, Any]) -> list[str]:
    automatic, calibration = found["automatic"], found["calibration"]
    kept = figure_words({"value": automatic["coverage"], "interval": automatic["coverage_interval"]})
    wrong = "-"
    if automatic["risk"] is not None:
        wrong = figure_words({"value": automatic["risk"], "interval": automatic["risk_interval"]}, digits=2)
    return [name, kept, wrong, *(f"{calibration[when]['ece']:.3f}" for when in ("before", "after"))]


def _gap_words(metrics: Mapping[str, Any]) -> list[str]:
    words = []
    for other, apart in (("grouped", "whole groups"), ("blocked", "blocks of file numbers")):
        if gap := metrics["gap"].get(f"random_minus_{other}"):
            bounds = interval_words(gap["accuracy"]["interval"])
            words.append(
                f"A random split of images, the paper's, makes accuracy look {100 * gap['accuracy']['value']:.1f} "
                f"points better than {apart} kept apart do (95 % interval: {bounds}): images of one day, and of one "
                "patient, stand on both sides of it."
            )
    return words


def _data_words(metrics: Mapping[str, Any]) -> list[str]:
    settings = metrics["settings"]
    data = (
        f"{metrics['usable']:,} of {metrics['images']:,} images in {settings['data']} could be used; "
        f"{metrics['byte_identical_copies']} are byte-identical copies and {metrics['images_with_near_duplicate']} "
        "have a near duplicate, which is never on the other side of a split."
    )
    fit = (
        f"{network_words(settings)} {settings['augmented_views']} augmented views an image, Adam at "
        f"{settings['learning_rate']}, batches of {settings['batch_size']}. Intervals are drawn over whole blocks of "
        "file numbers, or groups, since neighbouring images are not independent."
    )
    protocols = [
        f"{name}: {result['protocol']} ({result['images']:,} images tested)."
        for name, result in metrics["protocols"].items()
    ]
    return [data, fit, *protocols]


def _group_sections(result: Mapping[str, Any]) -> list[Section]:
    """What the figures are for groups that were left out one by one, where they were."""
    if "groups" not in result:
        return []
    words = [
        "Each group (a patient, a slide, a sitting at the microscope) was left out of training and then tested. "
        f"{result['always_trained_on']} images of groups too small to tell a share by are always trained on."
    ]
    if means := result["mean_over_groups"]:
        words.insert(
            0,
            f"In the mean of the groups {100 * means['recall']:.1f} % are right, and on "
            f"{100 * means['benign_or_malignant']:.1f} % benign is told from malignant: the figure to go by for a "
            "day that training did not see.",
        )
    if any(each["cut"] for each in result["groups"]):
        words.append("A group that is the only one of its class was cut in two by file numbers: that is no new day.")
    rows = [
        [
            each["group"] + (" (cut)" if each["cut"] else ""),
            ", ".join(each["classes"]),
            f"{each['images']:,}",
            *(
                f"{100 * each[name]:.1f} ± {100 * each[f'{name}_std']:.1f}"
                for name in ("recall", "benign_or_malignant")
            ),
        ]
        for each in result["groups"]
    ]
    columns = ["Group", "Class", "Images", "Right, % (± over seeds)", "Benign or malignant, %"]
    section = Section("On a group that was never seen", words=words, columns=columns, rows=rows)
    return [section, *_few_shot_sections(result["few_shot"])]


def _few_shot_sections(found: Mapping[str, Any]) -> list[Section]:
    """What labelling a few images of each group that was left out brings, where it was tried."""
    if not found:
        return []
    columns = ["Group", *(f"Right with {count}, % (without)" for count in found)]
    of_counts = [
        [*each["groups"], {"group": "mean of the groups", **each["mean_over_groups"]}] for each in found.values()
    ]
    rows = [
        [same[0]["group"], *(f"{100 * each['recall']:.1f} ({100 * each['recall_without']:.1f})" for each in same)]
        for same in zip(*of_counts, strict=True)
    ]
    words = (
        "So many images of the group, drawn anew for each seed, were trained on, and the rest tested; in brackets the "
        "same images by heads that saw none of the group."
    )
    return [Section("With a few images of it labelled", words=[words], columns=columns, rows=rows)]


def _class_cells(pooled: Mapping[str, Any], name: str) -> list[str]:
    keys = [f"{figure}/{name}" for figure in _FIGURES_OF_CLASS]
    return [figure_words(pooled[key]) if key in pooled else "-" for key in keys]


def _words(name: str) -> str:
    """A figure's key as a heading."""
    words = name.replace("_", " ").replace("f1", "F1").replace("auroc", "AUROC")
    return words[0].upper() + words[1:]


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['value']:.1f} %"
