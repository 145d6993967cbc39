"""The network on a GPU: few kernels, half precision where that is exact enough, one launch a batch."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bcd_ray.engine import Outputs, Tensors, folded, mobilenet_v2
from bcd_ray.errors import JobError
from bcd_ray.images import SIZE, Pixels


class CudaEngine:
    """`engine.Engine` on the GPU that this process was given: convolutions in half precision, the rest in float32.

    It computes one batch at a time: the processes that share a GPU keep it busy, and each batch takes GPU memory. JPEGs
    are decoded on CPUs: the decoder of an H200 is faster than 16 cores, but 1.4 grey levels off, 71 at most. A network
    by torch.compile computes twice as many images, more than 16 cores decode, but takes a C compiler and 17 s to make.
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
        torch.backends.cudnn.benchmark = True
        # Kept: the graph reads its weights where they lie.
        self._network = FoldedNetwork(tensors, preprocessing, torch.device("cuda"), torch.float16)
        self._one_at_a_time = Lock()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Blocking: else a thread that waits keeps a core busy.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._pixels = torch.zeros((self.chunk, SIZE, SIZE, 3), dtype=torch.uint8, pin_memory=True)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._on_gpu = self._pixels.cuda()
            for _ in range(3):  # cuDNN finds the fastest algorithms
                self._network(self._on_gpu)
            self._graph = torch.cuda.CUDAGraph()  # launched one by one, small batches wait for their kernels
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._outputs = self._network(self._on_gpu)
            self._results = [torch.empty(each.shape, pin_memory=True) for each in self._outputs]
        self._stream.synchronize()

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`."""
        parts = [self._infer_some(images[start : start + self.chunk]) for start in range(0, len(images), self.chunk)]
        return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))

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


class FoldedNetwork:
    """The network with every BatchNorm folded into its convolution, and the scaling of pixels into the first.

    Called with (n, 224, 224, 3) uint8 on `device`, it gives embeddings (n, 1280) and logits (n, 4), float32. Images
    stay in the order of their bytes, in which a convolution of 1x1 is a matrix product that adds its bias as it goes:
    added by a kernel of their own, as torch does after a convolution, biases took 40 % of the time on an H200.
    """

    def __init__(
        self, tensors: Tensors, preprocessing: Mapping[str, Any], device: torch.device, convolutions: torch.dtype
    ) -> None:
        def put(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.from_numpy(np.array(values, np.float32)).to(device, dtype)

        self._same = preprocessing["padding"] == "same"
        self._mean, std = put(preprocessing["mean"], convolutions), np.array(preprocessing["std"], np.float32)
        self._head = put(tensors["head.weight"]), put(tensors["head.bias"])
        self._layers = dict[str, tuple[torch.Tensor, torch.Tensor]]()

        def load(value: None, convolution: str, norm: str, stride: int = 1, clamp: bool = True) -> None:
            weight, bias = folded(tensors, convolution, norm)
            if convolution == "features.0.0":
                weight = weight / std[:, None, None]
            if weight.shape[-1] == 1:
                weight = weight[:, :, 0, 0]
            layer = put(weight, convolutions)
            if layer.dim() == 4:
                layer = layer.to(memory_format=torch.channels_last)
            self._layers[convolution] = layer, put(bias, convolutions)

        mobilenet_v2(None, load, lambda shortcut, value: None)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = mobilenet_v2(images.to(self._mean.dtype) - self._mean, self._convolve, torch.add)
        embeddings = value.float().mean((1, 2))
        return embeddings, functional.linear(embeddings, *self._head)

    def _convolve(
        self, value: torch.Tensor, convolution: str, norm: str, stride: int = 1, clamp: bool = True
    ) -> torch.Tensor:
        weight, bias = self._layers[convolution]
        if weight.dim() == 2:
            result = functional.linear(value, weight, bias)
        else:
            channels_first = value.permute(0, 3, 1, 2)
            if self._same and stride == 2:  # TensorFlow's SAME pads stride 2 below and right alone
                channels_first, padding = functional.pad(channels_first, (0, 1, 0, 1)), 0
            else:
                padding = 1
            groups = 1 if weight.shape[1] == 3 else len(weight)
            result = functional.conv2d(channels_first, weight, bias, stride, padding, groups=groups)
            result = result.permute(0, 2, 3, 1)
        return functional.hardtanh_(result, 0.0, 6.0) if clamp else result
