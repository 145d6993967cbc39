#!/usr/bin/env bash
# Pillow 13.0.0 and tifffile 2026.3.3: an uncompressed 16-bit RGB TIFF whose colours lie in separate planes
# (PlanarConfiguration 2, as microscope software writes it) opens without a word and with wrong pixels.
#
# Seen: every plane of one value comes out as stripes of two: the low and the high byte of each sample stand beside each
#   other as if they were two pixels, so that a row of the file fills two rows and the lower half of the picture is lost.
#   The same picture interleaved, or deflated in separate planes, is right: the high byte of each sample.
# One would have guessed: the same pixels whatever the layout and compression, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import tifffile
from PIL import Image

COLOURS = (60000, 30000, 10000)  # 234, 117 and 39 in their high bytes
picture = np.zeros((64, 64, 3), np.uint16) + np.array(COLOURS, np.uint16)
found = {}
for planes in ("contig", "separate"):
    for compression in (None, "deflate"):
        sink = io.BytesIO()
        samples = picture if planes == "contig" else picture.transpose(2, 0, 1)
        tifffile.imwrite(sink, samples, photometric="rgb", planarconfig=planes, compression=compression)
        sink.seek(0)
        assert (tifffile.imread(sink).reshape(-1)[:1] == COLOURS[0]).all()  # the file itself is sound
        values = np.asarray(Image.open(sink))
        found[planes, compression] = [np.unique(values[..., colour]).tolist() for colour in range(3)]
        print(f"{planes:8} {compression or 'raw':7} red, green, blue hold {found[planes, compression]}")
rows = np.arange(64 * 64, dtype="<u2").reshape(64, 64)
sink = io.BytesIO()
tifffile.imwrite(sink, np.stack([rows] * 3), photometric="rgb", planarconfig="separate")
red = np.asarray(Image.open(sink))[..., 0].tobytes()
assert red == rows.tobytes()[: 64 * 64], "not the bytes of the upper half"
right = [[234], [117], [39]]
assert found["contig", None] == found["contig", "deflate"] == found["separate", "deflate"] == right
assert found["separate", None] == [[96, 234], [48, 117], [16, 39]], "Pillow reads it otherwise now"
PYTHON
echo "as described"
