"""Augmentation in stain space: how much of each stain there is varies, as from one day's staining to another's.

Colours are taken apart into stains by optical density (Ruifrok and Johnston, "Quantification of histochemical staining
by color deconvolution", Analytical and Quantitative Cytology and Histology 23, 2001, whose matrix of haematoxylin,
eosin and DAB is used), and the amounts scaled and shifted as in Tellez et al., "Quantifying the effects of data
augmentation and stain color normalization", Medical Image Analysis 58, 2019, by their lighter range.
"""

import hashlib

import numpy as np

from bcd_ray.archives.images import Pixels
from bcd_ray.learning.config import STAINED

_JITTER = 0.05
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_APART = np.linalg.inv(_STAINS).astype(np.float32)
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def restained(pixels: Pixels, image_key: str, number: str) -> Pixels:
    """(H, W, 3) in other amounts of stain: a pure function of image and view, as `augmentation.Augmenter`."""
    digest = hashlib.sha256(f"{image_key}/{STAINED}{number}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(digest, np.uint32))
    scale, shift = random.uniform(-_JITTER, _JITTER, (2, 3)).astype(np.float32)
    # amounts * (1 + scale) + shift, back in densities, as one product
    mixed = _APART @ (_STAINS * (1 + scale)[:, None])
    density = _DENSITY[pixels] @ mixed + shift @ _STAINS
    found: Pixels = np.clip(256 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)
    return found
