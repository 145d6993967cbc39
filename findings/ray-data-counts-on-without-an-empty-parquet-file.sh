#!/usr/bin/env bash
# Ray Data 2.60.0: `read_parquet` of a folder in which one file has no bytes, such as a writer that died leaves behind,
# reads the others and goes on.
#
# Seen: 20 rows of 30 planned ones, and one WARNING in the driver's log ("Skipping zero-size file"), which a job that logs
#   errors alone does not show. A file that is cut off after some bytes does end the read with an error, and so does the
#   empty file for Arrow (on which Ray Data rests) and for DuckDB.
# One would have guessed: an error in every case, since an empty file is no Parquet file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[data]==2.60.0' pyarrow==26.0.1 duckdb==2.0.1
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_BACKEND_LOG_LEVEL=fatal
"$folder/venv/bin/python" - "$folder/rows" <<'PYTHON'
import logging
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray

logging.getLogger("ray.data").setLevel(logging.WARNING)
folder = Path(sys.argv[1])
folder.mkdir()
for number in range(3):
    pq.write_table(pa.table({"row": range(10)}), folder / f"{number}.parquet")
whole, middle = (folder / "0.parquet").read_bytes(), folder / "1.parquet"
readers = {
    "Ray Data": lambda: ray.data.read_parquet(str(folder)).count(),
    "Arrow": lambda: pyarrow.dataset.dataset(str(folder), format="parquet").count_rows(),
    "DuckDB": lambda: duckdb.connect().execute(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchone()[0],
}
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
found = {}
for state, data in {"whole": whole, "cut off": whole[:100], "empty": b""}.items():
    middle.write_bytes(data)
    for name, read in readers.items():
        try:
            found[state, name] = str(read())
        except Exception as error:
            found[state, name] = type(error).__name__
        print(f"{state:8} {name:9} {found[state, name]}")
rows = {key for key, value in found.items() if value.isdigit()}
assert {found["whole", name] for name in readers} == {"30"}
assert found["empty", "Ray Data"] == "20", "Ray Data does otherwise now"
assert rows == {("whole", name) for name in readers} | {("empty", "Ray Data")}
PYTHON
echo "as described"
