#!/usr/bin/env bash
# OpenVINO 2026.4.1: a compiled model whose input is uint8 takes arrays of other types and converts them without a word.
#
# Seen: an image scaled to 0..1, as most pipelines hand it on, arrives as zeros and a few ones; 300.0 arrives as 44, and
#   int64 1000 as 232. No error, no warning; the answer of a classifier is then the same for every image.
# One would have guessed: an error about the element type, as there is one about the shape, or at least values that are
#   clipped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6
HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import openvino
from openvino import opset13 as ops

pixels = ops.parameter([1, 4], np.uint8)
model = openvino.compile_model(openvino.Model([ops.convert(pixels, "f32")], [pixels], "as it arrives"), "CPU")


def arrives(values, kind):
    return model([np.array([values], kind)])[0][0].tolist()


scaled = arrives([0.0, 0.5, 0.99, 1.7], np.float32)
large = arrives([300.0, 255.9, 128.0, 1.0], np.float32)
whole = arrives([1000, 2, 3, 4], np.int64)
print("0.0 0.5 0.99 1.7 arrive as", scaled)
print("300.0 255.9 128.0 1.0 arrive as", large)
print("int64 1000 2 3 4 arrive as", whole)
try:
    model([np.zeros((1, 5), np.uint8)])
except RuntimeError as error:
    print("another shape:", str(error).strip().splitlines()[-1][:100])
else:
    raise AssertionError("another shape is taken too")
assert scaled == [0, 0, 0, 1] and large == [44, 255, 128, 1] and whole == [232, 2, 3, 4], "OpenVINO does otherwise now"
PYTHON
echo "as described"
