"""The figures as a reader gets them: decoded from their PNG bytes."""

import gc
import io
import subprocess
import sys
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from bcd_ray.reports import figures
from bcd_ray.reports.figures import (
    Example,
    confusion_matrix_figure,
    disputed_labels,
    gallery,
    protocols_figure,
    training_curves,
)

LABELS = ["Benign", "Early Pre-B", "Pre-B", "Pro-B"]
MATRIX = [[99, 2, 0, 0], [3, 190, 4, 0], [0, 5, 180, 8], [0, 0, 1, 158]]
MARKER = (12, 250, 7)  # a colour nothing else in a figure has
IMAGE_AREA = (2.15 * figures.DPI) ** 2


def history(epochs: int, part: str = "test") -> list[dict[str, float]]:
    return [
        {"epoch": e, "train_loss": 1 / e, "train_accuracy": 1 - 0.4 / e}
        | {f"{part}_loss": 1.2 / e, f"{part}_accuracy": 1 - 0.5 / e}
        for e in range(1, epochs + 1)
    ]


def example(true: int, predicted: int, name: str = "smear.jpg") -> Example:
    probabilities = np.full(4, 0.1, dtype=np.float32)
    probabilities[predicted] = 0.7
    return Example(np.full((224, 224, 3), MARKER, dtype=np.uint8), true, probabilities, name)


def decode(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def title(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as image:
        return str(image.info["Title"])


def count(pixels: NDArray[np.uint8], colour: str | tuple[int, int, int]) -> int:
    rgb = np.round(np.array(to_rgb(colour)) * 255) if isinstance(colour, str) else np.array(colour)
    return int((pixels == rgb).all(axis=2).sum())


FIGURE = {"balanced_accuracy": {"value": 0.9, "interval": [0.8, 0.95]}}
SHORTCUTS = dict.fromkeys(("background_colour", "corners", "cells_blanked"), FIGURE)
PROTOCOLS = {key: {"pooled": FIGURE, "shortcuts": SHORTCUTS} for key in ("random", "forward/first")}

DRAWINGS: dict[str, Callable[[bool], bytes]] = {
    "curves": lambda synthetic: training_curves(history(12), "test", synthetic=synthetic),
    "matrix": lambda synthetic: confusion_matrix_figure(
        MATRIX, LABELS, "Confusion matrix, test part", synthetic=synthetic
    ),
    "gallery": lambda synthetic: gallery([example(0, 0)], [example(1, 2)], LABELS, synthetic=synthetic),
    "disputed": lambda synthetic: disputed_labels([example(1, 2)], 30, LABELS, synthetic=synthetic),
    "protocols": lambda synthetic: protocols_figure(PROTOCOLS, synthetic=synthetic),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_figure_is_large_enough_to_read_and_nothing_is_cut_off(draw: Callable[[bool], bytes]) -> None:
    pixels = decode(draw(False))
    height, width, _ = pixels.shape
    assert width >= 1000
    assert height >= 400
    edge = np.concatenate([pixels[:5].ravel(), pixels[-5:].ravel(), pixels[:, :5].ravel(), pixels[:, -5:].ravel()])
    assert (edge == 255).all()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_synthetic_images_are_announced_in_the_title(draw: Callable[[bool], bytes]) -> None:
    real, synthetic = draw(False), draw(True)
    assert "synthetic" not in title(real)
    assert title(synthetic) == f"{title(real)}: synthetic images"
    # Not in the metadata alone: the title strip, the top half inch, shows it in the warning colour.
    strip = figures.DPI // 2
    assert count(decode(real)[:strip], figures.VERMILLION) == 0
    assert count(decode(synthetic)[:strip], figures.VERMILLION) > 500


def test_drawing_leaves_no_figure_and_no_setting_behind() -> None:
    settings = dict(mpl.rcParams)
    for draw in DRAWINGS.values():
        draw(True)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Figure]
    assert dict(mpl.rcParams) == settings


def test_drawing_does_not_load_pyplot() -> None:
    code = (
        "import sys; from bcd_ray.reports.figures import confusion_matrix_figure as draw; "
        "draw([[1]], ['a'], 't'); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_curves_show_both_parts_whatever_the_number_of_epochs(epochs: int) -> None:
    pixels = decode(training_curves(history(epochs, "validation"), "validation"))
    assert count(pixels, figures.BLUE) > 100
    assert count(pixels, figures.VERMILLION) > 100


@pytest.mark.filterwarnings("error")
def test_curves_of_a_diverged_or_a_perfect_run_are_drawn() -> None:
    diverged = [row | {"train_loss": float("nan"), "test_loss": float("nan")} for row in history(3)]
    perfect = [row | {"train_accuracy": 1.0, "test_accuracy": 1.0} for row in history(3)]
    for rows in (diverged, perfect):
        assert count(decode(training_curves(rows, "test")), figures.VERMILLION) > 100


def test_curves_name_the_missing_keys() -> None:
    with pytest.raises(ValueError, match="lacks validation_accuracy, validation_loss"):
        training_curves(history(3), "validation")
    with pytest.raises(ValueError, match="one row per epoch"):
        training_curves([], "test")


def test_matrix_is_coloured_by_share_so_that_a_small_class_counts_as_much() -> None:
    balanced = decode(confusion_matrix_figure([[500, 0], [0, 500]], ["a", "b"], "t"))
    small = decode(confusion_matrix_figure([[500, 0], [0, 5]], ["a", "b"], "t"))
    dark = (8, 48, 107)  # the end of the colour scale: all images of the class
    assert count(balanced, dark) > 0.3 * balanced.shape[0] * balanced.shape[1]
    assert count(small, dark) == pytest.approx(count(balanced, dark), rel=0.02)


@pytest.mark.filterwarnings("error")
def test_matrix_with_a_class_without_images_is_drawn() -> None:
    assert decode(confusion_matrix_figure([[0, 0], [1, 3]], ["a", "b"], "t")).shape[1] >= 1000


def test_long_titles_wrap() -> None:
    pixels = decode(confusion_matrix_figure(MATRIX, LABELS, "Confusion matrix of the test part " * 6))
    assert (pixels[:, :5] == 255).all()
    assert (pixels[:, -5:] == 255).all()


def test_matrix_of_another_size_than_its_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="one row per true class"):
        confusion_matrix_figure([[1, 0], [0, 1]], LABELS, "t")


@pytest.mark.parametrize(("right", "wrong", "shown"), [(0, 0, 0), (3, 0, 3), (0, 3, 3), (8, 5, 13), (40, 37, 24)])
def test_gallery_shows_up_to_twelve_examples_of_each_kind(right: int, wrong: int, shown: int) -> None:
    png = gallery(
        [example(i % 4, i % 4) for i in range(right)],
        [example(i % 4, (i + 1) % 4) for i in range(wrong)],
        LABELS,
    )
    assert count(decode(png), MARKER) == pytest.approx(shown * IMAGE_AREA, rel=0.03)


def test_gallery_sets_wrong_predictions_off_by_colour() -> None:
    assert count(decode(gallery([example(1, 1)], [], LABELS)), figures.VERMILLION) == 0
    bar = 0.7 * 0.8 * 0.7 * 0.85 / 4 * figures.DPI**2  # 70% of the width, 70% of a quarter of the height
    # The bar alone would not do: the predicted class in words is set off too.
    assert count(decode(gallery([], [example(1, 2)], LABELS)), figures.VERMILLION) > 1.3 * bar


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$a_{b$.jpg", "shard-00012.tar/" + "very-long-" * 20 + "µ.jpg"])
def test_gallery_takes_any_file_name(name: str) -> None:
    pixels = decode(gallery([example(0, 0, name)], [], LABELS))
    assert (pixels[:, :5] == 255).all()


def test_gallery_refuses_an_example_in_the_wrong_section() -> None:
    with pytest.raises(ValueError, match="pass it in the other section"):
        gallery([example(0, 1, "a.jpg")], [], LABELS)
    with pytest.raises(ValueError, match=r"a\.jpg is not a wrong prediction"):
        gallery([], [example(1, 1, "a.jpg")], LABELS)
    with pytest.raises(ValueError, match="one per class label, 3 in all"):
        gallery([example(0, 0)], [], LABELS[:3])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["/lab$/smears_1_b/checked$", "/data/\udce4\x1b[31m\n", "/数据/スメア"])
def test_any_path_is_a_title_and_a_name(name: str) -> None:
    assert "\n" not in title(confusion_matrix_figure(MATRIX, LABELS, name))
    assert decode(gallery([example(0, 0, name)], [], LABELS)).size
