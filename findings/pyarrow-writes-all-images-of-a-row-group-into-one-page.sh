#!/usr/bin/env bash
# pyarrow 26.0.1: a page of a Parquet file is to have 1 MB by default (`data_page_size`), but is closed only where a batch of
# `write_batch_size` values ends, by default 1,024: all images of a row group lie in one page.
#
# Seen: 128 values of 1 MB make one page of 128 MB. A reader must hold a page whole, so that to read the first image alone,
#   by `iter_batches(batch_size=1)` with a buffer of 1 MB, takes 257 MB at its most. Written with `write_batch_size=1` the same
#   images make 128 pages, and the first is read with 3 MB. `data_page_size`, given by hand, changes nothing.
# One would have guessed: pages of 1 MB, an image each, and that a reader which asks for one row holds some MB. A shard of
#   ten thousand images in one row group is read only by a machine that holds a thousand of them twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
cat >"$folder/write.py" <<'PYTHON'
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

path, options = sys.argv[1], {name: int(value) for name, value in (each.split("=") for each in sys.argv[2:])}
table = pa.table({"image": [os.urandom(1 << 20) for _ in range(128)]})
pq.write_table(table, path, compression="none", use_dictionary=False, write_page_index=True, **options)
PYTHON
cat >"$folder/read.py" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

batch = next(pq.ParquetFile(sys.argv[1], buffer_size=1 << 20, pre_buffer=False).iter_batches(batch_size=1))
assert len(batch) == 1
print(pa.default_memory_pool().max_memory() >> 20)
PYTHON
measure() {
    "$folder/venv/bin/python" "$folder/write.py" "$folder/images.parquet" "$@"
    "$folder/venv/bin/python" "$folder/read.py" "$folder/images.parquet"
}
by_default=$(measure) by_size=$(measure data_page_size=1048576) one_by_one=$(measure write_batch_size=1)
echo "MB at most to read one of 128 images of 1 MB: $by_default; with data_page_size $by_size; with write_batch_size=1 $one_by_one"
[ "$one_by_one" -lt 16 ]
[ "$by_default" -gt 128 ] && [ "$by_size" -gt 128 ] || { echo "pyarrow does otherwise now" >&2; exit 1; }
echo "as described"
