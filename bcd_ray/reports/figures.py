"""The figures a person looks at: training curves, the confusion matrix, and a gallery of example predictions.

Each function returns the bytes of a PNG, so that the caller can store it on a disk or an object store alike.
All drawing goes through `matplotlib.figure.Figure`, never pyplot: there is no global state to clean up.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from bcd_ray.progress import one_line

# Two hues of the colour-blind-safe palette of Okabe and Ito, "Color Universal Design", 2008, the vermillion
# darkened from #D55E00, in which text had a contrast of only 3.9 : 1 on white; all four exceed 4.5 : 1.
BLUE, VERMILLION = "#0072B2", "#C05200"
INK, GREY = "#222222", "#767676"

WIDTH = 10.0  # inches; a 10 pt letter is then 14 px high where a page shows the figure 1000 px wide
DPI = 150
TITLE, TEXT, SMALL = 15, 12, 10  # points

GALLERY_COLUMNS = 4
GALLERY_LIMIT = 12  # examples per section: 3 rows, 2 MB of PNG


@dataclass(frozen=True)
class Example:
    """One image with its prediction.

    Attributes:
        pixels: uint8 (height, width, 3), RGB.
        true: index of the true class.
        probabilities: (classes,) predicted probability of each class.
        name: what the reader finds the image by, such as its file name.
    """

    pixels: NDArray[np.uint8]
    true: int
    probabilities: NDArray[np.floating[Any]]
    name: str

    @property
    def predicted(self) -> int:
        """Index of the most probable class."""
        return int(np.argmax(self.probabilities))


def training_curves(history: Sequence[Mapping[str, float]], evaluated_part: str, *, synthetic: bool = False) -> bytes:
    """Draw loss and accuracy by epoch, for the training part and an evaluated part of the data.

    Args:
        history: one row per epoch: `epoch`, then `{part}_loss` and `{part}_accuracy` (a fraction from 0 to 1)
            for the parts `train` and `evaluated_part`. NaN leaves a gap in the curve.
        evaluated_part: `test` or `validation`, as in the keys of `history`.
        synthetic: say in the title that the images are synthetic.

    Raises:
        ValueError: the history is empty or lacks a key.
    """
    parts = ("train", evaluated_part)
    needed = {"epoch", *(f"{part}_{measure}" for part in parts for measure in ("loss", "accuracy"))}
    missing = {key for row in history or [{}] for key in needed - row.keys()}
    if missing:
        raise ValueError(
            f"the training history lacks {', '.join(sorted(missing))}: "
            "pass one row per epoch, with the losses and accuracies of both parts"
        )
    figure = Figure(figsize=(WIDTH, 4.5), layout=page_layout())
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    # Line and marker style tell the parts apart in grey print too.
    for part, style, colour in zip(parts, ("o-", "s--"), (BLUE, VERMILLION), strict=True):
        for axes, measure in ((loss, "loss"), (accuracy, "accuracy")):
            values = [row[f"{part}_{measure}"] for row in history]
            axes.plot(epochs, values, style, color=colour, label=part, linewidth=2, markersize=5, clip_on=False)
    # The best possible value is always in view, so that noise does not fill a panel.
    for axes, best in ((loss, 0.0), (accuracy, 1.0)):
        axes.axhline(best, color=GREY, linewidth=1)
    loss.set_ylabel("Loss (cross-entropy)", fontsize=TEXT)
    loss.set_ylim(bottom=0)
    accuracy.set_ylabel("Accuracy", fontsize=TEXT)
    accuracy.set_ylim(top=1)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, accuracy):
        axes.set_xlabel("Epoch", fontsize=TEXT)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.tick_params(labelsize=SMALL)
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=TEXT, frameon=False)
    return as_png(figure, "Training curves", synthetic)


def confusion_matrix_figure(
    matrix: Sequence[Sequence[int]], class_labels: Sequence[str], title: str, *, synthetic: bool = False
) -> bytes:
    """Draw a confusion matrix: in each cell the count, and below it the share of its true class (row).

    Args:
        matrix: (classes, classes) counts, rows true, columns predicted.
        class_labels: display label of each class, in index order.
        title: what the matrix is of.
        synthetic: say in the title that the images are synthetic.

    Raises:
        ValueError: the matrix is not square, or its size is not the number of labels.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    classes = len(class_labels)
    if counts.shape != (classes, classes):
        raise ValueError(
            f"the confusion matrix has shape {counts.shape}: with {classes} class labels it must have "
            "one row per true class and one column per predicted class"
        )
    support = counts.sum(axis=1)
    shares = counts / np.maximum(support, 1)[:, np.newaxis]
    figure = Figure(figsize=(WIDTH, 8.0), layout=page_layout())
    axes = figure.subplots()
    # Coloured by share, not count: a small class must look as good or bad as a large one.
    axes.imshow(shares, cmap=colormaps["Blues"], vmin=0, vmax=1, aspect="auto")
    for row in range(classes):
        for column in range(classes):
            _matrix_cell(axes, row, column, int(counts[row, column]), float(shares[row, column]))
    axes.set_xticks(range(classes), class_labels, fontsize=TEXT)
    axes.set_yticks(
        range(classes),
        [f"{label}\n(n = {n})" for label, n in zip(class_labels, support, strict=True)],
        fontsize=TEXT,
    )
    axes.set_xlabel("Predicted class", fontsize=TEXT, fontweight="bold", labelpad=10)
    axes.set_ylabel("True class", fontsize=TEXT, fontweight="bold", labelpad=10)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#BBBBBB", linewidth=1)
    axes.tick_params(which="both", length=0)
    figure.supxlabel("In each cell: images, and their share of the true class (row)", fontsize=SMALL, color=INK)
    return as_png(figure, title, synthetic)


def _matrix_cell(axes: Axes, row: int, column: int, count: int, share: float) -> None:
    # On the Blues map white overtakes ink at 0.675, where both have a contrast of 4 : 1.
    colour = "white" if share > 0.675 else INK if count else GREY
    weight = "bold" if count else "normal"
    axes.text(column, row - 0.08, f"{count}", ha="center", va="center", fontsize=20, color=colour, fontweight=weight)
    if count:
        axes.text(column, row + 0.2, _percent(share), ha="center", va="center", fontsize=TEXT, color=colour)


def gallery(
    right: Sequence[Example],
    wrong: Sequence[Example],
    class_labels: Sequence[str],
    *,
    synthetic: bool = False,
) -> bytes:
    """Draw example images with true class, predicted class and probabilities: correct above, wrong below.

    Each section shows its first 12 examples and says so where there are more; an empty one says that too.

    Args:
        right: examples whose prediction is their true class.
        wrong: examples whose prediction is another class.
        class_labels: display label of each class, in index order.
        synthetic: say in the title that the images are synthetic.

    Raises:
        ValueError: an example lacks a probability per label, or does not belong in its section.
    """
    for kind, examples in (("correct", right), ("wrong", wrong)):
        for example in examples:
            _check_example(example, kind, len(class_labels))
    caption = "Bars: predicted probabilities. Blue: true class. Orange: predicted class, where it is another."
    sections = [("Correct predictions", right, len(right)), ("Wrong predictions", wrong, len(wrong))]
    return _draw_gallery("Example predictions", caption, sections, class_labels, ("True", "Predicted"), synthetic)


def disputed_labels(
    examples: Sequence[Example], total: int, class_labels: Sequence[str], *, synthetic: bool = False
) -> bytes:
    """Draw the first of `total` images whose given label, here `true`, the cross-validated heads dispute."""
    caption = (
        "Bars: mean probabilities of heads that did not see the image. Blue: given label. Orange: suggested class."
    )
    sections = [("Disputed labels, for an expert to look at", examples, total)]
    return _draw_gallery("Disputed labels", caption, sections, class_labels, ("Given", "Suggested"), synthetic)


def _draw_gallery(
    title: str,
    caption: str,
    sections: Sequence[tuple[str, Sequence[Example], int]],
    class_labels: Sequence[str],
    words: tuple[str, str],
    synthetic: bool,
) -> bytes:
    """Sections of (heading, examples, how many there are in all), one below the other."""
    cell, heading, top = 4.15, 0.55, 0.95  # inches: height of a row of examples, of a heading, of the title
    rows = [-(-min(len(examples), GALLERY_LIMIT) // GALLERY_COLUMNS) for _, examples, _ in sections]
    height = top + sum(heading + max(0.4, count * cell) for count in rows)
    figure = Figure(figsize=(WIDTH, height))
    # One set of axes over the whole page, in inches: a set for each image and its bars took half a second more.
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height), autoscale_on=False)
    page.set_axis_off()
    page.text(WIDTH / 2, height - 0.72, caption, ha="center", fontsize=SMALL, color=INK)
    y = height - top
    for (name, examples, total), count in zip(sections, rows, strict=True):
        more = f" (first {GALLERY_LIMIT} of {total})" if total > GALLERY_LIMIT else ""
        page.text(0.3, y - 0.3, f"{name}{more}", fontsize=13, fontweight="bold", color=INK)
        y -= heading
        if not examples:
            page.text(0.3, y - 0.1, f"{name}: none in this part", fontsize=TEXT, color=INK)
        for i, example in enumerate(examples[:GALLERY_LIMIT]):
            left = 0.3 + (i % GALLERY_COLUMNS) * 2.4
            _draw_example(page, example, class_labels, left, y - (i // GALLERY_COLUMNS) * cell, words)
        y -= max(0.4, count * cell)
    return as_png(figure, title, synthetic)


def _check_example(example: Example, kind: str, classes: int) -> None:
    if np.shape(example.probabilities) != (classes,):
        raise ValueError(
            f"example {example.name} has probabilities of shape {np.shape(example.probabilities)}: "
            f"pass one per class label, {classes} in all"
        )
    if (example.predicted == example.true) != (kind == "correct"):
        raise ValueError(
            f"example {example.name} is not a {kind} prediction (true class {example.true}, predicted "
            f"{example.predicted}): pass it in the other section"
        )


def _draw_example(
    page: Axes, example: Example, class_labels: Sequence[str], left: float, top: float, words: tuple[str, str]
) -> None:
    """Draw one example; (left, top) is its upper left corner, in inches from the lower left of the page."""
    size = 2.15  # inches, for the image
    bottom = top - 0.22 - size
    page.imshow(example.pixels, extent=(left, left + size, bottom, bottom + size), aspect="auto")
    page.add_patch(Rectangle((left, bottom), size, size, fill=False, edgecolor=INK, linewidth=0.8))
    # The end of a long name is what tells two images apart. A name may hold "$": it is no formula.
    name = one_line(example.name)
    name = name if len(name) <= 29 else "…" + name[-28:]
    middle = left + size / 2
    page.text(middle, bottom + size + 0.05, name, ha="center", fontsize=9, color=INK, parse_math=False)
    verdict = BLUE if example.predicted == example.true else VERMILLION
    for line, word, index, colour in ((0, words[0], example.true, BLUE), (1, words[1], example.predicted, verdict)):
        text, y = f"{word}: {class_labels[index]}", bottom - 0.1 - 0.22 * line
        page.text(left, y, text, va="top", fontsize=11, fontweight="bold", color=colour)
    start, long, step = left + 0.85, 0.8, 0.21  # inches: where the bars begin, a probability of 1, from bar to bar
    colours = [GREY] * len(class_labels)
    colours[example.predicted] = VERMILLION
    colours[example.true] = BLUE
    places = bottom - 0.67 - step * np.arange(len(class_labels))
    page.barh(places, long * example.probabilities, 0.7 * step, left=start, color=colours)
    page.vlines(start, places[-1] - step / 2, places[0] + step / 2, color=INK, linewidth=0.8)
    for y, label, probability in zip(places, class_labels, example.probabilities, strict=True):
        page.text(start - 0.05, y, label, ha="right", va="center_baseline", fontsize=9, color=INK)
        share, x = _percent(float(probability)), start + long * probability + 0.04
        page.text(x, y, share, va="center_baseline", fontsize=9, color=INK)


def protocols_figure(results: Mapping[str, Any], *, synthetic: bool = False) -> bytes:
    """Draw balanced accuracy with its interval, of the model and of each shortcut, under each protocol.

    Args:
        results: `protocols` of a cross-validation's metrics.json.
        synthetic: say in the title that the images are synthetic.
    """
    figure = Figure(figsize=(WIDTH, 1.6 + 1.1 * len(results)), layout=page_layout())
    axes = figure.subplots()
    ways = ["model", *next(iter(results.values()))["shortcuts"]]
    colours, markers = [BLUE, VERMILLION, GREY, INK], "osD^"
    for number, way in enumerate(ways):
        found = [each["pooled"] if way == "model" else each["shortcuts"][way] for each in results.values()]
        figures = [each["balanced_accuracy"] for each in found]
        values = np.array([[each["value"], *(each["interval"] or 2 * [each["value"]])] for each in figures])
        places = np.arange(len(results)) + 0.2 * (number - (len(ways) - 1) / 2)
        axes.hlines(places, values[:, 1], values[:, 2], color=colours[number], linewidth=2)
        axes.plot(
            values[:, 0], places, markers[number], color=colours[number], label=way.replace("_", " "), markersize=8
        )
        for value, place in zip(values[:, 0], places, strict=True):
            axes.annotate(f"{value:.1%}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0.25, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(results)), list(results), fontsize=TEXT)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlim(0.2, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("Balanced accuracy, 95 % interval over blocks or groups; dotted: chance", fontsize=TEXT)
    axes.grid(axis="x", color="#DDDDDD")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(ways), fontsize=TEXT, frameon=False)
    return as_png(figure, "Model and shortcuts under each protocol", synthetic)


def _percent(share: float) -> str:
    """Format a share so that only 0 and 1 themselves read as never and always."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def page_layout() -> ConstrainedLayoutEngine:
    """Fit labels without clipping, 0.1 inches from the edges."""
    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)


def as_png(figure: Figure, title: str, synthetic: bool) -> bytes:
    """Add the title, which also goes into the file's metadata, and encode the figure."""
    title = one_line(f"{title}: synthetic images" if synthetic else title)
    # A figure without a layout engine needs the place of its title said, 0.2 inches from the top.
    y = None if figure.get_layout_engine() else 1 - 0.2 / figure.get_figheight()
    colour = VERMILLION if synthetic else INK
    figure.suptitle(textwrap.fill(title, 70), y=y, fontsize=TITLE, fontweight="bold", color=colour, parse_math=False)
    buffer = io.BytesIO()
    # Level 2 of 9: a gallery takes a quarter of the time of level 6 to compress, and 15 % more bytes.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks: boxes will do
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Title": title}, pil_kwargs={"compress_level": 2})
    return buffer.getvalue()
