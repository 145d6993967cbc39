#!/usr/bin/env bash
# OpenCV (opencv-python-headless 5.0.0.93): `imdecode` of a TIFF whose strips are compressed with JPEG 2000 or JPEG XL, as
# slide scanners and archives write them, returns a picture that is black everywhere.
#
# Seen: an array of the right shape, all zeros, and a line on standard error ("strip decoding is not implemented"), which
#   nothing in the program sees. For WebP, Zstandard and LERC, which it cannot decode either, it returns None.
# One would have guessed: None in every case, which is how `imdecode` says that it cannot read something.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
import tifffile

COLOUR = (200, 120, 181)
picture = np.zeros((64, 64, 3), np.uint8) + np.array(COLOUR, np.uint8)
found = {}
for compression in ("deflate", "jpeg2000", "jpegxl", "webp", "zstd", "lerc"):
    sink = io.BytesIO()
    tifffile.imwrite(sink, picture, photometric="rgb", compression=compression)
    sink.seek(0)
    assert (tifffile.imread(sink) == picture).all()  # the file is sound, and lossless
    pixels = cv2.imdecode(np.frombuffer(sink.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    found[compression] = "None" if pixels is None else str(np.unique(pixels.reshape(-1, 3), axis=0).tolist())
    print(f"{compression:9} {found[compression]}", flush=True)
assert found["deflate"] == "[[181, 120, 200]]"  # blue, green, red
assert found["jpeg2000"] == found["jpegxl"] == "[[0, 0, 0]]", "OpenCV does otherwise now"
assert found["webp"] == found["zstd"] == found["lerc"] == "None", "OpenCV does otherwise now"
PYTHON
echo "as described"
