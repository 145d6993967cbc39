#!/usr/bin/env bash
# tifffile 2026.3.3, Pillow 13.0.0 and OpenCV 5.0.0.93: a TIFF that tifffile writes with PackBits and horizontal differences
# (compression="packbits", predictor=2) has its Predictor tag; tifffile reads it back, Pillow and OpenCV show the differences.
#
# Seen: of an even ramp all columns but the first have one value, the step of the ramp, without a warning. The same picture by
#   LZW or Deflate with differences, and by PackBits without, is right in all three readers.
# One would have guessed: who reads the tag for two compressions reads it for the third, or says that it does not; or tifffile
#   refuses to write what TIFF 6.0 describes for LZW alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cd "$folder"
venv/bin/pip install --quiet pillow==13.0.0 opencv-python-headless==5.0.0.93 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import cv2
import numpy as np
import tifffile
from PIL import Image

STEP = 3
ramp = np.zeros((16, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[None, :, None] * np.uint8(STEP)
readers = {
    "tifffile": tifffile.imread,
    "Pillow": lambda path: np.asarray(Image.open(path)),
    "OpenCV": lambda path: cv2.imread(path)[..., ::-1],
}
right = set()
for compression in ("packbits", "lzw", "deflate"):
    for predictor in (2, None):
        path = f"{compression}-{predictor}.tif"
        tifffile.imwrite(path, ramp, photometric="rgb", compression=compression, predictor=predictor, metadata=None)
        for name, read in readers.items():
            pixels = read(path)
            right |= {(compression, predictor, name)} if np.array_equal(pixels, ramp) else set()
            print(f"{compression:8} {'differences' if predictor else 'plain':11} {name:8} first row {pixels[0, :5, 0].tolist()}")
            if (compression, predictor, name) not in right:
                assert (pixels[:, 1:] == STEP).all(), "not the differences either"
wrong = {(c, p, n) for c in ("packbits", "lzw", "deflate") for p in (2, None) for n in readers} - right
assert wrong == {("packbits", 2, "Pillow"), ("packbits", 2, "OpenCV")}, f"read otherwise now: {wrong}"
PYTHON
echo "as described"
