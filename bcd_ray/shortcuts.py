"""Images reduced to what should not give their class away: if a head on these does well, the data hold a shortcut.

Each is a view of its own to the frozen backbone and the cache, so that shortcut and model are measured by one path
(R. Geirhos et al., "Shortcut learning in deep neural networks", Nature Machine Intelligence 2, 2020).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from bcd_ray.images import Pixels

_CORNER = 3 / 14  # share of the side: 48 of 224 pixels, which hold the scale bar
_UNSTAINED = 0.93  # of the background's green is let through where there is no cell
_MARGIN = 9  # side in pixels of the square about each stained pixel that is blanked with it


def background_colour(pixels: Pixels) -> Pixels:
    """The whole image in the one colour of its background."""
    return np.broadcast_to(_background(pixels), pixels.shape).copy()


def corners(pixels: Pixels) -> Pixels:
    """The four corners, moved together and enlarged to the image's size."""
    height, width = pixels.shape[:2]
    down, right = round(_CORNER * height), round(_CORNER * width)
    rows = np.r_[0:down, height - down : height]
    columns = np.r_[0:right, width - right : width]
    together = Image.fromarray(np.ascontiguousarray(pixels[np.ix_(rows, columns)]))
    return np.asarray(together.resize((width, height), Image.Resampling.BILINEAR))


def cells_blanked(pixels: Pixels) -> Pixels:
    """The image with everything stained, white cells, red cells and platelets, in the colour of the background."""
    background = _background(pixels)
    stained = Image.fromarray((pixels[..., 1] < _UNSTAINED * background[1]).astype(np.uint8) * 255)
    cells = np.asarray(stained.filter(ImageFilter.MaxFilter(_MARGIN))) > 0
    return np.where(cells[..., None], background, pixels).astype(np.uint8)


SHORTCUTS: dict[str, Callable[[Pixels], Pixels]] = {
    "background_colour": background_colour,
    "corners": corners,
    "cells_blanked": cells_blanked,
}


def _background(pixels: Pixels) -> Pixels:
    """(3,) the median colour of the quarter that is brightest in green, which stain takes up most."""
    green = pixels[..., 1]
    colour: Pixels = np.median(pixels[green >= np.percentile(green, 75)], axis=0).astype(np.uint8)
    return colour
