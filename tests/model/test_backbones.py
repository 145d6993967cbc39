"""Every backbone of the registry gives, in OpenVINO, what torch gives; its weights are pinned."""

from dataclasses import replace

import numpy as np
import pytest

from bcd_ray.errors import JobError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.backbones import BACKBONES
from bcd_ray.model.cells import CROP, find_cells
from bcd_ray.model.engines.cells import Part
from bcd_ray.model.engines.openvino import Requests, openvino_stages
from bcd_ray.model.engines.torch import TorchStages


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [CROP, 224])
def test_stages_are_those_of_torch(name: str, size: int) -> None:
    backbone = BACKBONES[name]
    tensors = backbone.weights()
    found = [find_cells(draw_smear(number % 4, number)) for number in range(3)]
    images = [crop for cells in found for crop in cells.crops()] if size == CROP else [c.grey[..., None] for c in found]
    expected = TorchStages(tensors, backbone)(images)
    part = Part("crops", backbone, size, batch=4, of_one=1)
    (means,) = Requests(openvino_stages(tensors, part), threads=1).run(images)
    assert means.shape == expected.shape == (len(images), sum(backbone.widths))
    assert np.abs(means - expected).max() < 1e-3 * np.abs(expected).max()
    assert (
        np.linalg.norm(expected - expected.mean(axis=0), axis=1).min() > 0.01 * np.linalg.norm(expected, axis=1).min()
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_other_weights_are_refused(name: str) -> None:
    with pytest.raises(JobError, match="are not those of this release: install bcd_ray again"):
        replace(BACKBONES[name], sha256="0" * 64).weights()
