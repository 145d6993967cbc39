#!/usr/bin/env bash
# simplejpeg 1.9.0: `decode_jpeg_header` raises KeyError for a JPEG with 4:4:1 chroma sampling, which `decode_jpeg` reads.
#
# 4:4:1 is what a 4:1:1 picture becomes when it is turned by 90 degrees without loss, as jpegtran and cameras' own
# software do. Here it is made from a picture of one colour, whose blocks are the same either way: the sampling factors
# 4x1 in the header become 1x4.
#
# Seen: KeyError: 6, the number of the sampling in libjpeg-turbo; `decode_jpeg` and Pillow give the right pixels.
# One would have guessed: a header like that of the other samplings, or a ValueError, which the function raises for all
#   that is no JPEG, so that a caller who catches ValueError is safe.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet simplejpeg==1.9.0 imagecodecs==2026.3.6 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image

COLOUR = np.array([200, 120, 181], np.uint8)
picture = np.zeros((64, 64, 3), np.uint8) + COLOUR
upright = imagecodecs.jpeg8_encode(picture, subsampling="411", level=90)
sampling = upright.index(b"\xff\xc0") + 11  # of the first component, in the frame header
assert upright[sampling] == 0x41
turned = upright[:sampling] + b"\x14" + upright[sampling + 1 :]
for pixels in (simplejpeg.decode_jpeg(turned), np.asarray(Image.open(io.BytesIO(turned)))):
    assert pixels.shape == (64, 64, 3) and (np.abs(pixels.astype(int) - COLOUR) <= 1).all()
print("4:1:1:", simplejpeg.decode_jpeg_header(upright))
try:
    simplejpeg.decode_jpeg_header(b"no JPEG")
except ValueError as error:
    print("no JPEG: ValueError:", error)
try:
    print("4:4:1:", simplejpeg.decode_jpeg_header(turned))
except KeyError as error:
    print("4:4:1: KeyError:", error)
else:
    raise SystemExit("simplejpeg reads it now")
PYTHON
echo "as described"
