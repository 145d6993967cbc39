"""Every backbone of the registry gives, in OpenVINO, what torch gives; its weights are pinned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from bcd_ray.errors import JobError
from bcd_ray.learning.synthetic import draw_smear
from bcd_ray.model.backbones import BACKBONES
from bcd_ray.model.cells import CROP, find_cells
from bcd_ray.model.engines.cells import Part
from bcd_ray.model.engines.openvino import Requests, openvino_stages
from bcd_ray.model.engines.torch import TorchStages, Walked, as_torch


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
def test_gradients_reach_norms_that_are_folded_into_their_convolutions(name: str) -> None:
    backbone, random = BACKBONES[name], torch.Generator().manual_seed(0)
    tensors = as_torch(backbone.weights())
    ((convolution, norm), *_) = backbone.layers(backbone.last, backbone.last)
    trained = [tensors[each].requires_grad_() for each in (f"{convolution}.weight", f"{norm}.weight", f"{norm}.bias")]
    maps = torch.randn((2, trained[0].shape[1], 7, 7), generator=random)
    mean, variance = (tensors[f"{norm}.running_{each}"] for each in ("mean", "var"))
    plain = functional.batch_norm(
        functional.conv2d(maps, trained[0]), mean, variance, trained[1], trained[2], eps=backbone.epsilon
    )
    folded = Walked(tensors, backbone, "same")(maps, first=backbone.last)
    torch.testing.assert_close(folded, functional.relu6(plain), atol=1e-4, rtol=1e-4)
    for found, expected in zip(
        torch.autograd.grad(folded.square().sum(), trained),
        torch.autograd.grad(functional.relu6(plain).square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", BACKBONES)
def test_other_weights_are_refused(name: str) -> None:
    with pytest.raises(JobError, match="are not those of this release: install bcd_ray again"):
        replace(BACKBONES[name], sha256="0" * 64).weights()
