"""What enters every row is held: where a change of code moves these numbers, raise the version that the test names.

The versions stand in a run's identity and in the cache's key, so that rows and embeddings of two kinds never mix.
"""

import numpy as np
import pytest

from bcd_ray.archives.images import Pixels
from bcd_ray.model import quality, triage
from bcd_ray.model.bundle import Representation, pretrained
from bcd_ray.model.choice import open_on_cpus
from bcd_ray.model.network import NETWORK_VERSION
from bcd_ray.model.quality import MEASURES

_PLACES = np.arange(224)


def picture(scale: int) -> Pixels:
    """(224, 224, 3) uint8 of waves, made by integers alone: the same on every machine."""
    values = (_PLACES[:, None, None] * scale + _PLACES[None, :, None] ** 2 // (scale + 3) + np.arange(3) * 60) % 256
    return values.astype(np.uint8)


def field(cells: int) -> Pixels:
    """(224, 224, 3) uint8: dark discs with a nucleus on a light ground, drawn by integers alone."""
    drawn = np.empty((224, 224, 3), np.uint8)
    drawn[:] = (225, 225 - 10 * cells, 220)
    for number, (y, x) in enumerate(((60, 70), (150, 160), (60, 180))[:cells]):
        radius = 22 + 3 * number
        for distance, colour in ((radius, (90 + 10 * number, 40, 140)), (radius // 2, (60, 20, 110 - 10 * number))):
            drawn[(_PLACES[:, None] - y) ** 2 + (_PLACES[None, :] - x) ** 2 < distance**2] = colour
    return drawn


@pytest.mark.parametrize("representation", ["field", "both"])
def test_the_network_embeds_as_by_its_version(representation: Representation) -> None:
    found = open_on_cpus(pretrained("keras", representation), threads=1).infer([field(2), field(3)]).embeddings
    shadows = found @ np.cos(np.arange(found.shape[1])[:, None] * np.array([0.1, 0.7, 1.9]))
    held = {
        1: {
            "field": [[-7.212, 6.6801, -10.0721], [-13.0941, 9.1023, -0.1925]],
            "both": [[-1.4049, 2.111, -0.2525], [-1.1018, 1.7795, -0.3983]],
        }
    }
    np.testing.assert_allclose(shadows, held[NETWORK_VERSION][representation], rtol=2e-3, atol=2e-3)


def test_quality_is_measured_as_by_its_version() -> None:
    found = quality.measure([picture(scale) for scale in (0, 1, 7)])
    held = {
        2: [
            [10.508154, 124.849701, 0.0401786, 74.852104, 0.0617751, 5.148739],
            [10.286787, 127.835037, 0.0159439, 74.119759, 0.0625143, 5.213930],
            [9.967723, 128.071854, 0.0145089, 73.947731, 0.0719696, 5.213163],
        ]
    }
    np.testing.assert_allclose(found, held[quality.QUALITY_VERSION], rtol=1e-4)


def test_triage_decides_as_by_its_version() -> None:
    settings = {
        "temperature": 1.5,
        "certainty": 0.35,
        "distance": 2.0,
        "quality": {name: [None, 0.5] if name == "clipped" else [None, None] for name in MEASURES},
    }
    distances = np.array([[1.0, 2, 3, 4], [1, 1.1, 3, 4], [2, 1, 3, 4], [9, 9.5, 9, 9.2]])
    logits = np.array([[4.0, 0, 0, 1], [1, 0.9, 0, 0], [3, 0, 0, 0], [5, 0, 0, 0]])
    measures = np.array([[1.0, 2, 0.1, 4, 0, 0, 0], [1, 2, 0.9, 4, 0, 0, 0], *[[1, 2, 0.1, 4, 0, 0, 0]] * 2])
    decisions = triage.decide(settings, distances, logits, measures)
    names = [[], ["low_confidence", "poor_quality"], ["low_confidence", "conflicting_evidence"]]
    held = {
        1: (
            [*names, ["low_confidence", "out_of_distribution"]],
            [0.3923716, 0.0306883, 0, 0],
            [0.5, 0.5, 0.5, 4.5],
            [0.7847432, 0.3375708, 0.7112346, 0.9033244],
        )
    }
    reasons, certainty, ood_score, benign = held[triage.TRIAGE_VERSION]
    assert decisions.reason_names() == reasons
    np.testing.assert_allclose(decisions.certainty, certainty, rtol=1e-5)
    np.testing.assert_allclose(decisions.ood_score, ood_score, rtol=1e-5)
    np.testing.assert_allclose(decisions.probabilities[:, 0], benign, rtol=1e-5)
