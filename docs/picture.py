"""Draws docs/picture.png, what a model says of four images: `python jobs/quickstart.py && python docs/picture.py`.

All four are SYNTHETIC: two smears drawn by this program, the second of them blurred, and a drawing of a beach.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image

from bcd_ray.archives.images import Decoded, Limits, Pixels, decode
from bcd_ray.labels import DISPLAY_NAMES
from bcd_ray.learning.spoiling import blurred
from bcd_ray.model.bundle import load_bundle
from bcd_ray.model.choice import open_engine
from bcd_ray.model.quality import measure
from bcd_ray.reports.figures import BLUE, GREY, INK, VERMILLION

COLOURS = 96  # of the palette: a third of the bytes, and no difference to the eye


@dataclass(frozen=True)
class Picture:
    """Draw the README's picture."""

    quickstart: Path = Path("quickstart")
    """What jobs/quickstart.py wrote: the model, and drawn smears that it was not trained on."""
    output: Path = Path("docs/picture.png")
    """Where the picture goes."""


def beach() -> Pixels:
    """(224, 224, 3) sky, sea, sand and a sun: what no model of smears should judge."""
    rows, columns = np.mgrid[0:224, 0:224]
    sky, sea, sand = (120, 180, 235), (30, 90, 160), (230, 205, 150)
    pixels = np.where(rows[..., None] < 110, sky, np.where(rows[..., None] < 150, sea, sand))
    pixels[(rows - 45) ** 2 + (columns - 170) ** 2 < 500] = (255, 230, 90)
    return pixels.astype(np.uint8)


def smear(path: Path) -> Pixels:
    """(224, 224, 3) of a file, decoded as every job decodes it."""
    decoded = decode(path.read_bytes(), Limits())
    assert isinstance(decoded, Decoded)
    return decoded.pixels


def main(picture: Picture) -> None:
    """Score the four images as a scoring job does, and draw what it would publish."""
    rest = picture.quickstart / "synthetic" / "rest"
    benign, pro_b = smear(rest / "Benign" / "synthetic-0001.jpg"), smear(rest / "Pro" / "synthetic-0001.jpg")
    images = {"a smear": benign, "another": pro_b, "the same, blurred": blurred(pro_b, 3), "no smear": beach()}
    bundle, pixels = load_bundle(str(picture.quickstart / "model")), list(images.values())
    outputs = open_engine("openvino", bundle, 2).infer(pixels)
    decisions = bundle.triage.decide(outputs.embeddings, outputs.logits, measure(pixels))

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle("What a run says of four SYNTHETIC images", color=VERMILLION, fontweight="bold", fontsize=13)
    upper, lower = figure.subplots(2, 4, height_ratios=(2.1, 1))
    for above, below, name, image, shares, reasons in zip(
        upper, lower, images, pixels, decisions.probabilities, decisions.reason_names(), strict=True
    ):
        above.imshow(image)
        above.set_axis_off()
        above.set_title(name, fontsize=11, color=INK)
        below.barh(DISPLAY_NAMES, shares, color=[BLUE if share == shares.max() else GREY for share in shares])
        below.set_xlim(0, 1)
        below.invert_yaxis()
        below.tick_params(labelsize=8)
        below.spines[["top", "right"]].set_visible(False)
        below.set_title(f"suggestion: {DISPLAY_NAMES[int(shares.argmax())]}", fontsize=9.5, color=BLUE)
        words = "review: yes\n" + "\n".join(reasons) if reasons else "review: no"
        below.set_xlabel(words, fontsize=9, color=VERMILLION if reasons else INK)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(picture.output, optimize=True)


if __name__ == "__main__":
    main(tyro.cli(Picture))
