"""The network on a GPU: few kernels, half precision where that is exact enough, one launch a batch."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bcd_ray.archives.images import SIZE, Pixels
from bcd_ray.errors import JobError
from bcd_ray.model.backbones import mobilenet_v2
from bcd_ray.model.engines.base import Outputs
from bcd_ray.model.network import Tensors, folded
from bcd_ray.model.quality import NEARLY_WHITE, RESIDUE, STEP


class CudaEngine:
    """`base.Engine` on the GPU that this process was given: convolutions in half precision, the rest in float32.

    It computes one batch at a time: the processes that share a GPU keep it busy, and each batch takes GPU memory. JPEGs
    are decoded on CPUs: the decoder of an H200 is faster than 16 cores, but 1.4 grey levels off, 71 at most. A network
    by torch.compile is 1.5 times as fast, which 16 cores cannot feed, but takes a C compiler and 17 s to make.
    """

    chunk = 64

    def __init__(self, tensors: Tensors, preprocessing: Mapping[str, Any]) -> None:
        """Put the network on the GPU.

        Raises:
            JobError: the GPU cannot be used, or has not the memory.
        """
        try:
            self._load(tensors, preprocessing)
        except RuntimeError as error:  # also of what torch raises where memory is out
            what = str(error).partition("\n")[0][:200]
            raise JobError(
                f"no network on the GPU ({what}): see to its driver, and whether others hold its memory, or use "
                "--engine openvino"
            ) from None  # what comes first in a traceback is what the job tells

    def _load(self, tensors: Tensors, preprocessing: Mapping[str, Any]) -> None:
        # Trying all algorithms makes it 1.5 % faster, takes 2.4 s, and may choose others in another process.
        torch.backends.cudnn.benchmark = False
        # Kept: the graph reads its weights where they lie.
        self._network = FoldedNetwork(tensors, preprocessing, torch.device("cuda"), torch.float16)
        self._one_at_a_time = Lock()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Blocking: else a thread that waits keeps a core busy.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._pixels = torch.zeros((self.chunk, SIZE, SIZE, 3), dtype=torch.uint8, pin_memory=True)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._on_gpu = self._pixels.cuda()
            for _ in range(3):  # libraries load and choose what they need, which no graph may hold
                self._compute()
            self._graph = torch.cuda.CUDAGraph()  # launched one by one, small batches wait for their kernels
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._outputs = self._compute()
            self._results = [torch.empty(each.shape, pin_memory=True) for each in self._outputs]
        self._stream.synchronize()

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        parts = [self._infer_some(images[start : start + self.chunk]) for start in range(0, len(images), self.chunk)]
        return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _compute(self) -> tuple[torch.Tensor, ...]:
        return *self._network(self._on_gpu), measure(self._on_gpu)

    def _infer_some(self, images: Sequence[Pixels]) -> Outputs:
        with self._one_at_a_time, torch.inference_mode(), torch.cuda.stream(self._stream):
            np.stack(images, out=self._pixels.numpy()[: len(images)])
            self._on_gpu.copy_(self._pixels, non_blocking=True)
            self._graph.replay()
            for result, output in zip(self._results, self._outputs, strict=True):
                result.copy_(output, non_blocking=True)
            self._done.record()
            self._done.synchronize()
            return Outputs(*(result.numpy()[: len(images)].copy() for result in self._results))


def measure(images: torch.Tensor) -> torch.Tensor:
    """`quality.measure` of images (n, 224, 224, 3) uint8 where they are: on CPUs it was a sixth of an image's cost.

    It gives (n, 6) float32, the same numbers but for rounding.
    """
    rows = images[:, 1:-1:STEP].int()
    values = rows.shape[1] * SIZE
    sums, squares, white = (each.sum((1, 2)) for each in (rows, rows * rows, rows >= NEARLY_WHITE))
    # In whole numbers: torch multiplies by 1 / n on a GPU, and would find a contrast of 1e-6 where there is none.
    deviations = (values * squares - sums * sums).double().sqrt() / values
    green = images[..., 1].int()
    here, above, below = (green[:, first : SIZE - 2 + first : STEP] for first in (1, 0, 2))
    beside, middle = above + below, here[..., 1:-1]
    cross = here[..., 2:] + here[..., :-2] + beside[..., 1:-1]
    focus = (cross - 4 * middle).double().var((1, 2), correction=0).clamp(min=1e-3).log()
    residues = (beside[..., 2:] + beside[..., :-2] - 2 * cross + 4 * middle).abs().flatten(1)
    colour = (rows[..., ::2] - rows[..., 1:2]).abs().sum((1, 2, 3)).double().div(values).clamp(min=1e-3).log()
    brightness, clipped = sums.double().mean(1) / values, white.amax(1).double() / values
    found = [focus, brightness, clipped, deviations.amax(1), _noise(residues), colour]
    return torch.stack(found, 1).float()


def _noise(residues: torch.Tensor) -> torch.Tensor:
    """(n,) as in `quality`, of residues (n, k)."""
    half = residues.shape[1] / 2
    middle = residues.sort(1).values[:, residues.shape[1] // 2 :][:, :1]
    below, here = (residues < middle).sum(1).double(), (residues == middle).sum(1).double()
    least, width = (middle[:, 0] - 0.5).clamp(min=0), (middle[:, 0] > 0).double() / 2 + 0.5
    return (least + width * (half - below) / here) / RESIDUE


class FoldedNetwork:
    """The network with every BatchNorm folded into its convolution, and the scaling of pixels into the first.

    Called with (n, 224, 224, 3) uint8 on `device`, it gives embeddings (n, 1280) and logits (n, 4), float32. Images
    stay in the order of their bytes, in which a convolution of 1x1 is a matrix product that adds its bias as it goes:
    added by a kernel of their own, as torch does after a convolution, biases took 40 % of the time on an H200. The
    first convolution has its bias as the weights of a fourth colour that is 1 everywhere. What TensorFlow's SAME pads
    is padded where it is small: on the raw pixels, and before the product that makes six channels of each.
    """

    def __init__(
        self, tensors: Tensors, preprocessing: Mapping[str, Any], device: torch.device, convolutions: torch.dtype
    ) -> None:
        def put(values: Any, dtype: torch.dtype = convolutions) -> torch.Tensor:
            return torch.from_numpy(np.array(values, np.float32)).to(device, dtype)

        self._same = preprocessing["padding"] == "same"
        self._mean, std = put(preprocessing["mean"]), np.array(preprocessing["std"], np.float32)
        self._head = put(tensors["head.weight"], torch.float32), put(tensors["head.bias"], torch.float32)
        self._layers = dict[str, tuple[torch.Tensor, torch.Tensor | None]]()
        self._padded = set[str]()
        last = ""

        def load(value: None, convolution: str, norm: str, stride: int = 1, clamp: bool = True) -> None:
            nonlocal last
            weight, bias = folded(tensors, convolution, norm)
            if weight.shape[-1] == 1:
                self._layers[convolution] = put(weight[:, :, 0, 0]), put(bias)
            elif weight.shape[1] == 3:
                ones = np.zeros_like(weight[:, :1])
                centre = 0 if self._same else 1
                ones[:, 0, centre, centre] = bias
                weight = np.concatenate([weight / std[:, None, None], ones], axis=1)
                self._layers[convolution] = put(weight).to(memory_format=torch.channels_last), None
            else:
                self._layers[convolution] = put(weight).to(memory_format=torch.channels_last), put(bias)
                if self._same and stride == 2:
                    self._padded.add(last)
            last = convolution

        mobilenet_v2(None, load, lambda shortcut, value: None)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        beyond = 1 if self._same else 0  # TensorFlow's SAME pads stride 2 below and right alone
        value = self._mean.new_zeros(len(images), SIZE + beyond, SIZE + beyond, 4)
        inside = value[:, :SIZE, :SIZE]
        torch.sub(images, self._mean, out=inside[..., :3])
        inside[..., 3] = 1
        value = mobilenet_v2(value, self._convolve, torch.add)
        embeddings = value.mean((1, 2), dtype=torch.float32)
        return embeddings, functional.linear(embeddings, *self._head)

    def _convolve(
        self, value: torch.Tensor, convolution: str, norm: str, stride: int = 1, clamp: bool = True
    ) -> torch.Tensor:
        weight, bias = self._layers[convolution]
        if weight.dim() == 2:
            padded = convolution in self._padded
            if padded:
                value = functional.pad(value, (0, 0, 0, 1, 0, 1))
            result = functional.linear(value, weight, bias)
            if clamp:
                functional.hardtanh_(result, 0.0, 6.0)
            if padded:  # where the bias and the clamp made other values of the zeros
                result[:, -1] = 0
                result[:, :, -1] = 0
            return result
        padding = 0 if self._same and stride == 2 else 1
        groups = 1 if bias is None else len(weight)
        result = functional.conv2d(value.permute(0, 3, 1, 2), weight, bias, stride, padding, groups=groups)
        return functional.hardtanh_(result.permute(0, 2, 3, 1), 0.0, 6.0)
