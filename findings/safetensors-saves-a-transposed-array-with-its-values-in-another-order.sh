#!/usr/bin/env bash
# safetensors 0.8.0 with NumPy: saving a transposed array writes its values in the wrong order, without a word.
#
# Seen: `save` and `save_file` of `array.T` keep the transposed shape and the memory order of the array before it was
#   transposed: [[0, 3], [1, 4], [2, 5]] is read back as [[0, 1], [2, 3], [4, 5]]. A classifier head that was computed as
#   `solution.T` loads with the right shape and other weights.
# One would have guessed: the array that was saved, or the error that `safetensors.torch` raises for tensors that are not
#   contiguous.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, load_file, save, save_file

head = np.arange(6, dtype=np.float32).reshape(2, 3).T
save_file({"head": head}, "model.safetensors")
read, in_memory = load_file("model.safetensors")["head"], load(save({"head": head}))["head"]
print("saved  ", head.tolist())
print("loaded ", read.tolist())
assert read.shape == head.shape and read.tolist() == in_memory.tolist() == [[0, 1], [2, 3], [4, 5]], "mended"
whole = load(save({"head": np.ascontiguousarray(head)}))["head"]
assert whole.tolist() == head.tolist()  # the way around it
PYTHON
echo "as described"
