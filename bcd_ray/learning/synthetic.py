"""Drawn blood smears for the quickstart and the tests: they exercise the pipeline, and show no patient.

Each cell adds stain to a map, and light passes it by Beer-Lambert, lamp * exp(-absorbance): overlaps darken.
"""

from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from bcd_ray.learning.dataset import SYNTHETIC_MARK

JPEG_COMMENT = "synthetic, drawn by bcd_ray; not a photograph"

Floats: TypeAlias = npt.NDArray[np.float32]
Range: TypeAlias = tuple[float, float]


class Look(NamedTuple):
    """How the white cells of one class look; the classes overlap. Radii are in pixels at size 224."""

    folder: str
    cells: tuple[int, int]  # tried in an image, both ends included
    radius: Range  # of the whole cell
    nucleus: Range  # radius of the nucleus over that of the cell: the smaller, the wider the cytoplasm rim
    density: Range  # stain taken up by the chromatin
    texture: Range  # relative unevenness of the chromatin
    outline: Range  # relative unevenness of the nucleus outline
    nucleoli: tuple[int, int]  # pale spots in a nucleus, both ends included


# In the class order of the project. Hematogones are small, dense and smooth with scant cytoplasm; then come
# growing blasts: early Pre-B, Pre-B with a blue rim, Pro-B with a pale, uneven, ragged nucleus and nucleoli.
# With 60 + 60 images a class, a linear head on frozen MobileNetV2 features gets 91 to 96 % of them right.
LOOKS = (
    Look("Benign", (4, 9), (7.5, 10.5), (0.90, 0.97), (1.00, 1.40), (0.03, 0.08), (0.01, 0.04), (0, 0)),
    Look("Early", (7, 13), (10.5, 15.0), (0.84, 0.93), (0.60, 0.85), (0.10, 0.18), (0.02, 0.06), (0, 1)),
    Look("Pre", (11, 24), (12.0, 17.0), (0.68, 0.82), (0.60, 0.90), (0.08, 0.16), (0.02, 0.06), (0, 1)),
    Look("Pro", (6, 13), (15.0, 20.5), (0.82, 0.94), (0.35, 0.62), (0.14, 0.26), (0.08, 0.18), (1, 3)),
)

# Absorbance of red, green and blue light by one unit of stain.
PINK_CELL, MAUVE_CELL = np.array([0.08, 0.40, 0.30]), np.array([0.24, 0.36, 0.19])
CHROMATIN, CYTOPLASM = (0.62, 1.20, 0.28), (0.38, 0.30, 0.06)


def draw_smear(class_index: int, seed: int, size: int = 224) -> npt.NDArray[np.uint8]:
    """Draw a smear of one class as RGB, shape (size, size, 3); the same arguments give the same pixels.

    Raises ValueError for a class outside 0..3, a negative seed, or a size below 32 pixels.
    """
    if not 0 <= class_index < len(LOOKS) or seed < 0 or size < 32:
        raise ValueError(
            f"cannot draw class {class_index}, seed {seed}, size {size}: "
            f"give a class from 0 to {len(LOOKS) - 1}, a seed of at least 0 and a size of at least 32"
        )
    rng = np.random.default_rng((class_index, seed))
    stains = np.zeros((3, size, size), np.float32)  # red cells, chromatin, cytoplasm
    _draw_red_cells(rng, stains)
    _draw_platelets(rng, stains)
    _draw_white_cells(rng, stains, LOOKS[class_index])
    return _expose(rng, stains)


def write_synthetic_archive(folder: Path, images_per_class: int, seed: int = 0) -> int:
    """Write `folder/<Benign|Early|Pre|Pro>/synthetic-0001.jpg` and on, 224x224; return the number of images.

    A file SYNTHETIC.txt says what they are, to people and to the jobs, which repeat it in all they write. Archives of
    different seeds share no image: train on one, test on another. Raises ValueError if seed < 0.
    """
    image_seeds = np.random.SeedSequence(seed).generate_state(images_per_class, np.uint64).tolist()
    for class_index, look in enumerate(LOOKS):
        (folder / look.folder).mkdir(parents=True, exist_ok=True)
        for number, image_seed in enumerate(image_seeds, start=1):
            path = folder / look.folder / f"synthetic-{number:04d}.jpg"
            Image.fromarray(draw_smear(class_index, image_seed)).save(path, quality=90, comment=JPEG_COMMENT)
    (folder / SYNTHETIC_MARK).write_text(f"{JPEG_COMMENT}\n")
    return images_per_class * len(LOOKS)


def _draw_red_cells(rng: np.random.Generator, stains: Floats) -> None:
    """Discs with a pale centre on a shaken grid: evenly spread as in a smear, with some overlaps and gaps."""
    size = stains.shape[1]
    pitch, shake, mean_radius = rng.uniform((19, 4, 7.5), (23, 7, 9.0)) * size / 224
    kept, mean_pallor, mean_stain = rng.uniform((0.5, 0.4, 0.6), (0.8, 0.8, 0.9))
    means = np.array([mean_radius, mean_pallor, mean_stain])
    grid = np.mgrid[0 : size + pitch : pitch, 0 : size + pitch : pitch].reshape(2, -1).T
    for x, y in (grid + rng.normal(0, shake, grid.shape))[rng.random(len(grid)) < kept].tolist():
        radius, pallor, stain = (means * rng.uniform(0.85, 1.15, 3)).tolist()
        where, disc, distance, _ = _blob(rng, stains, x, y, radius, 0.05)
        stains[0][where] += stain * disc * (1 - pallor * np.exp(-((distance / (0.6 * radius)) ** 2)))


def _draw_platelets(rng: np.random.Generator, stains: Floats) -> None:
    for x, y in rng.uniform(0, stains.shape[1], (rng.integers(0, 7), 2)).tolist():
        where, speck, _, _ = _blob(rng, stains, x, y, rng.uniform(1.5, 3) * stains.shape[1] / 224, 0.1)
        stains[1][where] += rng.uniform(0.2, 0.5) * speck


def _draw_white_cells(rng: np.random.Generator, stains: Floats, look: Look) -> None:
    """White cells of the class, in front of everything else; one that would lie on another is left out."""
    size = stains.shape[1]
    taken: list[tuple[float, float, float]] = []
    for x, y in rng.uniform(0, size, (rng.integers(*look.cells, endpoint=True), 2)).tolist():
        radius = rng.uniform(*look.radius) * size / 224
        if all(np.hypot(x - a, y - b) > 0.95 * (radius + r) for a, b, r in taken):
            taken.append((x, y, radius))
            _draw_white_cell(rng, stains, look, x, y, radius)


def _draw_white_cell(rng: np.random.Generator, stains: Floats, look: Look, x: float, y: float, radius: float) -> None:
    where, cell, _, _ = _blob(rng, stains, x, y, radius, 0.04)
    stains[:, *where] *= 1 - cell
    stains[2][where] += rng.uniform(0.7, 1.1) * cell

    inner = radius * rng.uniform(*look.nucleus)
    x, y = rng.normal((x, y), 0.35 * (radius - inner))  # off centre, so that the rim is wider on one side
    where, nucleus, distance, angle = _blob(rng, stains, x, y, inner, rng.uniform(*look.outline))
    grid = [length * 100 // stains.shape[1] + 2 for length in distance.shape]  # a clump in 2.24 pixels of 224
    coarse = rng.standard_normal(grid, np.float32)
    clumps = np.asarray(Image.fromarray(coarse).resize(distance.shape[::-1], Image.Resampling.BICUBIC))
    chromatin = rng.uniform(*look.density) * (1 + rng.uniform(*look.texture) * clumps)
    chromatin *= 0.9 + 0.2 * (distance / inner) ** 4  # the membrane stains darker than the middle
    for _ in range(rng.integers(*look.nucleoli, endpoint=True)):
        out, turn = rng.uniform(0, 0.55) * inner, rng.uniform(0, 2 * np.pi)
        apart = distance**2 + out**2 - 2 * out * distance * np.cos(angle - turn)  # squared, law of cosines
        chromatin *= 1 - 0.5 * np.exp(-apart / (0.22 * inner) ** 2)
    stains[:, *where] *= 1 - 0.7 * nucleus
    stains[1][where] += chromatin * nucleus


def _expose(rng: np.random.Generator, stains: Floats) -> npt.NDArray[np.uint8]:
    """Stains to pixels, with a staining strength, lamp colour and sensor noise drawn whatever the class."""
    mauve = rng.uniform(0, 1)
    colours = np.array([(1 - mauve) * PINK_CELL + mauve * MAUVE_CELL, CHROMATIN, CYTOPLASM])
    colours *= rng.normal(1, 0.05, (3, 1)) * rng.normal(1, 0.03, 3)
    across = np.linspace(-1, 1, stains.shape[1])
    right, down = rng.uniform(-0.06, 0.06, 2)  # the lamp is never quite centred
    shade = 1 + right * across + down * across[:, None]
    shade += rng.uniform(0.005, 0.012) * rng.standard_normal(shade.shape)
    lamp = rng.uniform((242, 240, 230), (255, 254, 252)).astype(np.float32)[:, None, None]
    # Channels first until the last line: numpy is several times slower over an innermost axis of 3.
    light = np.exp(-np.tensordot(colours.T.astype(np.float32), stains, axes=1))
    light *= shade.astype(np.float32) * lamp
    return np.ascontiguousarray(np.moveaxis(np.clip(light, 0, 255).astype(np.uint8), 0, -1))


def _blob(
    rng: np.random.Generator, stains: Floats, x: float, y: float, radius: float, unevenness: float
) -> tuple[tuple[slice, slice], Floats, Floats, Floats]:
    """A round shape about (x, y) whose radius wavers with the angle.

    Returns the window of the image that it touches (empty if none) and, over that window, the coverage (0 to
    1, its edge 1.5 pixels wide), the distance from (x, y) in pixels, and the angle.
    """
    size, reach = stains.shape[1], radius * (1.05 + 2 * unevenness) + 1
    rows, columns = (slice(max(int(at - reach), 0), max(int(at + reach) + 2, 0)) for at in (y, x))
    dy = (np.arange(size, dtype=np.float32)[rows] - np.float32(y))[:, None]
    dx = np.arange(size, dtype=np.float32)[columns] - np.float32(x)
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    outline = np.full_like(angle, radius)
    for waves, share in ((2, 1.0), (3, 0.6), (5, 0.4)):
        height = radius * unevenness * share * rng.uniform(0.3, 1.3)
        outline += height * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    coverage: Floats = np.clip((outline - distance) / 1.5 + 0.5, 0, 1)
    return (rows, columns), coverage, distance, angle
