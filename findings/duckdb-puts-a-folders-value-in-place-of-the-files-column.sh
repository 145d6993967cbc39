#!/usr/bin/env bash
# DuckDB 2.0.1: where a folder above Parquet files is called KEY=VALUE and the files have a column KEY, its values are
# not those of the files: every row gets VALUE. Polars 2.1.0 reads such files rightly, but not a partitioned Delta table
# (deltalake 1.6.6) below such a folder, which has nothing to do with it.
#
# Seen: of rows with the status `scored` and `crashed` in archive/status=done/rows.parquet, DuckDB says `done` twice,
#   without a word; with hive_partitioning = false, what was written. PyArrow, pandas and Polars say what was written.
#   `polars.read_delta` of a table at archive/status=done/table that is partitioned by another column ends with
#   SchemaFieldNotFoundError ("path contains column not present in the given Hive schema"), though a Delta table's
#   partitions stand in its log, and the folder is above its root; one that is not partitioned is read.
# One would have guessed: that what a file itself says of a row goes before what its folders are called, or an error;
#   and that nothing above the root of a table is part of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet duckdb==2.0.1 polars==2.1.0 deltalake==1.6.6 pyarrow==26.0.1 pandas
"$folder/venv/bin/python" - "$folder/archive/status=done" <<'PYTHON'
import sys
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
rows = pa.table({"status": ["scored", "crashed"], "run": [1, 1]})
pq.write_table(rows, folder / "rows.parquet")
write_deltalake(str(folder / "table"), rows, partition_by=["run"])
write_deltalake(str(folder / "whole"), rows)


def in_duckdb(options):
    found = duckdb.sql(f"SELECT status FROM read_parquet('{folder}/rows.parquet'{options})").fetchall()
    return [status for (status,) in found]


readers = {
    "PyArrow": lambda: pq.read_table(folder / "rows.parquet")["status"].to_pylist(),
    "pandas": lambda: pandas.read_parquet(folder / "rows.parquet")["status"].tolist(),
    "Polars": lambda: polars.read_parquet(folder / "rows.parquet")["status"].to_list(),
    "DuckDB": lambda: in_duckdb(""),
    "DuckDB, hive_partitioning = false": lambda: in_duckdb(", hive_partitioning = false"),
    "deltalake": lambda: DeltaTable(str(folder / "table")).to_pyarrow_table()["status"].to_pylist(),
    "Polars, Delta": lambda: polars.read_delta(str(folder / "table"))["status"].to_list(),
    "Polars, Delta without partitions": lambda: polars.read_delta(str(folder / "whole"))["status"].to_list(),
}
found = {}
for name, read in readers.items():
    try:
        found[name] = read()
    except Exception as error:
        found[name] = type(error).__name__
    print(f"{name:34} {found[name]}")
odd = {"DuckDB": ["done", "done"], "Polars, Delta": "SchemaFieldNotFoundError"}
written = {name: ["scored", "crashed"] for name in readers.keys() - odd.keys()}
assert found == odd | written, "it is otherwise now"
PYTHON
echo "as described"
